"""A cluster that allows nothing but what the documentation lists: that is enough, and what is missing is said."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import logging
import re
import urllib.request
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from confluent_kafka.admin import AclOperation as Op
from confluent_kafka.admin import ResourceType as On

import millstream as ms
from millstream.errors import ConfigurationError
from millstream.worker import _worker
from tests.brokers import Record, unique
from tests.brokers.security import PASSWORDS
from tests.cli.terminal import Terminal, poll
from tests.docs.pages import DOCS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from tests.brokers.security import Secured

DEADLINE_S = 60.0
USER = "alice"


@dataclass(frozen=True, slots=True)
class Right:
    """A rule, and what an app says without it; ``of`` is one of the names in `Shop`."""

    on: On
    of: str
    operation: Op
    says: str


PURGE = Right(On.TOPIC, "own", Op.DELETE, "stays in the log.*delete records")
"""Without it only a warning comes; ``reset`` needs it."""
# Kafka takes Read and Write for Describe as well
RIGHTS = [
    Right(On.TOPIC, "orders", Op.READ, "create topic 'orders-.*if it exists, to see it"),
    Right(On.TOPIC, "report", Op.WRITE, "create topic 'report-.*if it exists, to see it"),
    Right(On.TOPIC, "own", Op.CREATE, "create topic 'shop-"),
    Right(
        On.TOPIC, "own", Op.DESCRIBE_CONFIGS, "does not show us how its changelog.*DescribeConfigs"
    ),
    Right(On.TOPIC, "own", Op.READ, "read topic '.*-changelog', to read topic '.*-repartition'"),
    Right(On.TOPIC, "own", Op.WRITE, "write topic '.*-changelog', to write topic '.*-repartition'"),
    Right(On.GROUP, "app", Op.READ, "group 'shop-"),
    Right(On.TRANSACTIONAL_ID, "own", Op.WRITE, "transactional id 'shop-"),
]


class Shop:
    """An app of a user who may do what these rules say, on topics that are there."""

    def __init__(self, secured: Secured, folder: Path) -> None:
        self.app_id = unique("shop")
        self.folder = folder
        cluster = secured.cluster
        self.orders = cluster.topic("orders", partitions=2)
        self.report = cluster.topic("report", partitions=2)
        self._secured = secured
        self.seen: list[str] = []
        """Events that the app has met in this process."""
        self.names = {
            "app": self.app_id,
            "own": f"{self.app_id}-",
            "orders": self.orders,
            "report": self.report,
        }

    def allow(self, rights: list[Right]) -> None:
        """Add rules."""
        for right in rights:
            self._secured.allow(f"User:{USER}", right.on, self.names[right.of], right.operation)

    @property
    def settings(self) -> dict[str, str]:
        """Of the app: who it is, and how it speaks."""
        return {
            "broker": f"kafka://{self._secured.cluster.address('SASL_SSL')}",
            "ssl_cafile": str(self._secured.certificates.authority),
            "sasl_mechanism": "SCRAM-SHA-512",
            "sasl_username": USER,
            "sasl_password": PASSWORDS[USER],
        }

    @property
    def environ(self) -> Mapping[str, str]:
        """The same as variables."""
        return {f"MILLSTREAM_{name.upper()}": value for name, value in self.settings.items()}

    def write(self) -> None:
        """Orders of two accounts."""
        records = [Record(key=key, value=b'"%s"' % key) for key in (b"ada", b"bob")]
        self._secured.cluster.write(self.orders, records, partitioner="murmur2")

    def counted(self) -> dict[bytes | None, int]:
        """The last count of each group, as they are in the topic ``report``."""
        return {r.key: int(r.value or b"") for r in self._secured.cluster.read(self.report)}

    def app(self) -> ms.App:
        """The app: it regroups, counts and reports."""
        settings = {**self.settings, "state_dir": self.folder}
        return build(self.app_id, self.orders, self.report, self.seen.append, **settings)


def build(app_id: str, orders: str, report: str, see: Any = print, **settings: Any) -> ms.App:
    """An app that regroups, counts and reports."""
    app = ms.App(app_id, **settings)
    words = app.stream(app.topic(orders, key=str, value=str)).peek(see)
    counts = words.group_by(lambda word: word[:1], name="first").count(name="counts")
    counts.to(app.topic(report, key=str, value=int))
    return app


async def work(shop: Shop, *, until: Callable[[], bool] = lambda: False) -> None:
    """Run the app in this process, until something holds."""
    app = shop.app()
    async with asyncio.timeout(DEADLINE_S), app.running(worker=True, web=False):
        while not until():  # noqa: ASYNC110  nobody tells when it is so
            await asyncio.sleep(0.02)


PROGRAM = """\
from __future__ import annotations
from typing import Any
import millstream as ms


