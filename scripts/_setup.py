"""Finds a Python, makes the environment in ``.venv`` and installs the project into it.

What the scripts beside this file share. Standard library only, and nothing that Python 3.8 does not
understand: on a machine whose ``python3`` is old it still has to run, to find a newer one or to say how
to get one.

The environment is made in the first of these ways that works: uv; venv; virtualenv, which pip brings
into a cache folder, for a Python whose ensurepip was taken out; Debian's package, as root. The project
is installed again only when ``pyproject.toml`` or this file has changed, or more extras are asked for: a
stamp in ``.venv`` remembers it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from typing import NoReturn

__all__ = [
    "KAFKA_PROGRAMS",
    "ROOT",
    "SetupError",
    "bring_programs",
    "cache_folder",
    "choose",
    "guarded",
    "install_hint",
    "interpreters",
    "is_debian_root",
    "make_environment",
    "prepare",
    "program",
    "run",
    "say",
]

ROOT = Path(__file__).resolve().parent.parent
OLDEST = (3, 11)
NEWEST = (3, 14)  # the newest one that the project is tested on; a newer one is the last choice
PROBE_S_MAX = 10
HEARTBEAT_S = 5.0
_VERSION = "import sys; print(*sys.version_info[:2])"
_WINDOWS = os.name == "nt"
# one program of each row is needed, by what it says; Debian's packages
KAFKA_PROGRAMS = [
    (["java"], ["default-jdk-headless"], "a Kafka broker of our own"),
    (["mvn"], ["maven"], "a Kafka broker of our own"),
]


class SetupError(Exception):
    """The environment cannot be made; the message says what to type."""


def prepare(*extras: str, root: Path = ROOT) -> Path:
    """Return the Python of the environment, with the project and ``extras`` installed.

    Raises:
        SetupError: there is no Python to use, or no way to make an environment, or a package failed to install.
    """
    venv = root / ".venv"
    stamp = venv / ".millstream-setup"
    wanted = {"root": str(root), "files": _fingerprint(root)}
    found = _read_stamp(stamp)
    if found.get("root") not in (None, wanted["root"]):
        say("the environment was made in another folder: making it again")
        _remove(venv)
    installed = set(found.get("extras", ()))
    if not _works(venv):
        installed = set()
        python = _need_python()
        say(f"making the environment in {venv.name} with {python}")
        make_environment(venv, python)
    elif found.get("files") == wanted["files"] and installed.issuperset(extras):
        return program("python", venv)
    stamp.unlink(missing_ok=True)
    chosen = sorted(installed.union(extras))
    _install(venv, root, chosen)
    stamp.write_text(json.dumps({**wanted, "extras": chosen}), encoding="utf-8")
    return program("python", venv)


def program(name: str, venv: Path = ROOT / ".venv") -> Path:
    """Return the path of a program of the environment."""
    return venv / "Scripts" / f"{name}.exe" if _WINDOWS else venv / "bin" / name


# -- which Python


def interpreters() -> Iterator[str]:
    """Yield the Pythons of this machine, the likeliest first; they may not run, and may come twice."""
    yield sys.executable
    for minor in range(NEWEST[1], OLDEST[1] - 1, -1):
        yield from _on_path(f"python3.{minor}")
    yield from _on_path("python3")
    yield from _on_path("python")
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    if _WINDOWS:
        yield from _newest_first(pyenv.glob("pyenv-win/versions/*/python.exe"))
    else:
        yield from _newest_first(pyenv.glob("versions/*/bin/python"))
    uv = _uv()
    if uv is not None:
        found = _output([uv, "python", "find", "--no-project", f">={OLDEST[0]}.{OLDEST[1]}"])
        if found:
            yield found


def choose(
    candidates: Iterable[str], version: Callable[[str], tuple[int, int] | None]
) -> str | None:
    """Return the first candidate that is neither too old nor newer than what the project was tested on.

    Without one the first that is too new is taken, and None when all are too old.

    Args:
        candidates: Paths, the likeliest first.
        version: Gives major and minor version, or None for a path that does not run.
    """
    newer = None
    for candidate in dict.fromkeys(candidates):
        found = version(candidate)
        if found is None or found < OLDEST:
            continue
        if found <= NEWEST:
            return candidate
        newer = newer or candidate
    return newer


def version_of(python: str) -> tuple[int, int] | None:
    """Run ``python`` for its version; a shim of pyenv, for one, may be on the path and not run."""
    found = _output([python, "-c", _VERSION]).split()
    if len(found) != 2 or not all(part.isdigit() for part in found):
        return None
    return int(found[0]), int(found[1])


def install_hint(platform: str = sys.platform, has: Callable[[str], object] = shutil.which) -> str:
    """Return the command that installs a Python on this kind of machine."""
    if platform == "darwin":
        return "brew install python@3.13"
    if platform == "win32":
        return "winget install Python.Python.3.13"
    for manager, command in (
        ("apt-get", "sudo apt-get install python3.11 python3.11-venv"),
        ("dnf", "sudo dnf install python3.13"),
        ("pacman", "sudo pacman -S python"),
        ("zypper", "sudo zypper install python313"),
        ("apk", "sudo apk add python3"),
    ):
        if has(manager):
            return command
    return "python3 -m pip install --user uv"


def _need_python() -> str:
    python = choose(interpreters(), version_of)
    uv = _uv()
    if not python and uv and run("asking uv for a Python", [uv, "python", "install", "3.13"]):
        python = choose([_output([uv, "python", "find", "--no-project", "3.13"])], version_of)
    if python is None:
        here = ".".join(str(part) for part in sys.version_info[:2])
        raise SetupError(
            f"Millstream needs Python {OLDEST[0]}.{OLDEST[1]} or later, and only {here} was found. Install one with\n\n"
            f"    {install_hint()}\n\n"
            "or install uv (python3 -m pip install --user uv), which brings its own, and start this again."
        )
    return python


# -- the environment


def make_environment(venv: Path, python: str) -> None:
    """Make an environment with pip in it, in the first way that works on this machine.

    Raises:
        SetupError: none did; the message has the command to type.
    """
    refused = []
    for way in (_with_uv, _with_venv, _with_virtualenv, _with_apt):
        _remove(venv)
        reason = way(venv, python)
        if reason is None:
            if _works(venv):
                return
            reason = f"{way.__name__[6:]}: the environment that it made does not run"
        refused.append(reason)
    _remove(venv)
    major, minor = version_of(python) or OLDEST
    if shutil.which("apt-get"):
        command = f"sudo apt-get install python{major}.{minor}-venv"
    else:
        command = f"{python} -m pip install --user virtualenv && {python} -m virtualenv {venv}"
    reasons = "\n".join(f"  - {reason}" for reason in refused)
    raise SetupError(
        f"{python} cannot make an environment:\n{reasons}\nType\n\n    {command}\n\nand start this again."
    )


def _with_uv(venv: Path, python: str) -> str | None:
    uv = _uv()
    if uv is None:
        return "uv: not on this machine"
    made = run("uv venv", [uv, "venv", "--quiet", "--seed", "--python", python, str(venv)])
    return None if made else "uv: failed, see above"


def _with_venv(venv: Path, python: str) -> str | None:
    # Debian takes ensurepip out of its Python, and leaves venv in, which then fails half-way.
    if not _runs([python, "-c", "import ensurepip, venv"]):
        return f"venv: {python} has no ensurepip"
    return None if run("venv", [python, "-m", "venv", str(venv)]) else "venv: failed, see above"


def _with_virtualenv(venv: Path, python: str) -> str | None:
    pip = next(
        (p for p in (python, sys.executable, "python3") if _runs([p, "-m", "pip", "--version"])),
        None,
    )
    if pip is None:
        return "virtualenv: there is no pip to bring it"
    folder = cache_folder() / "virtualenv"
    bring = [pip, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--upgrade"]
    if not run("pip install virtualenv", [*bring, "--target", str(folder), "virtualenv"]):
        return "virtualenv: pip could not bring it, see above"
    made = run(
        "virtualenv",
        [python, "-m", "virtualenv", "--quiet", str(venv)],
        {"PYTHONPATH": str(folder)},
    )
    return None if made else "virtualenv: failed, see above"


def _with_apt(venv: Path, python: str) -> str | None:
    if not is_debian_root():
        return "apt: not root on Debian"
    if not os.path.realpath(python).startswith("/usr/bin/"):
        return f"apt: {python} is not Debian's"
    major, minor = version_of(python) or OLDEST
    get = ["apt-get", "install", "-y", "--no-install-recommends", f"python{major}.{minor}-venv"]
    quiet = {"DEBIAN_FRONTEND": "noninteractive"}
    if run("apt-get update", ["apt-get", "update"], quiet) and run(" ".join(get), get, quiet):
        return _with_venv(venv, python)
    return "apt: failed, see above"


def is_debian_root() -> bool:
    """Return whether Debian's packages can be installed by us."""
    geteuid = getattr(os, "geteuid", None)
    return geteuid is not None and geteuid() == 0 and bool(shutil.which("apt-get"))


