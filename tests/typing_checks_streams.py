"""What type checkers infer of streams and tables; never run, checked by mypy and pyright."""

from __future__ import annotations

from typing import Any, assert_type

import msgspec

import millstream as ms
from millstream.streams import DeclaredStream, GroupedStream, TableStream, WindowedTable


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
    assert_type(windowed.changes(), DeclaredStream[Stats, Any])
    assert_type(by_key.tumbling("10s").count(), ms.WindowedTable[str, int])