{build}

app = build("{app_id}", "{orders}", "{report}", session_timeout="30s", standby_replicas=1)
"""


def test_what_is_listed() -> None:
    """The docs list the rules that these tests are about, and no others."""
    page = (DOCS / "how-to" / "kafka.md").read_text()
    rows = re.findall(
        r"^\| [^|]+ \| ((?:\w+, )*\w+) \|$",
        page.split("## What a worker has to be allowed")[1],
        re.M,
    )
    wanted: dict[tuple[On, str], set[str]] = {}
    for right in [*RIGHTS, PURGE]:
        name = right.operation.name.title().replace("_", "")
        wanted.setdefault((right.on, right.of), set()).add(name)
    assert [set(row.split(", ")) for row in rows[1:]] == list(wanted.values())


def test_what_is_listed_is_enough(secured_kafka: Secured, tmp_path: Path) -> None:
    """Two workers with standbys, one of which is killed and replaced long before its session ends; the tools; reset."""
    shop = Shop(secured_kafka, tmp_path)
    shop.allow([*RIGHTS, PURGE])
    program = PROGRAM.format(
        build=inspect.getsource(build), **shop.names, **{"app_id": shop.app_id}
    )
    (tmp_path / "app.py").write_text(program)
    shell = Terminal(tmp_path, environment=shop.environ)
    with contextlib.closing(shell):
        _work_in(shell, shop)


def _work_in(shell: Terminal, shop: Shop) -> None:
    first, second = (shell.start("worker", "--log-level", "debug") for _ in range(2))
    for worker in (first, second):
        worker.until(r"ready in ")
    shop.write()
    poll(lambda: shop.counted() == {b"a": 1, b"b": 1}, what="counted")
    first.process.kill()
    shop.write()
    poll(lambda: shop.counted() == {b"a": 2, b"b": 2}, what="counted by the other", deadline_s=20)
    assert json.loads(shell.run("groups", "--json").stdout)[0]["group"] == shop.app_id
    assert shell.run("lag").returncode == 0
    url = second.until(r"ready in \S+ s +(\S+)")[1]
    pages = [
        page(url + path) for path in ("/", "/workers", "/topology", "/metrics", "/health/ready")
    ]
    code, _ = second.end()
    assert code == 0, second.output
    done = shell.run("reset", "--yes")
    assert done.returncode == 0, done.stderr
    doctor = shell.run("doctor").stdout
    assert "MILLSTREAM_SASL_PASSWORD" in doctor
    for said in (first.output, second.output, done.stdout, done.stderr, doctor, *pages):
        assert PASSWORDS[USER] not in said


def page(url: str) -> str:
    """What a browser gets."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with direct.open(
        urllib.request.Request(url, headers={"Accept": "text/html"}), timeout=10
    ) as got:
        text: str = got.read().decode()
        return text


async def test_a_topic_that_may_only_be_seen(secured_kafka: Secured, tmp_path: Path) -> None:
    """That it may not be written is said before the first event as well; who only sends does not need it."""
    shop = Shop(secured_kafka, tmp_path)
    rights = [right for right in RIGHTS if (right.of, right.operation) != ("report", Op.WRITE)]
    await asyncio.to_thread(shop.allow, [*rights, Right(On.TOPIC, "report", Op.DESCRIBE, "")])
    await asyncio.to_thread(shop.write)
    with pytest.raises(ConfigurationError, match=f"to write topic '{shop.report}'.*ACL"):
        await work(shop)
    assert shop.seen == []
    async with asyncio.timeout(DEADLINE_S), shop.app().running(worker=False, web=False):
        pass


@pytest.mark.parametrize(
    "missing", [*RIGHTS, PURGE], ids=lambda right: f"{right.of}-{right.operation.name}"
)
async def test_what_is_missing_is_said(
    secured_kafka: Secured,
    tmp_path: Path,
    missing: Right,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Without one of them there is an error before the first event, or a warning where the app can do without."""
    monkeypatch.setattr(_worker, "PURGE_INTERVAL_S", 0.1)
    shop = Shop(secured_kafka, tmp_path)
    rights = [right for right in [*RIGHTS, PURGE] if right != missing]
    await asyncio.to_thread(shop.allow, rights)
    await asyncio.to_thread(shop.write)
    caplog.set_level(logging.WARNING)
    if missing is PURGE:
        await work(shop, until=lambda: re.search(missing.says, caplog.text) is not None)
        return
    with pytest.raises(ConfigurationError, match=missing.says) as refused:
        await work(shop)
    assert PASSWORDS[USER] not in f"{refused.value}{caplog.text}"
    assert shop.seen == []
    assert await asyncio.to_thread(shop.counted) == {}
