"""What is installed: where the repository lies, or what a wheel has put in its place, and which packages are there."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from weighbridge.errors import BuildError

ROOT = Path(__file__).resolve().parents[3]
HERE = ROOT if (ROOT / "recipes").is_dir() else Path(__file__).resolve().parents[1]
"""The checkout; or the package, where a wheel has put recipes and references."""

_NEEDED: Mapping[str, tuple[str, ...]] = {
    "audit": ("numba",),
    "build": ("numba", "torch", "compressed_tensors", "llmcompressor", "transformers"),
}
"""Extra of this package -> modules that what it is for cannot do without."""


def version_of(package: str) -> str | None:
    """The version of a package that is installed; None of one that is not."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def need(extra: str, *alone: str) -> None:
    """Refuse what packages are missing for.

    Args:
        alone: modules, where not all of the extra's are needed.

    Raises:
        BuildError: with their names.
    """
    missing = [name for name in alone or _NEEDED[extra] if find_spec(name) is None]
    if missing:
        remedy = f"pip install 'weighbridge[{extra}]'"
        raise BuildError(f"needs packages that are not installed: {', '.join(missing)}", where=extra, remedy=remedy)
