"""The door for programs: the functions of `weighbridge`, their values, errors and reports."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import weighbridge as wb
from tests.checkpoints import copy_checkpoint, edit_config
from tests.conftest import ROOT
from weighbridge.evidence.signing import make_key_pair

FP8_LOCK = "references/weighbridge/gemma-4-mini-FP8-dynamic.yaml"


def test_every_public_name_is_there_and_documented() -> None:
    for name in {*wb.__all__} - {"__version__"}:
        assert (getattr(wb, name).__doc__ or "").strip(), name
    assert set(wb.__all__) <= set(dir(wb))
    with pytest.raises(AttributeError, match="no attribute 'quantize'"):
        wb.quantize  # noqa: B018  # type: ignore[attr-defined]


def test_importing_the_package_imports_nothing_else() -> None:
    script = "import sys, weighbridge; print([name for name in sys.modules if name.startswith('weighbridge.')])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "['weighbridge.version']\n"


def test_plan_of_names_and_of_values_is_the_same() -> None:
    by_name = wb.plan("fp8-dynamic", "mini")
    by_value = wb.plan(wb.load_recipe("fp8-dynamic"), wb.open_checkpoint("mini"))
    assert by_name.predicted.structure == by_value.predicted.structure
    assert wb.lint(by_name).holds


def test_plan_of_a_conversion_starts_from_a_build_of_the_miniature() -> None:
    assert wb.lint(wb.plan("nvfp4-mlp-modelopt", "mini")).holds


def test_build_is_validated_audited_verified_and_reproduced(tmp_path: Path) -> None:
    make_key_pair(tmp_path / "key.pem", tmp_path / "key.pub.pem", curve="P-256")
    told: list[tuple[str, int, int]] = []
    progress = wb.Progress(shown=False, told=lambda *said: told.append(said))
    build = tmp_path / "build"
    report = wb.build("fp8-dynamic", "mini", build, sign=str(tmp_path / "key.pem"), progress=progress)
    assert report.holds
    assert report.head.keys() == {"base", "recipe", "recipe SHA-256"}
    assert report.metrics["modules_quantized_count"] == 185
    assert told and all(0 < done <= total for _, done, total in told)
    assert wb.validate(build, recipe="fp8-dynamic", source="mini").holds
    audit = wb.audit(build, "mini", recipe="fp8-dynamic")
    assert audit.holds and "derives exactly from the base" in audit.verdict
    assert wb.verify(str(build), signed_by=str(tmp_path / "key.pub.pem"), source="mini").holds
    again, statement = wb.reproduce(str(build), source="mini")
    assert again.holds
    assert json.loads(statement)["predicateType"] == "https://in-toto.io/attestation/test-result/v0.1"


def test_what_does_not_hold_is_a_report(mini_build: Path, tmp_path: Path) -> None:
    copy = copy_checkpoint(mini_build, tmp_path / "copy")
    edit_config(copy, lambda config: config["text_config"].update(vocab_size=7))
    report = wb.validate(copy)
    assert not report.holds
    assert [found.rule for found in report.findings() if found.severity is wb.Severity.ERROR] == ["config/sizes"]


def test_audit_of_a_sample_says_which_rows(mini_build: Path) -> None:
    seeds = {re.findall(r"seed (\d+)", json.dumps(wb.audit(mini_build, "mini", sample=0.1).to_dict()))[0] for _ in "ab"}
    assert len(seeds) == 2
    assert "seed 7," in json.dumps(wb.audit(mini_build, "mini", sample=0.1, seed=7).to_dict())


def test_audit_by_a_recipe_of_other_schemes_does_not_hold(mini_build: Path) -> None:
    report = wb.audit(mini_build, "mini", recipe="w4a16")
    assert not report.holds
    assert "float8 per channel where the recipe's plan says int4 per group 32: 185 modules" in report.verdict


def test_difference_is_a_table_by_role_and_a_note_for_each_kind() -> None:
    report = wb.diff("mini", FP8_LOCK)
    (table,) = report.sections[0].tables
    assert table.rows[-1][0] == "total"
    assert {found.rule for found in report.findings()} >= {"diff/dtype", "diff/quantization-config"}
    assert (report.holds, report.word) == (False, "DIFFERS")
    assert (wb.diff("mini", "mini").holds, wb.diff("mini", "mini").word) == (True, "SAME")


def test_report_as_a_dictionary_is_the_report_as_json(mini_build: Path) -> None:
    from weighbridge.report import PRESENTERS

    report = wb.validate(mini_build)
    assert json.loads(PRESENTERS["json"](report)) == report.to_dict()
    assert report._repr_html_().startswith("<iframe srcdoc=")


def test_file_that_one_side_alone_has_is_a_difference(mini_build: Path, tmp_path: Path) -> None:
    copy = copy_checkpoint(mini_build, tmp_path / "copy")
    assert wb.diff(mini_build, copy).holds
    (copy / "special.py").write_text("pass")
    found = list(wb.diff(mini_build, copy).findings())
    assert [(finding.rule, finding.where) for finding in found] == [("diff/file", "special.py")]


def test_progress_may_be_used_for_several_builds(tmp_path: Path) -> None:
    progress = wb.Progress(shown=False)
    stages = []
    for name in ("one", "two"):
        assert wb.build("fp8-dynamic", "mini", tmp_path / name, progress=progress).holds
        log = (tmp_path / name / "evidence" / "log.jsonl").read_text()
        stages.append([json.loads(line).get("stage") for line in log.splitlines()])
    assert stages[0] == stages[1]


def _by_another_method(place: Path) -> Path:
    """A build whose config.json names a method that nothing here decodes."""
    edit_config(place.parent / "b", lambda config: config["quantization_config"].update(quant_method="hqq"))
    return place.parent / "b"


ERRORS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no such recipe": (lambda place: wb.plan("fp8-dynamc", "mini"), "did you mean"),
    "nothing of this name": (lambda place: wb.open_checkpoint("./nowhere"), "no such directory"),
    "a source whose codes are not decoded": (
        lambda place: wb.plan("fp8-dynamic", _by_another_method(place)),
        "already quantized",
    ),
    "an output that holds something": (lambda place: wb.build("fp8-dynamic", "mini", place), "as `output`"),
    "an audit of a lock": (lambda place: wb.audit(FP8_LOCK, "mini"), "holds no weights"),
    "a conversion that is to be audited": (
        lambda place: wb.build("nvfp4-mlp-modelopt", "mini", place / "b", audit=True),
        "`audit`",
    ),
    "a recipe to be run again that calibrates nothing": (
        lambda place: wb.audit(place.parent / "b", "mini", recipe="fp8-dynamic", recompute=True),
        "`recompute`",
    ),
    "a sample of nothing": (lambda place: wb.audit(place.parent / "b", "mini", sample=0), "`sample`"),
    "a sample in percent": (lambda place: wb.audit(place.parent / "b", "mini", sample=10), "`sample`"),
    "a seed that is none": (lambda place: wb.audit(place.parent / "b", "mini", sample=0.1, seed=-1), "`seed`"),
    "an engine that is none": (
        lambda place: wb.build("fp8-dynamic", "mini", place / "b", engine="foo"),  # type: ignore[arg-type]
        "streaming or upstream",
    ),
    "a key that is not there": (
        lambda place: wb.build("nvfp4-mlp-modelopt", "mini", place / "b", sign=place / "nokey.pem"),
        "nokey.pem",
    ),
    "a source whose codes are not decoded, opened before": (
        lambda place: wb.plan("fp8-dynamic", wb.open_checkpoint(_by_another_method(place))),
        "already quantized",
    ),
    "no name": (lambda place: wb.open_checkpoint(None), "`checkpoint`"),  # type: ignore[arg-type]
    "a number for a recipe": (lambda place: wb.plan(7, "mini"), "`recipe`"),  # type: ignore[arg-type]
    "a name for a plan": (lambda place: wb.lint("fp8-dynamic"), "`plan`"),  # type: ignore[arg-type]
    "a name that is too long": (lambda place: wb.open_checkpoint("a" * 5000), "longer"),
    "too little memory": (
        lambda place: wb.build("fp8-dynamic", "mini", place / "b", resources=wb.Resources(memory=1)),
        "`memory`",
    ),
}


@pytest.mark.parametrize(("call", "said"), ERRORS.values(), ids=ERRORS)
def test_error_says_what_to_do_and_names_no_option(
    call: Callable[[Path], object], said: str, mini_build: Path, tmp_path: Path
) -> None:
    copy_checkpoint(mini_build, tmp_path / "b")
    (tmp_path / "held").mkdir()
    (tmp_path / "held" / "file").touch()
    with pytest.raises(wb.WeighbridgeError) as caught:
        call(tmp_path / "held")
    assert said in str(caught.value)
    assert " --" not in str(caught.value) and not str(caught.value).startswith("--")


def test_no_error_of_the_library_names_an_option() -> None:
    """Commands put the names of options in the place of arguments in backquotes."""
    raised = re.compile(r"(?:where|remedy)=\(?f?\"[^\"]*(?<![\w'`])--[a-z]")
    room = ROOT / "src" / "weighbridge"
    found = {
        path.relative_to(room).as_posix(): raised.findall(path.read_text())
        for path in sorted(room.rglob("*.py"))
        if path.relative_to(room).parts[0] != "cli"
    }
    named = {name: said for name, said in found.items() if said}
    assert {
        name: [text for text in said if "pip install" not in text and "ray start" not in text and ".py " not in text]
        for name, said in named.items()
    } == {name: [] for name in named}


def test_no_error_has_an_argument_in_backquotes_that_it_does_not_carry() -> None:
    """Text is never searched for arguments, so one that stands there as text would stay as it is on a command line."""
    raised = re.compile(r"(?:what|where|remedy) ?=[^#\n]*\"[^\"\n]*(?<!`)`[a-z_]+`(?!`)")
    room = ROOT / "src" / "weighbridge"
    found = {path.relative_to(room).as_posix(): raised.findall(path.read_text()) for path in sorted(room.rglob("*.py"))}
    assert {name: said for name, said in found.items() if said} == {}


@pytest.mark.parametrize("example", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.name)
def test_example_runs(example: Path, tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, example], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
