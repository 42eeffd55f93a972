"""Kafka 4 brokers on loopback: one or several processes, each broker and controller at once (KRaft)."""

from __future__ import annotations

import base64
import random
import shutil
import socket
import subprocess
import tempfile
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tests.brokers.jars import CURRENT, classpath
from tests.brokers.keeper import keep, let_go
from tests.brokers.process import NotStartedError, Process
from tests.requirements import java

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from types import TracebackType
    from typing import Self

__all__ = ["DIRECT", "JVM", "PROXIED", "Broker", "Cluster", "Listener", "free_ports", "write"]

HOST = "127.0.0.1"
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
_QUIET = "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn"
_FORMAT_S_MAX = 60.0
_READY = "Kafka Server started"
_SAYS_READY = "-Dorg.slf4j.simpleLogger.log.kafka.server.KafkaRaftServer=info"

_PROPERTIES: Mapping[str, object] = {
    "process.roles": "broker,controller",
    "controller.listener.names": "CONTROLLER",
    "inter.broker.listener.name": "DIRECT",
    "auto.create.topics.enable": "false",
    # the topics of the broker's own: few partitions, so that they are there soon
    "offsets.topic.num.partitions": 4,
    "transaction.state.log.num.partitions": 4,
    # groups and transactions: no waiting for nothing, and short time-outs are allowed
    "group.initial.rebalance.delay.ms": 0,
    "group.min.session.timeout.ms": 500,
    "transaction.abort.timed.out.transaction.cleanup.interval.ms": 200,
    # compaction and retention run from the start, and often
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Listener:
    """A listener of each broker.

    Args:
        name: Its name, in capitals; what a test asks an address of.
        protocol: PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL.
        proxied: Whether the brokers tell clients another port than they listen on, where a proxy is to stand.
        properties: Its settings, without the prefix ``listener.name.…``.
    """

    name: str
    protocol: str = "PLAINTEXT"
    proxied: bool = False
    properties: Mapping[str, object] = field(default_factory=dict)


DIRECT = Listener(name="DIRECT")
PROXIED = Listener(name="PROXIED", proxied=True)


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


class Cluster:
    """Brokers that know each other; ``with`` starts and ends them.

    Replication is 3 in a cluster of three, and two of them must have a record.

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
        self._features = features or {}
        self._scram = scram or {}
        self.folder = Path(tempfile.mkdtemp(prefix="millstream-kafka-"))
        keep(folder=self.folder)
        self._java = [java(), *JVM, "-cp", classpath(CURRENT)]
        self._id = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        names = [listener.name for listener in self._listeners]
        ports = free_ports(size * (2 * len(names) + 1))
        controllers = [next(ports) for _ in range(size)]
        voters = ",".join(f"{node}@{HOST}:{port}" for node, port in enumerate(controllers, 1))
        common = {**_PROPERTIES, **_replication(size), **(properties or {})}
        common["controller.quorum.voters"] = voters
        self.brokers: list[Broker] = []
        for node, controller in enumerate(controllers, 1):
            own = {name: next(ports) for name in names}
            told = {
                listener.name: next(ports) if listener.proxied else own[listener.name]
                for listener in self._listeners
            }
            file = self.folder / f"{node}.properties"
            write(file, {**common, **self._of_node(node, controller, own, told)})
            main = [_QUIET, _SAYS_READY, "kafka.Kafka", str(file)]
            command = [*self._java, *main]
            log = self.folder / f"{node}.log"
            self.brokers.append(
                Broker(command, log=log, ready=_READY, node=node, ports=own, advertised=told)
            )

    @property
    def bootstrap(self) -> str:
        """The addresses of the brokers, as clients take them: ``host:port,host:port``."""
        return self.address("DIRECT")

    @property
    def url(self) -> str:
        """The same as Millstream's setting ``broker``."""
        return f"kafka://{self.bootstrap}"

    def address(self, listener: str) -> str:
        """Return the addresses that the brokers tell clients of a listener."""
        return ",".join(f"{HOST}:{broker.advertised[listener]}" for broker in self.brokers)

    def start(self) -> None:
        """Format the folders and start the brokers; takes 2 to 4 s.

        Raises:
            NotStartedError: with the last lines of what the broker wrote, whose folder stays.
        """
        try:
            with ThreadPoolExecutor() as pool:
                list(pool.map(self._format, self.brokers))
            for broker in self.brokers:
                broker.launch()
            for broker in self.brokers:
                broker.wait_until_ready()
        except NotStartedError as error:
            self._kill()
            let_go(self.folder)
            raise NotStartedError(f"{error}\nAll of it is in {self.folder}") from None

    def stop(self) -> None:
        """Kill the brokers and remove their folder."""
        self._kill()
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

    def _kill(self) -> None:
        for broker in self.brokers:
            broker.kill()

    def _of_node(
        self, node: int, controller: int, own: Mapping[str, int], told: Mapping[str, int]
    ) -> dict[str, object]:
        named = {
            f"listener.name.{listener.name.lower()}.{key}": value
            for listener in self._listeners
            for key, value in listener.properties.items()
        }
        protocols = [f"{listener.name}:{listener.protocol}" for listener in self._listeners]
        return {
            "node.id": node,
            "log.dirs": self.folder / f"data-{node}",
            "listeners": ",".join([*_addresses(own), f"CONTROLLER://{HOST}:{controller}"]),
            "advertised.listeners": ",".join(_addresses(told)),
            "listener.security.protocol.map": ",".join([*protocols, "CONTROLLER:PLAINTEXT"]),
            **named,
        }

    def _format(self, broker: Broker) -> None:
        command = [*self._java, _QUIET, "kafka.tools.StorageTool", "format"]
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


def free_ports(count: int) -> Iterator[int]:
    """Return ports of loopback that nobody listens on.

    They lie below those that the system gives to outgoing connections, which might otherwise take one before the
    broker does, or while it is down.
    """
    found: set[int] = set()
    while len(found) < count:
        port = random.randrange(12_000, 30_000)
        with socket.socket() as probe:
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
        found.add(port)
    return iter(sorted(found))


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
    }


def _addresses(ports: Mapping[str, int]) -> list[str]:
    return [f"{name}://{HOST}:{port}" for name, port in ports.items()]
