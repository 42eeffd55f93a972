"""Pages for people: HTML from this process, kept current by ``static/live.js``."""

from __future__ import annotations

import functools
import json
import zoneinfo
from datetime import datetime
from html import escape
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

from starlette.responses import HTMLResponse, RedirectResponse

from millstream.clock import format_duration, format_timestamp
from millstream.web._negotiation import base_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from starlette.requests import HTTPConnection
    from starlette.responses import Response

    from millstream.web._problems import Problem

__all__ = [
    "agents_page",
    "docs_page",
    "key_page",
    "overview_page",
    "problem_page",
    "table_page",
    "tables_page",
    "to_key",
    "topics_page",
    "topology_page",
    "workers_page",
]

COLUMNS_MAX = 8
"""Fields of a value that get a column of their own; with more the value is shown as a whole."""

_NAVIGATION = ("tables", "agents", "topics", "workers", "topology", "docs")
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:;"
        " connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "Vary": "Accept",
    "X-Content-Type-Options": "nosniff",
}


@functools.cache
def _layout() -> Template:
    path = Path(__file__).parent / "templates" / "layout.html"
    return Template(path.read_text(encoding="utf-8"))


def _page(
    request: HTTPConnection, app: str, title: str, body: str, *, here: str = "", status: int = 200
) -> Response:
    base = base_of(request)
    links = "".join(
        f'<a href="{base}{name}"{" aria-current=page" if name == here else ""}>'
        f"{name.capitalize()}</a>"
        for name in _NAVIGATION
    )
    text = _layout().substitute(
        title=escape(title), app=escape(app), base=base, nav=links, body=body
    )
    return HTMLResponse(text, status_code=status, headers=_HEADERS)


def _grid(
    heads: Iterable[str], rows: Iterable[str], *, live: str = "", empty: str, **data: str
) -> str:
    """A table of which ``live`` names what it shows; heads that begin with ``#`` are numbers."""
    body = "".join(rows)
    columns = "".join(
        f'<th scope="col"{" class=number" if head.startswith("#") else ""}>'
        f"{escape(head.removeprefix('#'))}</th>"
        for head in heads
    )
    facts = "".join(f' data-{name}="{escape(value)}"' for name, value in data.items())
    return (
        f'<div class="scroll"><table{f" data-live={live}" if live else ""}{facts}>'
        f"<thead><tr>{columns}</tr></thead><tbody>{body}</tbody></table>"
        f'<p class="empty"{" hidden" if body else ""}>{empty}</p></div>'
    )


def _number(value: float | None, *, field: str = "") -> str:
    shown = "–" if value is None else f"{value:,}"
    return f'<td class="number"{f" data-field={field}" if field else ""}>{shown}</td>'


def _row(identity: str, *cells: str) -> str:
    return f'<tr data-id="{escape(identity)}">{"".join(cells)}</tr>'


# the app -----------------------------------------------------------------------------------------


def overview_page(
    request: HTTPConnection,
    app: str,
    *,
    log: str,
    agents: Sequence[Mapping[str, Any]],
    topics: Sequence[Mapping[str, Any]],
    tables: Sequence[Mapping[str, Any]],
    workers: Sequence[Mapping[str, Any]],
) -> Response:
    """Everything at a glance."""
    base = base_of(request)
    shards = [shard for worker in workers for shard in worker["shards"]]
    ready = sum(bool(shard.get("ready")) for shard in shards)
    me: Mapping[str, Any] = next((w for w in workers if w.get("here")), {})
    times = me.get("commit_ms", {})
    own = [agent for agent in agents if not agent["internal"]]
    tiles = [
        ("rate", "–", "events a second"),
        ("lag", f"{sum(agent['lag'] for agent in agents):,}", "records to go"),
        ("shards", f"{ready}/{len(shards)}", f"shards ready, {_count(len(workers), 'worker')}"),
        (
            "commit",
            _milliseconds(times.get("p50")),
            f"a commit, p99 {_milliseconds(times.get('p99'))}",
        ),
    ]
    shown = "".join(
        f'<div class="tile" data-tile="{name}"><b>{value}</b><span>{text}</span></div>'
        for name, value, text in tiles
    )
    listed = "".join(
        f'<a class="card" href="{base}tables/{quote(table["name"])}"><b>{escape(table["name"])}</b>'
        f"<span>{_types(table)}</span></a>"
        for table in tables
    )
    body = (
        f'<h1>{escape(app)} <small>{escape(log)}</small></h1><section class="tiles">{shown}</section>'
        f"<section><h2>Agents</h2>{_agents(own, 'This app has no agents.')}</section>"
        f'<section><h2>Tables</h2><div class="cards">{listed or "<p class=empty>None.</p>"}</div>'
        f"</section>"
        f"<section><h2>Topics</h2>{_topics([t for t in topics if not t['internal']])}</section>"
        f"<section><h2>Workers</h2>{_workers(workers)}</section>"
    )
    return _page(request, app, "Overview", body)


