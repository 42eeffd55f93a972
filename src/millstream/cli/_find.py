"""Finding the user's app: by its name, by ``pyproject.toml``, or where apps usually are."""

from __future__ import annotations

import importlib
import sys
import tomllib
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

import millstream
from millstream.app import App
from millstream.errors import ConfigurationError, MillstreamError

if TYPE_CHECKING:
    from types import ModuleType

__all__ = ["checked", "configured_reference", "find_app", "user_line"]

PLACES = (("app.py", "app"), ("app/", "app"), ("main.py", "main"))
"""Where an app is looked for, and the module that is then."""


def find_app(reference: str | None, directory: Path) -> App:
    """Load the app that ``reference`` names, else the one that ``directory`` holds.

    ``directory`` is put on ``sys.path``.

    Raises:
        ConfigurationError: there is no app, there are several, or its module does not load; says which.
    """
    if str(directory) not in sys.path:
        sys.path.insert(0, str(directory))
    named = reference or configured_reference(directory)
    if named:
        return checked(_named_app(named, directory))
    missed = []
    for place, name in PLACES:
        if not (directory / place).exists():
            missed.append(f"{place} (not there)")
            continue
        module = _load(name, directory)
        apps = _apps_of(module)
        if apps:
            return checked(_only(apps, name))
        missed.append(f"{place} (has no ms.App)")
    raise ConfigurationError(
        f"there is no app in {directory}: looked for {', '.join(missed)}. Name it with"
        f' -A module:app or in pyproject.toml ([tool.millstream] app = "module:app"), or begin with:'
        f" millstream new shop"
    )


def configured_reference(directory: Path) -> str | None:
    """What ``pyproject.toml`` says: ``[tool.millstream] app = "module:app"``; None where nothing.

    Raises:
        ConfigurationError: the file cannot be read, or the app is not a name.
    """
    path = directory / "pyproject.toml"
    try:
        with path.open("rb") as file:
            found = tomllib.load(file).get("tool", {}).get("millstream", {}).get("app")
    except FileNotFoundError:
        return None
    except (tomllib.TOMLDecodeError, OSError) as exc:
        raise ConfigurationError(f"{path} cannot be read: {exc}") from exc
    if found is not None and not isinstance(found, str):
        raise ConfigurationError(f'{path}: [tool.millstream] app is not text: write "module:app"')
    return found


def checked(app: App) -> App:
    """The app with all of its modules loaded.

    Raises:
        ConfigurationError: one of them does not load, or a command has the name of one of ours.
    """
    from millstream.cli._main import _OWN

    try:
        app.discover()
    except Exception as exc:
        raise _broken(exc, "a module that autodiscover= names", Path.cwd()) from exc
    for command in app.commands:
        if command.name in _OWN:
            raise ConfigurationError(
                f"the app has a command {command.name!r}, as Millstream has: give it another name,"
                f' for example @app.command("{app.id}-{command.name}")'
            )
    return app


def _named_app(reference: str, directory: Path) -> App:
    name, _, attribute = reference.partition(":")
    if name.endswith(".py"):
        name = ".".join(Path(name).with_suffix("").parts)
    module = _load(name, directory)
    if not attribute:
        apps = _apps_of(module)
        if not apps:
            raise ConfigurationError(
                f"module {name!r} has no ms.App at its top level: write there app = ms.App(...), or name"
                f" another one with -A module:app"
            )
        return _only(apps, name)
    found: object = module
    for part in attribute.split("."):
        if not hasattr(found, part):
            apps = _apps_of(module)
            has = f": it has {', '.join(sorted(apps))}" if apps else ", nor any other app"
            raise ConfigurationError(f"module {name!r} has no {attribute!r}{has}")
        found = getattr(found, part)
    if not isinstance(found, App):
        raise ConfigurationError(f"{reference} is a {type(found).__name__}, not an ms.App")
    return found


def _apps_of(module: ModuleType) -> dict[str, App]:
    return {name: value for name, value in vars(module).items() if isinstance(value, App)}


def _only(apps: dict[str, App], module: str) -> App:
    distinct = {id(app): app for app in apps.values()}
    if len(distinct) > 1:
        raise ConfigurationError(
            f"module {module!r} has several apps ({', '.join(sorted(apps))}): say which one, for"
            f" example -A {module}:{min(apps)}"
        )
    return next(iter(distinct.values()))


def _load(name: str, directory: Path) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as exc:
        if exc.name and (name == exc.name or name.startswith(f"{exc.name}.")):
            raise ConfigurationError(
                f"there is no module {name!r} in {directory}, nor is one installed"
            ) from exc
        raise _broken(exc, f"module {name!r}", directory) from exc
    except Exception as exc:
        raise _broken(exc, f"module {name!r}", directory) from exc


def _broken(error: Exception, what: str, directory: Path) -> ConfigurationError:
    """What to tell of a module of the user that raises on import."""
    if isinstance(error, SyntaxError) and error.filename:
        place = f"{_short(error.filename, directory)}:{error.lineno}"
        reason = f"{type(error).__name__}: {error.msg}"
    else:
        found = user_line(error)
        place = _short(found, directory) if found else ""
        reason = (
            str(error) if isinstance(error, MillstreamError) else f"{type(error).__name__}: {error}"
        )
    return ConfigurationError(
        f"{place}: {reason}" if place else f"{what} cannot be imported: {reason}"
    )


def _short(path: str, directory: Path) -> str:
    return path.removeprefix(f"{directory}/").removeprefix(f"{directory}\\")


def user_line(error: BaseException) -> str | None:
    """``file:line`` of the innermost frame that is the user's; None where all are ours or Python's."""
    ours = str(Path(millstream.__file__).parent)
    found = None
    for frame in traceback.extract_tb(error.__traceback__):
        path = frame.filename
        slashed = path.replace("\\", "/")
        foreign = (
            path.startswith((ours, "<")) or "/lib/python3" in slashed or "-packages/" in slashed
        )
        if not foreign:
            found = f"{path}:{frame.lineno}"
    return found
