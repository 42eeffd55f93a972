"""How the scripts find a Python and make their environment."""

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from scripts import _setup
from scripts._setup import SetupError, choose, install_hint, make_environment, prepare, program
from tests.requirements import missing

NO_ENSUREPIP = "raise ImportError('taken out, as Debian does')\n"


@pytest.mark.parametrize(
    ("versions", "chosen"),
    [
        # the first that is new enough
        ({"a": (3, 10), "b": (3, 12), "c": (3, 11)}, "b"),
        # the running one, although others are newer
        ({"a": (3, 11), "b": (3, 14)}, "a"),
        # one that does not run is passed over
        ({"a": None, "b": (3, 13)}, "b"),
        # one that the project was never tested on is the last choice
        ({"a": (3, 99), "b": (3, 11)}, "b"),
        ({"a": (3, 9), "b": (3, 99)}, "b"),
        # Python 2 and old ones only
        ({"a": (2, 7), "b": (3, 10)}, None),
        ({}, None),
    ],
)
def test_choice_of_a_python(
    versions: dict[str, tuple[int, int] | None], chosen: str | None
) -> None:
    """The first Python that is neither too old nor too new is taken."""
    assert choose(versions, versions.__getitem__) == chosen


def test_each_python_is_tried_once() -> None:
    """A path that comes twice runs once."""
    tried: list[str] = []

    def version(python: str) -> None:
        tried.append(python)

    assert choose(["a", "b", "a"], version) is None
    assert tried == ["a", "b"]


@pytest.mark.parametrize(
    ("platform", "managers", "command"),
    [
        ("darwin", (), "brew install"),
        ("win32", (), "winget install"),
        ("linux", ("apt-get",), "sudo apt-get install"),
        ("linux", ("dnf",), "sudo dnf install"),
        ("linux", ("pacman",), "sudo pacman -S"),
        ("linux", ("zypper",), "sudo zypper install"),
        ("linux", ("apk",), "sudo apk add"),
        ("linux", (), "pip install --user uv"),
    ],
)
def test_the_command_that_installs_a_python(
    platform: str, managers: tuple[str, ...], command: str
) -> None:
    """Each kind of machine gets its own command."""
    assert command in install_hint(platform, lambda name: name in managers)


