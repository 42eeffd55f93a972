"""Several workers: any of them answers for any key, over real connections."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from millstream.errors import (
    BadQueryError,
    NotHereError,
    QueryError,
    UnavailableError,
    UnknownTableError,
)
from millstream.tables._query import (
    Changes,
    Page,
    Peer,
    Read,
)
from millstream.tables._view import View
from millstream.web import Cluster, build_web
from millstream.web import _cluster as cluster_module
from millstream.web._wire import error_of
from tests.web.memory import (
    SHARDS,
    TABLES,
    MemoryFacts,
    MemoryTables,
    RunningApp,
    keys_of,
    pair,
    tell_peers,
)
from tests.web.test_live import events

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

DEADLINE_S = 15.0


@pytest.fixture
async def workers() -> AsyncIterator[tuple[RunningApp, RunningApp]]:
    """Two workers that own two shards each."""
    async with asyncio.timeout(DEADLINE_S), pair() as found:
        yield found


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    """A client."""
    async with httpx.AsyncClient() as client:
        yield client


async def test_any_worker_answers_for_any_key(
    workers: tuple[RunningApp, RunningApp], http: httpx.AsyncClient
) -> None:
    """A worker asks the owner, and hands on the answer with the owner's position."""
    one, other = workers
    [key] = keys_of([2, 3], 1)
    other.tables.put("totals", key, 4.5)
    answers = [
        (await http.get(f"{app.served.url}/tables/totals/keys/{key}")).json() for app in workers
    ]
    assert answers[0] == answers[1]
    assert answers[0]["value"] == 4.5
    assert len(answers[0]["position"]) == 1
    assert not one.tables.asked
    missing = await http.get(f"{one.served.url}/tables/totals/keys/{key}-not")
    assert missing.json()["type"] == "urn:millstream:no-such-key"


async def test_a_copy_answers_those_who_are_content_with_it(
    workers: tuple[RunningApp, RunningApp], http: httpx.AsyncClient
) -> None:
    """The one that is here, if it is not too old for them; else the owner, whose answer is current."""
    one, other = workers
    one.tables.copied = {2: 900, 3: 900}
    tell_peers(workers)
    [key] = keys_of([2, 3], 1)
    other.tables.put("totals", key, 4.5)
    url = f"{one.served.url}/tables/totals/keys/{key}"
    answer = (await http.get(url, params={"stale": "5s"})).json()
    assert (answer["value"], answer["stale_ms"]) == (4.5, 900)
    assert not other.tables.asked
    for terms in ({"stale": "500ms"}, {}):
        answer = (await http.get(url, params=terms)).json()
        assert answer["value"] == 4.5
        assert "stale_ms" not in answer
    assert len(other.tables.asked) == 2