def agents_page(request: HTTPConnection, app: str, rows: Sequence[Mapping[str, Any]]) -> Response:
    """Agents, Millstream's own included."""
    body = f"<h1>Agents</h1>{_agents(rows, 'This app has no agents.', whole='1')}"
    return _page(request, app, "Agents", body, here="agents")


def _agents(rows: Sequence[Mapping[str, Any]], empty: str, **data: str) -> str:
    shown = [
        _row(
            row["name"],
            f'<th scope="row">{escape(row["name"])}'
            f"{_badge(row['concurrency'] > 1, 'x' + str(row['concurrency']))}</th>",
            f"<td>{escape(', '.join(row['sources']))}</td>",
            f"<td>{escape(', '.join(row.get('sinks', ())))}</td>",
            '<td class="number"><svg class="spark" viewBox="0 0 60 16" aria-hidden="true"></svg>'
            '<span data-field="rate">–</span></td>',
            _number(row["lag"], field="lag"),
        )
        for row in rows
    ]
    heads = ("Agent", "Reads", "Sends to", "#Events/s", "#Lag")
    return _grid(heads, shown, live="agents", empty=empty, **data)


def topics_page(request: HTTPConnection, app: str, rows: Sequence[Mapping[str, Any]]) -> Response:
    """Topics, Millstream's own included."""
    body = f"<h1>Topics</h1>{_topics(rows)}"
    return _page(request, app, "Topics", body, here="topics")


def _topics(rows: Sequence[Mapping[str, Any]]) -> str:
    shown = [
        _row(
            row["name"],
            f'<th scope="row">{escape(row["name"])}{_badge(row["internal"], "internal")}</th>',
            f"<td>{_kept(row)}</td>",
            _number(row["partitions"]),
            _number(row["records"], field="records"),
            '<td class="number"><span data-field="rate">–</span></td>',
        )
        for row in rows
    ]
    heads = ("Topic", "Keeps", "#Partitions", "#Records", "#New/s")
    return _grid(heads, shown, live="topics", empty="No topics yet.")


def _kept(row: Mapping[str, Any]) -> str:
    kept = "the last of each key" if row["compacted"] else "everything"
    if row["retention_ms"]:
        kept = f"{kept + ', ' if row['compacted'] else ''}{format_duration(row['retention_ms'])}"
    return kept


def workers_page(request: HTTPConnection, app: str, rows: Sequence[Mapping[str, Any]]) -> Response:
    """The workers of the group."""
    body = f"<h1>Workers</h1>{_workers(rows)}"
    return _page(request, app, "Workers", body, here="workers")


def _workers(rows: Sequence[Mapping[str, Any]]) -> str:
    shown = []
    for row in rows:
        url = row.get("url", "")
        name = (
            f'<a href="{escape(url)}/">{escape(url)}</a>' if url else escape(row["member"] or "–")
        )
        shards = "".join(
            f'<i class="{"ready" if shard.get("ready") else "waiting"}"'
            f' title="shard {shard["number"]} of {shard["count"]}"></i>'
            for shard in row["shards"]
        )
        times = row.get("commit_ms", {})
        trouble = row.get("error") or row.get("why") or ""
        shown.append(
            _row(
                row["member"] or url,
                f'<th scope="row">{name}{_badge(bool(row.get("here")), "this one")}'
                f'<small data-field="trouble">{escape(trouble)}</small></th>',
                f'<td><span class="shards" data-field="shards">{shards}</span></td>',
                _number(row.get("commits"), field="commits"),
                f'<td class="number" data-field="p50">{_milliseconds(times.get("p50"))}</td>',
                f'<td class="number" data-field="p99">{_milliseconds(times.get("p99"))}</td>',
            )
        )
    heads = ("Worker", "Shards", "#Commits", "#p50", "#p99")
    return _grid(heads, shown, live="workers", empty="No worker is running.")


def topology_page(request: HTTPConnection, app: str, svg: str, mermaid: str) -> Response:
    """The drawing of the topology, and its source."""
    body = (
        f'<h1>Topology</h1><div class="scroll drawing">{svg}</div>'
        f'<p>As <a href="?format=svg">SVG</a>, <a href="?format=mermaid">Mermaid</a>,'
        f' <a href="?format=text">text</a> or <a href="?format=json">JSON</a>.</p>'
        f"<details><summary>Mermaid source</summary><pre>{escape(mermaid)}</pre></details>"
    )
    return _page(request, app, "Topology", body, here="topology")


