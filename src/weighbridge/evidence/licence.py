"""Whether the licence that a source declares is the one that the recipe says."""

from __future__ import annotations

from weighbridge.base.model_card import Declared, declared_licence
from weighbridge.checkpoint.model import Checkpoint
from weighbridge.recipe import Recipe
from weighbridge.report import Finding, Section, Severity

_SPDX = {
    "apache-2.0": "Apache-2.0",
    "mit": "MIT",
    "gpl-3.0": "GPL-3.0-only",
    "bsd-3-clause": "BSD-3-Clause",
    "cc-by-4.0": "CC-BY-4.0",
    "cc-by-nc-4.0": "CC-BY-NC-4.0",
}


def spdx(licence: str) -> str | None:
    """SPDX's own spelling of a licence; None for one that SPDX has no identifier of, as far as is known here."""
    return _SPDX.get(licence.lower())


def licence_section(source: Checkpoint, recipe: Recipe) -> Section:
    """Hold the recipe's licence against the source's own declaration.

    Raises:
        StructureError: the source's card cannot be read.
    """
    assert source.directory is not None
    return judge_licence(recipe, declared_licence(source.directory))


def judge_licence(recipe: Recipe, declared: Declared | None) -> Section:
    """Hold the recipe's licence against what the source declares, if it declares any."""
    ours, findings = recipe.base.licence, []
    if declared is None:
        summary = f"{ours}, as the recipe says"
        what = f"the source declares no licence in a card or LICENSE file, so {ours} is the recipe's word"
        remedy = "look it up where the base is published"
        findings.append(Finding("licence/undeclared", Severity.WARNING, "base.licence", what, remedy=remedy))
    elif declared.licence != ours.lower():
        summary = f"{ours} is not what the source declares"
        what = f"is {ours}, but the source's own {declared.file} declares {declared.licence}"
        remedy = "write into the recipe what the source itself declares at the pinned revision"
        findings.append(Finding("licence/other", Severity.ERROR, "base.licence", what, remedy=remedy))
    else:
        summary = f"{ours}, as the source's own {declared.file} declares"
    return Section("licence", "the licence", summary, findings=tuple(findings))
