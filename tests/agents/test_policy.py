"""What happens when a record cannot be processed, in the four forms of ``on_error``."""

# ruff: noqa: PERF401, PT012  # a stream is no list, and an app ends with its block

from __future__ import annotations

from typing import Any

import pytest

import millstream as ms
from millstream.agents import Policy, policy_of
from millstream.errors import AgentError, ConfigurationError, SettingError
from millstream.testing import TestApp
from tests.kit import Order, append, continued, counting

AMOUNTS = (1.0, 2.0, -3.0, 4.0, -5.0)


def ada(*amounts: float) -> list[Order]:
    return [Order("ada", amount) for amount in amounts]


@pytest.mark.parametrize(
    ("written", "policy"),
    [
        ("stop", Policy()),
        ("skip", Policy(action="skip")),
        ("dlq", Policy(action="dlq")),
        (ms.Dlq("dead"), Policy(action="dlq", topic="dead")),
        (ms.Retry(), Policy(retries=3, backoff_s=1.0, max_backoff_s=60.0)),
        (
            ms.Retry(times=1, backoff="10ms", max_backoff=2, then="skip"),
            Policy("skip", None, 1, 0.01, 2.0),
        ),
        (ms.Retry(then=ms.Dlq("dead")), Policy("dlq", "dead", 3, 1.0, 60.0)),
        (Policy(action="skip"), Policy(action="skip")),
    ],
)
def test_policy_of(written: Any, policy: Policy) -> None:
    """What users write comes down to an action after so many retries."""
    assert policy_of(written) == policy


@pytest.mark.parametrize("wrong", ["ignore", 5, None, ValueError])
def test_wrong_policies(wrong: Any) -> None:
    """Anything else is refused, with the forms that there are."""
    with pytest.raises(
        SettingError, match=r'none of "stop", "skip", "dlq", Dlq\(topic\) and Retry'
    ):
        policy_of(wrong)


def test_wrong_retries() -> None:
    """A retry has at least one attempt, and durations."""
    with pytest.raises(SettingError, match="at least 1"):
        ms.Retry(times=0)
    with pytest.raises(ConfigurationError, match=r"Retry\(backoff=\): 'soon' is not a duration"):
        ms.Retry(backoff="soon")


def test_delays() -> None:
    """The back-off doubles up to its bound."""
    policy = policy_of(ms.Retry(times=99, backoff="1s", max_backoff="10s"))
    assert [policy.delay_s(n) for n in (1, 2, 3, 4, 5, 99)] == [1, 2, 4, 8, 10, 10]


async def test_stop() -> None:
    """The worker stops at the record and says which; what was committed stays, nothing after it is."""
    app, orders, totals = counting()
    t = TestApp(app)
    with pytest.raises(AgentError) as raised:
        async with t:
            await t.send(orders, Order("ada", 1.0))
            await t.send_many(orders, ada(-3.0, 4.0))
    error = raised.value
    assert error.record is not None
    assert error.record.endswith("@1")
    assert (error.key, error.where) == ("ada", "agent 'count'")
    assert error.line is not None
    assert "kit.py:" in error.line
    assert "ValueError: negative" in str(error)
    assert f"millstream skip {error.record}" in str(error)
    mended, orders, totals = counting(on_error="skip")
    async with continued(mended, t) as t:
        assert t.table(totals) == {"ada": 5.0}


async def test_skip() -> None:
    """Skipped events are undone as if they had not run, and counted."""
    app, orders, totals = counting(on_error="skip")
    async with TestApp(app) as t:
        await t.send_many(orders, ada(*AMOUNTS))
        assert t.table(totals) == {"ada": 7.0}
        assert sum(s.counters["events_skipped"] for s in t.worker.shards.values()) == 2


async def test_undo() -> None:
    """A skipped event's sends and its changes of values in place are undone as well."""
    app = ms.App("undo", on_error="skip", partitions=1)
    orders = app.topic("orders", value=Order, key_from="account")
    out = app.topic("out", value=float)
    lists = app.table("lists", key=str, value=list[float], default=list)

    @app.agent(orders)
    async def note(stream: ms.Stream[Order]) -> None:
        async for order in stream:
            lists[order.account].append(order.amount)
            await out.send(order.amount)
            if order.amount < 0:
                del lists["ada"]
                lists["bob"] = [0.0]
                raise ValueError("negative")

    async with TestApp(app) as t:
        await t.send_many(orders, ada(*AMOUNTS))
        assert t.table(lists) == {"ada": [1.0, 2.0, 4.0]}
        assert t.sent(out) == [1.0, 2.0, 4.0]


async def test_dead_letters() -> None:
    """A dead letter is the original record, with headers that say where it came from and why."""
    app, orders, totals = counting(on_error="dlq", partitions=1)
    dead = app.topic("shop-dlq", value=Order, partitions=1)
    seen: list[ms.Event[Order]] = []

    @app.agent(dead, on_error="stop")
    async def note(stream: ms.Stream[Order]) -> None:
        async for event in stream.events():
            seen.append(event)

    async with TestApp(app) as t:
        at = await t.send(orders, Order("ada", -3.0), timestamp=77, headers={"trace": "7"})
        assert t.table(totals) == {}
    (letter,) = seen
    headers = dict(letter.headers)
    assert (letter.key, letter.value, letter.timestamp) == ("ada", Order("ada", -3.0), 77)
    assert headers["trace"] == b"7"
    assert headers["__streams.errors.exception"] == b"builtins.ValueError"
    assert headers["__streams.errors.message"] == b"negative"
    assert headers["__streams.errors.topic"] == b"orders"
    assert headers["__streams.errors.partition"] == str(at.partition).encode()
    assert headers["__streams.errors.offset"] == b"0"
    assert b"kit.py" in (headers["__streams.errors.stacktrace"] or b"")


