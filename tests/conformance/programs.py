"""The programs of the conformance cases, written with Millstream."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import millstream as ms

if TYPE_CHECKING:
    from collections.abc import Callable

    from millstream.streams import GroupedStream, WindowedCogroup, WindowedStream

__all__ = ["PROGRAMS", "Program", "build"]

LONG_RETENTION = "1d"


@dataclass
class Program:
    """An app with its inputs and its output."""

    app: ms.App
    inputs: dict[str, ms.Topic[str]]
    output: ms.Topic[str]


def added(so_far: str, value: str | None) -> str:
    """The aggregator ``v;``."""
    return f"{so_far}{'_' if value is None else value};"


def joined(left: str | None, right: str | None) -> str:
    """The joiner ``left,right``."""
    return f"{'null' if left is None else left},{'null' if right is None else right}"


def last_digit(value: str) -> int:
    """The number that a value ends with, its last digit."""
    return int(value[-1])


def parity(value: str) -> str:
    """``even`` or ``odd``, by the last digit."""
    return "odd" if last_digit(value) % 2 else "even"


def build(case: dict[str, Any], compat: str | None, **settings: Any) -> Program:
    """The program of a case."""
    app = ms.App("case", partitions=1, commit_interval="1ms", compat=compat, **settings)
    inputs = {name: app.topic(name, value=str, codec="str") for name in ("a", "b")}
    output = app.topic("out", value=str, codec="str")
    PROGRAMS[case["topology"]](app, inputs["a"], inputs["b"], output, case["params"])
    return Program(app, inputs, output)


def aggregate(
    app: ms.App, a: ms.Topic[str], b: ms.Topic[str], out: ms.Topic[str], params: dict[str, Any]
) -> None:
    app.stream(a).group_by().aggregate(default="", add=added, name="t", emit="every").to(out)


def reduce(
    app: ms.App, a: ms.Topic[str], b: ms.Topic[str], out: ms.Topic[str], params: dict[str, Any]
) -> None:
    app.stream(a).group_by().reduce(lambda x, y: f"{x}+{y}", name="t", emit="every").to(out)


def count(
    app: ms.App, a: ms.Topic[str], b: ms.Topic[str], out: ms.Topic[str], params: dict[str, Any]
) -> None:
    app.stream(a).group_by().count(name="t", emit="every").changes().map(str).to(out)


def _windowed(
    windowed: WindowedStream[str, str], out: ms.Topic[str], params: dict[str, Any]
) -> None:
    emit: Any = "every" if params.get("emit", "update") == "update" else "final"
    if params.get("emit", "update") == "suppress":
        emit = ms.Suppress()
    table = windowed.aggregate(default="", add=added, name="t", emit=emit)
    table.to(out)


def _retention(params: dict[str, Any]) -> Any:
    return LONG_RETENTION if params.get("long_retention") else None


def tumbling(
    app: ms.App, a: ms.Topic[str], b: ms.Topic[str], out: ms.Topic[str], params: dict[str, Any]
) -> None:
    size, grace = params["size"] / 1_000, params["grace"] / 1_000
    groups = app.stream(a).group_by()
    _windowed(groups.tumbling(size, grace=grace, retention=_retention(params)), out, params)


def hopping(
    app: ms.App, a: ms.Topic[str], b: ms.Topic[str], out: ms.Topic[str], params: dict[str, Any]
) -> None:
    size, grace = params["size"] / 1_000, params["grace"] / 1_000
    advance = params.get("advance", params["size"]) / 1_000
    groups = app.stream(a).group_by()
    _windowed(groups.hopping(size, advance, grace=grace, retention=_retention(params)), out, params)


def sliding(
    app: ms.App, a: ms.Topic[str], b: ms.Topic[str], out: ms.Topic[str], params: dict[str, Any]
) -> None:
    width, grace = params["difference"] / 1_000, params["grace"] / 1_000
    groups = app.stream(a).group_by()
    _windowed(groups.sliding(width, grace=grace, retention=_retention(params)), out, params)


def session(
    app: ms.App, a: ms.Topic[str], b: ms.Topic[str], out: ms.Topic[str], params: dict[str, Any]
) -> None:
    gap, grace = params["gap"] / 1_000, params["grace"] / 1_000
    groups = app.stream(a).group_by()
    _windowed(groups.session(gap, grace=grace, retention=_retention(params)), out, params)


def _plain(so_far: str, value: str | None) -> str:
    return f"{so_far}{'null' if value is None else value};"


def _bracketed(so_far: str, value: str | None) -> str:
    return f"{so_far}({'null' if value is None else value})"


def _cogrouped(app: ms.App, a: ms.Topic[str], b: ms.Topic[str]) -> Any:
    second: GroupedStream[str, str] = app.stream(b).group_by()
    return app.stream(a).group_by().cogroup(_plain).cogroup(second, _bracketed)


def cogroup(
    app: ms.App, a: ms.Topic[str], b: ms.Topic[str], out: ms.Topic[str], params: dict[str, Any]
) -> None:
    _cogrouped(app, a, b).aggregate(default="", name="t", emit="every").to(out)


def cogroup_tumbling(
    app: ms.App, a: ms.Topic[str], b: ms.Topic[str], out: ms.Topic[str], params: dict[str, Any]
) -> None:
    groups: WindowedCogroup[str, str] = _cogrouped(app, a, b).tumbling(
        params["size"] / 1_000, grace=params["grace"] / 1_000
    )
    groups.aggregate(default="", name="t", emit="every").to(out)


def merge(
    app: ms.App, a: ms.Topic[str], b: ms.Topic[str], out: ms.Topic[str], params: dict[str, Any]
) -> None:
    app.stream(a).merge(app.stream(b)).to(out)


def table_source(
    app: ms.App, a: ms.Topic[str], b: ms.Topic[str], out: ms.Topic[str], params: dict[str, Any]
) -> None:
    app.table("t", topic=a).to(out)


def to_table(
    app: ms.App, a: ms.Topic[str], b: ms.Topic[str], out: ms.Topic[str], params: dict[str, Any]
) -> None:
    app.stream(a).to_table("t").to(out)


def table_filter(
    app: ms.App, a: ms.Topic[str], b: ms.Topic[str], out: ms.Topic[str], params: dict[str, Any]
) -> None:
    name = "even" if params["materialized"] else None
    table = app.table("t", topic=a)
    table.filter(lambda value: last_digit(value) % 2 == 0, name=name).to(out)


def table_groupby_count(
    app: ms.App, a: ms.Topic[str], b: ms.Topic[str], out: ms.Topic[str], params: dict[str, Any]
) -> None:
    groups = app.table("t", topic=a).group_by(parity, name="parity")
    groups.count(name="counts", emit="every").changes().map(str).to(out)


def table_groupby_agg(
    app: ms.App, a: ms.Topic[str], b: ms.Topic[str], out: ms.Topic[str], params: dict[str, Any]
) -> None:
    groups = app.table("t", topic=a).group_by(parity, name="parity")
    table = groups.aggregate(
        default="",
        add=lambda so_far, value: f"{so_far}+{value}",
        subtract=lambda so_far, value: f"{so_far}-{value}",
        name="texts",
        emit="every",
    )
    table.to(out)


def _table(app: ms.App, name: str, topic: ms.Topic[str], versioned: float | None) -> Any:
    if versioned is None:
        return app.table(name, topic=topic)
    return app.table(name, topic=topic, versioned=versioned)


def table_table(
    app: ms.App, a: ms.Topic[str], b: ms.Topic[str], out: ms.Topic[str], params: dict[str, Any]
) -> None:
    versioned = params["history"] / 1_000 if params["versioned"] else None
    left = _table(app, "left", a, versioned)
    right = _table(app, "right", b, versioned)
    left.join(right, joined, how=params["kind"]).to(out)


def foreign_key(value: str) -> str | None:
    """0 to 3 → A, 4 to 6 → B, 7 and 8 → C, 9 → none."""
    return "AAAABBBCC"[last_digit(value)] if last_digit(value) < 9 else None


def table_fk(
    app: ms.App, a: ms.Topic[str], b: ms.Topic[str], out: ms.Topic[str], params: dict[str, Any]
) -> None:
    versioned = params["history"] / 1_000 if params["versioned"] else None
    left = _table(app, "left", a, versioned)
    right = _table(app, "right", b, versioned)
    left.join(right, joined, on=foreign_key, how=params["kind"], name="fk").to(out)


def stream_stream(
    app: ms.App, a: ms.Topic[str], b: ms.Topic[str], out: ms.Topic[str], params: dict[str, Any]
) -> None:
    app.stream(a).join(
        app.stream(b),
        joined,
        how=params["kind"],
        within=(-params["before"] / 1_000, params["after"] / 1_000),
        grace=params["grace"] / 1_000,
    ).to(out)


def self_join(
    app: ms.App, a: ms.Topic[str], b: ms.Topic[str], out: ms.Topic[str], params: dict[str, Any]
) -> None:
    stream = app.stream(a)
    stream.join(
        stream,
        joined,
        how="inner",
        within=(-params["before"] / 1_000, params["after"] / 1_000),
        grace=params["grace"] / 1_000,
    ).to(out)


def stream_table(
    app: ms.App, a: ms.Topic[str], b: ms.Topic[str], out: ms.Topic[str], params: dict[str, Any]
) -> None:
    kind, history = params["table"], params["history"] / 1_000
    table = _table(app, "right", b, None if kind == "plain" else history)
    grace = params["grace"] / 1_000 if kind == "versioned_grace" else None
    app.stream(a).join(table, joined, how=params["kind"], grace=grace).to(out)


def stream_global(
    app: ms.App, a: ms.Topic[str], b: ms.Topic[str], out: ms.Topic[str], params: dict[str, Any]
) -> None:
    table = app.global_table("right", topic=b)
    app.stream(a).join(table, joined, how=params["kind"]).to(out)


def suppress_time_limit(
    app: ms.App, a: ms.Topic[str], b: ms.Topic[str], out: ms.Topic[str], params: dict[str, Any]
) -> None:
    bounded = params["buffer"] != "unbounded"  # "max_records 2 emit_early"
    records_max = int(params["buffer"].split()[1]) if bounded else None
    limit = ms.Suppress(params["limit"] / 1_000, records_max=records_max)
    app.table("t", topic=a).suppress(limit, name="held").to(out)


PROGRAMS: dict[str, Callable[..., None]] = {
    function.__name__: function
    for function in (
        aggregate,
        cogroup,
        cogroup_tumbling,
        count,
        hopping,
        merge,
        reduce,
        self_join,
        session,
        sliding,
        stream_global,
        stream_stream,
        stream_table,
        suppress_time_limit,
        table_filter,
        table_fk,
        table_groupby_agg,
        table_groupby_count,
        table_source,
        table_table,
        to_table,
        tumbling,
    )
}
