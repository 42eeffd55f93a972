"""The option ``--long``, and the last lines, which say what could not run."""

import os
import signal
from collections.abc import Iterator

import pytest

from tests.requirements import MISSING

pytest_plugins = ["tests.brokers.fixtures"]


def pytest_configure() -> None:
    """Where the run was started in the background of a script, Ctrl-C is ignored: what tests start should not inherit that."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--long``."""
    parser.addoption("--long", action="store_true", help="run the slow tests as well")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the slow tests of a usual run."""
    if config.getoption("--long"):
        return
    slow = pytest.mark.skip(reason="slow: runs with --long")
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker(slow)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say, as the last thing before the count, what was left out and what failed before pytest began."""
    left_out: dict[str, int] = {}
    for report in terminalreporter.stats.get("skipped", []):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        found = reason.removeprefix("Skipped: ")
        if found.startswith((MISSING, "slow: ")):
            left_out[found] = left_out.get(found, 0) + 1
    if left_out:
        terminalreporter.section("not run")
        for reason, count in sorted(left_out.items()):
            terminalreporter.line(f"{count} {'test' if count == 1 else 'tests'}: {reason}")
    failed = os.environ.get("MILLSTREAM_CHECKS_FAILED")
    if failed:
        terminalreporter.section("failed before the tests")
        terminalreporter.line(f"{failed}: see above; this run has failed")


@pytest.fixture(autouse=True)
def _no_scope_left_behind() -> Iterator[None]:
    """A test that puts a scope at hand takes it along."""
    from millstream.context import current

    token = current.set(None)  # type: ignore[arg-type]
    yield
    current.reset(token)
