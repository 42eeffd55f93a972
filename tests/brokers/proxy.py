"""A proxy between a client and a broker that a test can cut, delay, silence and make lose single answers.

It listens where the broker sends its clients (the listener PROXIED), in plain text, and reads of each message its
length, of each request its API key and correlation id, and of each answer its correlation id: the rest passes as
it is. It runs in a thread with a loop of its own; every method may be called from anywhere, and returns when the
proxy has taken note of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import Counter
from typing import TYPE_CHECKING, Any, TypeAlias

from tests.brokers.listeners import HOST, PROXIED
from tests.brokers.messages import Action, Rule

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
    from typing import TypeVar

    from tests.brokers.cluster import Cluster

    T = TypeVar("T")

__all__ = ["Proxy", "proxies"]

_Messages: TypeAlias = "asyncio.Queue[tuple[float, int | None, bytes] | None]"

DEADLINE_S = 30.0
FRAMES_MAX = 100
"""Messages of one direction of one connection that wait in the proxy; then it reads no more."""


class Proxy:
    """One listening port, and the broker behind it; ``with`` opens and closes it.

    Args:
        port: Where it listens, which the broker tells its clients.
        behind: Where the broker listens.
    """

    def __init__(self, port: int, behind: int) -> None:
        self.port = port
        self._behind = behind
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"proxy-{port}")
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[Any]] = set()
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._delay_s = 0.0
        self._rules: list[Rule] = []
        self._requests: Counter[int] = Counter()
        self._errors: list[Exception] = []

    @property
    def bootstrap(self) -> str:
        """Its address as clients take it."""
        return f"{HOST}:{self.port}"

    @property
    def requests(self) -> Counter[int]:
        """How many requests came, by API key."""
        return self._call(lambda: Counter(self._requests))

    @property
    def connections(self) -> int:
        """How many connections are open."""
        return self._call(lambda: len(self._connections))

    # what a test does to it

    def on_answer(self, api: int, action: Action, *, times: int = 1) -> Rule:
        """Do something to the next answers of one kind: the broker has done what was asked, and nobody hears of it."""
        return self._rule(api, action, times, answer=True)

    def on_request(self, api: int, action: Action, *, times: int = 1) -> Rule:
        """Do something to the next requests of one kind: the broker never hears of them, or later."""
        return self._rule(api, action, times, answer=False)

    def cut(self) -> None:
        """Close all connections; new ones are accepted."""
        self._run(self._cut())

    def refuse(self) -> None:
        """Close all connections and the port, as when the broker is down; ``accept`` opens it again."""
        self._run(self._close())

    def accept(self) -> None:
        """Listen, after ``refuse``."""
        self._run(self._open())

    def silence(self) -> None:
        """Let nothing pass, in no direction, with all connections open; ``resume`` ends it, and nothing is lost."""
        self._call(self._flowing.clear)

    def resume(self) -> None:
        """Let everything pass again, after ``silence``."""
        self._call(self._flowing.set)

    def delay(self, seconds: float) -> None:
        """Let each message, requests and answers, arrive this much later; 0 ends it."""

        def change() -> None:
            self._delay_s = seconds

        self._call(change)

    def reset(self) -> None:
        """Forget rules (what they hold is let go), delay, silence and counts; connections stay."""

        def change() -> None:
            self._drop(list(self._rules))
            self._requests.clear()
            self._delay_s = 0.0
            self._flowing.set()

        self._call(change)

    # its life

    def __enter__(self) -> Proxy:
        self._thread.start()
        try:
            self._run(self._open())
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.reset()
        self._run(self._close())
        self._end()
        if self._errors:
            raise ExceptionGroup("in the proxy", self._errors)

    def _end(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run(self, act: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(act, self._loop).result(DEADLINE_S)

    def _call(self, act: Callable[[], T]) -> T:
        async def call() -> T:
            return act()

        return self._run(call())

    def _rule(self, api: int, action: Action, times: int, *, answer: bool) -> Rule:
        def release(rule: Rule) -> None:
            self._call(lambda: self._drop([rule]))

        rule = Rule(api, action, times=times, answer=answer, release=release)
        self._call(lambda: self._rules.append(rule))
        return rule

    async def _open(self) -> None:
        self._server = await asyncio.start_server(self._accept, HOST, self.port)

    async def _close(self) -> None:
        if self._server is not None:
            self._server.close()
        await self._cut()

    def _drop(self, rules: list[Rule]) -> None:
        for rule in rules:
            if rule in self._rules:
                self._rules.remove(rule)
            rule.released.set()

    async def _cut(self) -> None:
        connections = list(self._connections)
        for connection in connections:
            connection.cancel()
        await asyncio.gather(*connections, return_exceptions=True)

    # one connection: for each direction a task that takes messages in, and one that passes them on

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving = self._loop.create_task(self._serve(reader, writer))
        self._connections.add(serving)

        def end(_: asyncio.Task[None]) -> None:
            self._connections.discard(serving)
            writer.transport.abort()

        serving.add_done_callback(end)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there, to_there = await asyncio.open_connection(HOST, self._behind)
        except OSError:
            return  # nobody is behind: the client sees a connection that is closed at once
        asked: dict[int, int] = {}
        requests: _Messages = asyncio.Queue(FRAMES_MAX)
        answers: _Messages = asyncio.Queue(FRAMES_MAX)
        taking = [
            self._loop.create_task(self._take_requests(reader, requests, asked)),
            self._loop.create_task(self._take_answers(there, answers, asked)),
        ]
        passing = [
            self._loop.create_task(self._pass_on(requests, to_there, answer=False)),
            self._loop.create_task(self._pass_on(answers, writer, answer=True)),
        ]
        try:
            await asyncio.wait(passing, return_when=asyncio.FIRST_EXCEPTION)
        finally:
            to_there.transport.abort()
            for task in (*taking, *passing):
                task.cancel()
            ends = await asyncio.gather(*taking, *passing, return_exceptions=True)
            errors = [end for end in ends if isinstance(end, Exception)]
            self._errors += [error for error in errors if not isinstance(error, _Ended)]

    async def _take_requests(
        self, reader: asyncio.StreamReader, into: _Messages, asked: dict[int, int]
    ) -> None:
        async for frame in _frames(reader):
            api = int.from_bytes(frame[4:6])
            asked[int.from_bytes(frame[8:12])] = api
            self._requests[api] += 1
            await into.put((self._loop.time(), api, frame))
        await into.put(None)

    async def _take_answers(
        self, reader: asyncio.StreamReader, into: _Messages, asked: dict[int, int]
    ) -> None:
        async for frame in _frames(reader):
            api = asked.pop(int.from_bytes(frame[4:8]), None)
            await into.put((self._loop.time(), api, frame))
        await into.put(None)

    async def _pass_on(
        self, messages: _Messages, writer: asyncio.StreamWriter, *, answer: bool
    ) -> None:
        while (message := await messages.get()) is not None:
            arrived, api, frame = message
            if self._delay_s:
                await asyncio.sleep(arrived + self._delay_s - self._loop.time())
            await self._flowing.wait()
            rule = next((rule for rule in self._rules if rule.meets(api, answer=answer)), None)
            if rule is not None:
                if rule.action is Action.CUT:
                    raise _Ended
                if rule.action is Action.LOSE:
                    continue
                await rule.released.wait()
            with contextlib.suppress(ConnectionError):
                # nobody may listen any more, and yet the other direction goes on: what a client sent before it
                # died still arrives
                writer.write(frame)
                await writer.drain()
        if answer:
            raise _Ended
        with contextlib.suppress(OSError):
            writer.write_eof()


class _Ended(Exception):
    """The connection is to be closed."""


async def _frames(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
        while True:
            length = await reader.readexactly(4)
            yield length + await reader.readexactly(int.from_bytes(length))


@contextlib.contextmanager
def proxies(cluster: Cluster) -> Iterator[list[Proxy]]:
    """Put a proxy before each broker; clients connect to ``cluster.address("PROXIED")``."""
    name = PROXIED.name
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(Proxy(broker.advertised[name], broker.ports[name]))
            for broker in cluster.brokers
        ]
