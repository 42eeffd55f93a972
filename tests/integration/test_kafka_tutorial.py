"""The tutorial on Kafka: what it says is true there too."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.docs.pages import DOCS, Console, blocks_of, write_file

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.brokers import Cluster


@pytest.fixture
def broker(own_kafka: Cluster) -> Iterator[str]:
    """A broker on which nobody else has a topic ``orders`` or an app ``shop``; they are removed afterwards."""
    yield own_kafka.url
    admin = own_kafka.admin()
    own = [
        name
        for name in admin.list_topics(timeout=10).topics
        if name == "orders" or name.startswith("shop-")
    ]
    for done in admin.delete_topics(own).values():
        done.result(10)


@pytest.mark.slow
def test_the_tutorial_runs_unchanged(broker: str, tmp_path: Path) -> None:
    """Every block of it, with the setting of the broker alone changed."""
    directory = tmp_path / "shop"
    directory.mkdir()
    console = Console(directory, broker=broker)
    ran = 0
    try:
        for block in blocks_of(DOCS / "tutorial.md"):
            if block.file is not None:
                write_file(block, directory)
            elif block.runs:
                assert block.language == "console"
                console.run(block)
                ran += 1
    finally:
        console.close()
    assert ran > 5
