"""Whole workers on a real broker: from the command line to the answer, and what becomes of their state."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import time
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any

import pytest
from kio.schema.list_transactions.v0 import ListTransactionsRequest, ListTransactionsResponse

import millstream as ms
from millstream.errors import ConfigurationError, PartitionCountError, TopologyError
from millstream.records import TopicPartition
from millstream.transports.base import TopicSpec
from millstream.transports.kafka import KafkaTransport
from millstream.transports.kafka._address import parse_url
from millstream.transports.kafka._cluster import Access, Cluster
from millstream.worker import _worker
from tests.brokers import Program, Record, unique
from tests.cli.terminal import Running, Terminal, children_of, poll
from tests.integration.counting import gained

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from millstream.app._runtime import Runtime
    from tests.brokers import Cluster as Brokers
    from tests.brokers import Kafka
    from tests.brokers.old import OldCluster

SESSION_S = 3
DEADLINE_S = 60.0
KEYS = [f"key-{number}" for number in range(30)]


# the command line


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Terminal]:
    """A terminal in an empty directory."""
    shell = Terminal(tmp_path)
    yield shell
    shell.close()


def test_the_first_ten_minutes(shell: Terminal, kafka: Kafka) -> None:
    """A new project on Kafka: worker, send, table, an answer over HTTP that kill -9 does not change, and the way out."""
    name = unique("shop")
    assert shell.run("new", name).returncode == 0
    shell.directory /= name
    app = next(shell.directory.rglob("app.py"))
    text = app.read_text()
    assert f'ms.App("{name}"' in text, text
    orders = unique("orders")
    text = text.replace(f'ms.App("{name}"', f'ms.App("{name}", broker="{kafka.url}"')
    assert '"orders"' in text, text
    app.write_text(text.replace('"orders"', f'"{orders}"'))

    worker, url = _start(shell)
    assert kafka.url in worker.output.splitlines()[0]
    sent = shell.run("send", orders, '{"account": "ada", "amount": 12.5}')
    assert sent.returncode == 0, sent.stderr
    _until_answered(shell, url, 12.5)

    for pid in [*children_of(worker.process.pid), worker.process.pid]:
        os.kill(pid, signal.SIGKILL)
    worker.wait()
    worker, url = _start(shell)
    _until_answered(shell, url, 12.5)
    code, took_s = worker.end()
    assert code == 0, worker.output
    assert took_s < 10
    assert json.loads(shell.run("groups", "--json").stdout)[0]["members"] == []


def test_workers_of_a_pod(tmp_path: Path, kafka: Kafka) -> None:
    """They are known by the pod's name and their number: on an empty disk too they go on with their transactional ids."""
    app_id = unique("pod")
    (tmp_path / "app.py").write_text(
        f"import millstream as ms\n\napp = ms.App({app_id!r}, partitions=2, web=False)\n"
        f"words = app.topic({unique('words')!r}, value=str)\n\n"
        "@app.agent(words)\nasync def read(stream):\n    async for word in stream:\n        pass\n"
    )
    pod = {
        "MILLSTREAM_BROKER": kafka.url,
        "KUBERNETES_SERVICE_HOST": "10.0.0.1",
        "HOSTNAME": "shop-2",
    }
    shell = Terminal(tmp_path, environment=pod)
    with contextlib.closing(shell):
        for _ in range(2):
            pair = shell.start("worker", "--processes", "2")
            pair.until("ready in", times=2)
            groups = json.loads(shell.run("groups", "--json").stdout)
            assert sorted(each["slot"] for each in groups[0]["members"]) == ["shop-2-1", "shop-2-2"]
            assert pair.end()[0] == 0
            shutil.rmtree(tmp_path / ".millstream")
    names = asyncio.run(_transactional_ids(kafka.url))
    assert [name for name in names if name.startswith(app_id)] == [
        f"{app_id}-shop-2-1",
        f"{app_id}-shop-2-2",
    ]


