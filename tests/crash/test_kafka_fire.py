"""Exactly-once under fire: workers on three brokers, while workers, brokers, connections and disks fail.

Some workers of the crash program share twelve partitions. At moments that a seed decides they are killed (some at a
point of `millstream.hooks`), stopped beyond the session time-out and woken, started, asked to leave; their disks are
deleted; a broker is killed and started again; connections are cut or slow, and single answers never arrive, those of
EndTxn above all. An independent client, which reads committed records only, then has to find in every topic and in
every changelog what the model of `tests.crash.program` says, each result once and in order.

``python -m tests.crash.test_kafka_fire SEED...`` runs seeds again; a failure leaves its folder with what the workers
wrote.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest
from confluent_kafka import Consumer, KafkaException, Producer
from confluent_kafka import TopicPartition as ConfluentPartition
from confluent_kafka.admin import NewTopic

from millstream.hooks import POINTS
from millstream.records import TopicPartition
from millstream.serialization import partitioner
from millstream.state.rocks import RocksBackend
from millstream.tables import POSITION_KEY, decode_position
from millstream.transports.kafka import KafkaTransport
from tests.brokers import Action, Api, Cluster, proxies, say
from tests.crash.kafka_program import PARTITIONS, SESSION_S, program
from tests.crash.program import (
    ALWAYS,
    APP,
    GROUPS,
    KEYS,
    Checker,
    Entry,
    Event,
    LogView,
    Violation,
)
from tests.crash.world import check_store

if TYPE_CHECKING:
    from collections.abc import Callable

    from millstream.transports.base import OffsetAndMetadata
    from tests.brokers import Proxy

SEEDS = 1
LONG_SEEDS = 50
EVENTS = 3_000
LONG_EVENTS = 40_000
"""50 seeds of them are two million."""
BATCH = 100
RATE = 800
"""Events a second that are fed, at most."""
ACTS_MIN = 15
"""How often something happens at least, however fast the events are fed."""
WORKERS = 3
WORKERS_MAX = 4
STOPPED_S = 1.5 * SESSION_S
PATIENCE_S = 120.0
CALM_S = 1.0
"""Positions that stay as they are for so long are those of the end, probably."""

LOST = [
    Api.END_TXN,
    Api.END_TXN,
    Api.END_TXN,
    Api.PRODUCE,
    Api.TXN_OFFSET_COMMIT,
    Api.INIT_PRODUCER_ID,
    Api.ADD_PARTITIONS_TO_TXN,
    Api.FETCH,
    Api.HEARTBEAT,
    Api.JOIN_GROUP,
    Api.SYNC_GROUP,
    Api.OFFSET_FETCH,
]
"""Whose answers never arrive."""
_ROOT = Path(__file__).parents[2]


class Worker:
    """A worker process, and what it wrote."""

    def __init__(self, fire: Fire, slot: str, point: str, count: int) -> None:
        self.slot, self.point = slot, point
        self.stopped_until = 0.0
        self.ended = False
        self.mark = fire.directory / f"mark-{uuid.uuid4().hex}"
        self._errors = (fire.directory / f"worker-{slot}.log").open("ab")
        self.errors = Path(self._errors.name)
        arguments = [fire.broker, fire.prefix, slot, "web" if fire.web else "no-web"]
        if point:
            arguments += [point, str(count), str(self.mark)]
        self.child = subprocess.Popen(
            [sys.executable, "-m", "tests.crash.kafka_program", *arguments],
            cwd=_ROOT,
            stdout=subprocess.DEVNULL,
            stderr=self._errors,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join([str(_ROOT), str(_ROOT / "src")]),
                "MILLSTREAM_STATE_DIR": str(fire.state_dir),
            },
        )

    def gone(self) -> bool:
        """Whether it has ended."""
        return self.child.poll() is not None

    def stop(self) -> None:
        """Stop it beyond its session."""
        self.stopped_until = time.monotonic() + STOPPED_S
        self.child.send_signal(signal.SIGSTOP)

    def wake(self) -> None:
        """Let it go on."""
        self.stopped_until = 0.0
        if not self.gone():
            self.child.send_signal(signal.SIGCONT)

    def end(self, number: int) -> None:
        """End it, and see that it did not end by itself before, in another way than by being killed.

        Raises:
            AssertionError: it did; with what it wrote.
        """
        self.ended = True
        if not self.gone():
            self.child.send_signal(number)
        self.wake()
        code = self.child.wait(60)
        self._errors.close()
        allowed = {0, -signal.SIGTERM} if number == signal.SIGTERM else set()
        if code not in {-signal.SIGKILL, *allowed}:
            said = self.errors.read_text(errors="replace")[-6_000:]
            raise AssertionError(f"worker {self.slot} ended with {code}:\n{said}")


class Fire:
    """One seed: topics of its own, worker processes, and what happens to them and to the brokers."""

    def __init__(
        self, seed: int, directory: Path, cluster: Cluster, through: list[Proxy], *, events: int
    ) -> None:
        self.rng = random.Random(seed)
        self.directory, self.state_dir = directory, directory / "state"
        self.cluster, self.proxies = cluster, through
        self.events = events
        self.web = seed % 2 == 0
        self.prefix = f"fire{seed}-{uuid.uuid4().hex[:6]}-"
        self.app = self.prefix + APP
        self.broker = f"kafka://{cluster.address('PROXIED')}"
        self.checker = Checker(program(self.broker, self.prefix, "checker", web=False))
        self.workers: list[Worker] = []
        self.happened: Counter[str] = Counter()
        self.times: dict[str, float] = {}
        self._slots = 0
        self._positions: dict[TopicPartition, int] = {}
        self._fed = 0
        self._failed: list[BaseException] = []
        self._feeding = threading.Thread(target=self._feed, name="feeder")
        self._down: tuple[float, int] | None = None
        """Which broker is dead, and until when."""
        self._slow_until = 0.0
        self.admin = cluster.admin()
        self._looking = Consumer(
            {
                **cluster.settings,
                "group.id": self.app,
                "enable.auto.commit": False,
                "isolation.level": "read_committed",
            }
        )

    # the run ------------------------------------------------------------------------------------

    def run(self) -> dict[str, object]:
        """Everything; returns a summary."""
        began = time.monotonic()
        self._create()
        try:
            for _ in range(WORKERS):
                self.start()
            self._until_working()
            self._note("working", began)
            self._feeding.start()
            self.trouble()
            self._feeding.join()
            if self._failed:
                raise self._failed[0]
            self._note("fed", began)
            self._mend()
            self.until_complete()
            self._note("complete", began)
            for worker in self.living():
                worker.end(signal.SIGTERM)
            view = self.view()
            self.checker.check(view, complete=True)
            self._note("checked", began)
            stores = self.check_stores(view)
        finally:
            self._fed = self.events  # the feeder ends
            for worker in self.workers:
                if not worker.gone():
                    worker.child.kill()
                    worker.child.wait()
            self._mend()
            if self._feeding.is_alive():
                self._feeding.join()
            self._looking.close()
        return {
            "events": self.events,
            "records": sum(map(len, view.records.values())),
            "stores": stores,
            "seconds": self.times,
            **dict(sorted(self.happened.items())),
        }

    def _note(self, what: str, began: float) -> None:
        self.times[what] = round(time.monotonic() - began, 1)

    def _create(self) -> None:
        """The topic of the events, from outside; the rest is the workers'."""
        name = f"{self.prefix}events"
        (made,) = self.admin.create_topics([NewTopic(name, PARTITIONS, 3)]).values()
        made.result(30)

    def _until_working(self) -> None:
        """Until the workers have made their topics, and committed something: the shards' timers see to that."""
        deadline = time.monotonic() + PATIENCE_S
        while not self.note_positions():
            assert time.monotonic() < deadline, "no worker has committed anything"
            for worker in self.living():
                if worker.gone():
                    worker.end(signal.SIGKILL)
            time.sleep(0.1)

    def _feed(self) -> None:
        rng, place = random.Random(self.rng.random()), partitioner("murmur2")
        pauses = (-1,) * 40 + (0, 1, 5)
        producer = Producer({**self.cluster.settings, "enable.idempotence": True, "linger.ms": 1})
        began = time.monotonic()
        try:
            while self._fed < self.events:
                for number in range(self._fed, min(self._fed + BATCH, self.events)):
                    event = Event(
                        number,
                        rng.choice(KEYS),
                        rng.choice(GROUPS),
                        stall=rng.choice(pauses),
                        note=rng.choice(pauses),
                        slow=rng.randint(0, 15),
                        fails=rng.choice((0,) * 1_500 + (1, ALWAYS)),
                    )
                    producer.produce(
                        f"{self.prefix}events",
                        msgspec.json.encode(event),
                        event.key.encode(),
                        partition=place(event.key.encode(), PARTITIONS),
                    )
                left = producer.flush(PATIENCE_S)
                assert not left, f"{left} events were not taken"
                self._fed += BATCH
                time.sleep(max(0.0, began + self._fed / RATE - time.monotonic()))
        except BaseException as exc:
            self._failed.append(exc)

    # trouble ------------------------------------------------------------------------------------

    def trouble(self) -> None:
        """While the feeder sends, something happens every now and then; and at least so often."""
        rng = self.rng
        kinds: list[tuple[int, Callable[[], None]]] = [
            (5, self._kill),
            (3, self._stop),
            (3, self._join),
            (2, self._leave),
            (2, self._kill_broker),
            (3, self._cut),
            (2, self._delay),
            (6, self._lose_answer),
            (3, self._doom),
        ]
        acts = 0
        while self._feeding.is_alive() or acts < ACTS_MIN:
            time.sleep(rng.uniform(0.05, 0.8))
            self._tick()
            acts += 1
            rng.choices([act for _, act in kinds], [weight for weight, _ in kinds])[0]()

    def _tick(self) -> None:
        """What was begun comes to its end; who is dead is replaced."""
        now = time.monotonic()
        for worker in self.living():
            if worker.stopped_until and now > worker.stopped_until:
                worker.wake()
            if worker.gone():
                self._replace(worker)
        if self._slow_until and now > self._slow_until:
            self._slow_until = 0.0
            for proxy in self.proxies:
                proxy.delay(0.0)
        if self._down is not None and now > self._down[0]:
            self._start_broker()
        self.note_positions()

    def _mend(self) -> None:
        for worker in self.workers:
            worker.wake()
        for proxy in self.proxies:
            proxy.reset()
        if self._down is not None:
            self._start_broker()

    def living(self) -> list[Worker]:
        """Workers that were not ended."""
        return [worker for worker in self.workers if not worker.ended]

    def _victim(self) -> Worker | None:
        found = [each for each in self.living() if not each.stopped_until and not each.gone()]
        return self.rng.choice(found) if found else None

    def start(self, slot: str = "", point: str = "") -> Worker:
        """A new process, on a slot of its own or on that of a dead one."""
        if not slot:
            slot = f"slot-{self._slots}"
            self._slots += 1
        count = 1 if point.startswith(("recovery", "group")) else self.rng.randint(1, 25)
        worker = Worker(self, slot, point, count)
        self.workers.append(worker)
        return worker

    def _replace(self, worker: Worker, point: str = "") -> None:
        worker.end(signal.SIGKILL)
        if (
            worker.point
            and worker.mark.with_name(f"{worker.mark.name}.died-at-{worker.point}").exists()
        ):
            self.happened[f"died at {worker.point}"] += 1
        if self.rng.random() < 0.3:
            shutil.rmtree(self.state_dir / self.app / worker.slot, ignore_errors=True)
            self.happened["disk deleted"] += 1
        self.start(worker.slot, point)

    def _kill(self) -> None:
        if (worker := self._victim()) is not None:
            self.happened["worker killed"] += 1
            self._replace(worker)

    def _doom(self) -> None:
        if (worker := self._victim()) is not None:
            points = [point for point in POINTS if point != "group.left"]
            self.happened["worker killed"] += 1
            self._replace(worker, self.rng.choice(points))

    def _stop(self) -> None:
        if len(self.living()) > 1 and (worker := self._victim()) is not None:
            self.happened["worker stopped"] += 1
            worker.stop()

    def _join(self) -> None:
        if len(self.living()) < WORKERS_MAX:
            self.happened["worker joined"] += 1
            self.start()

    def _leave(self) -> None:
        if len(self.living()) > 2 and (worker := self._victim()) is not None:
            self.happened["worker left"] += 1
            worker.end(signal.SIGTERM)

    def _kill_broker(self) -> None:
        if self._down is None:
            self.happened["broker killed"] += 1
            at = self.rng.randrange(len(self.cluster.brokers))
            self._down = time.monotonic() + self.rng.uniform(0.5, 4.0), at
            self.cluster.brokers[at].kill()

    def _start_broker(self) -> None:
        assert self._down is not None
        broker, self._down = self.cluster.brokers[self._down[1]], None
        broker.start()

    def _cut(self) -> None:
        self.happened["connections cut"] += 1
        self.rng.choice(self.proxies).cut()

    def _delay(self) -> None:
        self.happened["connections slow"] += 1
        self._slow_until = time.monotonic() + 1.0
        self.rng.choice(self.proxies).delay(self.rng.choice([0.02, 0.1, 0.4]))

    def _lose_answer(self) -> None:
        api = self.rng.choice(LOST)
        action = self.rng.choice([Action.CUT, Action.CUT, Action.LOSE])
        self.happened[f"answer lost: {api.name}"] += 1
        for proxy in self.proxies:
            proxy.on_answer(api, action, times=1)

    # looking ------------------------------------------------------------------------------------

    def note_positions(self) -> bool:
        """Positions never go back. Tells whether there are any; none are read while brokers do not answer."""
        topics = [f"{self.prefix}{name}" for name in ("events", "numbered")]
        topics.append(self.prefix + self.checker.group_topic)
        tps = [ConfluentPartition(name, at) for name in topics for at in range(PARTITIONS)]
        try:
            found = self._looking.committed(tps, timeout=1.0)
        except KafkaException:
            return False
        for each in found:
            if each.error is not None or each.offset < 0:
                continue
            tp = TopicPartition(each.topic.removeprefix(self.prefix), each.partition)
            before = self._positions.get(tp)
            if before is not None and each.offset < before:
                raise Violation(f"{tp}: position {each.offset} after {before}")
            self._positions[tp] = each.offset
        return any(each.offset >= 0 for each in found)

    def until_complete(self) -> None:
        """Until everything is processed; the dead are replaced.

        Raises:
            Violation: it is not, after `PATIENCE_S`.
        """
        deadline = time.monotonic() + PATIENCE_S
        last: dict[TopicPartition, int] = {}
        since = time.monotonic()
        while True:
            time.sleep(0.1)
            self._tick()
            if self._positions != last:
                last, since = dict(self._positions), time.monotonic()
            late = time.monotonic() > deadline
            if time.monotonic() - since < CALM_S and not late:
                continue
            try:
                self.checker.check(self.view(), complete=True)
            except Violation:
                since = time.monotonic()
                if late:
                    self._ask_workers()
                    raise
            else:
                return

    def _ask_workers(self) -> None:
        """Have what each worker is at written to its log."""
        for worker in self.living():
            if not worker.gone():
                worker.child.send_signal(signal.SIGUSR1)
        time.sleep(2.0)

    def view(self) -> LogView:
        """What an independent client reads, committed records only."""
        positions = asyncio.run(self._committed())
        records: dict[TopicPartition, list[Entry]] = {}
        for name in self.admin.list_topics(timeout=30).topics:
            if not name.startswith(self.prefix):
                continue
            for record in self.cluster.read(name):
                assert record.partition is not None
                assert record.offset is not None
                tp = TopicPartition(name.removeprefix(self.prefix), record.partition)
                records.setdefault(tp, []).append(
                    Entry(record.offset, record.timestamp or 0, record.key, record.value)
                )
        return LogView(records, positions)

    async def _committed(self) -> dict[TopicPartition, OffsetAndMetadata]:
        # librdkafka gives the text beside an offset without its end
        async with KafkaTransport(self.cluster.url) as transport:
            listed = [
                TopicPartition(self.prefix + tp.topic, tp.partition) for tp in self._positions
            ]
            found = await transport.committed(self.app, listed)
        return {
            TopicPartition(tp.topic.removeprefix(self.prefix), tp.partition): position
            for tp, position in found.items()
        }

    def check_stores(self, view: LogView) -> int:
        """Each store on disk that has come to the end of its changelog is the fold of it; how many these are."""
        checked = 0
        for slot in (self.state_dir / self.app).iterdir():
            backend = RocksBackend(slot)
            for name in backend.shards():
                partition = int(name.partition("-")[2])
                store = backend.open(name)
                try:
                    for table in store.tables():
                        rows = dict(store.table(table).items())
                        position = decode_position(rows.get(POSITION_KEY))
                        log = view.of(f"{APP}-{table}-changelog", partition)
                        if position is not None and log and position.offset > log[-1].offset:
                            check_store(view, table, partition, rows)
                            checked += 1
                finally:
                    store.close()
        assert checked
        return checked


