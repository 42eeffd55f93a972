"""``millstream dlq``: what to do with records that could not be processed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from millstream.cli._confirm import confirm, yes_option
from millstream.cli._dlq_handle import Outcome, handle
from millstream.cli._dlq_letters import Letter, dead_letter_topics, read_letters, read_marks
from millstream.cli._failure import FAILED, complain, note
from millstream.cli._log import open_log
from millstream.cli._output import (
    json_option,
    one_line,
    print_json,
    print_rows,
    shown_bytes,
    shown_header,
)
from millstream.cli._run import run
from millstream.cli._session import Session, command, shared_options
from millstream.cli._values import decode_shown
from millstream.clock import format_timestamp
from millstream.errors import ConfigurationError, TransportError
from millstream.records import Position

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from millstream.app import App
    from millstream.transports.base import Transport

__all__ = ["dlq"]

LIMIT = 100
ERROR_CHARACTERS_MAX = 200


@click.group("dlq", context_settings={"help_option_names": ["-h", "--help"]})
@shared_options(hidden=True)
def dlq() -> None:
    """Look at dead letters, and send them back or drop them.

    Dead letters are the records that on_error="dlq" has set aside. What is done with one is remembered, so that it
    is done once.
    """


def _which(function: Callable[..., Any]) -> Callable[..., Any]:
    """Options that choose among letters."""
    for option in (
        click.option("--error", metavar="TEXT", help="Only those with this in their error."),
        click.option("--source", metavar="TOPIC", help="Only those of records of this topic."),
        click.option(
            "--topic",
            metavar="TOPIC",
            help="The dead-letter topic; all that the app declares where left out.",
        ),
    ):
        function = option(function)
    return function


class _Choice:
    """Which letters a command is about."""

    def __init__(
        self,
        letters: Sequence[str] = (),
        *,
        topic: str | None,
        source: str | None,
        error: str | None,
    ) -> None:
        self.places = [Position.parse(letter) for letter in letters]
        self.topic, self._source, self._error = topic, source, error
        self._wanted = set(self.places)

    def __call__(self, letter: Letter) -> bool:
        if self._wanted and letter.place not in self._wanted:
            return False
        if self._source is not None and letter.facts.get("topic") != self._source:
            return False
        text = f"{letter.facts.get('exception', '')} {letter.facts.get('message', '')}"
        return self._error is None or self._error.lower() in text.lower()

    async def topics(self, app: App, transport: Transport) -> list[str]:
        """The dead-letter topics to look into, as far as they exist.

        Raises:
            ConfigurationError: one that was named does not exist.
        """
        existing = await transport.topics()
        named = [self.topic] if self.topic else [place.topic for place in self.places]
        for topic in named:
            if topic not in existing:
                raise ConfigurationError(
                    f"there is no topic {topic!r}: dead letters of app {app.id!r} go to"
                    f" {', '.join(dead_letter_topics(app))}"
                )
        wanted = dict.fromkeys(named or dead_letter_topics(app))
        return [topic for topic in wanted if topic in existing]


@command("list")
@click.option("--all", "every", is_flag=True, help="Also those that were retried or dropped.")
@click.option(
    "--limit",
    type=click.IntRange(0),
    default=LIMIT,
    show_default=True,
    help="Letters at most; 0 for all of them.",
)
@_which
@json_option
def list_(
    session: Session,
    every: bool,
    limit: int,
    topic: str | None,
    source: str | None,
    error: str | None,
    as_json: bool,
) -> None:
    """List dead letters that wait, the oldest first."""
    choice = _Choice(topic=topic, source=source, error=error)
    app = session.app()
    found, total = run(_list(app, choice, every=every, limit=limit))
    if as_json:
        print_json([_data(letter) for letter in found])
        return
    print_rows(
        ("letter", "record", "key", "error", "time of the record", *(["state"] if every else [])),
        [
            (
                str(letter.place),
                None if letter.source is None else str(letter.source),
                None if letter.record.key is None else shown_bytes(letter.record.key),
                letter.error[:ERROR_CHARACTERS_MAX],
                format_timestamp(letter.record.timestamp),
                *([letter.state] if every else []),
            )
            for letter in found
        ],
    )
    if total > len(found):
        note(f"there are {total:,} letters: --limit {max(len(found) * 10, LIMIT)}, or 0 for all")
    elif not total:
        note(f"no dead letters{'' if every else ' wait'} in {', '.join(dead_letter_topics(app))}")


async def _list(app: App, choice: _Choice, *, every: bool, limit: int) -> tuple[list[Letter], int]:
    found: list[Letter] = []
    total = 0
    async with open_log(app) as transport:
        for topic in await choice.topics(app, transport):
            marks = await read_marks(transport, topic)
            async for letter in read_letters(transport, topic, marks):
                if choice(letter) and (every or letter.mark is None):
                    total += 1
                    if not limit or len(found) < limit:
                        found.append(letter)
    return found, total


@command("show")
@click.argument("letter", metavar="LETTER")
@json_option
def show(session: Session, letter: str, as_json: bool) -> None:
    """Show a dead letter: the record, its headers, and the error with its traceback.

    LETTER is written as `dlq list` does, for example shop-dlq/0@3.
    """
    app = session.app()
    found = run(_show(app, letter))
    topic = app.topics.get(found.facts.get("topic", ""))
    value = decode_shown(None if topic is None else topic.value_codec, found.record.value)
    if as_json:
        headers = [
            [name, None if data is None else shown_bytes(data)]
            for name, data in found.record.headers
        ]
        trace = found.facts.get("stacktrace")
        print_json({**_data(found), "value": value, "headers": headers, "stacktrace": trace})
        return
    mark = found.mark
    state = "waits" if mark is None else f"{mark.action} at {format_timestamp(mark.at)}"
    facts = [
        ("letter", str(found.place)),
        ("state", state),
        ("record", "not known" if found.source is None else str(found.source)),
        ("time", format_timestamp(found.record.timestamp)),
        ("key", "null" if found.record.key is None else shown_bytes(found.record.key)),
        ("value", "null" if value is None else one_line(value)),
        *((f"header {name}", shown_header(data)) for name, data in found.record.headers),
        ("error", found.error),
    ]
    for name, text in facts:
        click.echo(f"{click.style(name, bold=True)}: {one_line(text)}")
    if trace := found.facts.get("stacktrace"):
        click.echo(f"\n{trace.rstrip()}")


async def _show(app: App, text: str) -> Letter:
    choice = _Choice([text], topic=None, source=None, error=None)
    async with open_log(app) as transport:
        for topic in await choice.topics(app, transport):
            marks = await read_marks(transport, topic)
            async for letter in read_letters(transport, topic, marks):
                if choice(letter):
                    return letter
    raise TransportError(f"there is no letter {text}")


def _handling(function: Callable[..., Any]) -> Callable[..., Any]:
    """Arguments and options of what does something with letters."""
    for option in (
        json_option,
        _which,
        click.option("--all", "every", is_flag=True, help="All letters that wait."),
        click.argument("letters", nargs=-1, metavar="[LETTER]..."),
    ):
        function = option(function)
    return function


@command("retry")
@_handling
def retry(session: Session, as_json: bool, **chosen: Any) -> int:
    """Send dead letters back to the topics and partitions that they are of.

    Key, value, headers and time are those of the record; the headers of the error are left out. Every agent that
    reads the topic gets the record again. A letter is sent once: that it was is remembered with it.
    """
    return run(_handle(session.app(), "retried", as_json=as_json, yes=True, **chosen))


@command("drop")
@_handling
@yes_option
def drop(session: Session, as_json: bool, yes: bool, **chosen: Any) -> int:
    """Have dead letters forgotten.

    They are not listed and not retried any more. Their bytes go as soon as no letter before them waits.
    """
    return run(_handle(session.app(), "dropped", as_json=as_json, yes=yes, **chosen))


async def _handle(
    app: App,
    action: str,
    *,
    letters: Sequence[str],
    every: bool,
    topic: str | None,
    source: str | None,
    error: str | None,
    as_json: bool,
    yes: bool,
) -> int:
    if bool(letters) == every:
        raise click.UsageError("Name letters as `millstream dlq list` does, or say --all.")
    choice = _Choice(letters, topic=topic, source=source, error=error)
    outcome = Outcome()
    async with open_log(app) as transport:
        topics = await choice.topics(app, transport)
        if action == "dropped":
            what = "all letters that wait" if every else f"{len(letters):,} letters"
            confirm(f"Drop {what} in {', '.join(topics) or 'no topic'}?", yes=yes)
        for name in topics:
            one = await handle(
                transport,
                name,
                choice,
                action=action,
                now=app.clock.now(),
                replication=app.settings.replication,
            )
            outcome.done += one.done
            outcome.before += one.before
            outcome.refused += one.refused
    return _tell(app, action, outcome, choice, every=every, as_json=as_json)


def _tell(
    app: App, action: str, outcome: Outcome, choice: _Choice, *, every: bool, as_json: bool
) -> int:
    if as_json:
        print_json(
            [
                {"letter": str(place), "action": action, "record": where and str(where)}
                for place, where in outcome.done
            ]
        )
    else:
        for place, where in outcome.done:
            click.echo(f"{place}\t{where}" if where is not None else str(place))
        count = len(outcome.done)
        note(f"{action} {'1 letter' if count == 1 else f'{count:,} letters'}")
    if not every:
        for letter in outcome.before:
            assert letter.mark is not None
            moment = format_timestamp(letter.mark.at)
            note(f"{letter.place} was {letter.mark.action} at {moment}, and is left alone")
    for topic in sorted({where.topic for _, where in outcome.done if where is not None}):
        readers = [a.name for a in app.topology.agents.values() if topic in a.sources]
        if len(readers) > 1:
            note(f"{topic} is read by {', '.join(readers)}: each of them gets the records again")
    for letter, why in outcome.refused:
        complain(f"{letter.place} was not retried: {why}")
    seen = {place for place, _ in outcome.done} | {letter.place for letter in outcome.before}
    seen |= {letter.place for letter, _ in outcome.refused}
    missing = [] if every else [place for place in choice.places if place not in seen]
    for place in missing:
        complain(f"there is no letter {place}")
    return FAILED if outcome.refused or missing else 0


def _data(letter: Letter) -> dict[str, Any]:
    key = letter.record.key
    return {
        "letter": str(letter.place),
        "record": None if letter.source is None else str(letter.source),
        "key": None if key is None else shown_bytes(key),
        "timestamp": letter.record.timestamp,
        "exception": letter.facts.get("exception"),
        "message": letter.facts.get("message"),
        "state": letter.state,
        "at": None if letter.mark is None else letter.mark.at,
    }


for _command in (list_, show, retry, drop):
    dlq.add_command(_command)
