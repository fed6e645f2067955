"""Reports in a headless Chromium, as a reader opens them: what they show, fold and tell, and that this is all."""

from __future__ import annotations

import functools
import io
import itertools
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe  # type: ignore[import-untyped]
from PIL import Image
from playwright.sync_api import Browser, Locator, Page

from tests import alterations, screenshots
from tests.checkpoints import copy_checkpoint, edit_tensors
from tests.chromium import MISSING, chromium, find_chromium
from tests.conftest import ROOT, Once, run_script
from tests.test_page import STRANGERS, report_of_a_stranger
from weighbridge.report import Grid, Report, Section
from weighbridge.report.page import as_html

REQUIRED = "WEIGHBRIDGE_REQUIRE_CHROMIUM"
"""Set where a missing Chromium is a failure: by CI."""
PHONE, TABLET, DESK = 390, 820, 1280
WIDTHS = (PHONE, TABLET, DESK)
HEIGHT = 844
PAPER = 720
"""CSS pixels across A4 within its margins."""
BACKGROUND, WHITE = "getComputedStyle(document.body).backgroundColor", "rgb(255, 255, 255)"
Scheme = Literal["light", "dark"]

GEMMA = ROOT / "references" / "google" / "gemma-4-26B-A4B-it.yaml"
NVIDIA = ROOT / "references" / "nvidia" / "Gemma-4-26B-A4B-NVFP4.yaml"
REDHATAI = ROOT / "references" / "RedHatAI" / "gemma-4-26B-A4B-it-NVFP4.yaml"
PAGES = ("plan", "differences", "build", "evidence", "damaged", "calibration", "other-recipe")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    executable = find_chromium()
    if executable is None:
        if os.environ.get(REQUIRED) == "1":
            pytest.fail(MISSING)
        pytest.skip(MISSING)
    with chromium(executable) as opened:
        yield opened


@pytest.fixture(scope="session")
def pages(once: Once, mini: Path, mini_build: Path) -> Mapping[str, Path]:
    """Pages by name: made by commands, but for the calibration's, whose grids are as large as the real model's."""

    def command(page: Path, code: int, *arguments: str | Path) -> None:
        done = run_script(*map(str, arguments), "--format", "html", cwd=page.parent)  # short names on every machine
        assert done.code == code, done.err
        page.write_text(done.out)

    def make(place: Path) -> None:
        plan = ("--plan", "--model", GEMMA, "--gpu", "24GB", "--kv-dtype", "fp8")
        command(place / "plan.html", 1, "build.py", "fp8-dynamic", *plan)
        command(place / "differences.html", 1, "validate.py", NVIDIA, "--reference", REDHATAI)
        built = place / "built"
        command(
            place / "build.html", 0, "build.py", "fp8-dynamic", "--model", "mini", "--audit", "--output", built.name
        )
        (built / "evidence" / "report.html").rename(place / "evidence.html")
        copy_checkpoint(mini_build, place / "copy")
        edit_tensors(place / "copy", lambda tensors: alterations.two_experts(np.random.default_rng(3), tensors))
        audit = ("--source", "mini", "--recipe", "fp8-dynamic")
        command(place / "damaged.html", 1, "validate.py", "copy", *audit)
        command(place / "other-recipe.html", 1, "validate.py", mini_build, "--recipe", "w4a16")
        (place / "calibration.html").write_text(as_html(calibration_of_the_real_model()))

    place = once("pages", make)
    return {name: place / f"{name}.html" for name in PAGES}


def calibration_of_the_real_model() -> Report:
    """Grids of 30 layers by 128 experts: one that is the same everywhere, and one that is not."""
    layers, experts = tuple(map(str, range(30))), tuple(f"expert {number}" for number in range(128))
    routed = np.random.default_rng(0).integers(100, 100_000, (len(layers), len(experts))).astype(float)
    seen = np.full_like(routed, 100_000)
    grids = tuple(
        Grid(title, "layer", layers, experts, tuple(map(tuple, values.tolist())))
        for title, values in (("tokens that each expert saw", seen), ("tokens that were routed to each expert", routed))
    )
    section = Section("calibration", "the calibration", "100,000 tokens of 512 samples", figures=grids)
    return Report("build", "builds/x", "builds/x is built and holds", (section,))


@contextmanager
def opened(
    browser: Browser, page: Path, *, width: int = DESK, scheme: Scheme = "light", **options: Any
) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": width, "height": HEIGHT}, color_scheme=scheme, **options)
    shown = context.new_page()
    shown.goto(page.as_uri())
    yield shown
    context.close()


@dataclass(frozen=True)
class Look:
    """A page that was opened, what it has asked for and what it has logged; to be looked at and not touched."""

    page: Page
    requests: list[str]
    logged: list[str]


