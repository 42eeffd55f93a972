"""The benchmark of the Kafka transport runs, and leaves nothing behind."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.brokers import Kafka


def test_transport(kafka: Kafka) -> None:
    """A line for each thing that is measured."""
    before = set(kafka.admin().list_topics(timeout=10).topics)
    command = [sys.executable, "-m", "bench", "transport", "--broker", kafka.url]
    command += ["--commits", "5", "--records", "4000"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert [line.split()[0] for line in done.stdout.splitlines()] == [
        "commit",
        "append",
        "4,000",
        "4,000",
        "4,000",
    ]
    after = set(kafka.admin().list_topics(timeout=10).topics)
    assert not [name for name in after - before if "bench-" in name]
