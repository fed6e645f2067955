"""Where the repository lies, or what a wheel has put in its place."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
HERE = ROOT if (ROOT / "recipes").is_dir() else Path(__file__).resolve().parents[1]
"""The checkout; or the package, where a wheel has put recipes and references."""
