"""The pictures of reports in the docs: ``python -m tests.screenshots [DIRECTORY]`` makes them, with Chromium."""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tests.chromium import MISSING, chromium, find_chromium

ROOT = Path(__file__).resolve().parents[1]
DIRECTORY = ROOT / "docs" / "pictures"
PLAN = ("build.py", "fp8-dynamic", "--plan", "--model", "references/google/gemma-4-26B-A4B-it.yaml", "--format", "html")
BUILD = ("build.py", "nvfp4a16", "--model", "mini", "--audit", "--output")
BUILT = "mini-nvfp4a16"


@dataclass(frozen=True)
class Picture:
    """A picture of a page's beginning, or of what begins at one of its headings.

    Attributes:
        page: that of the plan or that of the audit.
        width, height: of the window, in CSS pixels.
        pixels: to each of them, across and down.
        scheme: light or dark.
        begins: the heading that stands at the top; empty for the page's own beginning.
    """

    page: Literal["plan", "audit"]
    width: int
    height: int
    pixels: int
    scheme: Literal["light", "dark"]
    begins: str = ""


PICTURES = {
    "report-plan.png": Picture("plan", 1280, 1000, 1, "light"),
    "report-plan-phone.png": Picture("plan", 390, 760, 2, "dark", begins="the plan"),
    "report-audit.png": Picture("audit", 1280, 1000, 1, "light"),
}


def make_plan_page(directory: Path) -> Path:
    """The page of the real model's plan."""
    page = directory / "plan.html"
    page.write_bytes(_run(*PLAN))
    return page


def make_audit_page(directory: Path) -> Path:
    """The page of the audit of a build of the miniature, which is built."""
    _run(*BUILD, directory / BUILT)
    return directory / BUILT / "evidence" / "audit.html"


def _run(script: str, *arguments: str | Path) -> bytes:
    command = [sys.executable, script, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout


def make_pictures(target: Path, executable: Path) -> None:
    """Write every picture into a directory."""
    with tempfile.TemporaryDirectory() as place, chromium(executable) as browser:
        pages = {"plan": make_plan_page(Path(place)), "audit": make_audit_page(Path(place))}
        for name, picture in PICTURES.items():
            context = browser.new_context(
                viewport={"width": picture.width, "height": picture.height},
                device_scale_factor=picture.pixels,
                color_scheme=picture.scheme,
            )
            page = context.new_page()
            page.goto(pages[picture.page].as_uri())
            if picture.begins:
                heading = page.get_by_role("heading", name=picture.begins).first
                heading.evaluate("heading => heading.scrollIntoView()")
            page.screenshot(path=target / name)
            context.close()


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; gives the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path, nargs="?", default=DIRECTORY, help="where (default: docs/pictures)")
    options = parser.parse_args(arguments)
    executable = find_chromium()
    if executable is None:
        sys.stderr.write(f"error: {MISSING}\n")
        return 2
    make_pictures(options.directory, executable)
    return 0


if __name__ == "__main__":
    sys.exit(main())
