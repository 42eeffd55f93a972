"""Kafka 4 brokers on loopback: one or several processes, each broker and controller at once (KRaft)."""

from __future__ import annotations

import base64
import shutil
import subprocess
import tempfile
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from tests.brokers.jars import CURRENT, classpath
from tests.brokers.kafka import Kafka
from tests.brokers.keeper import keep, let_go
from tests.brokers.listeners import DIRECT, HOST, PROXIED, Listener, free_ports, listening
from tests.brokers.process import NotStartedError, Process
from tests.requirements import java

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType
    from typing import Self

__all__ = ["JVM", "QUIET", "READY", "Broker", "Cluster", "write"]

# Quick to start, small, and good enough: C1 only, one collector thread, no warm-up.
JVM = [
    "-Xmx384m",
    "-Xms64m",
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-XX:-UsePerfData",
    "-Djava.awt.headless=true",
    "-Dorg.slf4j.simpleLogger.showDateTime=true",
    "-Dorg.slf4j.simpleLogger.dateTimeFormat=HH:mm:ss.SSS",
]
QUIET = "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn"
_FORMAT_S_MAX = 60.0
READY = "Kafka Server started"
_SAYS_READY = "-Dorg.slf4j.simpleLogger.log.kafka.server.KafkaRaftServer=info"

_PROPERTIES: Mapping[str, object] = {
    "auto.create.topics.enable": "false",
    # the topics of the broker's own: few partitions, so that they are there soon
    "offsets.topic.num.partitions": 4,
    "transaction.state.log.num.partitions": 4,
    # groups and transactions: no waiting for nothing, and short time-outs are allowed
    "group.initial.rebalance.delay.ms": 0,
    "group.min.session.timeout.ms": 500,
    "transaction.abort.timed.out.transaction.cleanup.interval.ms": 200,
    # tests write records of any time, and Kafka would delete those that are a week old; else compaction and retention
    # run from the start, and often
    "log.retention.ms": -1,
    "log.initial.task.delay.ms": 500,
    "log.cleaner.backoff.ms": 300,
    "log.cleaner.min.cleanable.ratio": 0.01,
    "log.cleaner.dedupe.buffer.size": 4 << 20,
    "log.retention.check.interval.ms": 1_000,
    # small: several of these share a machine with the tests
    "num.network.threads": 2,
    "num.io.threads": 4,
    "background.threads": 2,
    "num.replica.fetchers": 1,
    "log.cleaner.threads": 1,
}


