"""``deploy/``: what its files start, ask and mount is what there is in the product."""

from __future__ import annotations

import importlib
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest

from millstream.app._settings import read_settings, setting_docs
from millstream.cli import cli
from millstream.cli._failure import CONFIGURATION, INTERRUPTED
from millstream.cli._serve import SIGNALS, STOP_S_MAX
from millstream.cli._session import Session
from tests.cli.terminal import APP, poll

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import click

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
UNIT = DEPLOY / "systemd" / "flights.service"
LABELS = {"app.kubernetes.io/name": "flights"}
PORT = 6066


def _parsed(words: Sequence[str]) -> click.Context:
    """``worker`` as the command line reads these words; raises click.UsageError where it cannot."""
    at = words.index("worker")
    root = cli.make_context("millstream", list(words), obj=Session())
    found = cli.get_command(root, "worker")
    assert found is not None
    return found.make_context("worker", list(words[at + 1 :]), parent=root)


def _check_variables(variables: Mapping[str, Any]) -> None:
    known = {f"MILLSTREAM_{name.upper()}" for name in setting_docs()}
    named = {name for name in variables if name.startswith("MILLSTREAM_")}
    assert named <= known


def _path(broker: str) -> PurePosixPath:
    return PurePosixPath(broker.removeprefix("local://"))


# the image


class Image(NamedTuple):
    """What the last stage of the Dockerfile says."""

    commands: list[tuple[str, str]]

    def all(self, name: str) -> list[str]:
        """Every instruction of a kind."""
        return [rest for command, rest in self.commands if command == name]

    def words(self, name: str) -> list[str]:
        """The last instruction of a kind in its JSON form."""
        return list(json.loads(self.all(name)[-1]))

    @property
    def environment(self) -> dict[str, str]:
        """What ENV sets."""
        pairs = [word.partition("=") for line in self.all("ENV") for word in shlex.split(line)]
        return {name: value for name, _, value in pairs}

    @property
    def health_check(self) -> list[str]:
        """The command of HEALTHCHECK."""
        return list(json.loads(self.all("HEALTHCHECK")[-1].partition("CMD ")[2]))


@pytest.fixture(scope="module")
def image() -> Image:
    """The Dockerfile."""
    text = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    joined = re.sub(r"\\\n\s*", "", "\n".join(x for x in text.splitlines() if x[:1] != "#"))
    found: list[tuple[str, str]] = []
    for line in filter(None, (line.strip() for line in joined.splitlines())):
        command, _, rest = line.partition(" ")
        if command == "FROM":
            found.clear()
        found.append((command, rest))
    return Image(found)


def test_the_image(image: Image) -> None:
    """Small, without root, with a signal that ends a worker well, and with its own port."""
    assert image.all("FROM") == ["python:3.13-slim"]
    assert int(image.all("USER")[-1]) > 0
    assert image.all("STOPSIGNAL")[-1] in [sig.name for sig in SIGNALS]
    context = _parsed([*image.words("ENTRYPOINT")[1:], *image.words("CMD")])
    assert image.words("ENTRYPOINT")[0] == "millstream"
    assert (context.info_name, context.params["web_port"]) == ("worker", PORT)
    assert image.all("EXPOSE") == [str(PORT)]
    _check_variables(image.environment)
    volume = PurePosixPath(image.all("VOLUME")[-1])
    assert _path(image.environment["MILLSTREAM_BROKER"]).is_relative_to(volume)
    assert PurePosixPath(image.environment["MILLSTREAM_STATE_DIR"]).is_relative_to(volume)
    assert str(volume) in image.all("RUN")[0]


def test_what_the_image_copies() -> None:
    """It is there, and is not kept out of the build."""
    text = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    copied = [
        word
        for line in re.findall(r"^COPY (.*)$", text, re.MULTILINE)
        for word in line.split()[:-1]
    ]
    assert copied
    assert [name for name in copied if not (ROOT / name).exists()] == []
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    assert sorted(copied) == sorted(line[1:] for line in ignored if line[:1] == "!")


