"""A headless Chromium: the one that is installed here, which looks at pages as a reader does and reaches no network."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Browser

VARIABLE = "WEIGHBRIDGE_CHROMIUM"
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
MISSING = (
    "there is no Chromium here: install one (Debian: apt-get install chromium fonts-dejavu-core), "
    f"or name its executable in {VARIABLE}"
)
ARGUMENTS = (
    "--no-sandbox",  # a container's root may have no other; the pages are this project's own
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)


def find_chromium() -> Path | None:
    """The executable that the environment names, or one on the path; None where there is none."""
    named = os.environ.get(VARIABLE)
    found = named or next(filter(None, map(shutil.which, NAMES)), None)
    return Path(found) if found else None


@contextmanager
def chromium(executable: Path) -> Iterator[Browser]:
    """A browser that is closed in the end."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=list(ARGUMENTS))
        try:
            yield browser
        finally:
            browser.close()
