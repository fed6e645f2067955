"""``build.py RECIPE --plan``: what is printed, in which form, with which exit code, and how little it takes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Command
from tests.planning import KEPT, MINI, REAL, ROOT, recipe, recipe_text
from weighbridge.checkpoint.lock import open_lock
from weighbridge.checks.diff import diff
from weighbridge.cli import build, validate
from weighbridge.formats.tensors import payload_bytes
from weighbridge.planning import make_plan
from weighbridge.recipe import load_recipe

RECIPE = str(ROOT / "recipes/google/gemma-4-26B-A4B-it/fp8-dynamic.yaml")
REAL_LOCK, MINI_LOCK = str(ROOT / REAL), str(ROOT / MINI)
PUBLISHED = str(ROOT / "references/RedHatAI/gemma-4-26B-A4B-it-FP8-dynamic.yaml")
PUBLISHED_NVFP4 = str(ROOT / "references/RedHatAI/gemma-4-26B-A4B-it-NVFP4.yaml")
TENSORS, BYTES = 24_198, 27_161_975_452

# role -> modules, parameters, bytes before, bytes after; of google/gemma-4-26B-A4B-it with FP8_DYNAMIC
ROLES = {
    "attention": (115, 1_110_179_840, 2_220_359_680, 1_110_850_560),
    "dense mlp": (90, 535_265_280, 1_070_530_560, 535_687_680),
    "experts": (11_520, 22_837_985_280, 45_675_970_560, 22_870_425_600),
    "router": (60, 10_901_760, 21_803_520, 21_803_520),
    "norms": (271, 612_096, 1_224_192, 1_224_192),
    "embeddings": (1, 738_197_504, 1_476_395_008, 1_476_395_008),
    "vision": (355, 572_794_416, 1_145_588_832, 1_145_588_832),
    "other": (30, 30, 60, 60),
}
PARAMETERS = 25_805_936_206


@pytest.fixture
def plan(call_build: Command) -> Command:
    """``build.py … --plan`` in this process."""
    return lambda *arguments: call_build(*arguments, "--plan")


def write(directory: Path, **keys: Any) -> Path:
    path = directory / "recipe.yaml"
    path.write_text(recipe_text(recipe(**keys)))
    return path


# --- the real model ---------------------------------------------------------------------------------------------------


def test_text_has_the_role_table_and_the_totals(plan: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    answer = plan(RECIPE, "--model", REAL_LOCK)
    lines = answer.out.splitlines()
    first = next(number for number, line in enumerate(lines) if line.endswith("bits a weight")) + 1
    *rows, total = [line.split() for line in lines[first : first + len(ROLES) + 1]]
    assert answer.code == 0
    for row, (role, figures) in zip(rows, ROLES.items(), strict=True):
        assert " ".join(row).startswith(f"{role} ")
        assert row[-5:-1] == [f"{figure:,}" for figure in figures]
    assert total == ["total", "12,442", f"{PARAMETERS:,}", "51,611,872,412", f"{BYTES:,}", "8.42"]
    assert f"{TENSORS:,} tensors, {BYTES:,} bytes" in answer.out
    assert "\nPASS  " in answer.out


def test_rows_of_the_table_add_up_to_its_total(plan: Command) -> None:
    (table,) = plan(RECIPE, "--model", REAL_LOCK, "--format", "json").report["sections"][0]["tables"]
    columns = [table["columns"].index(name) for name in ("modules", "parameters", "bytes before", "bytes after")]
    *rows, total = table["rows"]
    sums = [sum(row[column] for row in rows) for column in columns]
    assert sums == [total[column] for column in columns]
    assert total[columns[1]] == PARAMETERS == sum(figures[1] for figures in ROLES.values())
    assert (total[columns[0]], total[columns[3]]) == (sum(figures[0] for figures in ROLES.values()), BYTES)


def test_json_is_versioned_and_has_a_section_for_the_plan_and_one_for_each_reference(plan: Command) -> None:
    report = plan(RECIPE, "--model", REAL_LOCK, "--format", "json").report
    assert (report["schema_version"], report["command"], report["holds"]) == (1, "plan", True)
    decided, published = report["sections"]
    assert (decided["id"], decided["holds"]) == ("plan", True)
    assert (published["id"], published["holds"]) == ("against-reference", True)
    assert published["title"].startswith("against RedHatAI/gemma-4-26B-A4B-it-FP8-dynamic@ed35d7a")
    (difference,) = [finding for finding in published["findings"] if finding["severity"] == "note"]
    assert (difference["where"], difference["rule"]) == ("lm_head.weight", "diff/only-in-reference")
    assert difference["explained"]


def test_lock_reads_back_as_the_plan(plan: Command, tmp_path: Path) -> None:
    path = tmp_path / "lock.yaml"
    answer = plan(RECIPE, "--model", REAL_LOCK, "--format", "lock", "--report", path)
    assert (answer.code, path.read_text()) == (0, answer.out)
    lock = open_lock(path)
    assert (len(lock.structure), payload_bytes(lock.structure)) == (TENSORS, BYTES)
    assert diff(lock, make_plan(load_recipe(RECIPE), open_lock(Path(REAL_LOCK))).predicted) == []


def test_lock_differs_from_the_published_build_in_the_tied_head_alone(
    plan: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "lock.yaml"
    plan(RECIPE, "--model", REAL_LOCK, "--format", "lock", "--report", path)
    code = validate.main([str(path), "--reference", PUBLISHED, "--format", "json"])
    report = json.loads(capsys.readouterr().out)
    errors = [(finding["rule"], finding["where"]) for finding in report["sections"][-1]["findings"]]
    assert (code, errors) == (1, [("diff/only-in-reference", "lm_head.weight")])


def test_nvfp4_weights_are_planned_for_layers_whose_values_are_the_keys(plan: Command, tmp_path: Path) -> None:
    answer = plan(write(tmp_path, scheme="NVFP4A16"), "--model", REAL_LOCK, "--reference", "none")
    assert answer.code == 0
    assert "self_attn (5)" in answer.out


def test_group_size_128_is_refused_and_nothing_is_promised(plan: Command, tmp_path: Path) -> None:
    answer = plan(write(tmp_path, scheme="W4A16"), "--model", REAL_LOCK, "--reference", "none")
    assert answer.code == 1
    said = " ".join(answer.out.split())
    for words in ("width 704", "width 2112", "32 or 64", "FAIL", "cannot be built as written"):
        assert words in said


# --- what can be planned for ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["a lock", "mini", "a directory"])
def test_the_miniature_is_planned_for_by_lock_by_name_and_by_directory(model: str, plan: Command, mini: Path) -> None:
    answer = plan(RECIPE, "--model", {"a lock": MINI_LOCK, "mini": "mini", "a directory": mini}[model])
    assert answer.code == 0
    assert "481 tensors, 10,649,132 bytes, 185 modules quantized" in answer.out
    assert "against weighbridge/gemma-4-mini-FP8-dynamic (exact): all 481 names" in " ".join(answer.out.split())


def test_references_of_another_base_are_not_held_against_the_plan(plan: Command) -> None:
    report = plan(RECIPE, "--model", ROOT / "tests/data/odd-parts.yaml", "--format", "json").report
    assert [section["id"] for section in report["sections"]] == ["plan"]


@pytest.mark.parametrize("reference", ["none", PUBLISHED])
def test_reference_is_chosen_on_the_command_line(reference: str, plan: Command) -> None:
    report = plan(RECIPE, "--model", REAL_LOCK, "--reference", reference, "--format", "json").report
    assert len(report["sections"]) == (1 if reference == "none" else 2)
    assert report["holds"]  # the recipe's own explanations go with a reference that it names


# --- exit codes -------------------------------------------------------------------------------------------------------


def test_warnings_and_notes_pass(plan: Command, tmp_path: Path) -> None:
    answer = plan(write(tmp_path, ignore=KEPT[1:]), "--model", MINI_LOCK, "--reference", "none")
    assert (answer.code, "warning serve/tied-head" in answer.out) == (0, True)


def test_a_lint_error_fails(plan: Command, tmp_path: Path) -> None:
    answer = plan(write(tmp_path, ignore=[*KEPT, "embed_tokens"]), "--model", MINI_LOCK, "--reference", "none")
    assert (answer.code, answer.err) == (1, "")
    assert "did you mean re:.*embed_tokens$?" in answer.out
    assert "FAIL" in answer.out


def test_an_unexplained_difference_fails(plan: Command) -> None:
    answer = plan(RECIPE, "--model", REAL_LOCK, "--reference", PUBLISHED_NVFP4)
    assert answer.code == 1
    assert "gets: weights float8 per channel" in " ".join(answer.out.split())
    assert "weight_packed" not in answer.out, "what follows from another scheme is not said tensor by tensor"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("no-such-recipe", "--model", MINI_LOCK), "no recipe of this name"),
        ((RECIPE, "--model", "no/such/directory"), "no such directory or file"),
        ((RECIPE, "--model", MINI_LOCK, "--reference", RECIPE), "no structure lock"),
        ((RECIPE, "--model", MINI_LOCK, "--report", "no/such/directory/report.json"), "no such directory"),
    ],
)
def test_what_cannot_be_judged_is_one_sentence_on_standard_error(
    arguments: tuple[str, ...], sentence: str, plan: Command
) -> None:
    answer = plan(*arguments)
    assert (answer.code, answer.out, answer.err.count("\n")) == (2, "", 1)
    assert sentence in answer.err


def test_report_file_has_what_is_printed(plan: Command, tmp_path: Path) -> None:
    answer = plan(RECIPE, "--model", MINI_LOCK, "--format", "markdown", "--report", tmp_path / "plan.md")
    kept = (tmp_path / "plan.md").read_text()
    assert [line for line in answer.out.splitlines() if line not in kept.splitlines()] == []
    assert answer.out.startswith("# plan: ")


# --- what it takes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "arguments", "code"),
    [
        ("build", (RECIPE, "--plan", "--model", REAL_LOCK), 0),
        ("build", (RECIPE, "--plan", "--model", "mini"), 0),
        ("validate", (PUBLISHED, "--reference", REAL_LOCK), 1),
        ("validate", (PUBLISHED, "--reference", PUBLISHED), 0),
    ],
    ids=["plan-of-a-lock", "plan-of-the-miniature", "two-locks-that-differ", "two-locks-that-agree"],
)
def test_headers_are_judged_without_torch(command: str, arguments: tuple[str, ...], code: int, mini: Path) -> None:
    script = (
        f"import sys; from weighbridge.cli.{command} import main; code = main(sys.argv[1:]); "
        "assert not {'torch', 'transformers', 'llmcompressor', 'compressed_tensors'} & sys.modules.keys(); "
        "sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (code, "")


def test_a_build_that_would_differ_unexplained_stops_before_it_reads_a_weight(
    tmp_path: Path, mini: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("torch", "transformers", "llmcompressor", "compressed_tensors"):
        monkeypatch.setitem(sys.modules, name, None)  # any import of it fails
    output = tmp_path / "build"
    arguments = [RECIPE, "--model", "mini", "--reference", PUBLISHED_NVFP4, "--output", str(output)]
    assert build.main([*arguments, "--device", "cpu"]) == 1
    assert "FAIL" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_a_build_of_a_recipe_with_a_lint_error_stops_before_it_reads_a_weight(
    tmp_path: Path, mini: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path, ignore=["re:.*norm.*"])
    output = tmp_path / "builds" / "build"
    assert build.main([str(path), "--model", "mini", "--output", str(output)]) == 1
    assert "quantize/router" in capsys.readouterr().out
    assert not output.parent.exists()
