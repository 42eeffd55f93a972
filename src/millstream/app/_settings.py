"""Settings of an app: one frozen object, read from arguments, the environment and ``pyproject.toml``."""

from __future__ import annotations

import dataclasses
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from millstream.agents import Policy, policy_of
from millstream.clock import duration_ms
from millstream.errors import ConfigurationError, MillstreamError, SettingError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

__all__ = ["Settings", "read_settings", "setting_docs"]

Guarantee = Literal["exactly_once", "at_least_once"]


Mechanism = Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"]


def _setting(default: Any, doc: str, *, secret: bool = False) -> Any:
    return field(default=default, repr=not secret, metadata={"doc": doc, "secret": secret})


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Every setting, with its unit and default; durations are in ms, sizes in bytes."""

    broker: str = _setting(
        "", "Where the log is: local://file.db, or kafka://host:9092,host2:9092."
    )
    ssl: bool = _setting(
        False,
        "Whether brokers are spoken to over TLS; so too where ssl_cafile or ssl_certfile is given.",
    )
    ssl_cafile: Path | None = _setting(
        None,
        "Certificates (PEM) of the authorities that brokers are trusted for; else the system's.",
    )
    ssl_certfile: Path | None = _setting(
        None, "This client's certificate (PEM), where brokers ask for one."
    )
    ssl_keyfile: Path | None = _setting(None, "Its key (PEM), where it is in a file of its own.")
    ssl_password: str = _setting("", "The password of that key.", secret=True)
    ssl_check_hostname: bool = _setting(
        True, "Whether a broker's certificate has to be for the host that was asked."
    )
    sasl_mechanism: Mechanism | None = _setting(
        None, "How to log in at brokers: PLAIN, SCRAM-SHA-256, SCRAM-SHA-512 or OAUTHBEARER."
    )
    sasl_username: str = _setting("", "The user, for PLAIN and SCRAM.")
    sasl_password: str = _setting("", "The user's password.", secret=True)
    sasl_token: Callable[[], str | Awaitable[str]] | None = _setting(
        None,
        "For OAUTHBEARER: a function, async or not, that returns a token; in App(...) only.",
        secret=True,
    )
    processing_guarantee: Guarantee = _setting("exactly_once", "exactly_once or at_least_once.")
    commit_interval: int = _setting("20ms", "Shortest time between two commits, a duration.")
    session_timeout: int = _setting(
        "5s", "After so long without a sign of life a worker loses its shards, a duration."
    )
    standby_replicas: int = _setting(
        0,
        "Copies of each shard's tables that other workers keep, to take over at once and to answer stale queries.",
    )
    rack: str = _setting(
        "", "Where a worker stands, for example its zone; copies of a shard go to other racks."
    )
    partitions: int = _setting(4, "Partitions of topics that do not exist and declare none.")
    replication: int = _setting(1, "Replicas of the topics that Millstream creates.")
    state_dir: Path | None = _setting(
        None, "Where local state is kept; .millstream beside the log, or in the working directory."
    )
    state: Literal["rocksdb", "memory"] = _setting(
        "rocksdb", "Where tables are kept: rocksdb or memory."
    )
    state_cache_bytes: int = _setting(
        64 << 20, "RocksDB's block cache, for all tables of a worker, in bytes."
    )
    state_write_buffer_bytes: int = _setting(
        64 << 20, "RocksDB's write buffers, likewise, in bytes."
    )
    on_error: Policy = _setting("stop", "stop, skip, dlq, Dlq(topic) or Retry(...).")
    record_bytes_max: int = _setting(1_000_000, "Largest record, key and value together, in bytes.")
    inbox_bytes_max: int = _setting(
        8 << 20,
        "Records fetched ahead, for each agent of each shard, in bytes; the last fetch may bring 2 MiB more.",
    )
    epoch_bytes_max: int = _setting(
        32 << 20,
        "Input and output of a shard between two commits, above which agents that hold more than their share of it"
        " stop reading, in bytes.",
    )
    reply_timeout: int = _setting("30s", "How long ask() waits where it is not told, a duration.")
    web: bool = _setting(True, "Whether a worker serves its tables and pages over HTTP.")
    web_host: str = _setting("127.0.0.1", "The address that the web server listens on.")
    web_port: int | None = _setting(
        None, "Its port; 6066 or the next free one where none is given."
    )
    web_hosts: str = _setting(
        "", "Names, with spaces between, under which a server on loopback may be asked."
    )
    web_url: str = _setting("", "How other workers reach this one; from host and port where empty.")
    compat: Literal["kafka-streams"] | None = _setting(
        None, "Answer as Kafka Streams does, also where it loses or repeats results."
    )
    instance_id: str = _setting(
        "",
        "On Kafka, a worker's place in its group (group.instance.id): a restart within session_timeout moves nothing.",
    )
    evict_instances: bool = _setting(
        False,
        "Whether workers with an instance_id are replaced as soon as their process is gone, and not after"
        " session_timeout.",
    )
    slot: str = _setting(
        "",
        "A name of the worker that stays when it restarts; where empty, on Kafka a StatefulSet's pod is its own,"
        " and else one is found.",
    )


_DURATIONS = {"commit_interval", "session_timeout", "reply_timeout"}
_LEAST = {
    "session_timeout": 1,
    "reply_timeout": 1,
    "replication": 1,
    "record_bytes_max": 1,
    "inbox_bytes_max": 1,
    "epoch_bytes_max": 1,
}
"""What a number has to be at least, where that is not 0."""
_PORT_MAX = 65_535

_PREFIX = "MILLSTREAM_"
_NOT_SETTINGS = ("TEST_", "CHECKS_", "DATA")
"""How variables go on that begin like a setting's: those of tests, of ``.ci/run`` and of the reference app."""