async def _transactional_ids(url: str) -> list[str]:
    """All that the brokers know of."""
    async with Cluster(Access(addresses=parse_url(url))) as cluster:
        found = [
            await cluster.send(
                node, ListTransactionsRequest(state_filters=()), ListTransactionsResponse
            )
            for node in list(cluster.nodes)
        ]
    return sorted(each.transactional_id for one in found for each in one.transaction_states)


def _start(shell: Terminal) -> tuple[Running, str]:
    worker = shell.start("worker")
    return worker, worker.until(r"ready in \d+\.\d s {4}(\S+) {4}")[1]


def _until_answered(shell: Terminal, url: str, amount: float) -> None:
    poll(
        lambda: shell.run("table", "totals", "ada").stdout == f"{amount}\n",
        what=f"millstream table prints {amount}",
        deadline_s=DEADLINE_S,
    )
    assert _get(f"{url}/tables/totals/keys/ada")["value"] == amount


def _get(url: str) -> Any:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with direct.open(url, timeout=5) as response:
        return json.loads(response.read())


# several processes


class Counting:
    """Worker processes of `tests.integration.counting`, and what they have counted."""

    def __init__(self, kafka: Kafka, folder: Path) -> None:
        self.kafka, self.folder = kafka, folder
        self.app, self.topic = unique("counting"), kafka.topic("words", partitions=6)
        self.workers: dict[str, Program] = {}
        self.written = 0

    async def start(self, name: str) -> Program:
        """A worker, on state of its own."""
        worker = self.workers[name] = Program(
            "tests.integration.counting",
            self.kafka.url,
            self.app,
            self.topic,
            str(self.folder / name),
            f"{SESSION_S}s",
            log=self.folder / f"{name}.log",
        )
        await asyncio.to_thread(worker.start)
        return worker

    async def write(self) -> None:
        """One word of each key."""
        words = [Record(key=key.encode(), value=f'"{key}"'.encode()) for key in KEYS]
        await asyncio.to_thread(self.kafka.write, self.topic, words, partitioner="murmur2")
        self.written += 1

    async def counted(self) -> None:
        """All that was written is counted, each word once and in order."""
        patience = time.monotonic() + DEADLINE_S
        while True:
            found = await asyncio.to_thread(self.kafka.read, f"{self.app}-totals")
            if len(found) >= self.written * len(KEYS):
                break
            assert time.monotonic() < patience, f"{len(found)} of {self.written * len(KEYS)}"
            await asyncio.sleep(0.1)
        by_key: dict[bytes | None, list[int]] = {}
        for record in found:
            by_key.setdefault(record.key, []).append(int(record.value or b""))
        wanted = list(range(1, self.written + 1))
        assert by_key == {key.encode(): wanted for key in KEYS}

    def end(self) -> None:
        """Kill what runs."""
        for worker in self.workers.values():
            worker.kill()


@pytest.fixture
def counting(kafka: Kafka, tmp_path: Path) -> Iterator[Counting]:
    """No worker yet."""
    counting = Counting(kafka, tmp_path)
    yield counting
    counting.end()


async def test_workers_come_and_go(counting: Counting) -> None:
    """One, two, three; one is killed, one asked to leave; the one that is left has counted everything once."""
    first = await counting.start("a")
    await counting.write()
    await counting.counted()
    second = await counting.start("b")
    await gained(second, 3)
    await counting.write()
    await counting.start("c")
    await counting.write()
    await counting.counted()
    second.kill()
    await counting.write()
    await counting.counted()
    assert first.pid is not None
    await counting.write()
    await counting.counted()


async def test_stopped_and_woken(counting: Counting) -> None:
    """A worker that was stopped for longer than its session cannot write, and works on when it is awake."""
    for name in "ab":
        await counting.start(name)
    await counting.write()
    await counting.counted()
    stopped = counting.workers["a"]
    stopped.pause()
    await counting.write()
    await counting.counted()  # the other one has taken over
    stopped.resume()
    for _ in range(3):
        await counting.write()
    await counting.counted()
    patience = time.monotonic() + DEADLINE_S
    while True:  # it has come back by itself, under another member id
        stopped.tell("how are you")
        found = await stopped.hear("report")
        if found["ready"] and len(found["owned"]) == 3:
            break
        assert time.monotonic() < patience, found
        await asyncio.sleep(0.1)
    await counting.write()
    await counting.counted()


