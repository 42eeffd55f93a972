"""The site: built strictly, whole, and without a word to any other machine."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from typing import TYPE_CHECKING

import pytest

import millstream
from millstream import client, errors, testing
from millstream.app._settings import IN_CODE_ONLY, setting_docs
from tests.docs.pages import DOCS
from tests.requirements import missing

if TYPE_CHECKING:
    from pathlib import Path
from types import ModuleType

_LOADS = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href"}
"""Elements that make a browser fetch something."""
_FETCHING_LINKS = {"stylesheet", "preload", "icon", "preconnect", "dns-prefetch", "modulepreload"}


class _Page(HTMLParser):
    """Addresses that a page loads by itself, and the ids in it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.ids: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if "id" in found:
            self.ids.add(found["id"] or "")
        address = found.get(_LOADS.get(tag, ""))
        if address and (tag != "link" or _FETCHING_LINKS & set((found.get("rel") or "").split())):
            self.loaded.append(address)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site. No request gets out meanwhile: the proxy is not there."""
    for module in ("mkdocs", "material", "mkdocstrings_handlers"):
        if importlib.util.find_spec(module) is None:
            missing("mkdocs-material and mkdocstrings: pip install 'millstream[docs]'")
    path = tmp_path_factory.mktemp("docs") / "site"
    nowhere = "http://127.0.0.1:9"
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(path)],
        cwd=DOCS.parent,
        env={
            **os.environ,
            "http_proxy": nowhere,
            "https_proxy": nowhere,
            "NO_MKDOCS_2_WARNING": "1",
            "DISABLE_MKDOCS_2_WARNING": "true",
        },
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return path


def _pages(site: Path) -> dict[str, _Page]:
    return {
        path.relative_to(site).as_posix(): _Page(path.read_text(encoding="utf-8"))
        for path in site.rglob("*.html")
    }


def test_every_page_is_built(site: Path) -> None:
    """Each page of ``docs/`` is in the site, and nothing of what builds it."""
    built = set(_pages(site))
    for page in DOCS.rglob("*.md"):
        name = page.relative_to(DOCS).with_suffix("").as_posix()
        assert ("index.html" if name == "index" else f"{name}/index.html") in built
    assert not list(site.rglob("*.py"))


def test_pages_load_nothing_from_elsewhere(site: Path) -> None:
    """No font, script, style or picture comes from another machine."""
    for name, page in _pages(site).items():
        outside = [a for a in page.loaded if re.match(r"(?:[a-z]+:)?//", a)]
        assert not outside, name
    for style in site.rglob("*.css"):
        text = style.read_text(encoding="utf-8")
        assert not re.search(r"@import|url\(['\"]?(?:https?:)?//", text), style


@pytest.mark.parametrize("module", [millstream, testing, errors, client], ids=lambda m: m.__name__)
def test_the_reference_is_whole(site: Path, module: object) -> None:
    """Whatever a public module exports has its entry."""
    ids = set().union(*(page.ids for page in _pages(site).values()))
    public = f"{module.__name__}."  # type: ignore[attr-defined]
    missing = [name for name in module.__all__ if public + name not in ids]  # type: ignore[attr-defined]
    assert [name for name in missing if not isinstance(getattr(module, name), ModuleType)] == []


def test_every_setting_is_described(site: Path) -> None:
    """The list of settings has all of them, with their variables, where they can be in one."""
    text = (site / "how-to" / "settings" / "index.html").read_text(encoding="utf-8")
    described = {name for name in setting_docs() if f"MILLSTREAM_{name.upper()}" in text}
    assert described == setting_docs().keys() - IN_CODE_ONLY
    assert {"sasl_token"} == IN_CODE_ONLY
    assert all(name in text for name in IN_CODE_ONLY)