@pytest.fixture(scope="module")
def worker(image: Image, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The image's command with its environment, on folders and a port of this machine; the port."""
    folder = tmp_path_factory.mktemp("image")
    (folder / "app.py").write_text(APP.replace(", web=False", ""))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    volume = image.all("VOLUME")[-1]
    (folder / "volume").mkdir()
    environment = {
        name: value.replace(volume, str(folder / "volume"))
        for name, value in image.environment.items()
    }
    environment["MILLSTREAM_WEB_HOST"] = "127.0.0.1"
    words = [*image.words("ENTRYPOINT")[1:], *image.words("CMD")]
    process = subprocess.Popen(
        [sys.executable, "-m", "millstream", *(w.replace(str(PORT), str(port)) for w in words)],
        cwd=folder,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
    )
    try:
        poll(lambda: _status(port, "/health/ready") == 200, what="the worker is ready")
        yield port
        process.send_signal(getattr(signal, image.all("STOPSIGNAL")[-1]))
        assert process.wait(10) == 0
        assert (folder / "volume" / "flights.db").exists()
        assert (folder / "volume" / "state").is_dir()
    finally:
        process.kill()
        process.wait()


def _status(port: int, path: str) -> int:
    try:
        with urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            return int(answer.status)
    except HTTPError as exc:
        with exc:
            return int(exc.code)
    except OSError:
        return 0


def test_the_health_check(image: Image, worker: int) -> None:
    """It is 0 while the worker lives, and not 0 where nobody answers."""
    program, *words = image.health_check
    assert program == "python"
    assert f":{PORT}/" in words[-1]
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        codes = [
            subprocess.run(
                [sys.executable, *(word.replace(str(PORT), str(port)) for word in words)],
                capture_output=True,
                check=False,
                timeout=30,
            ).returncode
            for port in (worker, nobody.getsockname()[1])
        ]
    assert codes[0] == 0
    assert codes[1] != 0


# Kubernetes


@pytest.fixture(scope="module")
def manifests() -> dict[str, dict[str, Any]]:
    """Every object, by kind and name."""
    yaml: Any = importlib.import_module("yaml")
    kustomization = yaml.safe_load((KUBERNETES / "kustomization.yaml").read_text(encoding="utf-8"))
    files = {path.name for path in KUBERNETES.iterdir()} - {"kustomization.yaml"}
    assert set(kustomization["resources"]) == files
    found = {}
    for name in kustomization["resources"]:
        for one in yaml.safe_load_all((KUBERNETES / name).read_text(encoding="utf-8")):
            assert one["apiVersion"]
            found[f"{one['kind']}/{one['metadata']['name']}"] = one
    assert kustomization["images"][0]["name"] == _container(found)["image"]
    return found


def _container(manifests: Mapping[str, Any]) -> dict[str, Any]:
    (container,) = manifests["StatefulSet/flights"]["spec"]["template"]["spec"]["containers"]
    return dict(container)


def test_everything_is_about_the_workers(manifests: dict[str, dict[str, Any]]) -> None:
    """Services, disruption budget and network policy choose the pods that the StatefulSet makes."""
    assert sorted(manifests) == [
        "ConfigMap/flights",
        "NetworkPolicy/flights",
        "PodDisruptionBudget/flights",
        "Service/flights",
        "Service/flights-workers",
        "StatefulSet/flights",
    ]
    workers = manifests["StatefulSet/flights"]["spec"]
    assert workers["template"]["metadata"]["labels"] == LABELS
    assert workers["selector"]["matchLabels"] == LABELS
    assert manifests["PodDisruptionBudget/flights"]["spec"]["selector"]["matchLabels"] == LABELS
    assert manifests["NetworkPolicy/flights"]["spec"]["podSelector"]["matchLabels"] == LABELS
    for name in ("flights", "flights-workers"):
        service = manifests[f"Service/{name}"]["spec"]
        assert service["selector"] == LABELS
        assert [(port["port"], port["targetPort"]) for port in service["ports"]] == [(PORT, "web")]
    headless = manifests[f"Service/{workers['serviceName']}"]["spec"]
    assert (headless["clusterIP"], headless["publishNotReadyAddresses"]) == ("None", True)


def test_the_worker_in_a_pod(manifests: dict[str, dict[str, Any]]) -> None:
    """Its arguments and variables are ours; each pod has a slot, an address and a volume of its own."""
    spec = manifests["StatefulSet/flights"]["spec"]
    container = _container(manifests)
    context = _parsed(["-A", "app", *container["args"]])
    assert (context.info_name, context.params["web_port"]) == ("worker", PORT)
    assert container["ports"] == [{"name": "web", "containerPort": PORT}]
    variables = {entry["name"]: entry for entry in container["env"]}
    settings = manifests["ConfigMap/flights"]["data"]
    _check_variables({**variables, **settings})
    assert container["envFrom"] == [{"configMapRef": {"name": "flights"}}]
    own = {"fieldRef": {"fieldPath": "metadata.name"}}
    assert "MILLSTREAM_SLOT" not in variables
    pod = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "HOSTNAME": f"{spec['serviceName']}-2"}
    assert read_settings("flights", {}, environ={**settings, **pod}).slot == pod["HOSTNAME"]
    assert variables["POD_NAME"]["valueFrom"] == own
    url = variables["MILLSTREAM_WEB_URL"]["value"]
    assert url == f"http://$(POD_NAME).{spec['serviceName']}:{PORT}"
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    volumes = {volume["name"] for volume in spec["template"]["spec"]["volumes"]}
    claimed = {claim["metadata"]["name"] for claim in spec["volumeClaimTemplates"]}
    assert set(mounts) == volumes | claimed
    assert claimed == {"state"}
    state = PurePosixPath(settings["MILLSTREAM_STATE_DIR"])
    assert state.is_relative_to(mounts["state"])