def run_seed(seed: int, cluster: Cluster, *, events: int) -> dict[str, object]:
    """Run a seed in a folder of its own, which stays when it fails."""
    directory = Path(tempfile.mkdtemp(prefix=f"millstream-fire-{seed}-"))
    with proxies(cluster) as through:
        fire = Fire(seed, directory, cluster, through, events=events)
        try:
            summary = fire.run()
        except BaseException as exc:
            exc.add_note(f"seed {seed}, {dict(fire.happened)}, see {directory}")
            raise
    shutil.rmtree(directory, ignore_errors=True)
    return {"seed": seed, **summary}


@pytest.mark.parametrize("seed", range(SEEDS))
def test_exactly_once(
    seed: int, kafka_cluster: Cluster, record_property: Callable[[str, object], None]
) -> None:
    """Every result is there once and in order, and every table is the fold of the input."""
    for name, value in run_seed(seed, kafka_cluster, events=EVENTS).items():
        record_property(name, value)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(SEEDS, SEEDS + LONG_SEEDS))
def test_exactly_once_for_long(seed: int, kafka_cluster: Cluster) -> None:
    """The same with many more seeds, and longer: two million events in all."""
    say(**run_seed(seed, kafka_cluster, events=LONG_EVENTS))


if __name__ == "__main__":
    with Cluster(3) as started, contextlib.suppress(KeyboardInterrupt):
        for number in map(int, sys.argv[1:]):
            say(**run_seed(number, started, events=int(os.environ.get("EVENTS", EVENTS))))
