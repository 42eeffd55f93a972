"""Exactly-once under fire: workers on three brokers, while workers, brokers, connections and disks fail.

Some workers of the crash program share twelve partitions. At moments that a seed decides they are killed (some at a
point of `millstream.hooks`), stopped beyond the session time-out and woken, started, asked to leave; their disks are
deleted; a broker is killed and started again; connections are cut or slow, requests arrive late, and single answers
never arrive, those of EndTxn above all. An independent client, which reads committed records only, then has to find in
every topic and in every changelog what the model of `tests.crash.program` says, each result once and in order.

``python -m tests.crash.fire SEED...`` runs seeds and prints a summary of each; ``--events 2000000`` makes a run large.
What a seed decides is what happens in which order; the processes and the machine add their own chance to it. A failure
leaves its folder, with what the workers wrote.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
import uuid
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from confluent_kafka import Consumer, KafkaException, Producer
from confluent_kafka import TopicPartition as ConfluentPartition
from confluent_kafka.admin import NewTopic

from millstream.hooks import POINTS
from millstream.records import TopicPartition
from millstream.serialization import partitioner
from millstream.state.rocks import RocksBackend
from millstream.tables import POSITION_KEY, decode_position
from millstream.transports.kafka import KafkaTransport
from tests.brokers import Cluster, proxies, say
from tests.crash.fire_network import Network
from tests.crash.fire_worker import Worker
from tests.crash.kafka_program import PARTITIONS, program
from tests.crash.kafka_view import KafkaView
from tests.crash.program import (
    ALWAYS,
    APP,
    GROUPS,
    KEYS,
    Checker,
    Event,
    Violation,
    changelog,
)
from tests.crash.world import check_store

if TYPE_CHECKING:
    from collections.abc import Callable

    from millstream.state.base import ShardStore
    from millstream.transports.base import OffsetAndMetadata
    from tests.brokers import Proxy

__all__ = ["AHEAD_MAX", "LARGE", "USUAL", "Fire", "Heat", "heat_of", "run_seed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Heat:
    """How large a run is, and how often something happens."""

    events: int
    rate: float
    """Events a second that are fed, at most."""
    pause_s: tuple[float, float]
    """Between two things that happen."""
    acts_min: int
    """How often something happens at least, however fast the events are fed."""
    sleeps: int = 1
    """Of so many events, one sleeps in the middle; of many more, one fails."""
    fails: bool = True
    """Whether any does."""


USUAL = Heat(events=1_000, rate=300, pause_s=(0.05, 0.8), acts_min=8)
LARGE = Heat(events=2_000_000, rate=10_000, pause_s=(2.0, 12.0), acts_min=30, sleeps=40)
LARGE_FROM = 100_000
"""Runs of so many events are fed as `LARGE` ones."""
BATCH = 100
AHEAD_MAX = 100_000
"""Events that are fed and not processed: a run is to end soon after its last one."""
WORKERS = 3
WORKERS_MAX = 4
PATIENCE_S = 120.0
TICK_S = 0.3
END_S_MAX = 30.0
PROGRESS_S = 15.0
"""Between two lines that say how far a run is."""
CALM_S = 0.5
"""Positions that stay as they are for so long are those of the end, probably."""


class Fire:
    """One seed: topics of its own, worker processes, and what happens to them and to the brokers."""

    def __init__(
        self, seed: int, directory: Path, cluster: Cluster, through: list[Proxy], heat: Heat
    ) -> None:
        self.rng = random.Random(seed)
        self.directory, self.state_dir = directory, directory / "state"
        self.cluster = cluster
        self.heat = heat
        self.web = seed % 4 != 3
        self.prefix = f"fire{seed}-{uuid.uuid4().hex[:6]}-"
        self.app = self.prefix + APP
        self.broker = f"kafka://{cluster.address('PROXIED')}"
        self.checker = Checker(program(self.broker, self.prefix, "checker", web=False))
        self.workers: list[Worker] = []
        self.happened: Counter[str] = Counter()
        self.network = Network(cluster, through, self.rng, self.happened)
        self.times: dict[str, float] = {}
        self._slots = 0
        self._positions: dict[TopicPartition, int] = {}
        self._fed = 0
        self._failed: list[BaseException] = []
        self._feeding = threading.Thread(target=self._feed, name="feeder", daemon=True)
        self._say_at = time.monotonic() + PROGRESS_S
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
            self.end_workers()
            records, stores = self.check()
            self._note("checked", began)
        finally:
            self.give_up()
        return {
            "events": self.heat.events,
            "records": records,
            "stores": stores,
            "events_per_s": round(
                self.heat.events / (self.times["complete"] - self.times["working"])
            ),
            "seconds": self.times,
            **dict(sorted(self.happened.items())),
        }

    def give_up(self) -> None:
        """End what still runs, however it came to that."""
        self._fed = self.heat.events  # the feeder ends
        for worker in self.workers:
            worker.tell(signal.SIGKILL)
            worker.child.wait(END_S_MAX)
        self._mend()
        if self._feeding.is_alive():
            self._feeding.join()
        self._looking.close()

    def clear(self) -> None:
        """Delete its topics: brokers with those of many seeds take long to start again."""
        names = self.admin.list_topics(timeout=30).topics
        mine = [name for name in names if name.startswith(self.prefix)]
        for name, deleted in self.admin.delete_topics(mine, operation_timeout=30).items():
            try:
                deleted.result(60)
            except KafkaException as exc:
                say(topic=name, kept=str(exc))

    def end_workers(self) -> None:
        """Ask all of them to leave, at one time."""
        for worker in self.living():
            worker.tell(signal.SIGTERM)
        for worker in self.living():
            worker.end(signal.SIGTERM)

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
        pauses = (-1,) * (40 * self.heat.sleeps) + (0, 1, 5)
        fails = (0,) * (1_500 * self.heat.sleeps) + (1, ALWAYS) * self.heat.fails
        producer = Producer({**self.cluster.settings, "enable.idempotence": True, "linger.ms": 1})
        began = time.monotonic()
        try:
            while self._fed < self.heat.events:
                for number in range(self._fed, min(self._fed + BATCH, self.heat.events)):
                    event = Event(
                        number,
                        rng.choice(KEYS),
                        rng.choice(GROUPS),
                        stall=rng.choice(pauses),
                        note=rng.choice(pauses),
                        slow=-1 if rng.randrange(self.heat.sleeps) else rng.randint(0, 15),
                        fails=rng.choice(fails),
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
                time.sleep(max(0.0, began + self._fed / self.heat.rate - time.monotonic()))
                while self._fed - self.processed() > AHEAD_MAX and self._fed < self.heat.events:
                    time.sleep(0.1)
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
            (2, self.network.kill_broker),
            (3, self.network.cut),
            (2, self.network.delay),
            (6, self.network.lose_answer),
            (3, self.network.hold_request),
            (3, self._doom),
        ]
        acts, due = 0, 0.0
        while self._feeding.is_alive() or acts < self.heat.acts_min:
            time.sleep(min(TICK_S, max(0.0, due - time.monotonic())))
            self._tick()
            if time.monotonic() < due:
                continue
            acts, due = acts + 1, time.monotonic() + rng.uniform(*self.heat.pause_s)
            rng.choices([act for _, act in kinds], [weight for weight, _ in kinds])[0]()

    def _tick(self) -> None:
        """What was begun comes to its end; who is dead is replaced."""
        now = time.monotonic()
        for worker in self.living():
            if worker.stopped_until and now > worker.stopped_until:
                worker.wake()
            if worker.gone():
                self._replace(worker)
        self.network.tick()
        if now > self._say_at:
            self._say_at = now + PROGRESS_S
            say(fed=self._fed, processed=self.processed(), faults=self.happened.total())
        self.note_positions()

    def _mend(self) -> None:
        for worker in self.workers:
            worker.wake()
        self.network.mend()

    def living(self) -> list[Worker]:
        """Workers that were not ended."""
        return [worker for worker in self.workers if not worker.ended]

    def victims(self) -> list[Worker]:
        """Workers to whom something may happen now."""
        return [each for each in self.living() if not each.stopped_until and not each.gone()]

    def _victim(self) -> Worker | None:
        found = self.victims()
        return self.rng.choice(found) if found else None

    def start(self, slot: str = "", point: str = "") -> Worker:
        """A new process, on a slot of its own or on that of a dead one."""
        if not slot:
            slot = f"slot-{self._slots}"
            self._slots += 1
        count = 1 if point.startswith(("recovery", "group")) else self.rng.randint(1, 25)
        worker = Worker(
            self.directory, [self.broker, self.prefix], slot, web=self.web, point=point, count=count
        )
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

    def processed(self) -> int:
        """How many events are committed, about."""
        return sum(at for tp, at in self._positions.copy().items() if tp.topic == "events")

    def until_complete(self) -> None:
        """Until everything is processed; the dead are replaced.

        Raises:
            Violation: it is not, and for `PATIENCE_S` there was no progress.
        """
        last: dict[TopicPartition, int] = {}
        since = looked = time.monotonic()
        while True:
            time.sleep(0.1)
            self._tick()
            now = time.monotonic()
            if self._positions != last:
                last, since = dict(self._positions), now
            if now - max(since, looked) < CALM_S:
                continue
            behind = self.behind()
            if not behind:
                return
            looked = time.monotonic()
            if now - since > PATIENCE_S:
                self._ask_workers()
                raise Violation(f"not processed: {behind}")

    def behind(self) -> list[TopicPartition]:
        """The partitions in which an agent has something left to read."""
        view = KafkaView(self.cluster, self.prefix, asyncio.run(self._committed()))
        try:
            positions: dict[TopicPartition, int] = {}
            for agent, topic in self.checker.readers():
                for partition in range(PARTITIONS):
                    tp, at = (
                        TopicPartition(topic, partition),
                        view.position(agent, topic, partition),
                    )
                    positions[tp] = min(at, positions.get(tp, at))
            return view.behind(positions)
        finally:
            view.close()

    def _ask_workers(self) -> None:
        """Have what each worker is at written to its log."""
        for worker in self.living():
            if not worker.gone():
                worker.child.send_signal(signal.SIGUSR1)
        time.sleep(2.0)

    def check(self) -> tuple[int, int]:
        """Hold the log against the model, and what is on disk against the log.

        Returns:
            How many records there are, and how many tables on disk were at the end of their changelogs.
        """
        view = KafkaView(self.cluster, self.prefix, asyncio.run(self._committed()))
        try:
            self.checker.check(view, complete=True)
            records = view.count
            return records, self.check_stores(view)
        finally:
            view.close()

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

    def check_stores(self, view: KafkaView) -> int:
        """Each store on disk that has come to the end of its changelog is the fold of it; how many these are."""
        checked = 0
        with contextlib.ExitStack() as stack:
            found: dict[int, list[ShardStore]] = {}
            for slot in (self.state_dir / self.app).iterdir():
                backend = RocksBackend(slot)
                for name in backend.shards():
                    opened = backend.open(name)
                    stack.callback(opened.close)
                    found.setdefault(int(name.partition("-")[2]), []).append(opened)
            for partition, stores in found.items():
                for store in stores:
                    for table in store.tables():
                        rows = dict(store.table(table).items())
                        position = decode_position(rows.get(POSITION_KEY))
                        log = view.of(changelog(table), partition)
                        if position is not None and log and position.offset > log[-1].offset:
                            check_store(view, table, partition, rows)
                            checked += 1
        assert checked
        return checked


def run_seed(
    seed: int, cluster: Cluster, heat: Heat = USUAL, *, keep: bool = False
) -> dict[str, object]:
    """Run a seed in a folder of its own, which stays when it fails, or is to be kept."""
    directory = Path(tempfile.mkdtemp(prefix=f"millstream-fire-{seed}-"))
    with proxies(cluster) as through:
        fire = Fire(seed, directory, cluster, through, heat)
        try:
            summary = fire.run()
            if not keep:
                fire.clear()
        except BaseException as exc:
            exc.add_note(f"seed {seed}, {dict(fire.happened)}, see {directory}")
            raise
    if keep:
        return {"seed": seed, "folder": str(directory), **summary}
    shutil.rmtree(directory, ignore_errors=True)
    return {"seed": seed, **summary}


def main() -> None:
    """Run seeds, as many as are named."""
    parser = argparse.ArgumentParser(prog="python -m tests.crash.fire", description=__doc__)
    parser.add_argument("seeds", nargs="+", type=int, metavar="SEED")
    parser.add_argument("--events", type=int, default=USUAL.events)
    parser.add_argument("--keep", action="store_true", help="keep what the workers wrote")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))  # not before everything is ended
    heat = heat_of(given.events)
    with Cluster(3) as cluster, contextlib.suppress(KeyboardInterrupt):
        for seed in given.seeds:
            say(**run_seed(seed, cluster, heat, keep=given.keep))


def heat_of(events: int) -> Heat:
    """How a run of so many events is fed."""
    return replace(LARGE if events >= LARGE_FROM else USUAL, events=events)


if __name__ == "__main__":
    main()
