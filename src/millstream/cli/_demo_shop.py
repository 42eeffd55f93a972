"""A shop that sells by itself: the program of ``millstream demo``."""

import random
from collections.abc import AsyncIterator

import msgspec

import millstream as ms

app = ms.App("demo")


class Order(msgspec.Struct):
    account: str
    product: str
    amount: float


class Spent(msgspec.Struct):
    orders: int = 0
    amount: float = 0.0


orders = app.topic("orders", value=Order, key_from="account")
large = app.topic("large-orders", value=Order, key_from="account")
accounts = app.table("accounts", key=str, value=Spent, default=Spent)
sold = app.table("sold-per-minute", key=str, value=int, default=0).tumbling(
    "1m", grace="5s", retention="1h"
)


@app.agent(orders, sink=[large])
async def spend(stream: ms.Stream[Order]) -> AsyncIterator[Order]:
    """What each account has spent; large orders go on to a topic of their own."""
    async for order in stream:
        spent = accounts[order.account]
        spent.orders += 1
        spent.amount = round(spent.amount + order.amount, 2)
        if order.amount > 95:
            yield order


@app.agent(app.stream(orders).group_by("product"))
async def sell(stream: ms.Stream[Order]) -> None:
    """How many pieces of each product are sold in each minute."""
    async for order in stream:
        sold[order.product] += 1


@app.timer("100ms", scope="leader")
async def customers() -> None:
    """Ten orders, ten times a second."""
    for _ in range(10):
        account = random.choice(["ada", "alan", "barbara", "edsger", "grace", "ken", "leslie"])
        product = random.choice(["bread", "cheese", "coffee", "olives", "pears", "wine"])
        await orders.send(Order(account, product, round(random.uniform(1, 100), 2)))


if __name__ == "__main__":
    app.main()