# state


def counter(kafka: Kafka, app_id: str, topic: str, folder: Path, **settings: Any) -> ms.App:
    """An app that counts by key."""
    app = ms.App(
        app_id,
        broker=kafka.url,
        state_dir=folder,
        session_timeout=f"{SESSION_S}s",
        **{"slot": "one", "partitions": 2, "web": False, **settings},
    )
    words = app.topic(topic, key=str, value=str)
    counts = app.table("counts", key=str, value=int, default=0)

    @app.agent(words)
    async def count(stream: ms.Stream[str]) -> None:
        async for word in stream:
            counts[word] += 1

    return app


async def work(
    app: ms.App, wanted: dict[str, int], *, crash: bool = False
) -> tuple[int, dict[str, str]]:
    """Run a worker until its table is this; how many changelog records it replayed, and what it rebuilt."""
    async with app.running(worker=True, web=False):
        runtime: Runtime | None = app.runtime
        assert runtime is not None
        assert runtime.worker is not None
        worker = runtime.worker
        async with asyncio.timeout(DEADLINE_S):
            await worker.ready.wait()
            progress = worker.options.progress
            while await shown(runtime) != wanted:  # noqa: ASYNC110  nobody tells what a table holds
                await asyncio.sleep(0.05)
        if crash:
            worker.abandon()
    return progress.records_done, dict(progress.rebuilt)


async def shown(runtime: Runtime) -> dict[str, int]:
    """The table as queries see it; empty where its shards are not ready."""
    return {key: value async for key, value in runtime.questions().view("counts", None).items()}


async def test_workers_that_do_not_fit(kafka: Kafka, tmp_path: Path) -> None:
    """One with another program or guarantee is refused, and says why; the group goes on and counts each record once."""
    app_id, topic = unique("fitting"), kafka.topic("words", partitions=2)
    words = [Record(key=key.encode(), value=f'"{key}"'.encode()) for key in KEYS]
    other = counter(kafka, app_id, topic, tmp_path, slot="two")
    other.table("more", key=str, value=int)
    weaker = counter(
        kafka, app_id, topic, tmp_path, slot="two", processing_guarantee="at_least_once"
    )

    running = counter(kafka, app_id, topic, tmp_path)
    async with asyncio.timeout(DEADLINE_S), running.running(worker=True, web=False):
        runtime: Runtime | None = running.runtime
        assert runtime is not None
        assert runtime.worker is not None
        await runtime.worker.ready.wait()
        for app, why in (
            (other, r"another program runs under the same app id: .*table more"),
            (weaker, r"has processing_guarantee='at_least_once', and the others .* 'exactly_once'"),
        ):
            with pytest.raises(TopologyError, match=why):
                async with app.running(worker=True, web=False):
                    await asyncio.sleep(DEADLINE_S)
            await asyncio.to_thread(kafka.write, topic, words, partitioner="murmur2")
        while await shown(runtime) != dict.fromkeys(KEYS, 2):  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def test_state(kafka: Kafka, tmp_path: Path) -> None:
    """What is on the disk is used again; what is not there comes from the changelog; another topic's goes."""
    app_id, topic = unique("state"), kafka.topic("words", partitions=2)

    def app() -> ms.App:
        return counter(kafka, app_id, topic, tmp_path)

    def write(times: int) -> None:
        words = [Record(key=b"%d" % n, value=b'"%d"' % n) for n in range(20)] * times
        kafka.write(topic, words, partitioner="murmur2")

    wanted = {str(number): 50 for number in range(20)}
    write(50)
    assert await work(app(), wanted) == (0, {})
    # a planned restart: nothing of the tables, two ends of transactions at most for each
    replayed, rebuilt = await work(app(), wanted, crash=True)
    assert (replayed <= 4, rebuilt) == (True, {})
    # a crash: the tail
    write(1)
    wanted = {str(number): 51 for number in range(20)}
    replayed, rebuilt = await work(app(), wanted, crash=True)
    assert (replayed <= 8, rebuilt) == (True, {})
    # another disk: everything
    other = counter(kafka, app_id, topic, tmp_path / "empty")
    replayed, rebuilt = await work(other, wanted)
    assert replayed >= 20
    assert rebuilt == {}
    # another changelog of the same name: what is on the disk goes, and what is in the changelog counts
    changelog = f"{app_id}-counts-changelog"
    async with KafkaTransport(kafka.url) as transport:
        await transport.delete_topics([changelog])
        await transport.create_topics([TopicSpec(name=changelog, partitions=2, compacted=True)])
    _, rebuilt = await work(app(), {})
    assert set(rebuilt.values()) == {"other log"}