IN_CODE_ONLY = frozenset(
    name for name, kind in Settings.__annotations__.items() if kind.startswith("Callable")
)
"""Settings that are functions, which no variable can hold."""


def setting_docs() -> dict[str, tuple[str, Any]]:
    """Name to documentation and default, in order."""
    return {f.name: (f.metadata["doc"], f.default) for f in dataclasses.fields(Settings)}


def _convert(name: str, value: Any, source: str) -> Any:
    kind = Settings.__annotations__[name]
    try:
        if name in _DURATIONS:
            text = value.strip() if isinstance(value, str) else value
            if isinstance(text, str) and text.replace(".", "", 1).isdigit():
                text = float(text)
            return _at_least(name, _duration(text))
        if name == "on_error":
            return policy_of(value)
        if name in IN_CODE_ONLY:
            return _function(value)
        if kind == "bool":
            return _bool(value)
        if kind.startswith("int"):
            return None if value is None else _at_least(name, _integer(value))
        if kind.startswith("Path"):
            return None if value is None else Path(value).expanduser()
    except (MillstreamError, ValueError, TypeError) as exc:
        if isinstance(exc, SettingError):
            raise
        raise SettingError(name, f"{_told(name, value)} from {source}: {exc}") from exc
    if not isinstance(value, str) and value is not None:
        raise SettingError(name, f"{_told(name, value)} from {source} is not text")
    allowed = _allowed(kind)
    if allowed and value not in allowed:
        raise SettingError(
            name, f"{value!r} from {source} is none of {', '.join(map(repr, allowed))}"
        )
    return value


_SECRETS = {f.name for f in dataclasses.fields(Settings) if f.metadata["secret"]}


def _told(name: str, value: Any) -> str:
    """A value as an error may repeat it."""
    return "what is given" if name in _SECRETS else repr(value)


def _function(value: Any) -> Any:
    if value is not None and not callable(value):
        raise ValueError("not a function")
    return value


def _allowed(kind: str) -> tuple[Any, ...]:
    if kind == "Guarantee":
        return get_args(Guarantee)
    if kind.startswith("Mechanism"):
        return (*get_args(Mechanism), None)
    if kind.startswith("Literal["):
        inner = kind.partition("[")[2].partition("]")[0]
        listed = tuple(part.strip().strip("\"'") for part in inner.split(","))
        return (*listed, None) if "None" in kind else listed
    return ()


