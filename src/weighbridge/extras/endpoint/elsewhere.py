"""Running what lives in another environment, by the Python that the user named."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path


def run_elsewhere(command: list[str], place: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command in a directory, without what is set for the Python here; gives its output as text."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    return subprocess.run(  # noqa: S603 - the Python that the user named
        command, cwd=place, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
