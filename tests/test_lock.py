"""Structure locks: what is written reads back, those in references/ say what is known, malformed ones are refused."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.families import LOCKED
from tests.flagships import FLAGSHIPS
from tests.reference_locks import reference_lock
from tests.strategies import names, structures
from weighbridge.base.locks import REFERENCES
from weighbridge.checkpoint.consistency import inconsistencies
from weighbridge.checkpoint.lock import open_lock, write_lock
from weighbridge.checkpoint.model import Checkpoint, FileFact, Origin
from weighbridge.checkpoint.opening import open_checkpoint
from weighbridge.errors import StructureError
from weighbridge.formats.declaration import Declaration
from weighbridge.formats.schemes import PRESETS
from weighbridge.formats.tensors import Tensor, payload_bytes
from weighbridge.report import Severity

GOOGLE = "google/gemma-4-26B-A4B-it"
FP8, NVFP4 = "RedHatAI/gemma-4-26B-A4B-it-FP8-dynamic", "RedHatAI/gemma-4-26B-A4B-it-NVFP4"
LOCKS = sorted(path.relative_to(REFERENCES).with_suffix("").as_posix() for path in REFERENCES.rglob("*.yaml"))
REPINNED = "read from the headers on the hub"
"""The note that `make reference` writes."""


def facts(checkpoint: Checkpoint) -> dict[str, Any]:
    """Everything that a lock keeps of a checkpoint."""
    declared = checkpoint.declaration
    return {
        "structure": checkpoint.structure,
        "schemes": checkpoint.schemes,
        "formats": {module: scheme.format for module, scheme in checkpoint.schemes.items()},
        "declaration": declared and (declared.quant_method, declared.format, declared.kv_cache),
        "files": checkpoint.files,
        "config": checkpoint.config if declared is None else {},
        "origin": checkpoint.origin,
    }


def read(text: str) -> Checkpoint:
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "lock.yaml"
        path.write_text(text)
        return open_lock(path)


@pytest.mark.parametrize("preset", ["W4A16", "W4A16_ASYM", "FP8_DYNAMIC"])
def test_lock_says_nothing_of_a_scheme_that_has_no_effect(preset: str) -> None:
    scheme = PRESETS[preset]
    observed = replace(scheme, weights=replace(scheme.weights, observer="mse"))
    written = write_lock(
        Checkpoint(
            label="here",
            structure={"a.weight": Tensor("BF16", (128, 128))},
            config={},
            declaration=Declaration("compressed-tensors", ""),
            schemes={"a": observed},
        )
    )
    assert not {"observer", "observer_kwargs", "zp_dtype", "actorder"} & set(re.findall(r"\w+(?=:)", written))


@pytest.mark.parametrize("name", LOCKS)
def test_lock_of_the_repository_is_in_the_form_that_is_written(name: str) -> None:
    lock = reference_lock(name)
    assert write_lock(lock) == (REFERENCES / f"{name}.yaml").read_text()


def json_values() -> st.SearchStrategy[Any]:
    leaf = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, width=32), st.text(max_size=9))
    return st.recursive(
        leaf,
        lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=9), inner, max_size=4)),
        max_leaves=6,
    )


DECLARATIONS = st.builds(
    Declaration,
    quant_method=st.sampled_from(["compressed-tensors", "modelopt"]),
    format=st.sampled_from(["float-quantized", "mixed-precision", ""]),
    kv_cache=st.sampled_from([None, PRESETS["FP8"].weights]),
)
DIGESTS = st.from_regex(r"[0-9a-f]{64}", fullmatch=True)
CHECKPOINTS = st.builds(
    Checkpoint,
    label=st.just("here"),
    structure=structures(min_size=1),
    config=st.dictionaries(st.text(max_size=9), json_values(), max_size=4),
    files=st.dictionaries(
        st.text(min_size=1, max_size=20),
        st.builds(FileFact, st.one_of(st.none(), st.integers(0, 2**50)), st.one_of(st.none(), DIGESTS)),
        max_size=4,
    ),
    origin=st.builds(
        Origin,
        repository=st.text(min_size=1, max_size=20),
        revision=st.one_of(st.just(""), st.from_regex(r"[0-9a-f]{40}", fullmatch=True), st.text(max_size=9)),
        base=st.text(max_size=20),
        basis=st.sampled_from(["read", "exact", "seen", "derived"]),
        note=st.text(max_size=40),
    ),
)


@given(CHECKPOINTS)
@settings(deadline=None, max_examples=60)
def test_lock_of_an_unquantized_checkpoint_reads_back(checkpoint: Checkpoint) -> None:
    assert facts(read(write_lock(checkpoint))) == facts(checkpoint)


@given(
    structures(min_size=1),
    DECLARATIONS,
    st.dictionaries(names(), st.sampled_from(list(PRESETS.values())), max_size=12),
)
@settings(deadline=None, max_examples=60)
def test_lock_of_a_quantized_checkpoint_reads_back(
    structure: dict[str, Tensor], declaration: Declaration, schemes: dict[str, Any]
) -> None:
    checkpoint = Checkpoint(
        label="here",
        structure=structure,
        config={},
        declaration=declaration,
        schemes=schemes,
        origin=Origin("org/name"),
    )
    assert facts(read(write_lock(checkpoint))) == facts(checkpoint)


def test_lock_of_what_has_no_name_yet_bears_its_label() -> None:
    unnamed = Checkpoint(label="builds/mine", structure={"w": Tensor("BF16", (4,))}, config={})
    assert read(write_lock(unnamed)).origin.repository == "builds/mine"


def test_comment_stands_above_a_lock_that_reads_as_without_it() -> None:
    checkpoint = Checkpoint(label="here", structure={"w": Tensor("BF16", (4,))}, config={}, origin=Origin("org/name"))
    written = "# made by hand\n# for a test\n" + write_lock(checkpoint)
    assert written.startswith("# made by hand\n# for a test\nstructure_lock: 1\n")
    assert facts(read(written)) == facts(checkpoint)


@pytest.mark.parametrize("name", ["lock", "lock.txt", "lock.json", "lock.safetensors"])
def test_lock_is_known_by_its_content_whatever_its_suffix(tmp_path: Path, name: str) -> None:
    shutil.copyfile(REFERENCES / f"{GOOGLE}.yaml", tmp_path / name)
    assert open_checkpoint(str(tmp_path / name)).origin.repository == GOOGLE


# --- what the locks of the repository say ---


@pytest.mark.parametrize("name", LOCKS)
def test_lock_says_what_it_is_of_and_how_that_is_known(name: str) -> None:
    origin = reference_lock(name).origin
    assert origin.repository == name
    assert origin.base in LOCKS
    assert origin.basis in {"exact", "seen", "derived"}
    assert origin.note


@pytest.mark.parametrize("name", [name for name in LOCKS if name.partition("/")[0] not in {"google", "weighbridge"}])
def test_build_of_a_stranger_is_derived_until_its_headers_were_read(name: str) -> None:
    origin = reference_lock(name).origin
    assert origin.basis == "derived" or (origin.basis, origin.note) == ("seen", REPINNED)


UNPINNED = {
    "HuggingFaceTB/SmolLM2-135M-Instruct",
    "FusenAI/gemma-4-26B-A4B-it-NVFP4",
    "LargitData/gemma-4-26b-a4b-it-fp8",
    "bg-digitalservices/Gemma-4-26B-A4B-it-NVFP4",
    "google/gemma-4-26B-A4B-it-qat-q4_0-unquantized",
    "kunhunjon/gemma-4-26B-A4B-it-qat-NVFP4-full",
    *LOCKED,
    *FLAGSHIPS,
}
"""Published checkpoints whose commit nobody here has seen."""


@pytest.mark.parametrize("name", [name for name in LOCKS if name.partition("/")[0] != "weighbridge"])
def test_published_checkpoint_is_pinned_to_a_commit_where_it_is_known(name: str) -> None:
    revision = reference_lock(name).origin.revision
    assert len(revision) == (0 if name in UNPINNED else 40)


@pytest.mark.parametrize("name", LOCKS)
def test_lock_agrees_with_itself(name: str) -> None:
    found = inconsistencies(reference_lock(name))
    assert [finding for finding in found if finding.severity is not Severity.NOTE] == []


def test_source_has_the_published_tensors_and_bytes() -> None:
    lock = reference_lock(GOOGLE)
    assert len(lock.structure) == 1013
    assert payload_bytes(lock.structure) == 51_611_872_412
    assert {tensor.dtype for tensor in lock.structure.values()} == {"BF16"}


def test_source_is_pinned_by_the_digests_of_its_shards_index_and_config() -> None:
    files = reference_lock(GOOGLE).files
    assert {name: (fact.size, fact.sha256[:8]) for name, fact in files.items() if fact.sha256} == {
        "config.json": (3815, "ed0c1eb3"),
        "model-00001-of-00002.safetensors": (49_907_246_508, "1127684971bb"[:8]),
        "model-00002-of-00002.safetensors": (1_704_763_408, "aab47033"),
        "model.safetensors.index.json": (103_196, "907826a6"),
    }


def test_files_of_a_source_that_nobody_here_has_seen_are_listed_without_a_digest() -> None:
    unseen = {name for name, fact in reference_lock(GOOGLE).files.items() if fact.sha256 is None}
    assert unseen == {
        *("chat_template.jinja", "generation_config.json", "processor_config.json"),
        *("tokenizer.json", "tokenizer_config.json"),
    }


def test_source_carries_its_config() -> None:
    config = reference_lock(GOOGLE).config
    assert config["model_type"] == "gemma4"
    assert config["tie_word_embeddings"] is True
    assert config["text_config"]["num_experts"] == 128


def test_fp8_reference_has_the_published_counts() -> None:
    lock = reference_lock(FP8)
    assert len(lock.structure) == 24_199
    assert len(lock.schemes) == 11_725
    assert set(lock.schemes.values()) == {PRESETS["FP8_DYNAMIC"]}
    kinds = Counter(str(tensor.dtype) for tensor in lock.structure.values())
    assert kinds == {"F8_E4M3": 11_725, "BF16": 11_725 + 748 + 1}


def test_nvfp4_reference_has_the_published_counts() -> None:
    lock = reference_lock(NVFP4)
    assert len(lock.structure) == 47_648
    assert len(lock.schemes) == 11_725
    assert set(lock.schemes.values()) == {PRESETS["NVFP4"]}
    assert "lm_head.weight" not in lock.structure
    kinds = Counter(str(tensor.dtype) for tensor in lock.structure.values())
    assert kinds == {"U8": 11_725, "F8_E4M3": 11_725, "F32": 2 * 11_725, "BF16": 748}


# --- malformed locks ---

HEAD = "structure_lock: 1\nrepository: org/name\nbase: org/base\nbasis: read\n"
WEIGHTS = "weights: {num_bits: 8, type: float, strategy: channel}"


def with_tensors(*lines: str) -> str:
    return HEAD + "tensors:\n" + "".join(f"  - {line}\n" for line in lines)


def with_quantization(text: str) -> str:
    return with_tensors("w BF16 [4]") + "quantization:\n" + "".join(f"  {line}\n" for line in text.splitlines())


# text, what the sentence says
MALFORMED: dict[str, tuple[str, str]] = {
    "empty file": ("", "is a file, but no structure lock"),
    "nothing but a comment": ("# structure_lock\n", "is empty"),
    "a list": ("- structure_lock\n", "is not a YAML mapping"),
    "not YAML": ("structure_lock: [1\n", "is not YAML"),
    "control characters": ("structure_lock: \0\n", "is not YAML"),
    "another file": ("name: fp8-dynamic\n", "is a file, but no structure lock"),
    "a later version": (HEAD.replace("1", "2", 1) + "tensors: []\n", "lock.yaml:1: structure_lock"),
    "no tensors": (HEAD, "the key 'tensors' is missing"),
    "empty list of tensors": (HEAD + "tensors: []\n", "describes no tensor"),
    "unknown key": (HEAD + "tensors: []\nshards: []\n", "lock.yaml:6: unknown key 'shards'"),
    "misspelt key": (HEAD + "tensor: []\n", "did you mean 'tensors'?"),
    "key twice": (HEAD + "tensors: []\ntensors: []\n", "lock.yaml:6: the key 'tensors' stands twice"),
    "anchor": (HEAD + "tensors: &all []\n", "lock.yaml:5: anchors, aliases and tags are not read"),
    "tag": (HEAD + "tensors: !!python/object:os.system []\n", "anchors, aliases and tags are not read"),
    "deep": (HEAD + "tensors: " + "[" * 5000 + "]" * 5000 + "\n", "is nested too deeply"),
    "unknown basis": (HEAD.replace("read", "guessed") + "tensors: []\n", "lock.yaml:4: basis"),
    "revision is a number": (HEAD + "revision: 7\ntensors: []\n", "lock.yaml:5: revision"),
    "tensors are a mapping": (HEAD + "tensors: {w: BF16}\n", "lock.yaml:5: tensors"),
    "tensor is a number": (with_tensors("7"), "lock.yaml:6: tensors.0"),
    "no dtype": (with_tensors("w"), "lock.yaml:6: 'w' is not of the form: name dtype [shape]"),
    "no shape": (with_tensors("w BF16"), "'w BF16' is not of the form"),
    "shape without brackets": (with_tensors("w BF16 4"), "'w BF16 4' is not of the form"),
    "open shape": (with_tensors("w BF16 [4"), "is not of the form"),
    "axis is a word": (with_tensors("w BF16 [four]"), "is not of the form"),
    "negative axis": (with_tensors("w BF16 [-4]"), "is not of the form"),
    "axis of other digits": (with_tensors("w BF16 [٤]"), "is not of the form"),
    "absurd axis": (with_tensors(f"w BF16 [{2**60}]"), "is not of the form"),
    "axis of five thousand digits": (with_tensors(f"w BF16 [{'9' * 5000}]"), "is not of the form"),
    "unknown dtype": (with_tensors("w BF17 [4]"), "lock.yaml:6: tensor 'w' has the unknown dtype 'BF17'"),
    "no name": (with_tensors('" BF16 [4]"'), "a tensor name is empty"),
    "name of other letters": (with_tensors("wé BF16 [4]"), "has characters that no tensor name has"),
    "tensor twice": (with_tensors("w BF16 [4]", "w BF16 [4]"), "lock.yaml:7: tensor 'w' is described twice"),
    "patterns overlap": (with_tensors("a.{0-4} F32 [1]", "a.{4-5} F32 [1]"), "tensor 'a.4' is described twice"),
    "empty braces": (with_tensors("a.{} BF16 [4]"), "lock.yaml:6: 'a.{}' has braces that hold no ranges"),
    "absurd pattern": (with_tensors("a.{0-9999}.{0-9999} BF16 [4]"), "stands for more than 500,000 names"),
    "pattern beyond any integer": (
        with_tensors(f"a.{'.'.join(['{0-9999}'] * 5)} BF16 [4]"),
        "stands for more than 500,000 names",
    ),
    "too many tensors": (
        with_tensors("w BF16 [4]", "a.{0-1999}.{0-1999} BF16 [4]"),
        "stands for more than 500,000 names",
    ),
    "digest of another length": (HEAD + "tensors: []\nfiles: {a: {sha256: abc}}\n", "files.a.sha256"),
    "negative size": (HEAD + "tensors: []\nfiles: {a: {size: -1}}\n", "files.a.size"),
    "unknown fact of a file": (HEAD + "tensors: []\nfiles: {a: {md5: abc}}\n", "unknown key 'files.a.md5'"),
    "no schemes": (with_quantization("modules: []"), "the key 'quantization.schemes' is missing"),
    "scheme without weights": (
        with_quantization("schemes: {s: {input_activations: {}}}\nmodules: []"),
        "quantization.schemes.s: a scheme without weights is not known here",
    ),
    "absurd bits": (
        with_quantization("schemes: {s: {weights: {num_bits: 0}}}\nmodules: []"),
        "quantization.schemes.s.weights: num_bits cannot be '0'",
    ),
    "malformed kv cache": (
        with_quantization("schemes: {}\nkv_cache: {type: complex}\nmodules: []"),
        "quantization.kv_cache: unknown type",
    ),
    "module of an unknown scheme": (
        with_quantization("schemes: {}\nmodules:\n  - w s"),
        "lock.yaml:10: 'w s' names no scheme of this lock",
    ),
    "module without a scheme": (
        with_quantization(f"schemes: {{s: {{{WEIGHTS}}}}}\nmodules:\n  - w"),
        "lock.yaml:10: 'w' names no scheme of this lock",
    ),
    "malformed module": (
        with_quantization(f"schemes: {{s: {{{WEIGHTS}}}}}\nmodules:\n  - 'a.{{4-0}} s'"),
        "lock.yaml:10: the ranges {4-0} in 'a.{4-0}' do not ascend",
    ),
    "module twice": (
        with_quantization(f"schemes: {{s: {{{WEIGHTS}}}, t: {{{WEIGHTS}}}}}\nmodules:\n  - w s\n  - w t"),
        "lock.yaml:11: module 'w' is described twice",
    ),
    "too many modules": (
        with_quantization(f"schemes: {{s: {{{WEIGHTS}}}}}\nmodules:\n  - w s\n  - 'a.{{0-1999}}.{{0-1999}} s'"),
        "stands for more than 500,000 names",
    ),
}


@pytest.mark.parametrize(("text", "sentence"), MALFORMED.values(), ids=MALFORMED)
def test_malformed_lock_is_refused_with_its_line(tmp_path: Path, text: str, sentence: str) -> None:
    path = tmp_path / "lock.yaml"
    path.write_text(text)
    with pytest.raises(StructureError) as caught:
        open_lock(path)
    assert sentence in str(caught.value)
    assert len(str(caught.value)) < 600


def test_lock_that_is_not_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "lock").write_bytes(b"structure_lock: \xff\n")
    with pytest.raises(StructureError, match=r"is not UTF-8 text \(byte 16\)"):
        open_lock(tmp_path / "lock")


@given(st.text(alphabet=st.sampled_from("{}[]-,.0123456789 ab BF16"), max_size=30))
@settings(deadline=None)
def test_any_tensor_line_reads_or_is_refused(line: str) -> None:
    quoted = line.replace("'", "''")
    try:
        read(with_tensors(f"'{quoted}'"))
    except StructureError:
        return
