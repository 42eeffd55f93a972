"""Reading conformance cases: what is none, in whole or in part, is told rather than run as something else."""

from __future__ import annotations

import json
import re
from typing import Any

__all__ = ["problem_of", "read_case"]

KIND = {"kind": ("inner", "left", "outer")}
INNER_OR_LEFT = {"kind": ("inner", "left")}
REACH = {"before": int, "after": int, "grace": int}
VERSIONED = {"versioned": (True, False), "history": int}
EMITTED = {
    "grace": int,
    "emit": ("update", "close", "suppress"),
    "long_retention": (True, False),
}
PARITY = {"group": ("last digit parity of value",)}

PARAMS: dict[str, dict[str, Any]] = {
    "aggregate": {},
    "cogroup": {},
    "cogroup_tumbling": {"size": int, "grace": int},
    "count": {},
    "hopping": {"size": int, "advance": int, **EMITTED},
    "merge": {},
    "reduce": {},
    "self_join": REACH,
    "session": {"gap": int, **EMITTED},
    "sliding": {"difference": int, **EMITTED},
    "stream_global": INNER_OR_LEFT,
    "stream_stream": {**KIND, **REACH},
    "stream_table": {
        **INNER_OR_LEFT,
        "table": ("plain", "versioned", "versioned_grace"),
        "history": int,
        "grace": int,
    },
    "suppress_time_limit": {
        "limit": int,
        "buffer": re.compile(r"unbounded|max_records [1-9]\d* emit_early"),
    },
    "table_filter": {"materialized": (True, False), "pred": ("last digit even",)},
    "table_fk": {
        **INNER_OR_LEFT,
        **VERSIONED,
        "fk": ("value char 0: 0-3->A 4-6->B 7-8->C 9->null (digit after v)",),
    },
    "table_groupby_agg": {**PARITY, "add": ("+v",), "sub": ("-v",)},
    "table_groupby_count": PARITY,
    "table_source": {"materialized": (True, False)},
    "table_table": {**KIND, **VERSIONED},
    "to_table": {},
    "tumbling": {"size": int, "advance": int, **EMITTED},
}
"""By topology: its parameters, and what each may be. Some only say in words what the program does."""
OPTIONAL = {
    "advance",
    "emit",
    "long_retention",
    *("add", "fk", "group", "pred", "sub"),
    ("table_source", "materialized"),
}
"""Names, some of one topology only, of parameters that may be left out."""


def read_case(line: bytes) -> tuple[dict[str, Any], str | None]:
    """The case of a line, and what is wrong with it; an empty one where the line is no object."""
    try:
        case = json.loads(line.decode())
    except UnicodeDecodeError as exc:
        return {}, f"is not UTF-8: {exc.reason} at byte {exc.start}"
    except (ValueError, RecursionError) as exc:
        return {}, f"is not JSON: {exc}"
    if not isinstance(case, dict):
        return {}, "is not a JSON object"
    return case, problem_of(case)


def problem_of(case: dict[str, Any]) -> str | None:
    """Why a case cannot be run as what it says, in words; or None."""
    missing = [name for name in ("topology", "params", "in", "out") if name not in case]
    if missing:
        return f"has no {missing[0]!r}"
    topology, params = case["topology"], case["params"]
    if not isinstance(topology, str) or topology not in PARAMS:
        return f"has a topology that is not known: {topology!r}"
    if not isinstance(params, dict):
        return "has params that are not an object"
    return _params(topology, params) or _rows(case)


def _params(topology: str, params: dict[str, Any]) -> str | None:
    known = PARAMS[topology]
    for name, value in params.items():
        if name not in known:
            return f"has a parameter that {topology} does not know: {name!r}"
        if not _may_be(value, known[name]):
            return f"has a parameter that {topology} cannot have: {name!r} is {value!r}"
    for name in known:
        if name not in params and not {name, (topology, name)} & OPTIONAL:
            return f"lacks a parameter of {topology}: {name!r}"
    if topology == "tumbling" and params.get("advance", params["size"]) != params["size"]:
        return "has tumbling windows whose advance is not their size"
    return None


def _may_be(value: Any, allowed: Any) -> bool:
    if allowed is int:
        return type(value) is int
    if isinstance(allowed, re.Pattern):
        return isinstance(value, str) and allowed.fullmatch(value) is not None
    return type(value) is type(allowed[0]) and value in allowed


def _rows(case: dict[str, Any]) -> str | None:
    inputs, out = case["in"], case["out"]
    if not isinstance(inputs, list) or not isinstance(out, list):
        return "has an 'in' or 'out' that is not a list"
    if not inputs:
        return "has no input, and so nothing to answer"
    for number, one in enumerate(inputs, 1):
        if not _is_row(one[1:] if isinstance(one, list) else one) or one[0] not in ("a", "b"):
            return f"has an input {number} that is not [topic a or b, key, value, ms]: {one!r}"
    # where the last input raised, there may be an answer to it, or none
    if len(out) != len(inputs) and not ("error" in case and len(out) == len(inputs) - 1):
        return f"answers {len(out)} of {len(inputs)} inputs"
    for number, answer in enumerate(out, 1):
        if not isinstance(answer, list) or not all(_is_row(row) for row in answer):
            return f"has an answer {number} that is not a list of [key, value, ms]: {answer!r}"
    return None


def _is_row(row: object) -> bool:
    return (
        isinstance(row, list)
        and len(row) == 3
        and all(text is None or isinstance(text, str) for text in row[:2])
        and type(row[2]) is int
    )
