"""A build whose kernels are wrong, audited in the same process: every fault is seen, whatever made it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.wrong_kernels import WAYS, WrongKernels
from weighbridge.base.source import MINIATURE, open_source
from weighbridge.building import BuildRequest, build
from weighbridge.engines.streaming import work
from weighbridge.machine.resources import Resources
from weighbridge.numbers import Kernels
from weighbridge.progress import Progress
from weighbridge.recipe import load_recipe

ELEMENTS = {"FP8": "fp8-dynamic", "INT4": "w4a16", "FP4": "nvfp4a16"}


@pytest.mark.parametrize("element", ELEMENTS)
@pytest.mark.parametrize("way", [*WAYS, "none"])
def test_fault_of_the_kernels_is_seen_by_the_audit_of_the_build(
    way: str, element: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernels: Kernels = WrongKernels(WAYS.get(way, lambda _: None))
    monkeypatch.setattr(work, "load_kernels", lambda _: kernels)
    request = BuildRequest(
        loaded=load_recipe(ELEMENTS[element]),
        source=open_source(MINIATURE),
        output=tmp_path / "build",
        references=("none",),
        resources=Resources(workers=1),
        audited=True,
    )
    report = build(request, progress=Progress(shown=False))
    rules = {finding.rule for section in report.sections for finding in section.findings if not section.holds}
    assert report.holds == (way == "none"), report.verdict
    assert rules <= {"audit/not-nearest", "audit/not-exact", "audit/scale-too-coarse"}
    assert (tmp_path / "build").exists() == (way == "none")
