"""The files of a new project; ``{{name}}`` stands for its name."""

from __future__ import annotations

__all__ = ["FILES"]

_APP = '''\
"""Totals per account, and orders per account and hour."""

import msgspec

import millstream as ms

app = ms.App("{{name}}")


class Order(msgspec.Struct):
    account: str
    amount: float


orders = app.topic("orders", value=Order, key_from="account")
totals = app.table("totals", key=str, value=float, default=0.0)
hourly = app.table("orders-per-hour", key=str, value=int, default=0).tumbling(
    "1h", grace="5m", retention="7d"
)


@app.agent(orders)
async def count(stream: ms.Stream[Order]) -> None:
    """Totals per account, and how many orders it has in each hour."""
    async for order in stream:
        totals[order.account] += order.amount
        hourly[order.account] += 1


if __name__ == "__main__":
    app.main()
'''

_TEST = """\
from app import Order, app, orders, totals


async def test_amounts_are_added_up(millstream_test):
    async with millstream_test(app) as t:
        await t.send(orders, Order("ada", 12.5))
        await t.send(orders, Order("bob", 1.0))
        await t.send(orders, Order("ada", 2.5))
        assert t.table(totals)["ada"] == 15.0
"""

_PYPROJECT = """\
[project]
name = "{{name}}"
version = "0.1.0"
requires-python = ">=3.11"
dependencies = ["millstream"]

[dependency-groups]
dev = ["pytest", "pytest-asyncio"]

[tool.millstream]
app = "app:app"

[tool.pytest.ini_options]
asyncio_mode = "auto"
pythonpath = ["."]
testpaths = ["tests"]
"""

_IGNORED = """\
.venv/
__pycache__/
.pytest_cache/
# the log and the state of a worker
.millstream/
*.db
*.db-wal
*.db-shm
"""

_README = """\
# {{name}}

```
millstream worker --reload
```

In another terminal:

```
millstream send orders '{"account": "ada", "amount": 12.5}'
millstream table totals ada
millstream tail orders --from beginning
```

http://127.0.0.1:6066 shows tables and agents at work. `pytest` runs the tests, without a worker.

- `app.py`: topics, tables and agents
- `tests/`: tests of them, with time that moves by hand
- `pyproject.toml`: settings, below `[tool.millstream]`
"""

FILES = {
    "app.py": _APP,
    "tests/test_app.py": _TEST,
    "pyproject.toml": _PYPROJECT,
    "README.md": _README,
    ".gitignore": _IGNORED,
}