def cache_folder() -> Path:
    """Return the folder of this user for what can be fetched again."""
    if _WINDOWS:
        base = os.environ.get("LOCALAPPDATA") or "~/AppData/Local"
    elif sys.platform == "darwin":
        base = "~/Library/Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "millstream"


def _install(venv: Path, root: Path, extras: list[str]) -> None:
    target = f"{root}[{','.join(extras)}]" if extras else str(root)
    python = str(program("python", venv))
    title = "installing Millstream and what it needs" + (
        " for " + ", ".join(extras) if extras else ""
    )
    uv = _uv()
    if uv is not None and run(
        title, [uv, "pip", "install", "--quiet", "--python", python, "--editable", target]
    ):
        return
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    if not run(title, [*pip, "--editable", target]):
        raise SetupError("The project could not be installed: what pip said stands above.")


def _works(venv: Path) -> bool:
    python = str(program("python", venv))
    found = version_of(python) if os.path.exists(python) else None
    return found is not None and found >= OLDEST and _runs([python, "-c", "import pip"])


def _remove(venv: Path) -> None:
    if venv.is_dir() and any(venv.iterdir()) and not (venv / "pyvenv.cfg").exists():
        raise SetupError(f"{venv} is in the way, and is not an environment: move it elsewhere.")
    if venv.is_dir():
        shutil.rmtree(venv)


