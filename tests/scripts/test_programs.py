"""What ``scripts/test`` installs before the tests."""

from __future__ import annotations

import importlib.util
import sys
from importlib.machinery import SourceFileLoader
from typing import TYPE_CHECKING, Any

import pytest

from scripts import _setup
from scripts._setup import ROOT

if TYPE_CHECKING:
    from collections.abc import Mapping


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script as a module."""
    monkeypatch.setattr(sys, "path", [*sys.path])  # it adds its folder
    loader = SourceFileLoader("scripts_test", str(ROOT / "scripts" / "test"))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("here", "installed"),
    [
        ({"chromium", "java", "javac", "mvn", "openssl"}, []),
        # another browser will do
        ({"google-chrome", "java", "javac", "mvn", "openssl"}, []),
        # a Java that runs and does not compile
        ({"chromium", "java", "mvn", "openssl"}, ["default-jdk-headless"]),
        ({"chromium", "openssl"}, ["default-jdk-headless", "maven"]),
        (set(), ["chromium", "chromium-driver", "default-jdk-headless", "maven", "openssl"]),
    ],
)
def test_debian_s_packages_are_installed_by_root(
    monkeypatch: pytest.MonkeyPatch, script: Any, here: set[str], installed: list[str]
) -> None:
    """Those of the programs that are not there, all at once."""
    commands: list[list[str]] = []

    def run(title: str, command: list[str], more: Mapping[str, str]) -> bool:
        commands.append(command)
        return True

    monkeypatch.setattr("shutil.which", lambda name: name if name in here else None)
    monkeypatch.setattr(_setup, "is_debian_root", lambda: True)
    monkeypatch.setattr(_setup, "run", run)
    _setup.bring_programs(script.PROGRAMS)
    if not installed:
        assert commands == []
    else:
        update, install = commands
        assert update == ["apt-get", "update"]
        assert install[install.index("--no-install-recommends") + 1 :] == installed


def test_elsewhere_the_script_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, script: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """It names the program, the tests that will be left out, and how to get it."""
    monkeypatch.setattr("shutil.which", lambda name: None if name == "mvn" else name)
    monkeypatch.setattr(_setup, "is_debian_root", lambda: False)
    _setup.bring_programs(script.PROGRAMS)
    assert capsys.readouterr().out == (
        "· no mvn here, for a Kafka broker of our own (Debian: apt-get install maven)\n"
    )