def _integer(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise ValueError("not a whole number")
    try:
        return int(value)
    except ValueError:
        raise ValueError("not a whole number") from None


def _duration(value: Any) -> int:
    try:
        return duration_ms(value, what="")
    except ConfigurationError as exc:
        raise ValueError(str(exc).removeprefix(": ").removeprefix(f"{value!r} is ")) from exc


def _at_least(name: str, number: int) -> int:
    least = _LEAST.get(name, 0)
    if number < least:
        raise ValueError("below 0" if number < 0 else "not above 0")
    if name == "web_port" and number > _PORT_MAX:
        raise ValueError(f"a port is {_PORT_MAX} at most")
    return number


def _bool(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if str(value).lower() in ("1", "true", "yes", "on"):
        return True
    if str(value).lower() in ("0", "false", "no", "off"):
        return False
    raise ValueError("neither true nor false")


def read_settings(
    app: str,
    arguments: Mapping[str, Any],
    *,
    environ: Mapping[str, str] | None = None,
    directory: Path | None = None,
) -> Settings:
    """Arguments of ``App`` come first, then ``MILLSTREAM_<NAME>``, then ``[tool.millstream]``, then defaults.

    Raises:
        SettingError: one that is unknown, or has a wrong value; names it and where it came from.
    """
    names = {f.name: f.default for f in dataclasses.fields(Settings)}
    environ = os.environ if environ is None else environ
    directory = Path.cwd() if directory is None else directory
    for name in arguments:
        if name not in names:
            raise SettingError(name, f"there is no such setting{_close(name, names)}")
    for variable in environ:
        name = variable.removeprefix(_PREFIX)
        if name == variable or name.startswith(_NOT_SETTINGS) or name.lower() in names:
            continue
        raise SettingError(
            name.lower(),
            f"{variable} is set, and there is no such setting{_close(name.lower(), names)}",
        )
    table = _tool_table(directory)
    for name in table:
        if name not in names and name != "app":
            raise SettingError(
                name, f"[tool.millstream] has it, and there is no such setting{_close(name, names)}"
            )
    values: dict[str, Any] = {}
    for name, default in names.items():
        variable = f"MILLSTREAM_{name.upper()}"
        if name in arguments and arguments[name] is not None:
            values[name] = _convert(name, arguments[name], "App(...)")
        elif variable in environ:
            values[name] = _convert(name, environ[variable], variable)
        elif name in table:
            values[name] = _convert(name, table[name], "[tool.millstream]")
        else:
            values[name] = _convert(name, default, "the defaults")
    if not values["broker"]:
        values["broker"] = f"local://{app}.db"
    if values["partitions"] < 1:
        raise SettingError("partitions", "a topic has at least 1")
    if not values["slot"] and values["broker"].startswith("kafka://"):
        values["slot"] = _pod(environ)
    if "/" in values["slot"] or "\\" in values["slot"] or values["slot"] in (".", ".."):
        raise SettingError(
            "slot", f"{values['slot']!r} cannot be the name of a folder: leave slashes out"
        )
    return Settings(**values)


def _pod(environ: Mapping[str, str]) -> str:
    """The pod's name, where it is one of a StatefulSet: it ends with an ordinal, and its successor has the same.

    The whole name, as two sets may run one app.
    """
    name = environ.get("HOSTNAME", "")
    in_cluster = "KUBERNETES_SERVICE_HOST" in environ
    return name if in_cluster and re.fullmatch(r".+-\d+", name) else ""


def _close(name: str, names: Mapping[str, Any]) -> str:
    import difflib

    found = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {found[0]!r}?" if found else ""


def _tool_table(directory: Path) -> dict[str, Any]:
    import tomllib

    path = directory / "pyproject.toml"
    try:
        with path.open("rb") as file:
            found = tomllib.load(file).get("tool", {}).get("millstream", {})
    except FileNotFoundError:
        return {}
    except tomllib.TOMLDecodeError as exc:
        raise SettingError("pyproject.toml", f"{path} cannot be read: {exc}") from exc
    return dict(found)
