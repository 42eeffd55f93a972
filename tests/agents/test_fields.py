"""Fields by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

import millstream as ms
from millstream.agents import field_getter
from millstream.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable


class Customer(msgspec.Struct):
    city: str


class Order(msgspec.Struct):
    customer: Customer
    amount: float

    @property
    def rounded(self) -> int:
        return round(self.amount)


@dataclass
class Row:
    number: int


ORDER = Order(Customer("Berlin"), 7.4)


@pytest.mark.parametrize(
    ("field", "value_type", "value", "found"),
    [
        ("amount", Order, ORDER, 7.4),
        ("customer.city", Order, ORDER, "Berlin"),
        ("rounded", Order, ORDER, 7),
        ("number", Row, Row(3), 3),
        ("number", Any, {"number": 4}, 4),
        ("number", Any, Row(5), 5),
        ("number", dict, {"number": 6}, 6),
    ],
)
def test_a_field(field: str, value_type: Any, value: Any, found: Any) -> None:
    assert field_getter(field, value_type)(value) == found


@pytest.mark.parametrize(
    ("field", "value_type", "said"),
    [
        ("amuont", Order, "Order has no field 'amuont'; did you mean 'amount'?"),
        ("costumer.city", Order, "Order has no field 'costumer'; did you mean 'customer'?"),
        ("x", Order, "Order has no field 'x': it has customer, amount"),
        ("x", Row, "Row has no field 'x': it has number"),
    ],
)
def test_a_field_that_is_not_there(field: str, value_type: Any, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said.replace("?", "[?]")):
        field_getter(field, value_type)


def test_who_answers_for_any_name_is_asked_with_the_value() -> None:
    class Open(msgspec.Struct):
        known: dict[str, int]

        def __getattr__(self, name: str) -> int:
            return self.known[name]

    assert field_getter("anything", Open)(Open({"anything": 8})) == 8


def test_what_is_set_afterwards_is_asked_with_the_value() -> None:
    @dataclass
    class Counted:
        number: int

        def __post_init__(self) -> None:
            self.bucket = self.number // 10

    assert field_getter("bucket", Counted)(Counted(42)) == 4


def test_it_is_said_where_the_program_is_declared() -> None:
    """Not with the first record."""
    app = ms.App("shop", broker="memory://")
    orders = app.topic("orders", value=Order)
    groups = app.stream(orders).group_by("amount")
    declarations: list[Callable[[], object]] = [
        lambda: app.topic("other", value=Order, key_from="amuont"),
        lambda: app.topic("other", value=Order, timestamp="amuont"),
        lambda: app.stream(orders).key_by("amuont"),
        lambda: app.stream(orders).group_by("amuont").count(),
        lambda: groups.sum("amuont"),
        lambda: groups.top_k(2, "amuont"),
        lambda: app.table("latest", topic=orders).group_by("amuont"),
    ]
    for declare in declarations:
        with pytest.raises(ConfigurationError, match="did you mean 'amount'"):
            declare()
