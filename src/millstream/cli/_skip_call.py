"""Going past what comes from no record: a window that does not close, a timer's moment that fails.

Both are a matter of state: of the table's closing cursor, and of the note that tells when the timer ran last. Each is
one record in a changelog, which the next worker reads as part of its recovery.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from millstream.app._runtime import counts_with_notes, shard_groups
from millstream.cli._committed import CommittedTable
from millstream.cli._log import open_log, resolved_topology
from millstream.cli._progress import Bar
from millstream.clock import format_timestamp
from millstream.errors import ConfigurationError, ProgramError, TransportError
from millstream.records import OutgoingRecord, TopicPartition
from millstream.tables import TimedPart
from millstream.tables._windowed_part import CLOSED_KEY
from millstream.transports.batch import iterate_records
from millstream.worker import encode_note, notes_topic, timer_note, window_position
from millstream.worker._recovery import RecoveryProgress, Replay, recover

if TYPE_CHECKING:
    from millstream.app import App
    from millstream.app._declaration import DeclaredTable
    from millstream.app._timers import Timer
    from millstream.tables._windowed_base import Due
    from millstream.transports.base import Transport

__all__ = ["SkippedTimer", "SkippedWindow", "check_stopped", "running"]

FETCH_BYTES_MAX = 1 << 20


def running(app: App) -> TransportError:
    """Nothing is skipped under a worker's feet."""
    return TransportError(
        f"workers of app {app.id!r} are running: stop them first (Ctrl-C), then skip the record"
    )


async def check_stopped(app: App, transport: Transport) -> None:
    """Raise TransportError where a worker is running."""
    if (await transport.describe_group(app.id)).members:
        raise running(app)