# tables ------------------------------------------------------------------------------------------


def tables_page(request: HTTPConnection, app: str, rows: Sequence[Mapping[str, Any]]) -> Response:
    """The tables of the app."""
    shown = [
        _row(
            row["name"],
            f'<th scope="row"><a href="{base_of(request)}tables/{quote(row["name"])}">'
            f"{escape(row['name'])}</a><small>{escape(row['help'].partition(chr(10))[0])}</small></th>",
            f"<td><code>{escape(row['key'])}</code></td>",
            f"<td><code>{escape(row['value'])}</code></td>",
            f"<td>{escape(row['windows'] or '')}</td>",
            _number(row["partitions"]),
        )
        for row in rows
    ]
    heads = ("Table", "Key", "Value", "Windows", "#Shards")
    body = f"<h1>Tables</h1>{_grid(heads, shown, empty='This app has no tables.')}"
    return _page(request, app, "Tables", body, here="tables")


def to_key(request: HTTPConnection, name: str, key: str) -> Response:
    """On to the page of a key that somebody typed."""
    return RedirectResponse(
        f"{base_of(request)}tables/{quote(name)}/keys/{quote(key, safe='')}", 303
    )


def table_page(
    request: HTTPConnection,
    app: str,
    table: Mapping[str, Any],
    page: Mapping[str, Any],
    query: Mapping[str, str],
) -> Response:
    """Keys and values, changing as they are committed.

    Args:
        query: the parameters of the page that is shown, as the API takes them.
    """
    base, rows = base_of(request), page["rows"]
    name = quote(table["name"])
    columns = _columns(rows)
    windowed = table["windows"] is not None
    zone = table["timezone"] or "UTC"
    more = ""
    if page["next"]:
        more = (
            f'<p class="more"><a rel="next" href="?{escape(urlencode({**query, "after": page["next"]}))}">'
            f"More</a></p>"
        )
    prefix = query.get("prefix", "")
    search = (
        f'<form role="search"><label>Keys that begin with <input name="prefix" value="{escape(prefix)}"'
        f' autocomplete="off" spellcheck="false"></label>'
        f'<label>or the key <input name="key" autocomplete="off" spellcheck="false"></label>'
        f"<button>Look</button></form>"
    )
    grid = _grid(
        ["Key", *([f"Window ({zone})"] if windowed else []), *_heads(rows, columns)],
        [_entry(row, columns, f"{base}tables/{name}/keys/", zone) for row in rows],
        live="table",
        empty="Nothing here yet. Values appear as soon as they are committed.",
        table=table["name"],
        query=urlencode(query),
        columns=json.dumps(columns),
        windowed="1" if windowed else "",
        zone=zone,
    )
    body = (
        f"<h1>{escape(table['name'])} <small>{_types(table)}</small>"
        f'<span class="pulse" data-pulse role="status">connecting</span></h1>'
        f"{_help(table)}{search}{grid}{more}"
    )
    return _page(request, app, table["name"], body, here="tables")


def key_page(
    request: HTTPConnection,
    app: str,
    table: Mapping[str, Any],
    key: str,
    body: Mapping[str, Any],
    query: Mapping[str, str],
) -> Response:
    """One key: its value, or one for each of its windows."""
    base = base_of(request)
    name = quote(table["name"])
    zone = table["timezone"] or "UTC"
    heading = (
        f'<h1><a href="{base}tables/{name}">{escape(table["name"])}</a> <span class="of">›</span>'
        f' <code>{escape(key)}</code><span class="pulse" data-pulse role="status">connecting</span></h1>'
    )
    if "rows" in body:
        columns = _columns(body["rows"])
        shown = _grid(
            [f"Window ({zone})", *_heads(body["rows"], columns)],
            [_entry(row, columns, None, zone) for row in body["rows"]],
            live="table",
            empty="No windows.",
            table=table["name"],
            key=key,
            query=urlencode(query),
            columns=json.dumps(columns),
            windowed="1",
            zone=zone,
        )
    else:
        value = json.dumps(body["value"], indent=2, ensure_ascii=False)
        window = f"<p>{_window(body['window'], zone)}</p>" if "window" in body else ""
        shown = (
            f'{window}<pre class="value" data-live="value" data-table="{escape(table["name"])}"'
            f' data-key="{escape(key)}" data-query="{escape(urlencode(query))}">{escape(value)}</pre>'
        )
    position = ", ".join(f"{tp}@{offset}" for tp, offset in body["position"].items())
    where = (
        f'<p class="position">Reflects <code data-field="position">{escape(position)}</code></p>'
        if position
        else ""
    )
    return _page(request, app, f"{table['name']} {key}", heading + shown + where, here="tables")