@pytest.fixture(scope="module")
def look(browser: Browser, pages: Mapping[str, Path]) -> Callable[..., Look]:
    @functools.cache
    def open_once(name: str, width: int, media: Literal["screen", "print"] = "screen") -> Look:
        page = browser.new_page(viewport={"width": width, "height": HEIGHT})
        page.emulate_media(media=media, color_scheme="dark" if media == "print" else "light")
        found = Look(page, [], [])
        page.on("request", lambda request: found.requests.append(request.url))
        page.on("console", lambda message: found.logged.append(message.text))
        page.on("pageerror", lambda error: found.logged.append(str(error)))
        page.goto(pages[name].as_uri(), wait_until="networkidle")
        return found

    return open_once


at_every_width = pytest.mark.parametrize(("name", "width"), list(itertools.product(PAGES, WIDTHS)))


@at_every_width
def test_page_asks_for_nothing_and_logs_nothing(
    name: str, width: int, look: Callable[..., Look], pages: Mapping[str, Path]
) -> None:
    found = look(name, width)
    assert (found.requests, found.logged) == ([pages[name].as_uri()], [])


@at_every_width
def test_page_is_no_wider_than_its_window(name: str, width: int, look: Callable[..., Look]) -> None:
    assert look(name, width).page.evaluate("document.scrollingElement.scrollWidth") <= width


@at_every_width
def test_verdict_and_what_decides_it_are_in_sight_at_once(name: str, width: int, look: Callable[..., Look]) -> None:
    page = look(name, width).page
    for part in (page.locator(".verdict"), page.locator(".deciding li").first):
        box = part.bounding_box()
        assert box is not None
        assert box["y"] + box["height"] <= HEIGHT


@pytest.mark.parametrize("width", [PHONE, DESK])
def test_failed_validation_says_why_within_the_first_screen(width: int, look: Callable[..., Look]) -> None:
    verdict = look("other-recipe", width).page.locator(".verdict")
    box = verdict.bounding_box()
    assert box is not None and box["y"] + box["height"] <= HEIGHT
    assert "float8 per channel where the recipe's plan says int4 per group 32: 185 modules" in verdict.inner_text()


@at_every_width
def test_screenshot_shows_something(name: str, width: int, look: Callable[..., Look]) -> None:
    image = Image.open(io.BytesIO(look(name, width).page.screenshot()))
    assert image.size == (width, HEIGHT)
    assert len(image.convert("RGB").getcolors(maxcolors=2**24) or ()) > 50


@pytest.mark.parametrize(("width", "scheme"), [(DESK, "light"), (PHONE, "dark")])
@pytest.mark.parametrize("name", PAGES)
def test_axe_reports_no_violation(
    name: str, width: int, scheme: Scheme, browser: Browser, pages: Mapping[str, Path]
) -> None:
    with opened(browser, pages[name], width=width, scheme=scheme, bypass_csp=True) as page:
        page.evaluate("document.querySelectorAll('details').forEach(fold => fold.open = true)")
        found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()


def press_enter(page: Page, name: Locator) -> None:
    name.focus()
    page.keyboard.press("Enter")


@pytest.mark.parametrize("turn", [lambda page, name: name.click(), press_enter], ids=["click", "keyboard"])
def test_folds_open_and_close(
    turn: Callable[[Page, Locator], None], browser: Browser, pages: Mapping[str, Path]
) -> None:
    with opened(browser, pages["plan"]) as page:
        fold = page.locator("details.fold").first
        seen = []
        for _ in range(3):
            seen.append(fold.locator(".finding").is_visible())
            turn(page, fold.locator("summary"))
    assert seen == [False, True, False]


def test_first_error_is_in_sight_without_unfolding(browser: Browser, pages: Mapping[str, Path]) -> None:
    with opened(browser, pages["differences"]) as page:
        assert page.locator(".finding:visible").count() >= 1


def told(part: Locator) -> str:
    """What a part tells, if that is in sight."""
    line = part.locator("> i")
    return line.inner_text() if line.is_visible() else ""


@pytest.mark.parametrize("width", WIDTHS)
def test_box_tells_what_it_is_when_pointed_at(width: int, browser: Browser, pages: Mapping[str, Path]) -> None:
    with opened(browser, pages["plan"], width=width) as page:
        box = page.locator(".box", has_text="experts, layer 3:")
        assert told(box) == ""
        box.hover()
        assert told(box) == "experts, layer 3: float8 per channel, 762 MB; by scheme (fp8-dynamic.yaml:13)"
        assert page.locator(".box > i:visible").count() == 1


def test_box_tells_what_it_is_when_tapped(browser: Browser, pages: Mapping[str, Path]) -> None:
    with opened(browser, pages["plan"], width=PHONE, has_touch=True, is_mobile=True) as page:
        box = page.locator(".box", has_text="experts, layer 3:")
        box.tap()
        assert told(box).startswith("experts, layer 3: ")


@pytest.mark.parametrize("width", WIDTHS)
def test_what_is_told_lies_within_the_window(width: int, browser: Browser, pages: Mapping[str, Path]) -> None:
    with opened(browser, pages["plan"], width=width) as page:
        box = page.locator(".box", has_text="vision, layer 26:")
        box.hover()
        line = box.locator("> i").bounding_box()
        assert line is not None
        assert (line["x"], line["width"], line["y"] + line["height"]) == (0, width, HEIGHT)


