"""Settings: from arguments, the environment and pyproject.toml, each error with the name in it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

import millstream as ms
from millstream.agents import Policy
from millstream.app._settings import read_settings, setting_docs
from millstream.errors import SettingError


def read(
    tmp_path: Path,
    *,
    arguments: dict[str, Any] | None = None,
    environ: dict[str, str] | None = None,
    toml: str = "",
) -> ms.Settings:
    if toml:
        (tmp_path / "pyproject.toml").write_text(f"[tool.millstream]\n{toml}\n")
    return read_settings("shop", arguments or {}, environ=environ or {}, directory=tmp_path)


def test_defaults(tmp_path: Path) -> None:
    """Without anything, an app is on a local file named after it, exactly once."""
    settings = read(tmp_path)
    assert settings.broker == "local://shop.db"
    assert settings.processing_guarantee == "exactly_once"
    assert (settings.commit_interval, settings.partitions, settings.replication) == (20, 4, 1)
    assert settings.on_error == Policy()
    assert settings.state_dir is None


def test_order_of_sources(tmp_path: Path) -> None:
    """Arguments come before the environment, and that before pyproject.toml."""
    assert read(tmp_path, toml="partitions = 5").partitions == 5
    assert read(tmp_path, environ={"MILLSTREAM_PARTITIONS": "6"}).partitions == 6
    assert (
        read(
            tmp_path, arguments={"partitions": 7}, environ={"MILLSTREAM_PARTITIONS": "6"}
        ).partitions
        == 7
    )


@pytest.mark.parametrize(
    ("name", "written", "value"),
    [
        ("commit_interval", "1s", 1_000),
        ("commit_interval", 0.5, 500),
        ("commit_interval", "0.5", 500),  # a number, as the environment has it
        ("session_timeout", " 2m ", 120_000),
        ("partitions", "12", 12),
        ("web", "no", False),
        ("web", "TRUE", True),
        ("web_port", "8080", 8080),
        ("state_dir", "~/state", Path("~/state").expanduser()),
        ("on_error", "skip", Policy(action="skip")),
        ("on_error", ms.Dlq("dead"), Policy(action="dlq", topic="dead")),
        ("processing_guarantee", "at_least_once", "at_least_once"),
        ("state", "memory", "memory"),
        ("broker", "memory://", "memory://"),
    ],
)
def test_values(tmp_path: Path, name: str, written: Any, value: Any) -> None:
    """Values are read from what arguments, variables and files can say."""
    assert getattr(read(tmp_path, arguments={name: written}), name) == value
    if isinstance(written, str):
        assert (
            getattr(read(tmp_path, environ={f"MILLSTREAM_{name.upper()}": written}), name) == value
        )


@pytest.mark.parametrize(
    ("name", "wrong", "says"),
    [
        ("commit_interval", "soon", "'soon' from .*: not a duration; write"),
        ("commit_interval", "-1s", "below 0"),
        ("session_timeout", 0, "not above 0"),
        ("partitions", "many", "'many' from .*: not a whole number"),
        ("partitions", -1, "below 0"),
        ("partitions", 0, "a topic has at least 1"),
        ("partitions", 2.5, "not a whole number"),
        ("partitions", True, "not a whole number"),
        ("web", "perhaps", "neither true nor false"),
        ("processing_guarantee", "at_most_once", "none of 'exactly_once', 'at_least_once'"),
        ("state", "redis", "none of 'rocksdb', 'memory'"),
        ("on_error", "ignore", 'none of "stop", "skip"'),
        ("broker", 5, "is not text"),
        ("web_port", "http", "'http' from .*: not a whole number"),
        ("web_port", 65_536, "a port is 65535 at most"),
        ("replication", 0, "not above 0"),
        ("inbox_bytes_max", 0, "not above 0"),
        ("slot", "../other", "cannot be the name of a folder"),
    ],
)
def test_wrong_values(tmp_path: Path, name: str, wrong: Any, says: str) -> None:
    """A wrong value is an error with the setting's name, the value, and where it came from."""
    with pytest.raises(SettingError, match=rf"setting '{name}': .*{says}") as raised:
        read(tmp_path, arguments={name: wrong})
    assert raised.value.name == name
    if isinstance(wrong, str):
        with pytest.raises(SettingError, match=says):
            read(tmp_path, environ={f"MILLSTREAM_{name.upper()}": wrong})


