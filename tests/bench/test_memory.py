"""What a keyed count keeps in memory has a bound, however many keys there are."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

MB_MAX = 600


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="the largest resident size")
def test_many_events_over_many_keys() -> None:
    """Ten million events over a million keys, on the embedded log and RocksDB."""
    command = [sys.executable, "-m", "bench", "memory"]
    command += ["--events", "10_000_000", "--keys", "1_000_000"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=3_600)
    most = re.search(r"events/s, ([\d,]+) MB at most", done.stdout)
    assert most is not None, done.stdout
    assert int(most[1].replace(",", "")) < MB_MAX
    assert "10,000,000 events over 1,000,000 keys" in done.stdout
