"""Joins by a foreign key: always what a join of both tables, done at once, would be."""

from __future__ import annotations

import asyncio
from typing import Any, NamedTuple

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import millstream as ms
from millstream.errors import ConfigurationError, TopologyError
from millstream.testing import TestApp
from tests.streams.running import Disturbance, feed, fold, interrupt, read

HOW: Any = st.sampled_from(["inner", "left"])


class Change(NamedTuple):
    """One record of the left table (``owner:number``, a foreign key and whatever) or of the right one."""

    left: bool
    key: str
    value: str | None


class Step(NamedTuple):
    """Some changes at once, and what happens to the worker when it is through with some of the work."""

    changes: list[Change]
    turns: int
    disturbance: Disturbance


owners = st.sampled_from(["a", "b", "c", "none"])
lefts = st.builds(
    Change,
    st.just(True),
    st.sampled_from(["k1", "k2", "k3", "k4"]),
    st.none() | st.builds(lambda owner, n: f"{owner}:{n}", owners, st.integers(0, 2)),
)
rights = st.builds(
    Change, st.just(False), st.sampled_from(["a", "b", "c"]), st.none() | st.sampled_from("xy")
)
steps = st.lists(
    st.builds(
        Step,
        st.lists(lefts | rights, min_size=1, max_size=6),
        st.integers(0, 40),
        st.sampled_from(["", "", "", "crash", "lose", "rebalance"]),
    ),
    min_size=1,
    max_size=8,
)


def owner_of(value: str) -> str | None:
    """The foreign key; there may be none."""
    owner = value.partition(":")[0]
    return None if owner == "none" else owner


def pair(left: str, right: str | None) -> str:
    """Both sides."""
    return f"{left},{right}"


def brute_force(left: dict[str, str], right: dict[str, str], how: str) -> dict[str, str]:
    """The join of two tables."""
    found = {key: (value, right.get(owner_of(value) or "")) for key, value in left.items()}
    return {key: pair(*both) for key, both in found.items() if how == "left" or both[1] is not None}


def program(how: Any, partitions: int) -> Any:
    """Two tables, their join in a table, and its changes in a topic."""
    app = ms.App("shop", partitions=partitions)
    items, people = (app.topic(name, value=str, codec="str") for name in ("items", "people"))
    out = app.topic("out", value=str, codec="str")
    left, right = app.table("left", topic=items), app.table("right", topic=people)
    left.join(right, pair, how=how, on=owner_of, name="joined").to(out)
    return app, items, people, out


async def run(listed: list[Step], how: str, partitions: int) -> None:
    app, items, people, out = program(how, partitions)
    left: dict[str, str] = {}
    right: dict[str, str] = {}
    now = 0
    async with TestApp(app) as t:
        for changes, turns, disturbance in listed:
            for change in changes:
                now += 1
                topic, table = (items, left) if change.left else (people, right)
                await feed(t, topic, [(change.key, change.value, now)], settle=False)
                table.pop(change.key, None)
                if change.value is not None:
                    table[change.key] = change.value
            await interrupt(t, turns, disturbance)
            wanted = brute_force(left, right, how)
            assert t.table(app.tables["joined"].table) == wanted
            assert fold(read(t, out)) == wanted


L, R = (True, "k"), (False, "a")
"""The key on the left, and the one on the right that its value ``a:…`` refers to."""


def overtaken(*changes: Change) -> example:
    """Changes that follow one another before any answer, where there is a result already."""
    before = Step([Change(*R, "x"), Change(*L, "a:0")], 0, "")
    return example([before, Step(list(changes), 0, "")], "inner", 1)


@settings(max_examples=80, deadline=None)
@overtaken(Change(*L, None), Change(*L, "b:0"))
@overtaken(Change(*R, None), Change(*L, "a:1"))
@overtaken(Change(*L, "none:0"), Change(*L, None))
@overtaken(Change(*L, "b:0"), Change(*L, "a:0"), Change(*R, "y"))
@given(steps, HOW, st.sampled_from([1, 3]))
def test_it_is_the_join_of_both_tables(listed: list[Step], how: str, partitions: int) -> None:
    """After any changes on either side, in any order and with any disturbance, nothing is stale or missing."""
    asyncio.run(run(listed, how, partitions))


@pytest.mark.parametrize("how", ["inner", "left"])
async def test_no_result_no_word(how: str) -> None:
    """A row without a match says nothing in an inner join, whatever becomes of it."""
    app, items, _, out = program(how, 1)
    async with TestApp(app) as t:
        for value in ("a:0", "a:1", "none:0", "none:1", None, "b:0", None):
            await feed(t, items, [("k", value, 0)])
    wanted = ["a:0,None", "a:1,None", "none:0,None", "none:1,None", None, "b:0,None", None]
    found = [record.value for record in read(t, out)]
    # as in Kafka Streams, a row that loses its foreign key is taken back, though nobody has seen it
    assert found == (wanted if how == "left" else [None, None])


class Customer(msgspec.Struct):
    """What an order refers to."""

    id: int
    name: str


class Order(msgspec.Struct):
    """What refers to a customer."""

    id: str
    customer: int


async def test_structs_and_other_keys() -> None:
    """The foreign key may be a field, of another type than the left key's; an async joiner is awaited in order."""
    app = ms.App("shop", partitions=3)
    orders = app.topic("orders", key=str, value=Order, key_from="id")
    customers = app.topic("customers", key=int, value=Customer, key_from="id")

    async def shown(order: Order, customer: Customer | None) -> str:
        await asyncio.sleep(0)
        return f"{order.id} {customer.name if customer else '?'}"

    joined = app.table("orders-table", topic=orders).join(
        app.table("customers-table", topic=customers),
        shown,
        on="customer",
        how="left",
        name="shown",
    )
    out = app.topic("out", value=str)
    joined.to(out)
    async with TestApp(app) as t:
        await t.send_many(orders, [Order(f"o{n}", n % 4) for n in range(8)])
        await t.send_many(customers, [Customer(n, f"c{n}") for n in range(3)])
        await t.send_many(customers, [Customer(n, f"d{n}") for n in range(3)])
        names = {f"o{n}": f"o{n} {f'd{n % 4}' if n % 4 < 3 else '?'}" for n in range(8)}
        assert t.table(app.tables["shown"].table) == names
        assert fold(read(t, out)) == names


def test_what_cannot_be() -> None:
    """Outer joins are refused, in words."""
    app = ms.App("shop", partitions=1)
    left = app.table("left", topic=app.topic("items", value=str))
    right = app.table("right", topic=app.topic("people", value=str))
    with pytest.raises(ConfigurationError, match="inner and left joins"):
        left.join(right, pair, how="outer", on=owner_of)  # type: ignore[call-overload]


def test_foreign_keys_of_another_type() -> None:
    """A field or a function that gives no key of the right table is refused where it is declared."""
    app = ms.App("shop", partitions=1)
    orders = app.table("orders-table", topic=app.topic("orders", key=str, value=Order))
    by_name = app.table("by-name", topic=app.topic("names", key=str, value=str))

    def customer_of(order: Order) -> int | None:
        return order.customer

    def both(order: Order, name: str) -> str:
        return f"{order.id} {name}"

    for on in ("customer", customer_of):
        with pytest.raises(TopologyError, match=r"keys of type int, and those of 'by-name' .* str"):
            orders.join(by_name, both, on=on)
    orders.join(by_name, both, on=lambda order: str(order.customer), name="unknown")
    orders.join(by_name, both, on="id", name="known")
