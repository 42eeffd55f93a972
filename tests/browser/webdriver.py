"""As much of W3C WebDriver as the tests need, over httpx to a chromedriver of our own."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import shutil
import socket
import tempfile
from typing import TYPE_CHECKING, Any

import httpx

from tests.requirements import chromium, missing

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

__all__ = ["Browser", "browsing"]

DEADLINE_S = 30.0
_FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--disable-dev-shm-usage", "--window-size=1200,900"),
]


class Browser:
    """A window of Chromium."""

    def __init__(self, http: httpx.AsyncClient, session: str) -> None:
        self._http = http
        self._session = session

    async def _call(self, method: str, path: str, **body: Any) -> Any:
        answer = await self._http.request(
            method, f"/session/{self._session}{path}", json=body if method == "POST" else None
        )
        value = answer.json()["value"]
        assert answer.status_code == 200, value
        return value

    async def open(self, url: str) -> None:
        """Load a page."""
        await self._call("POST", "/url", url=url)

    async def run(self, script: str, *arguments: Any) -> Any:
        """What a function body returns in the page."""
        return await self._call("POST", "/execute/sync", script=script, args=list(arguments))

    async def text(self, selector: str) -> str:
        """The text that the first element of a CSS selector shows; empty where there is none."""
        script = "return document.querySelector(arguments[0])?.innerText ?? ''"
        return str(await self.run(script, selector))

    async def until(self, selector: str, shows: str) -> None:
        """Wait until an element shows a text."""
        script = "return document.querySelector(arguments[0])?.innerText.includes(arguments[1])"
        await self.until_true(script, selector, shows)

    async def until_true(self, script: str, *arguments: Any) -> None:
        """Wait until a function body returns something true in the page."""
        try:
            async with asyncio.timeout(DEADLINE_S):
                while not await self.run(script, *arguments):  # noqa: ASYNC110 - no events of ours
                    await asyncio.sleep(0.02)
        except TimeoutError:
            page = await self.text("body")
            raise AssertionError(f"{script} {arguments}: never; the page:\n{page}") from None

    async def press(self, keys: str) -> None:
        """Type on whatever has the focus."""
        actions = [{"type": kind, "value": key} for key in keys for kind in ("keyDown", "keyUp")]
        keyboard = {"type": "key", "id": "keyboard", "actions": actions}
        await self._call("POST", "/actions", actions=[keyboard])

    async def errors(self) -> list[str]:
        """What the console has complained of since the last time."""
        entries = await self._call("POST", "/se/log", type="browser")
        return [entry["message"] for entry in entries if entry["level"] == "SEVERE"]

    async def screenshot(self) -> bytes:
        """The window as PNG."""
        return base64.b64decode(await self._call("GET", "/screenshot"))


@contextlib.asynccontextmanager
async def browsing(*flags: str) -> AsyncIterator[Browser]:
    """Chromium with a profile of its own, for the length of the block."""
    binary = chromium()
    driver = shutil.which("chromedriver")
    if driver is None:
        missing(
            "chromedriver, for the tests in a browser (Debian: apt-get install chromium-driver)"
        )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = await asyncio.create_subprocess_exec(
        driver,
        f"--port={port}",
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
            async with httpx.AsyncClient(
                base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False
            ) as http:
                await _until_ready(http)
                session = await _begin(
                    http, binary, [*_FLAGS, f"--user-data-dir={profile}", *flags]
                )
                try:
                    yield Browser(http, session)
                finally:
                    await http.delete(f"/session/{session}")
    finally:
        process.terminate()
        await process.wait()


async def _until_ready(http: httpx.AsyncClient) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while True:
            try:
                if (await http.get("/status")).json()["value"]["ready"]:
                    return
            except httpx.TransportError:
                pass
            await asyncio.sleep(0.05)


async def _begin(http: httpx.AsyncClient, binary: str, flags: list[str]) -> str:
    wanted = {
        "browserName": "chrome",
        "goog:chromeOptions": {"binary": binary, "args": flags},
        "goog:loggingPrefs": {"browser": "ALL"},
    }
    answer = await http.post("/session", json={"capabilities": {"alwaysMatch": wanted}})
    value = answer.json()["value"]
    assert answer.status_code == 200, value
    return str(value["sessionId"])