@pytest.mark.parametrize(
    ("host", "more", "slot"),
    [
        ("shop-2", {}, "shop-2"),  # the pod's name, as two StatefulSets may run one app
        ("shop-2", {"MILLSTREAM_SLOT": "east"}, "east"),  # what is configured comes first
        ("shop-5d4f8c7b9d-x2x4z", {}, ""),  # a Deployment's: the next pod has another one
        ("shop-2", {"MILLSTREAM_BROKER": "local://x.db"}, ""),  # several workers of one machine
        ("", {}, ""),
    ],
)
def test_the_slot_of_a_pod(tmp_path: Path, host: str, more: dict[str, str], slot: str) -> None:
    """A StatefulSet's pod is a slot of its own on Kafka, where none is configured."""
    environ = {"HOSTNAME": host, "MILLSTREAM_BROKER": "kafka://one:9092", **more}
    assert read(tmp_path, environ=environ).slot == more.get("MILLSTREAM_SLOT", "")
    assert read(tmp_path, environ={"KUBERNETES_SERVICE_HOST": "10.0.0.1", **environ}).slot == slot


def test_unknown_argument() -> None:
    """An unknown argument is an error with a proposal."""
    with pytest.raises(
        SettingError, match=r"'brokr': there is no such setting; did you mean 'broker'\?"
    ):
        ms.App("shop", brokr="local://x.db")
    with pytest.raises(SettingError, match=r"'zzz': there is no such setting$"):
        ms.App("shop", zzz=1)


def test_unknown_variable(tmp_path: Path) -> None:
    """An unknown variable is an error with a proposal; those of tests and tools are left alone."""
    with pytest.raises(
        SettingError,
        match=r"MILLSTREAM_COMIT_INTERVAL is set, and .*; did you mean 'commit_interval'",
    ):
        read(tmp_path, environ={"MILLSTREAM_COMIT_INTERVAL": "1s"})
    read(tmp_path, environ={"MILLSTREAM_TEST_BROKER": "kafka://x", "OTHER_BROKER": "x"})


def test_unknown_entry(tmp_path: Path) -> None:
    """An unknown entry of pyproject.toml is an error with a proposal; ``app`` is the command line's."""
    with pytest.raises(
        SettingError, match=r"\[tool\.millstream\] has it, .* did you mean 'partitions'"
    ):
        read(tmp_path, toml="partition = 5")
    assert read(tmp_path, toml='app = "shop:app"').partitions == 4


def test_broken_file(tmp_path: Path) -> None:
    """A pyproject.toml that cannot be read is named."""
    (tmp_path / "pyproject.toml").write_text("[tool")
    with pytest.raises(SettingError, match=r"pyproject\.toml.*cannot be read"):
        read(tmp_path)


def test_frozen() -> None:
    """Settings do not change."""
    settings = ms.App("shop").settings
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.partitions = 5  # type: ignore[misc]


def test_every_setting_is_documented() -> None:
    """Each setting has a sentence and a default."""
    documented = setting_docs()
    assert list(documented) == [field.name for field in dataclasses.fields(ms.Settings)]
    assert all(doc.endswith((".", "empty.")) and len(doc) > 10 for doc, _ in documented.values())


@pytest.mark.parametrize("broker", ["redis://x", "shop.db", "local://"])
async def test_unknown_brokers(broker: str) -> None:
    """A broker of an unknown kind is an error when the app runs."""
    app = ms.App("shop", broker=broker)
    with pytest.raises(SettingError, match="broker"):
        async with app.running():
            raise AssertionError


def test_secrets_are_not_shown(tmp_path: Path) -> None:
    """Neither the settings' own text nor an error about them holds a password or a token."""
    settings = read(
        tmp_path,
        arguments={"sasl_token": lambda: "t0ken"},
        environ={"MILLSTREAM_SASL_PASSWORD": "s3cret", "MILLSTREAM_SSL_PASSWORD": "k3y"},
    )
    assert (settings.sasl_password, settings.ssl_password) == ("s3cret", "k3y")
    assert [part for part in ("s3cret", "k3y", "token") if part in repr(settings)] == []
    with pytest.raises(SettingError, match="not a function") as caught:
        read(tmp_path, environ={"MILLSTREAM_SASL_TOKEN": "t0ken"})
    assert "t0ken" not in str(caught.value)
    for toml in ("sasl_password = 731973", "ssl_password = 731973"):
        with pytest.raises(SettingError) as caught:
            read(tmp_path, toml=toml)
        assert "731973" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [("sasl_mechanism", "GSSAPI"), ("sasl_mechanism", "plain"), ("ssl_check_hostname", "maybe")],
)
def test_what_brokers_are_spoken_to_with(tmp_path: Path, name: str, value: str) -> None:
    """A mechanism that we do not know is refused by its name."""
    with pytest.raises(SettingError, match=value) as caught:
        read(tmp_path, arguments={name: value})
    assert caught.value.name == name
