"""The command line as a whole: help, errors, exit codes, the app's own commands."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

import millstream
from millstream.cli._main import _OWN
from tests.cli.terminal import APP, Terminal
from tests.requirements import missing

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from click.testing import Result

COMMANDS = '''

import click


@app.command()
@click.argument("name")
def greet(name: str) -> None:
    """Say hello."""
    click.echo(f"hello {name}")


@app.command("pay")
@click.argument("account")
async def pay(account: str) -> None:
    """Send an order."""
    click.echo(await orders.send(Order(account, 1.0)))
'''


def test_version_and_help(call: Callable[..., Result]) -> None:
    """Help lists our commands in the order in which one meets them."""
    assert call("--version").output == f"millstream {millstream.__version__}\n"
    output = call("--help").output
    names = [
        "new",
        "worker",
        "send",
        "tail",
        "table",
        "topics",
        "tables",
        "agents",
        "topology",
        "groups",
        "lag",
        "top",
        "skip",
        "dlq",
        "reset",
        "copy",
        "doctor",
        "demo",
        "completion",
    ]
    places = [output.index(f"\n  {name} ") for name in names]
    assert places == sorted(places)
    assert "Commands of this app" not in output


@pytest.mark.parametrize("command", list(_OWN))
def test_each_command_has_help(call: Callable[..., Result], command: str) -> None:
    """Also where the app does not load."""
    (result := call(command, "--help"))
    assert result.exit_code == 0
    assert result.output.startswith(f"Usage: millstream {command} ")


def test_commands_of_the_app(project: Path, call: Callable[..., Result]) -> None:
    """They stand in the help, and an async one runs inside the app."""
    (project / "app.py").write_text(APP + COMMANDS)
    output = call("--help").output
    assert "Commands of this app:" in output
    assert "greet" in output
    assert call("greet", "ada").output == "hello ada\n"
    assert call("pay", "ada").output == "orders/1@0\n"
    assert "No such command 'great'. Did you mean 'greet'?" in call("great", "ada").output


def test_app_main(project: Path, terminal: Terminal) -> None:
    """``python app.py`` is the command line of that app, also for modules that import it by name."""
    (project / "app.py").write_text(
        'import millstream as ms\napp = ms.App("shop", web=False, autodiscover=["agents"])\n'
        'if __name__ == "__main__":\n    app.main()\n'
    )
    (project / "agents.py").write_text(
        "from app import app\n\n@app.agent()\nasync def echo(stream):\n    async for x in stream: ...\n"
    )
    command = [sys.executable, "app.py", "agents", "--json"]
    result = subprocess.run(
        command, cwd=project, capture_output=True, text=True, check=False, timeout=30
    )
    assert [row["name"] for row in json.loads(result.stdout)] == ["echo"], result.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["nothing"], 2, "No such command 'nothing'.\n"),
        (["tabel"], 2, "No such command 'tabel'. Did you mean 'table'?\n"),
        (["-A", "nowhere", "wroker"], 2, "Did you mean 'worker'? The app could not be asked"),
        (["-A", "nowhere", "topics"], 2, "Error: there is no module 'nowhere'"),
        (["topics", "-A", "nowhere"], 2, "Error: there is no module 'nowhere'"),  # after it as well
        (["skip", "nonsense"], 2, "'nonsense' is not a record: write topic/partition@offset"),
        (["table", "nothing"], 2, "there is no table 'nothing': the app has totals"),
        (["tail", "orders"], 2, "the log local://"),
        (["worker", "--processes", "0"], 2, "0 is not in the range"),
    ],
)
def test_errors(call: Callable[..., Result], arguments: list[str], code: int, message: str) -> None:
    """One sentence on stderr; 2 where the call or the settings have to be changed."""
    result = call(*arguments)
    assert result.exit_code == code
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


def test_debug_shows_the_traceback(project: Path, call: Callable[..., Result]) -> None:
    """And the sentence below it."""
    (project / "app.py").write_text("x = 1\nraise RuntimeError('broken')\n")
    for arguments in (["--debug", "topics"], ["topics", "--debug"]):
        result = call(*arguments)
        assert "Traceback (most recent call last)" in result.stderr
        assert result.stderr.splitlines()[-1] == "Error: app.py:2: RuntimeError: broken"


def test_an_error_of_no_kind_of_ours(project: Path, call: Callable[..., Result]) -> None:
    """It is called unexpected, and --debug is suggested."""
    (project / "app.py").write_text(APP + COMMANDS.replace("click.echo(f", "raise KeyError(f"))
    result = call("greet", "ada")
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: unexpected KeyError: 'hello ada' (")
    assert "app.py:" in result.stderr
    assert result.stderr.endswith("--debug for the traceback.\n")


def test_completion(call: Callable[..., Result]) -> None:
    """Shells get a script that asks us, and we know the names of topics."""
    assert "_MILLSTREAM_COMPLETE=zsh_complete" in call("completion", "zsh").output
    env = {
        "_MILLSTREAM_COMPLETE": "bash_complete",
        "COMP_WORDS": "millstream send o",
        "COMP_CWORD": "2",
    }
    assert "plain,orders" in call(env=env).output


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("millstream reset o", "plain,orders"),
        ("millstream dlq re", "plain,retry"),
        ("millstream reset --k", "plain,--keep-tables"),
        ("millstream do", "plain,doctor"),
    ],
)
def test_completion_of_operations(call: Callable[..., Result], words: str, found: str) -> None:
    """Topics, commands below a command, and options."""
    number = str(len(words.split()) - 1)
    env = {"_MILLSTREAM_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": number}
    assert found in call(env=env).output.splitlines()


def test_completion_in_a_shell(project: Path) -> None:
    """Bash takes the script, and asks us."""
    bash = shutil.which("bash")
    if bash is None:
        missing("bash, for a test of completion")
    program = project / "bin" / "millstream"
    program.parent.mkdir()
    program.write_text(f'#!{bash}\nexec "{sys.executable}" -m millstream "$@"\n')
    program.chmod(0o755)
    script = """
    eval "$(millstream completion bash)" || exit 3
    COMP_WORDS=(millstream dlq sh) COMP_CWORD=2
    _millstream_completion millstream
    printf '%s' "${COMPREPLY[*]}"
    """
    done = subprocess.run(
        [bash, "--norc", "-c", script],
        cwd=project,
        env={**os.environ, "PATH": f"{program.parent}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (0, "show"), done.stderr


def test_reader_that_goes_away(project: Path, terminal: Terminal) -> None:
    """``millstream … | head`` is no error to tell anyone about."""
    lines = "".join('{"account": "ada", "amount": 1}\n' for _ in range(5_000))
    assert terminal.run("send", "orders", "-", stdin=lines).returncode == 0
    tail = subprocess.Popen(
        [sys.executable, "-m", "millstream", "tail", "orders", "--from", "beginning"],
        cwd=project,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert tail.stdout is not None
    assert tail.stderr is not None
    assert tail.stdout.readline().startswith("orders/1@0\t")
    tail.stdout.close()
    assert tail.wait(30) == 1
    assert tail.stderr.read() == ""
    tail.stderr.close()


def test_what_is_not_loaded() -> None:
    """Sending loads no web server, no HTTP client, no RocksDB, nothing that draws."""
    heavy = ["uvicorn", "starlette", "httpx", "rocksdict", "rich", "croniter", "urllib.request"]
    code = (
        "import sys, millstream.cli, millstream.cli._send, millstream.app._runtime\n"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"
