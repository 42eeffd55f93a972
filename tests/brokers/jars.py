"""Kafka's jars, which Maven fetches once into a cache folder outside the tree."""

from __future__ import annotations

import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from scripts._setup import cache_folder
from tests.requirements import java, maven, missing

__all__ = ["CLIENTS", "CURRENT", "OLDEST", "Line", "classpath"]

MAVEN_S_MAX = 600.0
_COPY = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies"
_POM = """<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>millstream.tests</groupId><artifactId>broker</artifactId><version>1</version><packaging>pom</packaging>
  <dependencies>{}</dependencies>
</project>
"""


@dataclass(frozen=True, slots=True)
class Line:
    """A release, and the packages that make up what is used of it."""

    version: str
    artifacts: tuple[str, ...]
    part: str = ""
    """What it is, where it is not the broker."""

    @property
    def folder(self) -> Path:
        """Where the jars are, or will be; its name changes with what is in it."""
        return cache_folder() / "kafka" / f"{self.part}{self.version}-1"


# slf4j-simple: without a logger the broker says nothing when it cannot start
CURRENT = Line(
    "4.1.1",
    (
        "org.apache.kafka:kafka_2.13:4.1.1",
        "org.apache.kafka:kafka-tools:4.1.1",
        "org.slf4j:slf4j-simple:1.7.36",
    ),
)
OLDEST = Line("2.8.2", ("org.apache.kafka:kafka_2.13:2.8.2", "org.slf4j:slf4j-simple:1.7.36"))
# Kafka Streams, which brings the clients and Jackson along
CLIENTS = Line(
    "4.1.1",
    ("org.apache.kafka:kafka-streams:4.1.1", "org.slf4j:slf4j-simple:1.7.36"),
    part="clients-",
)


def classpath(line: Line) -> str:
    """Return the class path of a release; fetched on first use, about 10 s for 54 MB.

    Without Java or Maven, or when Maven cannot fetch, the test is left out (``tests.requirements.missing``).
    """
    java()
    if not line.folder.is_dir():
        _fetch(line)
    return str(line.folder / "*")


def _fetch(line: Line) -> None:
    program = maven()
    parent = line.folder.parent
    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="fetch-", dir=parent) as folder:
        pom = Path(folder) / "pom.xml"
        pom.write_text(_POM.format("".join(_dependency(name) for name in line.artifacts)))
        jars = Path(folder) / "jars"
        command = [program, "-B", "-q", "-f", str(pom), _COPY, f"-DoutputDirectory={jars}"]
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=MAVEN_S_MAX,
                check=False,
            )
        except subprocess.TimeoutExpired:
            missing(f"Kafka {line.version}: Maven did not fetch it in {MAVEN_S_MAX:.0f} s")
        if done.returncode or not jars.is_dir():
            said = done.stdout.decode(errors="replace").strip().splitlines() or ["nothing"]
            why = next((text for text in said if "ERROR" in text), said[-1])
            missing(f"Kafka {line.version}: Maven could not fetch it, and said: {why}")
        try:
            # in one step: another test run may be doing the same, and the first to finish wins
            jars.rename(line.folder)
        except OSError:
            if not line.folder.is_dir():
                raise


def _dependency(name: str) -> str:
    group, artifact, version = name.split(":")
    return (
        f"<dependency><groupId>{group}</groupId><artifactId>{artifact}</artifactId>"
        f"<version>{version}</version></dependency>"
    )