def _entry(row: Mapping[str, Any], columns: Sequence[str], link: str | None, zone: str) -> str:
    key = row["key"]
    text = (
        key if isinstance(key, str) else json.dumps(key, ensure_ascii=False, separators=(",", ":"))
    )
    window = row.get("window")
    identity = text if window is None else f"{text}@{window['start']}-{window['end']}"
    cells = []
    if link is not None:
        cells.append(
            f'<th scope="row"><a href="{link}{quote(text, safe="")}">{escape(text)}</a></th>'
        )
    if window is not None:
        cells.append(f"<td>{_window(window, zone)}</td>")
    value = row["value"]
    values = [value.get(column) for column in columns] if columns else [value]
    cells += [
        f'<td class="value{" number" if _is_number(one) else ""}"><code>{escape(_text(one))}</code></td>'
        for one in values
    ]
    return _row(identity, *cells)


def _heads(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> list[str]:
    """Heads of the values, above numbers where the first row has numbers."""
    value: Any = rows[0]["value"] if rows else None
    if not columns:
        return ["#Value" if _is_number(value) else "Value"]
    return [f"#{name}" if _is_number(value.get(name)) else name for name in columns]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _columns(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Fields that all values have, where the values are objects of a few fields."""
    values = [row["value"] for row in rows]
    if not values or not all(isinstance(value, dict) and value for value in values):
        return []
    names = list(values[0])
    if len(names) > COLUMNS_MAX or any(list(value) != names for value in values):
        return []
    return names


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _window(window: Mapping[str, int], zone: str) -> str:
    """``2013-01-01 10:00 – 11:00``: the day of the end only where it is another one."""
    start, end = (_moment(window[bound], zone) for bound in ("start", "end"))
    if start[:10] == end[:10]:
        end = end[11:]
    return f'<time datetime="{format_timestamp(window["start"])}">{start}</time> – {end}'


def _moment(milliseconds: int, zone: str) -> str:
    try:
        moment = datetime.fromtimestamp(milliseconds / 1000, zoneinfo.ZoneInfo(zone))
        text = moment.replace(tzinfo=None).isoformat(" ", "milliseconds")
    except (OverflowError, ValueError, OSError):  # beyond the calendar
        text = format_timestamp(milliseconds)
    return text.removesuffix(".000").removesuffix(":00") if text.endswith(":00.000") else text


# the rest ----------------------------------------------------------------------------------------


def docs_page(request: HTTPConnection, app: str, described: Mapping[str, Any]) -> Response:
    """The addresses and what they take, from the OpenAPI description."""
    base, sections = base_of(request), []
    for path, methods in described["paths"].items():
        for method, operation in methods.items():
            rows = [
                f'<tr><th scope="row"><code>{escape(p["name"])}</code></th><td>{escape(p["in"])}</td>'
                f"<td>{escape(p['description'])}</td></tr>"
                for p in operation.get("parameters", ())
            ]
            parameters = f'<div class="scroll"><table><tbody>{"".join(rows)}</tbody></table></div>'
            example = operation.get("x-example")
            shown = f"<pre>{escape(example)}</pre>" if example else ""
            address = escape(path)
            if "{" not in path:
                address = f'<a href="{base}{escape(path.lstrip("/"))}">{address}</a>'
            sections.append(
                f'<section class="operation"><h2><b>{escape(method.upper())}</b> <code>{address}</code>'
                f"</h2><p>{escape(operation['description'])}</p>{parameters if rows else ''}{shown}"
                f"</section>"
            )
    body = (
        f"<h1>HTTP <small>{escape(described['info']['description'])}</small></h1>"
        f'{"".join(sections)}<p><a href="{base}openapi.json">openapi.json</a></p>'
    )
    return _page(request, app, "HTTP", body, here="docs")


def problem_page(request: HTTPConnection, problem: Problem) -> Response:
    """An error, for people."""
    body = f'<h1>{escape(problem.title)}</h1><p class="problem">{escape(problem.detail)}</p>'
    response = _page(request, "Millstream", str(problem.status), body, status=problem.status)
    response.headers.update(problem.headers)
    return response


def _types(table: Mapping[str, Any]) -> str:
    windows = f", {table['windows']}" if table["windows"] else ""
    return escape(f"{table['key']} → {table['value']}{windows}")


def _help(table: Mapping[str, Any]) -> str:
    return f"<p>{escape(table['help'])}</p>" if table["help"] else ""


def _badge(shown: bool, text: str) -> str:
    return f' <span class="badge">{escape(text)}</span>' if shown else ""


def _count(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _milliseconds(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f} ms"
