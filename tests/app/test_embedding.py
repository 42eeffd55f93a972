"""An app inside a program of its own: scripts, and the lifespan of a web server."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route

import millstream as ms
from millstream.errors import AgentError, ProgramError
from tests.kit import Order

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from starlette.requests import Request


def shop(**settings: Any) -> tuple[ms.App, ms.Topic[Order], asyncio.Queue[Order]]:
    app = ms.App("shop", **{"broker": "memory://", "state": "memory", **settings})
    orders = app.topic("orders", value=Order, key_from="account")
    seen: asyncio.Queue[Order] = asyncio.Queue()

    @app.agent(orders)
    async def note(stream: ms.Stream[Order]) -> None:
        async for order in stream:
            if order.amount < 0:
                raise ValueError("negative")
            await seen.put(order)

    return app, orders, seen


@contextlib.asynccontextmanager
async def served(web: Starlette) -> AsyncIterator[httpx.AsyncClient]:
    """A web application as a server runs it: inside its lifespan, with the lifespan's state."""
    received: asyncio.Queue[Any] = asyncio.Queue()
    sent: asyncio.Queue[Any] = asyncio.Queue()
    state: dict[str, Any] = {}
    scope = {"type": "lifespan", "asgi": {"version": "3.0"}, "state": state}
    life = asyncio.ensure_future(web(scope, received.get, sent.put))
    await received.put({"type": "lifespan.startup"})
    started = await sent.get()
    assert started["type"] == "lifespan.startup.complete", started.get("message")

    async def with_state(scope: Any, receive: Any, send: Any) -> None:
        await web({**scope, "state": dict(state)}, receive, send)

    transport = httpx.ASGITransport(with_state)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client
    await received.put({"type": "lifespan.shutdown"})
    stopped = await sent.get()
    assert stopped["type"] == "lifespan.shutdown.complete", stopped.get("message")
    await life


async def test_with_a_worker() -> None:
    """``async with app.running():`` sends and processes."""
    app, orders, seen = shop()
    async with app.running() as running:
        assert running is app
        await orders.send(Order("ada", 1.0))
        assert await seen.get() == Order("ada", 1.0)
    with pytest.raises(ProgramError, match=r"does not run here any more\. It has stopped\."):
        await orders.send(Order("ada", 1.0))


async def test_without_a_worker(tmp_path: Path) -> None:
    """With ``worker=False`` an app sends, and another one in another program processes."""
    broker = f"local://{tmp_path / 'shop.db'}"
    sender, orders, unseen = shop(broker=broker)
    async with sender.running(worker=False):
        position = await orders.send(Order("ada", 1.0))
        assert position is not None
        assert position.offset == 0
    assert unseen.empty()
    worker, _, seen = shop(broker=broker)
    async with worker.running():
        assert await seen.get() == Order("ada", 1.0)


async def test_no_traces() -> None:
    """Embedding sets no signal handler and no logging, and leaves no task behind."""
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    handlers = logging.getLogger().handlers[:], logging.getLogger("millstream").handlers[:]
    tasks = asyncio.all_tasks()
    app, orders, seen = shop()
    async with app.running():
        assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
        await orders.send(Order("ada", 1.0))
        await seen.get()
    assert (logging.getLogger().handlers, logging.getLogger("millstream").handlers) == handlers
    assert asyncio.all_tasks() == tasks


async def test_errors_reach_the_block() -> None:
    """What stops the worker ends the block, and comes out of it."""
    app, orders, _ = shop()
    with pytest.raises(AgentError, match="ValueError: negative"):  # noqa: PT012
        async with app.running():
            await orders.send(Order("ada", -1.0))
            await asyncio.Event().wait()


async def test_errors_of_the_block() -> None:
    """What the block raises comes out as it is, and the app is closed."""
    app, _, _ = shop()
    with pytest.raises(ZeroDivisionError):
        async with app.running():
            raise ZeroDivisionError
    async with app.running(worker=False):
        pass


