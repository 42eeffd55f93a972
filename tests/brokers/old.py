"""A broker of the oldest line that we support, with the ZooKeeper that it needs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.brokers.cluster import JVM, QUIET, Broker, Cluster, write
from tests.brokers.jars import OLDEST, classpath
from tests.brokers.listeners import HOST, listening
from tests.brokers.process import Process
from tests.requirements import java

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["OldCluster"]

_LOGGER = "-Dorg.slf4j.simpleLogger.log"
_BROKER = [QUIET, f"{_LOGGER}.kafka.server.KafkaServer=info", "kafka.Kafka"]
_ZOOKEEPER = [
    QUIET,
    f"{_LOGGER}.org.apache.zookeeper.server.PrepRequestProcessor=info",
    "org.apache.zookeeper.server.quorum.QuorumPeerMain",
]


class OldCluster(Cluster):
    """One broker of Kafka 2.8; it is started once, and not again after it was killed."""

    def __init__(self) -> None:
        super().__init__()
        log, file = self.folder / "zookeeper.log", self.folder / "zookeeper.properties"
        settings: dict[str, object] = {
            "dataDir": self.folder / "zookeeper",
            "clientPort": self._controllers[1],
            "clientPortAddress": HOST,
            "admin.enableServer": "false",
            "tickTime": 500,
        }
        write(file, settings)
        command = [*self._java, *_ZOOKEEPER, str(file)]
        self._zookeeper = Process(command, log=log, ready="PrepRequestProcessor (sid:0) started")

    def _prepare(self) -> None:
        self._java = [java(), *JVM, "-cp", classpath(OLDEST)]

    def _broker(self, node: int, own: Mapping[str, int], told: Mapping[str, int]) -> Broker:
        file, log = self.folder / f"{node}.properties", self.folder / f"{node}.log"
        settings = {
            "broker.id": node,
            "log.dirs": self.folder / f"data-{node}",
            "zookeeper.connect": f"{HOST}:{self._controllers[node]}",
        }
        write(file, self._properties | settings | listening(self._listeners, own, told))
        command = [*self._java, *_BROKER, str(file)]
        ready = f"[KafkaServer id={node}] started"
        return Broker(command, log=log, ready=ready, node=node, ports=own, advertised=told)

    def _before_start(self) -> None:
        self._zookeeper.start()

    def _end(self) -> None:
        super()._end()
        self._zookeeper.kill()