def parse_moment(text: str) -> int | None:
    """A time in ms, from ISO 8601 with a zone or from ms; None where it is neither."""
    if text.isdecimal():
        return int(text)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    if moment.tzinfo is None:
        return None
    return round((moment - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds() * 1_000)


@dataclass(frozen=True, slots=True)
class SkippedWindow:
    """A window of a table, with the key as people write it: ``totals@ada@2024-07-01T12:00:00Z``."""

    table: str
    key: str
    start: int

    @classmethod
    def parse(cls, text: str) -> SkippedWindow | None:
        """None where the text has another form; keys may have an @ in them."""
        table, _, rest = text.partition("@")
        key, found, moment = rest.rpartition("@")
        start = parse_moment(moment)
        return None if start is None or not found or "/" in table else cls(table, key, start)

    async def skip(self, app: App) -> str:
        """Move the closing cursor past the window; what to tell.

        Raises:
            ConfigurationError: there is no such table, or no such key.
            ProgramError: it is not the next one that would be closed.
            TransportError: workers are running.
        """
        held = app.tables.get(self.table)
        if held is not None and held.on_due is not None:
            return await self._skip_held(app, held)
        declared = self._declared(app)
        try:
            key = declared.layout.encode(declared.layout.parse(self.key))
        except (TypeError, ValueError) as exc:
            raise ConfigurationError(
                f"{self.key!r} is no key of table {self.table!r}: {exc}"
            ) from exc
        async with open_log(app) as transport:
            await check_stopped(app, transport)
            info = (await CommittedTable.open(app, declared, transport)).info
            assert declared.changelog is not None
            tp = TopicPartition(declared.changelog, info.shard_of(key))
            due = await _next_due(app, declared, tp, transport)
            if due is None:
                raise ProgramError(f"no window of table {self.table!r} waits to be closed in {tp}")
            if declared.layout.encode(due.key) != key or due.window.start != self.start:
                shown = window_position(
                    self.table, declared.layout.format(due.key), due.window.start
                )
                raise ProgramError(
                    f"the next window to be closed there is {shown}. Only that one can be skipped, as"
                    f" those before another one would be lost as well"
                )
            cursor = OutgoingRecord(app.clock.now(), CLOSED_KEY, due.place, [])
            await transport.append({tp: [cursor]})
        return f"skipped window {due.window} of {self.key} in table {self.table}"

    async def _skip_held(self, app: App, declared: DeclaredTable[Any, Any]) -> str:
        """Take what streams have held back of the key, and of the moment, out of the table."""
        async with open_log(app) as transport:
            await check_stopped(app, transport)
            info = (await CommittedTable.open(app, declared, transport)).info
            assert declared.changelog is not None
            for number in range(info.partitions):
                tp = TopicPartition(declared.changelog, number)
                part = await _recovered(app, declared, tp, transport)
                rows = [] if part is None else part.held_rows()
                found = [
                    place
                    for key, moment, place in rows
                    if str(key) == self.key and moment == self.start
                ]
                if found:
                    now = app.clock.now()
                    gone = [OutgoingRecord(now, place, None, []) for place in found]
                    await transport.append({tp: gone})
                    return f"skipped what {self.table} has held back of {self.key}"
        raise ProgramError(
            f"{self.table!r} holds nothing back of {self.key!r} and {format_timestamp(self.start)}"
        )

    def _declared(self, app: App) -> DeclaredTable[Any, Any]:
        declared = app.tables.get(self.table)
        if declared is None or declared.windows is None or not declared.table.closing:
            closing = [t.name for t in app.tables.values() if t.windows and t.table.closing]
            raise ConfigurationError(
                f"app {app.id!r} has no table {self.table!r} with on_close: it has"
                f" {', '.join(closing) or 'none'}"
            )
        return declared


async def _next_due(
    app: App, declared: DeclaredTable[Any, Any], tp: TopicPartition, transport: Transport
) -> Due | None:
    """The window that a worker would close first."""
    part = await _recovered(app, declared, tp, transport)
    return None if part is None else next(iter(part.due()), None)


async def _recovered(
    app: App, declared: DeclaredTable[Any, Any], tp: TopicPartition, transport: Transport
) -> TimedPart | None:
    """The table's part as a worker would find it; None where its changelog does not exist."""
    from millstream.state.memory import MemoryBackend

    topic = (await transport.topics()).get(tp.topic)
    if topic is None:
        return None
    store = MemoryBackend().open("skip")
    progress = RecoveryProgress()
    replay = Replay(
        table=declared.name, tp=tp, topic_id=topic.topic_id, index_key=declared.index_key()
    )
    with Bar(f"reading {tp}") as bar:
        await recover(
            store,
            [replay],
            transport=transport,
            app=app.id,
            clock=app.clock,
            progress=progress,
            shard="skip",
        )
        bar.update(progress.records_done, progress.records_total)
    part = declared.make_part(store.table(declared.name), lambda key: None)
    assert isinstance(part, TimedPart)
    part.recovered()
    return part


@dataclass(frozen=True, slots=True)
class SkippedTimer:
    """A moment of a timer, of one shard where it runs in each: ``timer:report/4-2@2024-07-01T12:00:00Z``."""

    name: str
    shard: tuple[int, int] | None
    moment: int

    @classmethod
    def parse(cls, text: str) -> SkippedTimer | None:
        """None where the text has another form."""
        if not text.startswith("timer:"):
            return None
        who, _, moment_text = text.removeprefix("timer:").rpartition("@")
        moment = parse_moment(moment_text)
        if moment is None or not who:
            raise ConfigurationError(
                f"{text!r} is no timer's moment: write timer:name@moment, for example"
                f" timer:report@2024-07-01T12:00:00Z, as the worker has named it"
            )
        name, found, shard = who.rpartition("/")
        count, _, number = shard.partition("-")
        if found and count.isdecimal() and number.isdecimal():
            return cls(name, (int(count), int(number)), moment)
        return cls(who, None, moment)

    async def skip(self, app: App) -> str:
        """Note that the timer has run for the moment; what to tell.

        Raises:
            ConfigurationError: there is no such timer or shard, or its moments do not come again.
            ProgramError: it has run for this moment already.
            TransportError: workers are running.
        """
        timer = self._timer(app)
        async with open_log(app) as transport:
            await check_stopped(app, transport)
            infos = await transport.topics()
            topology = resolved_topology(app, infos)
            count, number = (
                (max(shard_groups(app, topology)), 0) if self.shard is None else self.shard
            )
            tp = TopicPartition(notes_topic(app.id, count), number)
            info = infos.get(tp.topic)
            if count not in counts_with_notes(app, topology) or number >= count or info is None:
                raise ConfigurationError(
                    f"timer {self.name!r} has not run in a shard {count}-{number}"
                )
            key, value = encode_note(timer_note(timer.name), self.moment)
            noted = await _noted(transport, tp, key)
            if noted is not None and noted >= self.moment:
                raise ProgramError(
                    f"timer {self.name!r} is past that moment: the last one it ran for, or that was"
                    f" skipped, is {format_timestamp(noted)}"
                )
            await transport.append({tp: [OutgoingRecord(app.clock.now(), key, value, [])]})
        return f"skipped timer {self.name} of {format_timestamp(self.moment)}"

    def _timer(self, app: App) -> Timer:
        timer = next((timer for timer in app.timers if timer.name == self.name), None)
        if timer is None:
            raise ConfigurationError(
                f"app {app.id!r} has no timer {self.name!r}: it has"
                f" {', '.join(timer.name for timer in app.timers) or 'none'}"
            )
        if not timer.comes_again:
            raise ConfigurationError(
                f"timer {self.name!r} runs at its next moment when a worker starts: there is nothing"
                f" to skip"
            )
        if (timer.scope == "shard") != (self.shard is not None):
            form = "timer:name/4-2@moment" if timer.scope == "shard" else "timer:name@moment"
            raise ConfigurationError(
                f"timer {self.name!r} has the scope {timer.scope!r}: write {form}, as the worker has"
                f" named it"
            )
        if self.moment > app.clock.now() and timer.time == "wall":
            raise ProgramError(f"{format_timestamp(self.moment)} is still to come")
        return timer


async def _noted(transport: Transport, tp: TopicPartition, key: bytes) -> int | None:
    """The moment for which the timer ran last."""
    import msgspec

    found: bytes | None = None
    at = (await transport.start_offsets([tp]))[tp]
    end = (await transport.end_offsets([tp]))[tp]
    reader = transport.reader()
    try:
        while at < end:
            for some in await reader.fetch({tp: at}, max_bytes=FETCH_BYTES_MAX, max_wait_s=1.0):
                for record in iterate_records(some.data, where=str(tp), position=at):
                    if record.key == key:
                        found = record.value
                at = some.next_offset
    finally:
        await reader.close()
    return None if found is None else int(msgspec.json.decode(found))
