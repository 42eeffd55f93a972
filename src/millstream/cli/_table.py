"""``millstream table``: what a table holds, from a worker, else from the log."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click
import msgspec

from millstream.cli._ask import Answer, ask, table_path, worker_urls
from millstream.cli._failure import note
from millstream.cli._log import open_log
from millstream.cli._output import json_option, one_line, print_json, print_rows, to_terminal
from millstream.cli._run import complete_names, run
from millstream.cli._session import Session, command
from millstream.clock import format_timestamp
from millstream.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from millstream.app import App
    from millstream.app._declaration import DeclaredTable
    from millstream.cli._committed import CommittedTable

__all__ = ["table"]

LIMIT = 100
PAGE_ROWS = 1_000
"""Rows that a worker gives at once."""
SPREAD_MAX = 12
"""Fields of a value that get columns of their own, at most."""

Row = dict[str, Any]


@command("table")
@click.argument("name", metavar="NAME", shell_complete=complete_names(lambda app: list(app.tables)))
@click.argument("key", required=False)
@click.option("--prefix", help="Only keys that begin with this.")
@click.option(
    "--limit",
    type=click.IntRange(0),
    default=LIMIT,
    show_default=True,
    help="Rows at most; 0 for all of them.",
)
@click.option("--watch", is_flag=True, help="Go on, and show changes as they are committed.")
@json_option
def table(
    session: Session,
    name: str,
    key: str | None,
    prefix: str | None,
    limit: int,
    watch: bool,
    as_json: bool,
) -> None:
    """Show a table, or the value of one key.

    A running worker is asked, whichever owns the key; without one, what is committed is read from the log.
    """
    if key is not None and prefix is not None:
        raise click.UsageError("KEY and --prefix exclude one another.")
    app = session.app()
    declared = app.tables.get(name)
    if declared is None:
        has = ", ".join(app.tables) or "none"
        raise ConfigurationError(f"there is no table {name!r}: the app has {has}")
    shown = _Shown(declared, key=key, as_json=as_json, watch=watch)
    run(_table(app, declared, shown, prefix=prefix, limit=limit))


async def _table(
    app: App,
    declared: DeclaredTable[Any, Any],
    shown: _Shown,
    *,
    prefix: str | None,
    limit: int,
) -> None:
    from millstream.cli._committed import CommittedTable

    async with open_log(app) as transport:
        committed = await CommittedTable.open(app, declared, transport)
        key, bounds = _bounds(committed, shown.key, prefix)
        workers, urls = await worker_urls(transport, app.id)
        ends = await committed.ends(key)  # before the answer: what follows is not missed
        answered = _from_workers(urls, declared.name, shown.key, prefix, limit)
        if answered is None:
            note(
                "no worker is running: this is what was committed last"
                if not workers
                else "no worker answers over HTTP: this is what was committed last"
            )
            rows = await committed.rows(key=key, bounds=bounds)
            more = bool(limit) and len(rows) > limit
            shown.rows(rows[:limit] if limit else rows, more=more)
        else:
            rows, more, body = answered
            shown.rows(rows, more=more, body=body)
        if shown.watch:
            async for row in committed.changes(ends, key=key, bounds=bounds):
                shown.change(row)


def _bounds(
    committed: CommittedTable, key: str | None, prefix: str | None
) -> tuple[bytes | None, tuple[bytes, bytes | None]]:
    layout = committed.info.layout
    try:
        if key is not None:
            return committed.parse(key), (b"\x01", None)
        if prefix is None:
            return None, (b"\x01", None)
        return None, layout.prefix(_prefix(prefix))
    except (ValueError, TypeError) as exc:
        raise ConfigurationError(f"table {committed.info.name!r}: {exc}") from exc


def _prefix(text: str) -> Any:
    """A prefix as people write it: text, or the leading elements of a tuple as a JSON array."""
    if text[:1] == "[":
        try:
            return tuple(msgspec.json.decode(text))
        except msgspec.DecodeError:
            return text
    return text


def _from_workers(
    urls: Sequence[str], name: str, key: str | None, prefix: str | None, limit: int
) -> tuple[list[Row], bool, Any] | None:
    """Rows, whether there are more, and the answer as it came; None where nobody answers.

    Raises:
        ClickException: the answer is that there is no such key, or that the question is wrong.
    """
    for url in urls:
        try:
            return _from_worker(url, name, key, prefix, limit)
        except OSError:
            continue  # it ends or begins at this moment: ask the next one
    return None


def _from_worker(
    url: str, name: str, key: str | None, prefix: str | None, limit: int
) -> tuple[list[Row], bool, Any]:
    rows: list[Row] = []
    query: dict[str, Any] = {} if key is not None else {"prefix": prefix}
    path = table_path(name, key)
    while True:
        wanted = min(limit - len(rows), PAGE_ROWS) if limit else PAGE_ROWS
        answer = _checked(ask(url, path, query if not rows and key else {**query, "limit": wanted}))
        if "rows" not in answer:
            return [answer], False, answer
        rows += answer["rows"]
        if answer["next"] is None or (limit and len(rows) >= limit):
            return rows, answer["next"] is not None, None
        query["after"] = answer["next"]


def _checked(answer: Answer) -> Any:
    if answer.status == 200 and isinstance(answer.body, dict):
        return answer.body
    if answer.status in (502, 503, 504) or answer.body is None:
        raise OSError(answer.detail)
    raise click.ClickException(answer.detail)


class _Shown:
    """How rows are printed."""

    def __init__(
        self, declared: DeclaredTable[Any, Any], *, key: str | None, as_json: bool, watch: bool
    ) -> None:
        self.key = key
        self.watch = watch
        self._name = declared.name
        self._as_json = as_json
        self._windowed = declared.windows is not None

    def rows(self, rows: list[Row], *, more: bool, body: Any = None) -> None:
        """Print what was found.

        Raises:
            ClickException: it was one key, and it is not there.
        """
        if self.key is not None and not rows:
            missing = f"Table {self._name!r} has no key {self.key!r}."
            if not self.watch:
                raise click.ClickException(missing)
            note(missing)
            return
        if self.watch:
            for row in rows:
                self.change(row)
            return
        if self.key is not None and not self._windowed:
            print_json(body or rows[0]) if self._as_json else click.echo(_plain(rows[0]["value"]))
        elif self._as_json:
            print_json(rows)
        else:
            self._table(rows)
        if more:
            note(f"there are more rows: --limit {max(len(rows) * 10, LIMIT)}, or --limit 0 for all")

    def change(self, row: Row) -> None:
        """Print one row on a line."""
        if self._as_json:
            click.echo(msgspec.json.encode(row).decode())
        elif self.key is not None and not self._windowed:
            click.echo("(deleted)" if row.get("deleted") else _plain(row["value"]))
        else:
            value = "(deleted)" if row.get("deleted") else _plain(row["value"])
            click.echo("\t".join((one_line(row["key"]), *self._window(row), value)))
        sys.stdout.flush()

    def _table(self, rows: list[Row]) -> None:
        window = ("from", "to") if self._windowed else ()
        values = [_decoded(row["value"]) for row in rows]
        fields = _fields(values) if to_terminal() else []
        print_rows(
            ("key", *window, *(fields or ["value"])),
            [
                (
                    row["key"],
                    *self._window(row),
                    *([value.get(name) for name in fields] if fields else [value]),
                )
                for row, value in zip(rows, values, strict=True)
            ],
        )

    def _window(self, row: Row) -> tuple[str, ...]:
        if not self._windowed:
            return ()
        bounds = row.get("window") or {"start": 0, "end": 0}
        return format_timestamp(bounds["start"]), format_timestamp(bounds["end"])


def _decoded(value: Any) -> Any:
    return msgspec.json.decode(value) if isinstance(value, msgspec.Raw) else value


def _plain(value: Any) -> str:
    """A value by itself: text without quotes, all others as JSON."""
    return one_line("null" if (found := _decoded(value)) is None else found)


def _fields(values: Sequence[Any]) -> list[str]:
    """Fields that become columns, where every value is an object and they are few."""
    if not values or not all(isinstance(value, dict) for value in values):
        return []
    fields = list(dict.fromkeys(name for value in values for name in value))
    return fields if len(fields) <= SPREAD_MAX else []
