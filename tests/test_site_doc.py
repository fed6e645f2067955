"""The site of docs/: built without a warning, no dead link in it, and nothing that another host would have to send."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from docs.generated import PAGES, help_of
from tests.conftest import ROOT, Once, environment
from weighbridge.__main__ import COMMANDS

LOADED = {("script", "src"), ("img", "src"), ("iframe", "src"), ("source", "src"), ("link", "href")}
"""What a browser fetches by itself; links of <a> are followed by people."""


class Addresses(HTMLParser):
    """The addresses of a page, what it is identified by, and what it shows."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.followed: list[str] = []
        self.loaded: list[str] = []
        self.names = {""}
        self.pictures: list[dict[str, str | None]] = []
        self.feed(page.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for key, value in attrs:
            if key == "id" and value:
                self.names.add(value)
            if key in ("href", "src") and value is not None:
                (self.loaded if (tag, key) in LOADED else self.followed).append(value)
        if tag == "img":
            self.pictures.append(dict(attrs))


@pytest.fixture(scope="module")
def site(once: Once) -> Path:
    """The site, built as CONTRIBUTING.md says."""

    def build(directory: Path) -> None:
        command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(directory / "site")]
        done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert not re.search(r"^(WARNING|ERROR)", done.stderr, flags=re.M), done.stderr

    return once("site", build) / "site"


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Addresses]:
    return {page: Addresses(page) for page in sorted(site.rglob("*.html"))}


def within(page: Path, address: str, site: Path) -> tuple[Path, str] | None:
    """The file of the site and the place in it that an address names; None for another host's."""
    parts = urlsplit(address)
    if parts.scheme or parts.netloc:
        return None
    path = unquote(parts.path)
    if not path:
        return page, unquote(parts.fragment)
    file = site / path.removeprefix("/") if path.startswith("/") else (page.parent / path).resolve()
    return (file / "index.html" if file.is_dir() else file), unquote(parts.fragment)


def dead(pages: dict[Path, Addresses], site: Path) -> Iterator[str]:
    for page, found in pages.items():
        for address in [*found.followed, *found.loaded]:
            target = within(page, address, site.resolve())
            if target is None:
                continue
            file, name = target
            if not file.is_file() or (file in pages and name not in pages[file].names):
                yield f"{page.relative_to(site)}: {address}"


def test_every_address_of_the_site_leads_somewhere(pages: dict[Path, Addresses], site: Path) -> None:
    resolved = {page.resolve(): found for page, found in pages.items()}
    assert list(dead(resolved, site.resolve())) == []


def test_no_page_asks_another_host_for_anything(pages: dict[Path, Addresses], site: Path) -> None:
    loaded = {address for found in pages.values() for address in found.loaded}
    assert {address for address in loaded if within(site, address, site) is None} == set()
    styles = "".join(style.read_text() for style in site.rglob("*.css"))
    assert set(re.findall(r"(?:url\(|@import )[\"']?(?:https?:)?//[^)\"']*", styles)) == set()


def test_every_picture_says_what_it_shows(pages: dict[Path, Addresses]) -> None:
    assert [picture for found in pages.values() for picture in found.pictures if not picture.get("alt")] == []


@pytest.mark.parametrize("path", sorted(set(PAGES) - {"README.md"}))
def test_site_has_the_pages_that_lie_outside_of_docs(path: str, site: Path) -> None:
    first = (ROOT / path).read_text().splitlines()[0].removeprefix("# ")
    assert f">{first}" in (site / PAGES[path]).with_suffix(".html").read_text()


@pytest.mark.parametrize("command", sorted({module for module, _, _ in COMMANDS.values()}))
def test_site_has_the_help_of_every_command_as_it_is(command: str, site: Path) -> None:
    text = re.sub(r"<[^>]+>", "", (site / "reference/commands.html").read_text())
    plain = text.replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", '"').replace("&#39;", "'")
    assert help_of(command).strip() in plain.replace("&amp;", "&")


@pytest.mark.parametrize(
    "path",
    [
        "recipes/recipe.schema.json",
        "src/weighbridge/report/report.schema.json",
        "src/weighbridge/progress/progress.schema.json",
    ],
)
def test_schemas_can_be_downloaded(path: str, site: Path) -> None:
    assert (site / "files" / path).read_bytes() == (ROOT / path).read_bytes()