class Broker(Process):
    """One process of a cluster.

    Args:
        command: Program and arguments.
        log: The file that gets its output.
        ready: What it says when it is ready.
        node: Its node id, from 1.
        ports: The port that it listens on, by the listener's name.
        advertised: The port that it tells clients, by the listener's name.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        log: Path,
        ready: str,
        node: int,
        ports: Mapping[str, int],
        advertised: Mapping[str, int],
    ) -> None:
        super().__init__(command, log=log, ready=ready)
        self.node = node
        self.ports = ports
        self.advertised = advertised


class Cluster(Kafka):
    """Brokers that know each other; ``with`` starts and ends them.

    Replication is 3 in a cluster of three, and two of them must have a record. The calls block: a test with an event
    loop makes the slow ones, ``start`` of a cluster or a broker, in a thread.

    Args:
        size: How many brokers.
        listeners: Beside DIRECT, which is plain text and also between the brokers.
        properties: Settings of the brokers, beside those that suit tests.
        features: Levels of features, such as ``{"transaction.version": 1}``; the newest ones otherwise.
        scram: Users of SCRAM, with their passwords.
    """

    def __init__(
        self,
        size: int = 1,
        *,
        listeners: Sequence[Listener] = (PROXIED,),
        properties: Mapping[str, object] | None = None,
        features: Mapping[str, int] | None = None,
        scram: Mapping[str, str] | None = None,
    ) -> None:
        self._listeners = [DIRECT, *listeners]
        self._properties = {**_PROPERTIES, **_replication(size), **(properties or {})}
        self._features = features or {}
        self._scram = scram or {}
        self._prepare()
        self.folder = Path(tempfile.mkdtemp(prefix="millstream-kafka-"))
        keep(folder=self.folder)
        names = [listener.name for listener in self._listeners]
        ports = free_ports(size * (2 * len(names) + 1))
        self._controllers = {node: next(ports) for node in range(1, size + 1)}
        self.brokers: list[Broker] = []
        for node in self._controllers:
            own = {name: next(ports) for name in names}
            told = {
                listener.name: next(ports) if listener.proxied else own[listener.name]
                for listener in self._listeners
            }
            self.brokers.append(self._broker(node, own, told))
        super().__init__(self.address("DIRECT"))

    def address(self, listener: str) -> str:
        """Return the addresses that the brokers tell clients of a listener: ``host:port,host:port``."""
        return ",".join(f"{HOST}:{broker.advertised[listener]}" for broker in self.brokers)

    def start(self) -> None:
        """Start the brokers; takes 2 to 4 s for one, twice that for three.

        Raises:
            NotStartedError: with the last lines of what the broker wrote, whose folder stays.
        """
        try:
            self._before_start()
            for broker in self.brokers:
                broker.launch()
            for broker in self.brokers:
                broker.wait_until_ready()
        except NotStartedError as error:
            self._end()
            let_go(self.folder)
            raise NotStartedError(f"{error}\nAll of it is in {self.folder}") from None

    def heal(self) -> None:
        """Start the brokers that were killed, and let go on those that were paused."""
        dead = [broker for broker in self.brokers if not broker.alive]
        for broker in self.brokers:
            if broker in dead:
                broker.launch()
            else:
                broker.resume()
        for broker in dead:
            broker.wait_until_ready()

    def stop(self) -> None:
        """End the brokers and remove their folder."""
        self._end()
        shutil.rmtree(self.folder, ignore_errors=True)
        let_go(self.folder)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    # what another kind of cluster does in its own way

    def _prepare(self) -> None:
        self._java = [java(), *JVM, "-cp", classpath(CURRENT)]
        self._id = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")

    def _broker(self, node: int, own: Mapping[str, int], told: Mapping[str, int]) -> Broker:
        file = self.folder / f"{node}.properties"
        write(file, {**self._properties, **self._of_node(node, own, told)})
        command = [*self._java, QUIET, _SAYS_READY, "kafka.Kafka", str(file)]
        log = self.folder / f"{node}.log"
        return Broker(command, log=log, ready=READY, node=node, ports=own, advertised=told)

    def _of_node(
        self, node: int, own: Mapping[str, int], told: Mapping[str, int]
    ) -> dict[str, object]:
        controllers = self._controllers.items()
        return {
            "node.id": node,
            "process.roles": "broker,controller",
            "controller.listener.names": "CONTROLLER",
            "controller.quorum.voters": ",".join(
                f"{one}@{HOST}:{port}" for one, port in controllers
            ),
            "log.dirs": self.folder / f"data-{node}",
            **listening(
                self._listeners,
                {**own, "CONTROLLER": self._controllers[node]},
                told,
            ),
        }

    def _before_start(self) -> None:
        with ThreadPoolExecutor() as pool:
            list(pool.map(self._format, self.brokers))

    def _end(self) -> None:
        for broker in self.brokers:
            broker.kill()

    def _format(self, broker: Broker) -> None:
        command = [*self._java, QUIET, "kafka.tools.StorageTool", "format"]
        command += [
            f"--cluster-id={self._id}",
            "-c",
            str(self.folder / f"{broker.node}.properties"),
        ]
        for name, level in self._features.items():
            command += ["--feature", f"{name}={level}"]
        for user, password in self._scram.items():
            for kind in ("SCRAM-SHA-256", "SCRAM-SHA-512"):
                command += ["--add-scram", f"{kind}=[name={user},password={password}]"]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_FORMAT_S_MAX, check=False
        )
        if done.returncode:
            raise NotStartedError(f"StorageTool: {done.stdout}{done.stderr}")


def write(file: Path, properties: Mapping[str, object]) -> None:
    """Write a file of Java's properties."""
    lines = (f"{key}={_escaped(str(value))}\n" for key, value in properties.items())
    file.write_text("".join(lines))


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n")


def _replication(size: int) -> dict[str, object]:
    copies = min(size, 3)
    needed = max(1, copies - 1)
    return {
        "default.replication.factor": copies,
        "min.insync.replicas": needed,
        "offsets.topic.replication.factor": copies,
        "transaction.state.log.replication.factor": copies,
        "transaction.state.log.min.isr": needed,
        # the others notice a killed or stopped broker in 3 s, not in 9
        "broker.session.timeout.ms": 3_000 if size > 1 else 60_000,
        "broker.heartbeat.interval.ms": 300,
    }