# topics


async def test_internal_topics(kafka_cluster: Brokers, tmp_path: Path) -> None:
    """Changelogs are compacted and kept, the topics of regrouping are deleted from; two of three brokers have each."""
    name, topic = unique("topics"), unique("words")
    app = counter(kafka_cluster, name, topic, tmp_path, replication=3)
    words = app.topics[topic]

    @app.agent(app.stream(words).group_by(lambda word: word, name="again"))
    async def again(stream: ms.Stream[str]) -> None:
        async for _ in stream:
            pass

    async with app.running(worker=True, web=False), KafkaTransport(kafka_cluster.url) as transport:
        infos = {key: info for key, info in (await transport.topics()).items() if name in key}
        configs = await asyncio.to_thread(settings_of, kafka_cluster, list(infos))
    (regrouped,) = [key for key in infos if key.endswith("-repartition")]
    changelog = f"{name}-counts-changelog"
    assert infos[changelog].compacted
    assert not infos[regrouped].compacted
    for key in (changelog, regrouped):
        assert infos[key].retention_ms is None
        assert configs[key]["min.insync.replicas"] == "2"
    assert configs[changelog]["cleanup.policy"] == "compact"
    assert configs[regrouped]["cleanup.policy"] == "delete"


async def test_what_was_regrouped_is_forgotten(
    kafka: Kafka, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log lets go of the records between two stages once they are processed, and of no others."""
    monkeypatch.setattr(_worker, "PURGE_INTERVAL_S", 0.2)
    name, topic = unique("passing"), kafka.topic("words", partitions=2)
    app = counter(kafka, name, topic, tmp_path)
    regrouped = app.table("regrouped", key=str, value=int, default=0)

    @app.agent(app.stream(app.topics[topic]).group_by(lambda word: word[:1], name="first"))
    async def first(stream: ms.Stream[str]) -> None:
        async for word in stream:
            regrouped[word[:1]] += 1

    words = [Record(key=key.encode(), value=f'"{key}"'.encode()) for key in KEYS]
    await asyncio.to_thread(kafka.write, topic, words, partitioner="murmur2")
    async with app.running(worker=True, web=False), KafkaTransport(kafka.url) as transport:
        between = (
            TopicPartition(f"{name}-first-repartition", 0),
            TopicPartition(f"{name}-first-repartition", 1),
        )
        async with asyncio.timeout(DEADLINE_S):
            while sum((await transport.start_offsets(between)).values()) < len(KEYS):  # noqa: ASYNC110  as above
                await asyncio.sleep(0.1)
        sources = [TopicPartition(topic, number) for number in range(2)]
        assert set((await transport.start_offsets(sources)).values()) == {0}
        runtime = app.runtime
        assert runtime is not None
        found = runtime.questions().view("regrouped", None)
        assert {key: value async for key, value in found.items()} == {"k": len(KEYS)}


def settings_of(kafka: Kafka, names: list[str]) -> dict[str, dict[str, str]]:
    """The settings of topics."""
    from confluent_kafka.admin import ConfigResource, ResourceType

    admin = kafka.admin()
    asked = admin.describe_configs([ConfigResource(ResourceType.TOPIC, name) for name in names])
    return {
        resource.name: {key: entry.value for key, entry in found.result(30).items()}
        for resource, found in asked.items()
    }


async def test_a_source_has_more_partitions_than_before(kafka: Kafka, tmp_path: Path) -> None:
    """Keys would be elsewhere than what is known of them: an error before the first event that says what to do."""
    app_id, topic = unique("grown"), kafka.topic("words", partitions=2)
    kafka.write(topic, [Record(key=b"a", value=b'"a"')], partitioner="murmur2")
    await work(counter(kafka, app_id, topic, tmp_path), {"a": 1})
    from confluent_kafka.admin import NewPartitions

    admin = kafka.admin()
    for done in admin.create_partitions([NewPartitions(topic, 3)]).values():
        done.result(30)
    with pytest.raises(PartitionCountError, match=r"counts.*3 partitions.*has 2.*millstream reset"):
        await work(counter(kafka, app_id, topic, tmp_path), {})


async def test_another_count_than_declared(kafka: Kafka, tmp_path: Path) -> None:
    """The message names both counts."""
    topic = kafka.topic("words", partitions=2)
    app = ms.App(unique("counts"), broker=kafka.url, state_dir=tmp_path, web=False)
    app.topic(topic, key=str, value=str, partitions=5)
    with pytest.raises(PartitionCountError, match=r"has 2 partitions.*declares 5"):
        async with app.running(worker=True, web=False):
            pass


async def test_a_changelog_that_is_not_compacted(kafka: Kafka, tmp_path: Path) -> None:
    """It would lose entries."""
    app_id, topic = unique("plain"), kafka.topic("words", partitions=2)
    async with KafkaTransport(kafka.url) as transport:
        await transport.create_topics([TopicSpec(name=f"{app_id}-counts-changelog", partitions=2)])
    with pytest.raises(TopologyError, match=r"not compacted.*cleanup\.policy=compact"):
        await work(counter(kafka, app_id, topic, tmp_path), {})


async def test_more_replicas_than_brokers(own_kafka: Brokers, tmp_path: Path) -> None:
    """A topic that the brokers do not make is an error with their reason."""
    app = counter(own_kafka, unique("copies"), unique("words"), tmp_path, replication=3)
    with pytest.raises(ConfigurationError, match=r"(?i)replication"):
        await work(app, {})


# the oldest line


async def test_a_worker_on_the_oldest_line(old_kafka: OldCluster, tmp_path: Path) -> None:
    """Kafka 2.8: it counts, crashes, goes on from the changelog on another disk, regroups."""
    app_id, topic = unique("old"), old_kafka.topic("words", partitions=2)
    words = [Record(key=b"%d" % n, value=b'"%d"' % n) for n in range(20)]
    wanted = {str(number): 1 for number in range(20)}
    await asyncio.to_thread(old_kafka.write, topic, words, partitioner="murmur2")
    await work(counter(old_kafka, app_id, topic, tmp_path / "one"), wanted, crash=True)
    await asyncio.to_thread(old_kafka.write, topic, words, partitioner="murmur2")
    wanted = {str(number): 2 for number in range(20)}
    await work(counter(old_kafka, app_id, topic, tmp_path / "one"), wanted, crash=True)
    replayed, _ = await work(counter(old_kafka, app_id, topic, tmp_path / "other"), wanted)
    assert replayed >= len(wanted)

    app = counter(old_kafka, unique("old"), topic, tmp_path / "again")
    regrouped = app.stream(app.topics[topic]).group_by(lambda word: word[:1], name="first")
    regrouped.count(name="regrouped")
    async with app.running(worker=True, web=False):
        runtime = app.runtime
        assert runtime is not None
        view = runtime.questions().view("regrouped", None)
        async with asyncio.timeout(DEADLINE_S):
            while sum([value async for _, value in view.items()]) < 2 * len(words):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