async def test_copies_answer_for_an_owner_that_does_not(
    workers: tuple[RunningApp, RunningApp],
    http: httpx.AsyncClient,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Wherever they are; pages too. Who wants a current answer is told that there is none."""
    one, other = workers
    one.tables.owned = {0, 1}
    other.tables.owned, other.tables.copied = set(), {2: 10, 3: 20}
    tell_peers(workers)
    gone = Peer(
        member="worker-3",
        url="http://127.0.0.1:9",
        shards=frozenset({(SHARDS, 2), (SHARDS, 3)}),
    )
    for app in workers:
        app.tables.members.append(gone)
    for number in range(SHARDS):
        [key] = keys_of([number], 1)
        other.tables.put("totals", key, 4.5)
        answer = await http.get(
            f"{one.served.url}/tables/totals/keys/{key}", params={"stale": "5s"}
        )
        assert answer.json()["value"] == 4.5
        assert answer.json().get("stale_ms") == other.tables.copied.get(number)
    page = (await http.get(f"{one.served.url}/tables/totals", params={"stale": "5s"})).json()
    assert len(page["rows"]) == SHARDS
    assert page["stale_ms"] == 20
    [key] = keys_of([2], 1)
    monkeypatch.setattr(cluster_module, "OWNER_WAIT_S", 0.2)  # which is all that is left to do
    refused = await http.get(f"{one.served.url}/tables/totals/keys/{key}")
    assert refused.status_code == 503


async def test_a_page_is_merged_over_workers(
    workers: tuple[RunningApp, RunningApp], http: httpx.AsyncClient
) -> None:
    """Rows of all workers come in key order, page after page."""
    one, other = workers
    keys = sorted([*keys_of([0, 1], 20), *keys_of([2, 3], 20)])
    for key in keys:
        (one if key in keys_of([0, 1], 20) else other).tables.put("totals", key, 1.0)
    found: list[str] = []
    after = ""
    while True:
        url = f"{other.served.url}/tables/totals?limit=7{after}"
        page = (await http.get(url)).json()
        found += [row["key"] for row in page["rows"]]
        assert len(page["position"]) == SHARDS
        if page["next"] is None:
            break
        after = f"&after={page['next']}"
    assert found == keys


async def test_changes_of_all_workers(
    workers: tuple[RunningApp, RunningApp], http: httpx.AsyncClient
) -> None:
    """Who follows at one worker sees what the other commits."""
    one, other = workers
    here, there = keys_of([0, 1], 1)[0], keys_of([2, 3], 1)[0]
    async with http.stream("GET", f"{one.served.url}/tables/totals/changes") as answer:
        found = events(answer)
        assert (await anext(found))[0] == "ready"
        one.tables.put("totals", here, 1.0)
        assert (await anext(found))[1]["key"] == here
        other.tables.put("totals", there, 2.0)
        assert (await anext(found))[1] == {"key": there, "value": 2.0}


async def test_a_worker_that_stops_while_it_is_followed(
    workers: tuple[RunningApp, RunningApp], http: httpx.AsyncClient
) -> None:
    """The stream goes on without it; when it is back, it is said that changes may be missing."""
    one, other = workers
    async with http.stream("GET", f"{one.served.url}/tables/totals/changes") as answer:
        found = events(answer)
        await anext(found)
        other.web.state.closing.close()
        one.tables.put("totals", keys_of([0], 1)[0], 1.0)
        assert (await anext(found))[0] == "message"
        other.web.state.closing.closed = False
        assert (await anext(found))[0] == "missed"


async def test_a_shard_that_has_moved(
    workers: tuple[RunningApp, RunningApp], http: httpx.AsyncClient
) -> None:
    """A worker with an old notion of the owner asks again until the group has settled."""
    one, other = workers
    [key] = keys_of([2], 1)
    one.tables.put("totals", key, 9.0)
    other.tables.owned.discard(2)
    one.tables.owned.add(2)
    asking = asyncio.create_task(http.get(f"{one.served.url}/tables/totals/keys/{key}"))
    await other.tables.until(lambda: other.tables.asked)
    tell_peers(workers)
    assert (await asking).json()["value"] == 9.0


async def test_two_workers_that_are_wrong_about_each_other(
    workers: tuple[RunningApp, RunningApp],
    http: httpx.AsyncClient,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A question does not go round: a worker that is asked by another one answers for itself alone."""
    monkeypatch.setattr(cluster_module, "OWNER_WAIT_S", 0.1)
    one, other = workers
    [key] = keys_of([0], 1)
    other.tables.members = [
        Peer(member="1", url=one.served.url, shards=frozenset([(SHARDS, 0)])),
        Peer(member="2", url=other.served.url, shards=frozenset(), here=True),
    ]
    one.tables.owned.clear()
    answer = await http.get(f"{other.served.url}/tables/totals/keys/{key}")
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "1"
    assert "Shard 0 is elsewhere" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("http://127.0.0.1:9", "does not answer (ConnectError)"),
        ("", "serves no HTTP"),
        (None, "No worker owns shard"),
    ],
)
async def test_nobody_answers(monkeypatch: pytest.MonkeyPatch, url: str | None, says: str) -> None:
    """Without an owner the answer is 503, for a key and for a page, and says why."""
    monkeypatch.setattr(cluster_module, "OWNER_WAIT_S", 0.1)
    tables = MemoryTables([0, 1])
    mine = frozenset([(SHARDS, 0), (SHARDS, 1)])
    tables.members = [Peer(member="1", url="", shards=mine, here=True)]
    if url is not None:
        others = frozenset([(SHARDS, 2), (SHARDS, 3)])
        tables.members.append(Peer(member="2", url=url, shards=others))
    async with Cluster(tables) as cluster:
        transport = httpx.ASGITransport(build_web(cluster, MemoryFacts(), cluster=cluster))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            for path in (f"/tables/totals/keys/{keys_of([2], 1)[0]}", "/tables/totals"):
                answer = await client.get(path)
                assert answer.status_code == 503
                assert answer.json()["type"] == "urn:millstream:unavailable"
                assert says in answer.json()["detail"]
            missing = await client.get(f"/tables/totals/keys/{keys_of([0], 1)[0]}")
            assert missing.status_code == 404