async def test_dead_letters_elsewhere() -> None:
    """A dead-letter topic may be named."""
    app, orders, _ = counting(on_error=ms.Dlq("dead"))
    dead = app.topic("dead", value=Order, partitions=1)
    async with TestApp(app) as t:
        await t.send(orders, Order("ada", -3.0))
        assert t.sent(dead) == [Order("ada", -3.0)]


async def test_retry() -> None:
    """A failed event is tried again after its back-off, and the records behind it wait."""
    app, orders, totals = counting(
        on_error=ms.Retry(times=2, backoff="1s", max_backoff="1m", then="skip"), partitions=1
    )
    async with TestApp(app) as t:
        await t.send_many(orders, ada(1.0, 2.0, -3.0, 4.0))
        assert t.table(totals) == {"ada": 3.0}
        await t.advance("1s")
        assert t.table(totals) == {"ada": 3.0}
        await t.advance("2s")
        assert t.table(totals) == {"ada": 7.0}


async def test_retry_that_works() -> None:
    """An event that works at the second attempt counts once."""
    app = ms.App("retry", partitions=1, on_error=ms.Retry(times=1, backoff="1s"))
    orders = app.topic("orders", value=Order, key_from="account")
    totals = app.table("totals", key=str, value=float, default=0.0)
    tries = 0

    @app.agent(orders)
    async def count(stream: ms.Stream[Order]) -> None:
        nonlocal tries
        async for order in stream:
            totals[order.account] += order.amount
            tries += 1
            if tries == 1:
                raise OSError("away")

    async with TestApp(app) as t:
        await t.send_many(orders, ada(1.0, 2.0))
        await t.advance("1s")
        assert t.table(totals) == {"ada": 3.0}
    assert tries == 3


async def test_agents_start_again() -> None:
    """After a failure the agent function starts anew, and its local variables are lost."""
    app = ms.App("anew", partitions=1, on_error="skip")
    numbers = app.topic("numbers", value=int)
    out = app.topic("out", value=int)

    @app.agent(numbers)
    async def count(stream: ms.Stream[int]) -> None:
        seen = 0
        async for number in stream:
            seen += 1
            await out.send(seen, partition=0)
            if number < 0:
                raise ValueError("negative")

    async with TestApp(app) as t:
        await t.send_many(numbers, [1, 1, -1, 1])
        assert t.sent(out) == [1, 2, 1]


@pytest.mark.parametrize("level", ["app", "topic", "agent"])
async def test_levels(level: str) -> None:
    """The agent's policy comes before the topic's, and that before the app's."""
    levels = ["app", "topic", "agent"]
    policies = {
        name: "skip" if name == level else "stop" for name in levels[: levels.index(level) + 1]
    }
    app = ms.App("levels", on_error=policies["app"])
    numbers = app.topic("numbers", value=int, on_error=policies.get("topic"))  # type: ignore[arg-type]
    seen: list[int] = []

    @app.agent(numbers, on_error=policies.get("agent"))  # type: ignore[arg-type]
    async def fail(stream: ms.Stream[int]) -> None:
        async for number in stream:
            seen.append(number)
            if number < 0:
                raise ValueError("negative")

    async with TestApp(app) as t:
        await t.send(numbers, -1, partition=0)
        await t.send(numbers, 1, partition=0)
    assert seen == [-1, 1]


async def test_each_topic_has_its_own_policy() -> None:
    """An agent over two topics follows the policy of the topic whose record has failed."""
    app = ms.App("each", partitions=1)
    loose = app.topic("loose", value=int, on_error="skip")
    strict = app.topic("strict", value=int)

    @app.agent(loose, strict)
    async def fail(stream: ms.Stream[int]) -> None:
        async for number in stream:
            if number < 0:
                raise ValueError("negative")

    with pytest.raises(AgentError, match="strict/0@0"):
        async with TestApp(app) as t:
            await t.send(loose, -1)
            await t.send(strict, -1)


@pytest.mark.parametrize("then", ["skip", "dlq", "stop"])
async def test_a_value_that_does_not_decode_is_retried(then: Any) -> None:
    """A value that does not decode goes through its retries, then to what comes after them."""
    app, _, totals = counting(on_error=ms.Retry(times=2, backoff="1s", then=then))
    dead = app.topic("shop-dlq", value=str, codec="str", partitions=1)
    raised: AgentError | None = None
    try:
        async with TestApp(app) as t:
            await append(
                t, "orders", b"nonsense", b'{"account":"ada","amount":1}', key=b"ada", partition=1
            )
            assert t.table(totals) == {}
            await t.advance("3s")
            assert t.table(totals) == {"ada": 1.0}
            assert t.sent(dead) == (["nonsense"] if then == "dlq" else [])
    except AgentError as exc:
        raised = exc
    assert (raised is not None) == (then == "stop")


async def test_catching_does_not_hide_what_stops_the_worker() -> None:
    """An agent that catches everything cannot go past a value that does not decode."""
    app = ms.App("careless")
    orders = app.topic("orders", value=Order)

    @app.agent(orders)
    async def careless(stream: ms.Stream[Order]) -> None:
        try:
            async for _ in stream:
                pass
        except Exception:
            pass

    with pytest.raises(AgentError, match="the value is not Order"):
        async with TestApp(app) as t:
            await append(t, "orders", b"nonsense", key=b"ada", partition=1)
