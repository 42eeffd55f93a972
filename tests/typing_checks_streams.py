"""What type checkers infer of streams and tables; never run, checked by mypy and pyright."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias, assert_type

import msgspec

import millstream as ms
from millstream.streams import (
    DeclaredStream,
    GroupedStream,
    ProcessContext,
    TableStream,
    WindowedTable,
    WindowedTableStream,
)


class Click(msgspec.Struct):
    user: str
    page: str
    ms: int


class Stats(msgspec.Struct):
    clicks: int = 0

    def seen(self, click: Click) -> Stats:
        return Stats(self.clicks + 1)


class User(msgspec.Struct):
    name: str


class Seen(msgspec.Struct):
    name: str
    clicks: int


class Sized:
    def process(self, key: str, click: Click, context: ProcessContext) -> None:
        context.forward(User(click.user), key=click.ms)


def checks(app: ms.App) -> None:
    clicks = app.topic("clicks", value=Click)
    users = app.table("users", topic=app.topic("users", value=User))
    assert_type(users, ms.Table[str, User])

    stream = app.stream(clicks)
    assert_type(stream, DeclaredStream[Click, str])
    assert_type(stream.filter(lambda c: c.ms > 3), DeclaredStream[Click, str])
    assert_type(stream.map(lambda c: c.ms), DeclaredStream[int, str])
    assert_type(stream.flat_map(lambda c: [c.page]), DeclaredStream[str, str])
    assert_type(stream.key_by(lambda c: c.ms), DeclaredStream[Click, int])
    assert_type(stream.merge(stream.map(lambda c: c.ms)), DeclaredStream[Click | int, str])
    assert_type(stream.split({"fast": lambda c: c.ms < 3}), dict[str, DeclaredStream[Click, str]])

    by_size = stream.process(Sized(), name="by-size", key=int, value=User)
    assert_type(by_size, DeclaredStream[User, int])
    assert_type(stream.process(Sized(), name="sized"), DeclaredStream[Any, str])
    assert_type(stream.process(Sized(), name="a", value=User), DeclaredStream[User, str])
    assert_type(stream.process(Sized(), name="b", key=int), DeclaredStream[Any, int])

    async def slow(click: Click) -> User:
        return User(click.user)

    assert_type(stream.map(slow), DeclaredStream[User, str])

    async def place(click: Click) -> int:
        return click.ms

    async def pages(click: Click) -> list[str]:
        return [click.page]

    async def total(so_far: float, click: Click) -> float:
        return so_far + click.ms

    async def latest(before: Click, click: Click) -> Click:
        return click

    async def named(click: Click, user: User) -> str:
        return user.name

    assert_type(stream.key_by(place), DeclaredStream[Click, int])
    assert_type(stream.group_by(place, name="place").count(), ms.Table[int, int])
    assert_type(stream.flat_map(pages), DeclaredStream[str, str])
    waiting = stream.group_by()
    assert_type(waiting.aggregate(default=0.0, add=total), ms.Table[str, float])
    assert_type(waiting.tumbling("1m").aggregate(default=0.0, add=total), WindowedTable[str, float])
    assert_type(waiting.reduce(latest), ms.Table[str, Click])
    last = stream.to_table("last")
    assert_type(last.join(users, named, name="named"), ms.Table[str, str])
    assert_type(stream.join(users, named), DeclaredStream[str, str])

    groups = stream.group_by("user")
    assert_type(groups, GroupedStream[Click, Any])
    by_key = stream.group_by()
    assert_type(by_key, GroupedStream[Click, str])
    assert_type(by_key.count(), ms.Table[str, int])
    assert_type(by_key.mean("ms"), ms.Table[str, float])
    assert_type(by_key.top_k(3, "ms"), ms.Table[str, list[Click]])
    stats = by_key.aggregate(default=Stats, add=lambda s, c: s.seen(c))
    assert_type(stats, ms.Table[str, Stats])
    assert_type(stats.changes(), DeclaredStream[Stats, str])
    assert_type(stats.map_values(lambda s: s.clicks), TableStream[str, int])
    assert_type(stats.map_values(lambda s: s.clicks, name="n"), ms.Table[str, int])
    assert_type(stats.group_by(lambda s: s.clicks, name="g").count(), ms.Table[int, int])

    def both(stats: Stats, user: User) -> Seen:
        return Seen(user.name, stats.clicks)

    assert_type(stats.join(users, both), TableStream[str, Seen])
    assert_type(stats.join(users, both, name="seen"), ms.Table[str, Seen])
    windowed = by_key.tumbling("10s").aggregate(
        default=Stats, add=lambda s, c: s.seen(c), emit="final"
    )
    assert_type(windowed, ms.WindowedTable[str, Stats])
    assert_type(windowed.changes(), WINDOWS)
    assert_type(windowed.changes().map_keys(lambda w: w.key), DeclaredStream[Stats, str])
    assert_type(windowed.changes().map_keys(lambda w: w.window.end), DeclaredStream[Stats, int])
    assert_type(windowed.changes().filter(bool).repartition(), DeclaredStream[Stats, str])
    assert_type(stream.repartition(), DeclaredStream[Click, str])
    assert_type(by_key.tumbling("10s").count(), ms.WindowedTable[str, int])

    async def clicks_of(stats: Stats) -> int:
        return stats.clicks

    per_page = by_key.tumbling("10s").count()
    assert_type(windowed.filter(bool), WindowedTableStream[str, Stats])
    assert_type(windowed.map_values(lambda s: s.clicks), WindowedTableStream[str, int])
    assert_type(windowed.map_values(clicks_of), WindowedTableStream[str, int])
    assert_type(windowed.filter(bool).suppress(ms.Suppress("1s")), WindowedTableStream[str, Stats])
    assert_type(windowed.filter(bool).changes(), WINDOWS)
    assert_type(windowed.group_by(lambda s: s.clicks, name="h").count(), ms.Table[int, int])
    of_windows = windowed.group_by("clicks").count()
    assert_type(of_windows, ms.Table[Any, int])
    assert_type(windowed.group_by("clicks", type=int).count(), ms.Table[int, int])
    windowed.filter(bool).to(clicks, value=lambda key, window, s: s.clicks + window.start)
    windowed.filter(bool, name="kept")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]

    def either(stats: Stats | None, count: int | None) -> bool:
        return stats is None or count is None

    async def less(stats: Stats, count: int) -> float:
        return stats.clicks - count

    assert_type(windowed.join(per_page, lambda s, n: s.clicks - n), WindowedTableStream[str, int])
    assert_type(windowed.join(per_page, less), WindowedTableStream[str, float])
    assert_type(
        windowed.join(per_page.filter(bool), lambda s, n: n or s.clicks, how="left"),
        WindowedTableStream[str, int],
    )
    assert_type(windowed.join(per_page, either, how="outer"), BOOLS)
    windowed.join(per_page, less, how="left")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    windowed.join(users, both)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]


class Paid(msgspec.Struct):
    user: str
    cents: int


def checks_of_sources(app: ms.App) -> None:
    """Several topics, and what has their keys."""
    clicks, paid = app.topic("clicks", value=Click), app.topic("paid", value=Paid)
    numbered = app.topic("numbered", key=int, value=User)
    assert_type(app.stream(clicks, concurrency=4), DeclaredStream[Click, str])
    assert_type(app.stream(clicks, clicks), DeclaredStream[Click, str])
    assert_type(app.stream(clicks, paid), DeclaredStream[Click | Paid, str])
    both = app.stream(clicks, paid, concurrency=4)
    assert_type(both.map(lambda one: one.user), DeclaredStream[str, str])
    assert_type(app.stream(clicks, numbered), DeclaredStream[Click | User, str | int])
    five = app.stream(clicks, paid, clicks, paid, numbered)
    assert_type(five, DeclaredStream[Click | Paid | User, str | int])
    assert_type(app.stream(*[clicks] * 6), DeclaredStream[Click, str])

    async def place(click: Click) -> int:
        return click.ms

    stream = app.stream(clicks)
    assert_type(stream.distinct(within="1m"), DeclaredStream[Click, str])
    assert_type(stream.distinct("user", within="1m"), DeclaredStream[Click, Any])
    by_ms = stream.distinct(lambda c: c.ms, within="1m", name="by-ms")
    assert_type(by_ms, DeclaredStream[Click, int])
    assert_type(stream.distinct(place, within="1m", name="places"), DeclaredStream[Click, int])

    last = app.table("last", topic=clicks)
    per_user = last.group_by("user").count()
    assert_type(per_user, ms.Table[Any, int])
    assert_type(last.group_by("user", type=str).count(), ms.Table[str, int])
    assert_type(last.group_by(place, name="place").count(), ms.Table[int, int])


def checks_of_joins(app: ms.App) -> None:
    """What the joiner is given, and what the results are, by kind of join."""
    clicks = app.stream(app.topic("clicks", value=Click))
    paid = app.stream(app.topic("paid", value=Paid))
    users = app.table("users", topic=app.topic("users", value=User))
    then = app.table("users-then", topic=app.topic("users", value=User), versioned="1d")
    everyone = app.global_table("everyone", topic=app.topic("users", value=User))

    def pair(click: Click, other: Paid) -> int:
        return other.cents

    def left(click: Click, other: Paid | None) -> int:
        return 0 if other is None else other.cents

    def outer(click: Click | None, other: Paid | None) -> str:
        return ""

    async def later(click: Click, other: Paid) -> int:
        return other.cents

    assert_type(clicks.join(paid, pair, within="1m"), DeclaredStream[int, str])
    assert_type(clicks.join(paid, later, within="1m"), DeclaredStream[int, str])
    assert_type(clicks.join(paid, lambda c, p: (c, p), within="1m").map(sides), SIDES)
    assert_type(clicks.join(paid, left, how="left", within=("-1m", "2m")), DeclaredStream[int, str])
    assert_type(clicks.join(paid, outer, how="outer", within="1m"), DeclaredStream[str, str])
    clicks.join(paid, pair, how="left", within="1m")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    clicks.join(paid, left, how="outer", within="1m")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    selves = clicks.join(clicks, lambda a, b: (a.ms, b.ms), within="1m")
    assert_type(selves, DeclaredStream[tuple[int, int], str])
    three = clicks.join(paid, pair, within="1m").join(paid, lambda n, p: n + p.cents, within="1m")
    assert_type(three, DeclaredStream[int, str])

    def name_of(click: Click, user: User | None) -> str:
        return "" if user is None else user.name

    assert_type(clicks.join(users, lambda c, u: u.name), DeclaredStream[str, str])
    assert_type(clicks.join(users, name_of, how="left"), DeclaredStream[str, str])
    assert_type(clicks.join(then, lambda c, u: u.name, grace="1m"), DeclaredStream[str, str])
    assert_type(clicks.join(everyone, lambda c, u: u.name, on="user"), DeclaredStream[str, str])
    counts = clicks.group_by().tumbling("1m").count(emit="final", name="per-minute")
    per_user = counts.changes().map_keys(lambda windowed: str(windowed.key))
    assert_type(
        per_user.join(users, lambda n, u: (u.name, n)), DeclaredStream[tuple[str, int], str]
    )

    totals = clicks.group_by().count(name="totals")
    for how in HOW:
        assert_type(totals.join(users, total_of, how=how, name="rows"), ms.Table[str, str])
        assert_type(totals.join(users, total_of, how=how), TableStream[str, str])
    last = clicks.to_table("last")
    assert_type(last.join(users, lambda c, u: (c.ms, u.name)), TableStream[str, tuple[int, str]])
    assert_type(last.join(users, lambda c, u: u.name, on="user", name="named"), ms.Table[str, str])
    assert_type(last.join(users, name_of, how="left", on="user", name="named"), ms.Table[str, str])
    assert_type(
        last.filter(bool).join(
            users, lambda c, u: 0 if c is None or u is None else c.ms, how="outer"
        ),
        TableStream[str, int],
    )
    last.join(users, lambda c, u: c.name)  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
    last.join(users, lambda c, u: u.name, how="left")  # type: ignore[call-overload]  # pyright: ignore[reportOptionalMemberAccess]
    last.join(users, name_of, how="outer")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]


def checks_of_aggregates(app: ms.App) -> None:
    """The results of each aggregate: of groups of a stream, of windows, of groups of a table."""
    clicks = app.stream(app.topic("clicks", value=Click))
    paid = app.stream(app.topic("paid", value=Paid))
    groups = clicks.group_by()
    assert_type(groups.sum("ms"), ms.Table[str, Any])
    assert_type(groups.min("ms"), ms.Table[str, Any])
    assert_type(groups.max("ms"), ms.Table[str, Any])
    assert_type(groups.sum(lambda c: c.ms), ms.Table[str, int])
    assert_type(groups.min(lambda c: c.page), ms.Table[str, str])
    assert_type(groups.max(lambda c: c.page), ms.Table[str, str])
    assert_type(groups.reduce(lambda a, b: b), ms.Table[str, Click])
    cogroup = groups.cogroup(with_click).cogroup(paid.group_by(), with_paid)
    assert_type(cogroup.aggregate(default=0), ms.Table[str, int])
    assert_type(cogroup.tumbling("1m").aggregate(default=0), ms.WindowedTable[str, int])
    for windows in (
        groups.tumbling("1m"),
        groups.hopping("1m", "10s"),
        groups.sliding("1m"),
        groups.session("1m"),
        groups.calendar("day", timezone="Europe/Berlin"),
    ):
        assert_type(windows.count(emit=ms.Suppress("10s")), ms.WindowedTable[str, int])
        assert_type(windows.sum(lambda c: c.ms), ms.WindowedTable[str, int])
        assert_type(windows.min(lambda c: c.page), ms.WindowedTable[str, str])
        assert_type(windows.mean("ms"), ms.WindowedTable[str, float])
        assert_type(windows.top_k(2, "ms"), ms.WindowedTable[str, list[Click]])
        assert_type(windows.reduce(lambda a, b: b), ms.WindowedTable[str, Click])

    last = clicks.to_table("last")
    by_page = last.group_by(lambda c: c.page, name="by-page")
    assert_type(by_page.count(), ms.Table[str, int])
    assert_type(by_page.sum("ms"), ms.Table[str, Any])
    assert_type(by_page.min("ms"), ms.Table[str, Any])
    assert_type(by_page.max("ms"), ms.Table[str, Any])
    assert_type(by_page.sum(lambda c: c.ms), ms.Table[str, int])
    assert_type(by_page.max(lambda c: c.page), ms.Table[str, str])
    assert_type(by_page.mean("ms"), ms.Table[str, float])
    assert_type(by_page.top_k(2, "ms"), ms.Table[str, list[Click]])
    by_account = app.stream(app.topic("paid-last", value=Paid)).to_table("paid-last")
    both = by_page.cogroup(with_click, with_click).cogroup(
        by_account.group_by(str, name="by-account"), with_paid, with_paid
    )
    assert_type(both.aggregate(default=0), ms.Table[str, int])
    assert_type(by_page.reduce(lambda a, b: b, lambda a, b: a), ms.Table[str, Click])
    spent = by_page.aggregate(default=0, add=with_click, subtract=with_click, emit="every")
    assert_type(spent, ms.Table[str, int])


def checks_of_upgrades(app: ms.App) -> None:
    """``upgrade=`` changes no type, and goes with what keeps values."""
    clicks = app.stream(app.topic("clicks", value=Click))
    groups = clicks.group_by()
    assert_type(groups.reduce(lambda a, b: b, upgrade=to_click), ms.Table[str, Click])
    assert_type(groups.top_k(2, "ms", upgrade=to_click), ms.Table[str, list[Click]])
    stats = groups.aggregate(default=Stats, add=lambda s, c: s.seen(c), upgrade=to_stats)
    assert_type(stats, ms.Table[str, Stats])
    windows = groups.session("1m")
    of_windows = windows.aggregate(default=0, add=with_click, merge=max, upgrade=int)
    assert_type(of_windows, ms.WindowedTable[str, int])
    assert_type(windows.reduce(lambda a, b: b, upgrade=to_click), ms.WindowedTable[str, Click])
    cogroup = groups.cogroup(with_click)
    assert_type(cogroup.aggregate(default=0, upgrade=int), ms.Table[str, int])
    assert_type(
        cogroup.tumbling("1m").aggregate(default=0, upgrade=int), ms.WindowedTable[str, int]
    )
    last = clicks.to_table("last", upgrade=to_click)
    assert_type(last, ms.Table[str, Click])
    assert_type(last.map_values(lambda c: c.ms, name="n", upgrade=int), ms.Table[str, int])
    both = last.join(stats, lambda c, s: c.ms, how="left", name="both", upgrade=int)
    assert_type(both, ms.Table[str, int])


def to_click(old: Any) -> Click:
    """Of an older form."""
    return Click(old["user"], old["page"], 0)


def to_stats(old: Any) -> Stats:
    """Of an older form."""
    return Stats(old["count"])


SIDES: TypeAlias = DeclaredStream[int, str]
WINDOWS: TypeAlias = DeclaredStream[Stats, ms.Windowed[str]]
BOOLS: TypeAlias = WindowedTableStream[str, bool]
HOW: tuple[Literal["inner", "left", "outer"], ...] = ("inner", "left", "outer")


def sides(both: tuple[Click, Paid]) -> int:
    """A pair, and nothing else."""
    return both[0].ms + both[1].cents


def total_of(total: int | None, user: User | None) -> str:
    """Of a join of tables."""
    return f"{total} {user}"


def with_click(total: int, click: Click) -> int:
    """One more."""
    return total + click.ms


def with_paid(total: int, paid: Paid) -> int:
    """One more."""
    return total + paid.cents