async def test_the_workers_of_the_group(
    workers: tuple[RunningApp, RunningApp], http: httpx.AsyncClient
) -> None:
    """Each worker tells of itself; one that does not answer is listed with the reason."""
    one, other = workers
    url = f"{one.served.url}/workers"
    rows = (await http.get(url)).json()["rows"]
    assert [row["member"] for row in rows] == ["worker-1", "worker-2"]
    assert rows[0]["here"] is True
    assert rows[1]["commits"] == 3
    one.tables.members[1] = Peer(
        member="worker-2", url="http://127.0.0.1:9", shards=frozenset([(SHARDS, 3)])
    )
    rows = (await http.get(url)).json()["rows"]
    assert "does not answer" in rows[1]["error"]
    assert rows[1]["shards"] == [{"count": SHARDS, "number": 3}]
    page = await http.get(url, headers={"Accept": "text/html"})
    assert "does not answer" in page.text
    del other


async def test_errors_of_the_owner_are_those_of_the_answer(
    workers: tuple[RunningApp, RunningApp], http: httpx.AsyncClient
) -> None:
    """What the owner refuses, the worker that was asked refuses in the same words."""
    one, other = workers

    async def refuse(read: Read) -> Page:
        raise BadQueryError("at_least=payments/0: behind a repartition.")

    other.tables.read = refuse  # type: ignore[method-assign]
    [key] = keys_of([3], 1)
    answer = await http.get(f"{one.served.url}/tables/totals/keys/{key}?at_least=payments/0@1")
    assert answer.status_code == 400
    assert "behind a repartition" in answer.json()["detail"]


async def test_what_workers_send_one_another_is_checked(
    workers: tuple[RunningApp, RunningApp], http: httpx.AsyncClient
) -> None:
    """A question that is none is refused, and so is a table that the other version lacks."""
    url = f"{workers[0].served.url}/internal/v1"
    answer = await http.post(f"{url}/read", content=b"\xff")
    assert isinstance(error_of(answer.content), BadQueryError)
    answer = await http.get(f"{url}/changes/nope")
    assert isinstance(error_of(answer.content), UnknownTableError)
    assert isinstance(error_of(b"<html>"), UnavailableError)
    assert isinstance(error_of(b'{"error":"NotHereError","detail":"moved"}'), NotHereError)


async def test_an_error_while_following_reaches_the_follower(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """When following fails here, whoever follows is told."""
    monkeypatch.setattr(cluster_module, "READY_TIMEOUT_S", 0.2)

    class Refusing(MemoryTables):
        async def changes(self, table: str, key: bytes | None = None) -> AsyncIterator[Any]:
            raise UnavailableError("Too many follow.")
            yield

    async with Cluster(Refusing()) as cluster, asyncio.timeout(DEADLINE_S):
        stream = cluster.changes("totals")
        with pytest.raises(QueryError, match="Too many follow"):
            async for _ in stream:
                pass
        await stream.aclose()  # type: ignore[attr-defined]


async def test_following_ends_with_all_its_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who stops waits for what follows a worker that has gone, too, however long that takes to end."""
    tables, gone, ended = MemoryTables(), asyncio.Event(), asyncio.Event()
    tables.members = [Peer(member="there", url="http://there", shards=frozenset())]

    class Slow(Cluster):
        async def follow_peer(self, url: str, table: str, key: bytes | None) -> AsyncIterator[Any]:
            try:
                yield Changes(changes=[])
                await asyncio.Event().wait()
            finally:
                gone.set()
                await asyncio.sleep(0.05)
                ended.set()

    monkeypatch.setattr(cluster_module, "PEERS_INTERVAL_S", 0.01)
    async with Slow(tables) as cluster, asyncio.timeout(DEADLINE_S):
        stream = cluster.changes("totals")
        await anext(stream)
        tables.members = []
        await gone.wait()
        await stream.aclose()  # type: ignore[attr-defined]
        assert ended.is_set()


async def test_a_view_over_the_cluster(workers: tuple[RunningApp, RunningApp]) -> None:
    """A view in one process reads keys of the other, with values as Python objects."""
    one, other = workers
    mine, theirs = keys_of([0], 1)[0], keys_of([3], 1)[0]
    one.tables.put("totals", mine, 1.0)
    other.tables.put("totals", theirs, 2.0)
    view: View[str, float] = View(TABLES["totals"], one.cluster)
    assert await view.get(theirs) == 2.0
    assert dict([pair async for pair in view.items()]) == {mine: 1.0, theirs: 2.0}
    async with contextlib.aclosing(view.changes(theirs)) as changes:  # type: ignore[type-var]
        waiting = asyncio.ensure_future(anext(changes))
        await other.tables.until(lambda: other.tables.followers)
        other.tables.put("totals", theirs, 3.0)
        assert (await waiting).value == 3.0
