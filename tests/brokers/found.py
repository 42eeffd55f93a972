"""Finds a broker that is not ours to start, or that Docker starts."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from typing import TYPE_CHECKING

from confluent_kafka import KafkaException

from tests.brokers.cluster import READY, Broker, Cluster
from tests.brokers.jars import CURRENT
from tests.brokers.kafka import Kafka
from tests.brokers.listeners import HOST, listening

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["DockerCluster", "address", "docker", "found"]

VARIABLE = "MILLSTREAM_TEST_BROKER"
_SCHEME = "kafka://"
_PROBE_S_MAX = 10.0
ANSWER_S_MAX = 10.0


@contextlib.contextmanager
def found() -> Iterator[Kafka | None]:
    """Give the broker of MILLSTREAM_TEST_BROKER, or one in Docker, or None where neither is.

    Raises:
        ConnectionError: nobody answers at the address of MILLSTREAM_TEST_BROKER.
    """
    named = address(os.environ.get(VARIABLE, ""))
    program = None if named else docker()
    if named:
        kafka = Kafka(named)
        try:
            kafka.admin().list_topics(timeout=ANSWER_S_MAX)
        except KafkaException as error:
            raise ConnectionError(
                f"{VARIABLE}={kafka.url}: nobody answers there: {error}"
            ) from error
        yield kafka
    elif program:
        with DockerCluster(program) as cluster:
            yield cluster
    else:
        yield None


def address(url: str) -> str | None:
    """Return the address in a value of MILLSTREAM_TEST_BROKER, or None when it is not set.

    Raises:
        ValueError: it is no address of Kafka.
    """
    if not url:
        return None
    if not url.startswith(_SCHEME) or ":" not in url.removeprefix(_SCHEME):
        raise ValueError(f"{VARIABLE}={url}: write {_SCHEME}host:port")
    return url.removeprefix(_SCHEME)


def docker() -> str | None:
    """Return the path of Docker where its engine answers."""
    program = shutil.which("docker")
    if program is None:
        return None
    try:
        command = [program, "info"]
        done = subprocess.run(command, capture_output=True, timeout=_PROBE_S_MAX, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return None if done.returncode else program


class DockerCluster(Cluster):
    """One broker in a container; its log is what ``docker run`` prints.

    Args:
        program: Docker's path.
    """

    def __init__(self, program: str) -> None:
        self._program = program
        super().__init__()

    def _prepare(self) -> None:
        pass  # no Java here

    def _before_start(self) -> None:
        pass  # the image formats its folder by itself

    def _broker(self, node: int, own: Mapping[str, int], told: Mapping[str, int]) -> Broker:
        where = listening(
            self._listeners, {**own, "CONTROLLER": self._controllers[node]}, told, host="0.0.0.0"
        )
        properties = {**self._properties, **self._of_node(node, own, told), **where}
        properties["log.dirs"] = "/tmp/kraft-combined-logs"
        command = [self._program, "run", "--rm", "--init"]
        for port in own.values():
            command += ["--publish", f"{HOST}:{port}:{port}"]
        for key, value in properties.items():
            command += ["--env", f"KAFKA_{_variable(key)}={value}"]
        command.append(f"apache/kafka:{CURRENT.version}")
        log = self.folder / f"{node}.log"
        return Broker(command, log=log, ready=READY, node=node, ports=own, advertised=told)

    def _end(self) -> None:
        for broker in self.brokers:
            broker.end()  # SIGTERM reaches the container through its client, SIGKILL would not


def _variable(key: str) -> str:
    return key.upper().replace("_", "__").replace("-", "___").replace(".", "_")