async def test_cancelled_block() -> None:
    """A block that is cancelled closes the app and stays cancelled."""
    app, _, _ = shop()
    running = asyncio.Event()

    async def block() -> None:
        async with app.running():
            running.set()
            await asyncio.Event().wait()

    task = asyncio.ensure_future(block())
    await running.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert app.runtime is None


async def test_ask_from_outside() -> None:
    """A program asks an agent and gets its answer."""
    app, _, _ = shop()

    @app.agent
    async def double(stream: ms.Stream[int]) -> Any:
        async for number in stream:
            yield number * 2

    async with app.running():
        assert await double.ask(21) == 42
        assert await double.join([1, 2, 3]) == [2, 4, 6]


async def test_lifespan_of_a_web_server() -> None:
    """``Starlette(lifespan=app.running)``, and FastAPI the same: endpoints send while the app runs."""
    app, orders, _ = shop()

    async def place(request: Request) -> JSONResponse:
        position = await orders.send(Order("ada", 5.0))
        return JSONResponse({"position": str(position)})

    web = Starlette(routes=[Route("/order", place, methods=["POST"])], lifespan=app.running)
    async with served(web) as client:
        answer = (await client.post("/order")).json()
        assert answer["position"].startswith("orders/")
    assert app.runtime is None


async def test_web_part_of_an_app_that_does_not_run() -> None:
    """Before, after, and after an error, the mounted pages answer 503 and say which of them it is."""
    app, orders, _ = shop()
    web = Starlette(routes=[Mount("/ms", app.asgi)])
    transport = httpx.ASGITransport(web)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:

        async def asked() -> str:
            answer = await client.get("/ms/tables")
            assert answer.status_code == 503
            assert answer.headers["content-type"] == "application/problem+json"
            problem = answer.json()
            assert problem["type"] == "urn:millstream:unavailable"
            return str(problem["detail"])

        assert "put it into the lifespan" in await asked()
        async with app.running():
            assert (await client.get("/ms/tables")).status_code == 200
        assert await asked() == "App 'shop' does not run here any more. It has stopped."
        with pytest.raises(AgentError):  # noqa: PT012
            async with app.running():
                await orders.send(Order("ada", -1.0))
                await asyncio.Event().wait()
        assert (
            "It has ended with AgentError: agent 'note' raised ValueError: negative"
            in await asked()
        )
        page = await client.get("/ms/tables", headers={"Accept": "text/html"})
        assert page.status_code == 503
        assert "agent &#x27;note&#x27; raised ValueError" in page.text
        with pytest.raises(ProgramError, match="has ended with AgentError"):
            await orders.send(Order("ada", 1.0))
        async with app.running():
            assert (await client.get("/ms/tables")).status_code == 200


async def test_web_sockets_of_an_app_that_does_not_run() -> None:
    """A WebSocket is refused; other protocols are not the web part's business."""
    app, _, _ = shop()
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    await app.asgi({"type": "websocket", "headers": []}, receive, send)
    assert sent == [
        {"type": "websocket.close", "code": 1008, "reason": "Nobody can answer right now"}
    ]
    with pytest.raises(ProgramError, match="put it into the lifespan"):
        await app.asgi({"type": "lifespan"}, receive, send)


async def test_lifespan_beside_others() -> None:
    """Inside a lifespan of one's own ``app.running`` is an ordinary context manager."""
    app, orders, _ = shop()
    closed: list[bool] = []

    @contextlib.asynccontextmanager
    async def lifespan(web: Starlette) -> Any:
        async with app.running(worker=False):
            yield {"shop": app}
        closed.append(app.runtime is None)

    async def place(request: Request) -> JSONResponse:
        assert request.state.shop is app
        await orders.send(Order("ada", 5.0))
        return JSONResponse({})

    web = Starlette(routes=[Route("/order", place)], lifespan=lifespan)
    async with served(web) as client:
        assert (await client.get("/order")).status_code == 200
    assert closed == [True]
