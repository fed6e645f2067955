"""How fast the report of the real model's plan opens: from navigation to the first paint and to the load event.

    python -m benchmarks.page [--runs 9]

Prints a Markdown table. Needs Chromium; each run has a context of its own, so that nothing is cached, and the browser
has started before. A browser's own clock is read (Navigation Timing, Paint Timing), and the wall clock around it.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.headers import POLL_SECONDS, machine, write
from tests.chromium import MISSING, chromium, find_chromium
from tests.screenshots import make_plan_page

LIMIT = 2000
"""Milliseconds that the project promises."""
PAINTED = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime"
LOADED = "performance.getEntriesByType('navigation')[0].loadEventEnd"


def opened(page: Path, executable: Path, *, runs: int) -> list[tuple[float, float, float]]:
    """First contentful paint, load event, and the wall clock until both are over; in milliseconds, for each run."""
    found = []
    with chromium(executable) as browser:
        for _ in range(runs):
            context = browser.new_context(viewport={"width": 1280, "height": 900})
            shown = context.new_page()
            started = time.perf_counter()
            shown.goto(page.as_uri(), wait_until="load")
            while shown.evaluate(PAINTED) is None:
                time.sleep(POLL_SECONDS)
            wall = 1000 * (time.perf_counter() - started)
            found.append((shown.evaluate(PAINTED), shown.evaluate(LOADED), wall))
            context.close()
    return found


def main() -> int:
    """Entry point; gives the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=9, help="times that the page is opened (default: 9)")
    options = parser.parse_args()
    executable = find_chromium()
    if executable is None:
        sys.stderr.write(f"error: {MISSING}\n")
        return 2
    with tempfile.TemporaryDirectory() as directory:
        page = make_plan_page(Path(directory))
        found = opened(page, executable, runs=options.runs)
        sys.stdout.write(f"{machine()}\n\nThe plan of the real model, {page.stat().st_size:,} bytes:\n\n")
    write("from navigation to", "median, ms", f"slowest of {options.runs}, ms", "allowed, ms")
    write(*["---"] * 4)
    names = ("first contentful paint", "load event", "both, by the wall clock")
    for name, times in zip(names, zip(*found, strict=True), strict=True):
        write(name, f"{statistics.median(times):,.0f}", f"{max(times):,.0f}", f"{LIMIT:,}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