@pytest.mark.parametrize("name", ["build", "calibration"])
def test_cell_of_a_heat_map_tells_its_figure_when_pointed_at(
    name: str, browser: Browser, pages: Mapping[str, Path]
) -> None:
    with opened(browser, pages[name]) as page:
        cell = page.locator(".heat tbody tr").nth(2).locator("td").nth(1)
        cell.hover()
        assert re.fullmatch(r"layer 2, (dense mlp|expert 1): [\d,.]+", told(cell))


def test_figures_of_a_wide_heat_map_can_be_written_out(browser: Browser, pages: Mapping[str, Path]) -> None:
    with opened(browser, pages["calibration"]) as page:
        cell = page.locator(".map td").first
        narrow = cell.bounding_box()
        page.get_by_label("write the figures out").check()
        wide = cell.bounding_box()
        size = cell.evaluate("cell => getComputedStyle(cell).fontSize")
    assert narrow is not None
    assert wide is not None
    assert narrow["width"] < 10 < 30 < wide["width"]
    assert size != "0px"


def test_heat_map_is_a_table_to_those_who_cannot_see_it(browser: Browser, pages: Mapping[str, Path]) -> None:
    with opened(browser, pages["calibration"]) as page:
        row = page.get_by_role("table").get_by_role("row").nth(1)
        heard = row.aria_snapshot()
    assert heard.count("cell") == 128
    assert re.search(r'- cell "[\d,]+"', heard)


def test_figures_that_are_the_same_everywhere_are_said_once(browser: Browser, pages: Mapping[str, Path]) -> None:
    with opened(browser, pages["calibration"]) as page:
        assert page.get_by_text("tokens that each expert saw, by layer: 100,000 everywhere").is_visible()
        assert page.locator(".heat").count() == 1


@pytest.mark.parametrize("name", PAGES)
def test_keyboard_reaches_whatever_scrolls(name: str, look: Callable[..., Look]) -> None:
    overflowing = "[...document.querySelectorAll('*')].filter(part => part.scrollWidth > part.clientWidth + 1 && "
    overflowing += "['auto', 'scroll'].includes(getComputedStyle(part).overflowX))"
    assert look(name, PHONE).page.evaluate(f"{overflowing}.every(part => part.tabIndex === 0 && part.ariaLabel)")


def test_colours_follow_the_readers_choice(browser: Browser, pages: Mapping[str, Path]) -> None:
    colours = []
    for scheme in ("light", "dark"):
        with opened(browser, pages["plan"], scheme=scheme) as page:
            colours.append(page.evaluate(BACKGROUND))
    assert colours == [WHITE, "rgb(20, 22, 26)"]


@pytest.mark.parametrize("name", PAGES)
def test_print_shows_what_is_folded(name: str, look: Callable[..., Look]) -> None:
    folded = "[...document.querySelectorAll('details:not([open]) > :not(summary)')]"
    assert look(name, PAPER, "print").page.evaluate(f"{folded}.every(part => part.checkVisibility())")


@pytest.mark.parametrize("name", PAGES)
def test_print_is_on_white_paper_whatever_the_screen_is(name: str, look: Callable[..., Look]) -> None:
    assert look(name, PAPER, "print").page.evaluate(BACKGROUND) == WHITE


@pytest.mark.parametrize("name", PAGES)
def test_print_clips_nothing_at_the_edge_of_the_paper(name: str, look: Callable[..., Look]) -> None:
    assert look(name, PAPER, "print").page.evaluate("document.scrollingElement.scrollWidth") <= PAPER


def test_click_selects_a_digest_as_a_whole(browser: Browser, pages: Mapping[str, Path]) -> None:
    with opened(browser, pages["evidence"]) as page:
        digest = page.locator(".chain .whole").last
        digest.click()
        assert page.evaluate("getSelection().toString()") == digest.inner_text()
        assert re.fullmatch("[0-9a-f]{64}", digest.inner_text())


@pytest.mark.parametrize("text", STRANGERS)
def test_what_a_stranger_writes_is_text(text: str, browser: Browser, tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(as_html(report_of_a_stranger(text)))
    happened: list[str] = []
    context = browser.new_context(bypass_csp=True)  # escaping alone must do
    page = context.new_page()
    page.on("dialog", lambda dialog: happened.append(dialog.message))
    page.on("request", lambda request: happened.append(request.url))
    page.goto((tmp_path / "page.html").as_uri(), wait_until="networkidle")
    shown = page.locator(".verdict").inner_text()
    context.close()
    assert happened == [(tmp_path / "page.html").as_uri()]
    assert shown.endswith(text)


def test_pictures_of_the_docs_are_made_by_a_command(browser: Browser, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "tests.screenshots", tmp_path], cwd=ROOT, check=True)
    made = {path.name: Image.open(path).size for path in tmp_path.iterdir()}
    assert made == {
        name: (picture.width * picture.pixels, picture.height * picture.pixels)
        for name, picture in screenshots.PICTURES.items()
    }