def test_pythons_of_pyenv_come_newest_first(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A Python of pyenv is found by its folder, where the path has only shims; 3.9 is older than 3.12."""
    tail = "python.exe" if os.name == "nt" else "bin/python"
    start = tmp_path / "pyenv-win" if os.name == "nt" else tmp_path
    for release in ("3.9.18", "3.12.1", "3.11.7"):
        python = start / "versions" / release / tail
        python.parent.mkdir(parents=True)
        python.touch()
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path))
    found = [path for path in _setup.interpreters() if str(tmp_path) in path]
    releases = [Path(path).relative_to(start / "versions").parts[0] for path in found]
    assert releases == ["3.12.1", "3.11.7", "3.9.18"]


def test_no_python_at_all_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a Python that is new enough the message says what to type."""
    monkeypatch.setattr(_setup, "version_of", lambda python: (3, 8))
    monkeypatch.setattr(_setup, "_uv", lambda: None)
    with pytest.raises(SetupError, match=r"needs Python 3\.11 or later") as raised:
        _setup._need_python()
    assert install_hint() in str(raised.value)


def test_ways_are_tried_in_order_until_one_works(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A way that refuses is followed by the next; after one that works the rest are left alone."""
    tried: list[str] = []

    def refuse(venv: Path, python: str) -> str:
        tried.append("refuse")
        return "no"

    def work(venv: Path, python: str) -> None:
        tried.append("work")

    def never(venv: Path, python: str) -> str:
        raise AssertionError

    monkeypatch.setattr(_setup, "_with_uv", refuse)
    monkeypatch.setattr(_setup, "_with_venv", refuse)
    monkeypatch.setattr(_setup, "_with_virtualenv", work)
    monkeypatch.setattr(_setup, "_with_apt", never)
    monkeypatch.setattr(_setup, "_works", lambda venv: tried[-1] == "work")
    make_environment(tmp_path / ".venv", sys.executable)
    assert tried == ["refuse", "refuse", "work"]


def test_when_no_way_works_the_message_says_why_and_what_to_type(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The reasons stand in the order of the tries, and the command to type below them."""
    for way in ("uv", "venv", "virtualenv", "apt"):
        monkeypatch.setattr(
            _setup, f"_with_{way}", lambda venv, python, way=way: f"{way}: not today"
        )
    with pytest.raises(SetupError) as raised:
        make_environment(tmp_path / ".venv", sys.executable)
    message = str(raised.value)
    reasons = [line.strip("- :").split(":")[0] for line in message.splitlines() if "today" in line]
    assert reasons == ["uv", "venv", "virtualenv", "apt"]
    assert "python3" in message or "virtualenv" in message
    assert "start this again" in message


def test_a_folder_that_is_no_environment_is_left_alone(tmp_path: Path) -> None:
    """What a user keeps in a folder ``.venv`` is not deleted."""
    precious = tmp_path / ".venv" / "precious"
    precious.parent.mkdir()
    precious.touch()
    with pytest.raises(SetupError, match="in the way"):
        make_environment(tmp_path / ".venv", sys.executable)
    assert precious.exists()


def test_the_project_is_installed_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It is installed again for a new extra, a changed pyproject.toml or a moved folder, and not otherwise."""
    installed: list[list[str]] = []

    def make(venv: Path, python: str) -> None:
        venv.mkdir()
        (venv / "pyvenv.cfg").touch()

    monkeypatch.setattr(_setup, "make_environment", make)
    monkeypatch.setattr(_setup, "_need_python", lambda: sys.executable)
    monkeypatch.setattr(_setup, "_works", lambda venv: (venv / "pyvenv.cfg").exists())
    monkeypatch.setattr(_setup, "_install", lambda venv, root, extras: installed.append(extras))
    root = tmp_path / "one"
    root.mkdir()
    (root / "pyproject.toml").write_text("[project]\n")

    assert prepare(root=root) == program("python", root / ".venv")
    assert prepare(root=root) == program("python", root / ".venv")
    assert installed == [[]]
    prepare("dev", root=root)
    prepare(root=root)  # what is there is enough
    assert installed == [[], ["dev"]]
    (root / "pyproject.toml").write_text("[project] # changed\n")
    prepare(root=root)  # what was there stays
    assert installed == [[], ["dev"], ["dev"]]
    moved = root.rename(tmp_path / "two")
    prepare(root=moved)
    assert installed == [[], ["dev"], ["dev"], []]


def test_a_failed_installation_is_done_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What did not finish is not taken for done."""
    tries: list[int] = []

    def install(venv: Path, root: Path, extras: list[str]) -> None:
        tries.append(1)
        if len(tries) == 1:
            raise SetupError("no network")

    def make(venv: Path, python: str) -> None:
        venv.mkdir()
        (venv / "pyvenv.cfg").touch()

    monkeypatch.setattr(_setup, "make_environment", make)
    monkeypatch.setattr(_setup, "_need_python", lambda: sys.executable)
    monkeypatch.setattr(_setup, "_works", lambda venv: venv.exists())
    monkeypatch.setattr(_setup, "_install", install)
    (tmp_path / "pyproject.toml").touch()
    with pytest.raises(SetupError):
        prepare(root=tmp_path)
    prepare(root=tmp_path)
    assert len(tries) == 2


def test_what_a_command_prints_is_shown_only_when_it_fails(
    capfd: pytest.CaptureFixture[str],
) -> None:
    """A command that works is one line; one that fails shows its output."""
    hello = "import sys; print('hello'); sys.exit(int(sys.argv[1]))"
    assert _setup.run("good", [sys.executable, "-c", hello, "0"])
    assert "hello" not in capfd.readouterr().out
    assert not _setup.run("bad", [sys.executable, "-c", hello, "3"])
    assert "hello" in capfd.readouterr().out


def test_a_command_that_takes_long_is_heard_of(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The user sees that something is going on."""
    monkeypatch.setattr(_setup, "HEARTBEAT_S", 0.01)
    assert _setup.run("long", [sys.executable, "-c", "import time; time.sleep(0.1)"])
    assert "long: 0 s" in capfd.readouterr().out


def test_the_environment_is_made_where_ensurepip_is_hidden(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A real run on a Python without ensurepip and without uv: pip brings virtualenv, which makes it."""
    if not _setup._runs([sys.executable, "-m", "pip", "--version"]):
        missing("pip in the Python that runs the tests")
    shadow = tmp_path / "shadow"
    shadow.mkdir()
    (shadow / "ensurepip.py").write_text(NO_ENSUREPIP)
    monkeypatch.setenv("PYTHONPATH", str(shadow))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "cache"))
    monkeypatch.setattr(_setup, "_uv", lambda: None)
    venv = tmp_path / ".venv"
    assert "no ensurepip" in str(_setup._with_venv(venv, sys.executable))

    make_environment(venv, sys.executable)

    where = "import sys, pip; print(sys.prefix)"
    made = [str(program("python", venv)), "-c", where]
    answer = subprocess.run(made, capture_output=True, text=True, check=True)
    assert Path(answer.stdout.strip()).resolve() == venv.resolve()


@pytest.mark.parametrize("script", ["_setup.py", "check", "demo", "test"])
def test_the_scripts_are_understood_by_an_old_python(script: str) -> None:
    """Python 3.8 can read them, so that it can say what is missing."""
    source = (_setup.ROOT / "scripts" / script).read_text(encoding="utf-8")
    ast.parse(source, feature_version=(3, 8))


def test_an_old_python_finds_a_newer_one(tmp_path: Path) -> None:
    """A real run from a Python that is too old, on machines that have one."""
    versions = ((python, _setup.version_of(python)) for python in _setup.interpreters())
    old = next((python for python, found in versions if found and (3, 8) <= found < (3, 11)), None)
    if old is None:
        pytest.skip("there is no Python from 3.8 to 3.10 on this machine, nor need there be")
    shutil.copy(str(_setup.__file__), tmp_path / "_setup.py")
    find = "import _setup; print(_setup._need_python())"
    done = subprocess.run(
        [old, "-c", find], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert (_setup.version_of(done.stdout.strip()) or (0, 0)) >= (3, 11)
