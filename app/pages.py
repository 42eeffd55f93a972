"""The live page of the application: airlines, planes in the air, the last hour and the worst of the day."""

from pathlib import Path

from starlette.requests import Request
from starlette.responses import HTMLResponse

from app import app

__all__ = ["board"]

PAGE = (Path(__file__).parent / "board.html").read_text(encoding="utf-8")


@app.page("/board")
async def board(request: Request) -> HTMLResponse:
    """Show what the tables hold, as it changes."""
    return HTMLResponse(PAGE)
