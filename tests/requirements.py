"""What some tests need that is not on every machine."""

import os
import shutil
import sys
from pathlib import Path
from typing import NoReturn

import pytest

__all__ = ["MISSING", "chromium", "missing", "wheel"]

MISSING = "cannot run here: "
_BROWSERS = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome"]
_MAC_BROWSERS = [
    Path("/Applications/Google Chrome.app/Contents/MacOS/Google Chrome"),
    Path("/Applications/Chromium.app/Contents/MacOS/Chromium"),
]


def missing(reason: str) -> NoReturn:
    """Leave the test out because this machine lacks something; where ``CI`` is set, fail it.

    The last lines of the run name what was left out.

    Args:
        reason: What is missing, and how to get it.
    """
    if os.environ.get("CI"):
        pytest.fail(f"{MISSING}{reason} (with CI set nothing may be missing)", pytrace=False)
    pytest.skip(f"{MISSING}{reason}")


def chromium() -> str:
    """Return the path of a Chromium or Chrome."""
    for name in _BROWSERS:
        found = shutil.which(name)
        if found:
            return found
    if sys.platform == "darwin":
        for path in _MAC_BROWSERS:
            if path.exists():
                return str(path)
    missing(
        "Chromium, for the tests in a browser (Debian: apt-get install chromium chromium-driver)"
    )


def wheel() -> Path:
    """Return the wheel of the project that ``scripts/test`` has built."""
    found = os.environ.get("MILLSTREAM_TEST_WHEEL")
    if not found:
        missing("the built wheel: run scripts/test, or set MILLSTREAM_TEST_WHEEL to its path")
    return Path(found)