def _fingerprint(root: Path) -> str:
    contents = (root / "pyproject.toml").read_bytes() + Path(__file__).read_bytes()
    return hashlib.sha256(contents).hexdigest()


def _read_stamp(stamp: Path) -> dict[str, Any]:
    try:
        found = json.loads(stamp.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


# -- running things and saying so


def run(
    title: str,
    command: list[str],
    more: Mapping[str, str] | None = None,
    *,
    cwd: Path | None = None,
) -> bool:
    """Run a command that may take long; say what and how long, and what it printed only if it fails.

    Args:
        title: What the user reads.
        command: Program and arguments.
        more: Environment variables beside those of this process.
        cwd: Where, if not here.
    """
    say(f"{title} …")
    began = time.monotonic()
    with tempfile.TemporaryFile() as output:
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=cwd,
                env={**os.environ, **(more or {})},
            )
        except OSError as error:
            say(f"{title}: {error}")
            return False
        try:
            while True:
                try:
                    process.wait(HEARTBEAT_S)
                    break
                except subprocess.TimeoutExpired:
                    say(f"{title}: {time.monotonic() - began:.0f} s")
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        if process.returncode:
            output.seek(0)
            print(output.read().decode(errors="replace"), flush=True)
            say(f"{title}: failed ({process.returncode})")
            return False
    return True


def say(line: str) -> None:
    """Tell the user what is being done."""
    print(f"· {line}", flush=True)


def guarded(main: Callable[[], int]) -> NoReturn:
    """Run a script: what cannot be set up is a message, and Ctrl-C is no error of ours."""
    try:
        code = main()
    except SetupError as error:
        sys.stdout.flush()
        sys.exit(str(error))
    except KeyboardInterrupt:
        code = 130
    sys.exit(code)


def _uv() -> str | None:
    return shutil.which("uv") or shutil.which("uv", path=str(Path.home() / ".local" / "bin"))


def _on_path(name: str) -> Iterator[str]:
    found = shutil.which(name)
    if found is not None:
        yield found


def _newest_first(paths: Iterable[Path]) -> list[str]:
    def release(path: Path) -> list[int]:
        folder = path.parent if _WINDOWS else path.parent.parent
        return [int(part) for part in folder.name.split(".") if part.isdigit()]

    return [str(path) for path in sorted(paths, key=release, reverse=True)]


def _runs(command: list[str]) -> bool:
    return _try(command)[0]


def _output(command: list[str]) -> str:
    return _try(command)[1]


def _try(command: list[str]) -> tuple[bool, str]:
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=PROBE_S_MAX,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False, ""
    if done.returncode:
        return False, ""
    return True, done.stdout.decode(errors="replace").strip()


def bring_programs(rows: Iterable[tuple[list[str], list[str], str]]) -> None:
    """Install Debian's packages of what is not here, where that is possible; whoever needs them says what is missing.

    Args:
        rows: the programs, one of which is enough; Debian's packages; what needs them.
    """
    absent = [row for row in rows if not any(shutil.which(name) for name in row[0])]
    packages = list(dict.fromkeys(package for _, row, _ in absent for package in row))
    if not packages:
        return
    if not is_debian_root():
        for names, row, what in absent:
            debian = f"Debian: apt-get install {' '.join(row)}"
            say(f"no {names[0]} here, for {what} ({debian})")
        return
    quiet = {"DEBIAN_FRONTEND": "noninteractive"}
    get = ["apt-get", "install", "-y", "--no-install-recommends", *packages]
    if run("apt-get update", ["apt-get", "update"], quiet):
        run(f"installing: {' '.join(packages)}", get, quiet)