def test_a_pod_has_time_to_end(manifests: dict[str, dict[str, Any]]) -> None:
    """And may not do more than it needs."""
    pod = manifests["StatefulSet/flights"]["spec"]["template"]["spec"]
    container = _container(manifests)
    program, seconds = container["lifecycle"]["preStop"]["exec"]["command"]
    assert program == "sleep"
    assert pod["terminationGracePeriodSeconds"] > float(seconds) + STOP_S_MAX
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}


def test_probes_have_answers(manifests: dict[str, dict[str, Any]], worker: int) -> None:
    """A worker that is ready answers each with 200; so it does where Prometheus looks."""
    container = _container(manifests)
    paths = {}
    for kind in ("livenessProbe", "readinessProbe"):
        probe = container[kind]["httpGet"]
        assert probe["port"] == container["ports"][0]["name"]
        paths[kind] = probe["path"]
    assert paths == {"livenessProbe": "/health/live", "readinessProbe": "/health/ready"}
    notes = manifests["StatefulSet/flights"]["spec"]["template"]["metadata"]["annotations"]
    assert notes["prometheus.io/port"] == str(PORT)
    for path in (*paths.values(), notes["prometheus.io/path"]):
        assert _status(worker, path) == 200, path


def test_the_same_user_everywhere(image: Image, manifests: dict[str, dict[str, Any]]) -> None:
    """The pod runs as the user that the image was made for."""
    context = manifests["StatefulSet/flights"]["spec"]["template"]["spec"]["securityContext"]
    user = int(image.all("USER")[-1])
    assert (context["runAsUser"], context["fsGroup"]) == (user, user)
    assert f"--uid {user} " in image.all("RUN")[0]


# systemd


@pytest.fixture(scope="module")
def unit() -> dict[str, list[str]]:
    """Every entry of the unit, by its name."""
    found: dict[str, list[str]] = {}
    for line in UNIT.read_text(encoding="utf-8").splitlines():
        if line and line[0] not in "#[":
            name, _, value = line.partition("=")
            found.setdefault(name, []).append(value)
    return found


def test_the_unit(unit: dict[str, list[str]]) -> None:
    """It starts what there is, gives it time to end, and knows what its exit codes mean."""
    program, *words = shlex.split(unit["ExecStart"][0])
    assert PurePosixPath(program).name == "millstream"
    context = _parsed(words)
    assert context.info_name == "worker"
    assert (context.params["processes"], context.params["web_port"]) == (2, PORT)
    assert unit["KillSignal"][0] in [sig.name for sig in SIGNALS]
    assert float(unit["TimeoutStopSec"][0].removesuffix("s")) > STOP_S_MAX
    assert unit["RestartPreventExitStatus"] == [str(CONFIGURATION)]
    assert unit["SuccessExitStatus"] == [f"{INTERRUPTED} {128 + signal.SIGTERM}"]
    variables = dict(entry.split("=", 1) for entry in unit["Environment"])
    _check_variables(variables)
    folder = PurePosixPath("/var/lib") / unit["StateDirectory"][0]
    assert _path(variables["MILLSTREAM_BROKER"]).is_relative_to(folder)
    assert PurePosixPath(variables["MILLSTREAM_STATE_DIR"]).is_relative_to(folder)
    assert PurePosixPath(program).is_relative_to(unit["WorkingDirectory"][0])


def test_systemd_takes_the_unit(unit: dict[str, list[str]], tmp_path: Path) -> None:
    """Where systemd is there to be asked, it has nothing to say."""
    program = shlex.split(unit["ExecStart"][0])[0]
    text = UNIT.read_text(encoding="utf-8")
    assert text.count(program) == 1
    copy = tmp_path / UNIT.name
    copy.write_text(text.replace(program, sys.executable), encoding="utf-8")
    systemd = shutil.which("systemd-analyze")
    if systemd is None:
        return
    done = subprocess.run(
        [systemd, "verify", "--man=no", str(copy)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
