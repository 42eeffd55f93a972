"""``millstream topology``: what reads what."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from millstream.cli._log import log_exists, open_log, resolved_topology
from millstream.cli._output import json_option, print_json
from millstream.cli._run import run
from millstream.cli._session import Session, command
from millstream.errors import ConfigurationError
from millstream.topology import draw_mermaid, draw_svg, draw_text

if TYPE_CHECKING:
    from millstream.app import App
    from millstream.topology import Topology

__all__ = ["topology"]


@command("topology")
@click.option("--mermaid", is_flag=True, help="Print a Mermaid flowchart.")
@click.option("--svg", metavar="FILE", help="Draw it into a file; - is stdout.")
@json_option
def topology(session: Session, mermaid: bool, svg: str | None, as_json: bool) -> None:
    """Show the app's topics, agents, tables and timers, and what reads what."""
    if mermaid + as_json + (svg is not None) > 1:
        raise click.UsageError("--mermaid, --svg and --json exclude one another.")
    found = run(_resolved(session.app()))
    if as_json:
        print_json(msgspec.to_builtins(found))
    elif mermaid:
        click.echo(draw_mermaid(found))
    elif svg is None:
        click.echo(draw_text(found))
    elif svg == "-":
        click.echo(draw_svg(found))
    else:
        try:
            Path(svg).write_text(draw_svg(found), encoding="utf-8")
        except OSError as exc:
            raise ConfigurationError(f"{svg} cannot be written: {exc.strerror}") from exc
        click.echo(svg)


async def _resolved(app: App) -> Topology:
    if not log_exists(app) or app.settings.broker.startswith("memory://"):
        return resolved_topology(app, {})
    async with open_log(app) as transport:
        return resolved_topology(app, await transport.topics())
