"""``millstream doctor``: what is wrong, and how to mend it."""

from __future__ import annotations

import asyncio
import os
import socket
from typing import TYPE_CHECKING

import click

from millstream.cli._doctor_findings import Finding, error, fine, scrub, secrets_of, warning
from millstream.cli._doctor_log import NO_WORKER, log_findings
from millstream.cli._doctor_machine import (
    folder_findings,
    library_findings,
    limit_findings,
    local_log_findings,
    state_positions,
)
from millstream.cli._failure import FAILED
from millstream.cli._log import log_exists
from millstream.cli._output import json_option, one_line, print_json, to_terminal
from millstream.cli._run import run
from millstream.cli._session import Session, command
from millstream.cli._worker import is_free
from millstream.errors import MillstreamError
from millstream.web._guard import is_loopback

if TYPE_CHECKING:
    from collections.abc import Iterator

    from millstream.app import App, Settings

__all__ = ["doctor"]

_SIGNS = {"ok": ("✓", "green"), "warning": ("!", "yellow"), "error": ("✗", "red")}


@command("doctor")
@json_option
def doctor(session: Session, as_json: bool) -> int:
    """Look for what is wrong, and say how to mend it.

    Looked at are settings, log, topics, positions, local state, workers, and this machine. The exit code is 1 if something is wrong; warnings alone are 0. Nothing is changed, and secrets are not shown.
    """
    found, settings = run(_examine(session))
    secrets = secrets_of(settings)
    findings = [
        Finding(f.area, f.level, scrub(f.text, secrets), scrub(f.mend, secrets)) for f in found
    ]
    if as_json:
        print_json(
            [{"area": f.area, "level": f.level, "text": f.text, "mend": f.mend} for f in findings]
        )
    else:
        for finding in findings:
            _show(finding)
    wrong = [finding for finding in findings if finding.level == "error"]
    return FAILED if wrong else 0


def _show(finding: Finding) -> None:
    if not to_terminal():
        cells = (finding.level, finding.area, finding.text, finding.mend)
        click.echo("\t".join(one_line(cell) for cell in cells))
        return
    sign, colour = _SIGNS[finding.level]
    click.echo(f"{click.style(sign, fg=colour, bold=True)} {finding.area}: {finding.text}")
    if finding.mend:
        click.echo(f"    to mend it: {finding.mend}")


async def _examine(session: Session) -> tuple[list[Finding], Settings | None]:
    findings = [*library_findings(), *limit_findings()]
    try:
        app = session.app()
    except MillstreamError as exc:
        findings.append(error("app", str(exc), "nothing else can be looked at before that"))
        return findings, None
    findings += _settings_findings(app)
    findings += folder_findings(app)
    stores, damaged = await asyncio.to_thread(state_positions, app)
    findings += damaged
    broker = app.settings.broker
    if broker.startswith("local://"):
        findings += local_log_findings(broker)
    if not log_exists(app):
        findings.append(fine("log", "there is none yet: the first worker or send makes it"))
    elif not any(finding.area == "log" and finding.level == "error" for finding in findings):
        findings += [finding async for finding in log_findings(app, stores)]
    if not any(finding.area == "workers" and finding.text != NO_WORKER for finding in findings):
        findings += _port_findings(app)
    return findings, app.settings


def _port_findings(app: App) -> Iterator[Finding]:
    """Whether a worker would get its port; call it where none runs."""
    host, port = app.settings.web_host, app.settings.web_port
    if not app.settings.web:
        return
    try:
        socket.getaddrinfo(host, None)
    except OSError as exc:
        yield error(
            "settings",
            f"web_host={host} is no address: {exc}",
            "set web_host (MILLSTREAM_WEB_HOST) to one of this machine, or to 0.0.0.0 for all",
        )
        return
    if port and not is_free(host, port):
        yield error(
            "settings",
            f"port {port} on {host} is in use, and no worker of this app runs",
            "stop what has it, or set web_port (MILLSTREAM_WEB_PORT) to another one",
        )


def _settings_findings(app: App) -> Iterator[Finding]:
    agents = sum(not agent.internal for agent in app.agents.values())
    yield fine("app", f"{app.id}: {agents} agents, {len(app.tables)} tables")
    variables = sorted(name for name in os.environ if name.startswith("MILLSTREAM_"))
    yield fine(
        "settings",
        f"broker={app.settings.broker}; from the environment: {', '.join(variables) or 'nothing'}",
    )
    if app.settings.web and not is_loopback(app.settings.web_host):
        yield warning(
            "settings",
            f"web_host={app.settings.web_host}: whoever reaches the port can read all tables, without a"
            f" password",
            "let nobody reach it but your own services: a network policy, or a proxy that asks who it is",
        )
