"""What some tests need that is not on every machine."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import pytest

__all__ = ["MISSING", "chromium", "java", "java_compiler", "maven", "missing", "openssl", "wheel"]

MISSING = "cannot run here: "
BROKER = (
    "a Kafka broker: set MILLSTREAM_TEST_BROKER=kafka://host:port, or start Docker, or install Java 17 and Maven "
    "(Debian: apt-get install maven default-jdk-headless)"
)
OLDEST_JAVA = 17
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


def java() -> str:
    """Return the path of a Java, 17 or later, which a broker of the tests' own needs."""
    found = shutil.which("java")
    if found is None:
        missing(BROKER)
    said = subprocess.run([found, "-version"], capture_output=True, text=True, check=False).stderr
    version = re.search(r'version "(\d+)', said)
    if version is None or int(version[1]) < OLDEST_JAVA:
        missing(f"{BROKER}; the Java here is too old: {said.splitlines()[:1]}")
    return found


def java_compiler() -> str:
    """Return the path of a Java, 17 or later, that runs source files, which needs a JDK."""
    found = java()
    command = [found, "--list-modules"]
    modules = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    if "jdk.compiler@" not in modules:
        missing(
            "a Java that compiles (a JDK, and not only a JRE), for the tests with Kafka's Java clients and Kafka"
            " Streams (Debian: apt-get install default-jdk-headless)"
        )
    return found


def maven() -> str:
    """Return the path of Maven, which fetches the broker on first use."""
    return shutil.which("mvn") or missing(BROKER)


def openssl() -> str:
    """Return the path of OpenSSL, which makes the certificates of a broker with TLS."""
    return shutil.which("openssl") or missing("OpenSSL (Debian: apt-get install openssl)")


def wheel() -> Path:
    """Return the wheel of the project that ``scripts/test`` has built."""
    found = os.environ.get("MILLSTREAM_TEST_WHEEL")
    if not found:
        missing("the built wheel: run scripts/test, or set MILLSTREAM_TEST_WHEEL to its path")
    return Path(found)
