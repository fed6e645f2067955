"""Two checkpoints differ in what is listed and in nothing else; each difference is explained exactly once, or fails."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.checkpoints import CONFIG
from tests.reference_locks import reference_lock
from tests.strategies import structures
from weighbridge.checkpoint.model import Checkpoint, FileFact
from weighbridge.checks.diff import UNCOMPARED_KEYS, Difference, diff, explain, group
from weighbridge.formats.declaration import Declaration
from weighbridge.formats.schemes import PRESETS, QuantizationArgs
from weighbridge.formats.tensors import Structure, Tensor
from weighbridge.recipe import Explanation

MIRRORED = {"only-in-reference": "only-in-checkpoint", "only-in-checkpoint": "only-in-reference"}


def checkpoint(structure: Structure | None = None, **facts: Any) -> Checkpoint:
    return Checkpoint(label="here", structure=structure or {}, **({"config": {}} | facts))


def mirrored(difference: Difference) -> tuple[str, str, str, str]:
    kind = MIRRORED.get(difference.kind, difference.kind)
    return kind, difference.name, difference.reference, difference.checkpoint


SCHEMES = st.sampled_from([PRESETS["FP8_DYNAMIC"], PRESETS["W4A16"]])
MODULES = ["a.0.q_proj", "a.1.q_proj", "a.0.down_proj"]
CHECKPOINTS = st.builds(
    checkpoint,
    st.builds(
        lambda some, other: {**some, **other},
        structures(dtypes=("BF16", "F8_E4M3")),
        st.dictionaries(
            st.sampled_from([f"{module}.weight" for module in MODULES]),
            st.sampled_from([Tensor("BF16", (8, 4)), Tensor("F8_E4M3", (8, 4)), Tensor("BF16", (4, 8))]),
        ),
    ),
    config=st.dictionaries(
        st.sampled_from(["a", "b", "torch_dtype"]), st.sampled_from([0, "x", {"c": 1}, {"c": [1, 2]}])
    ),
    declaration=st.sampled_from(
        [
            None,
            Declaration("compressed-tensors", "float-quantized"),
            Declaration("compressed-tensors", "pack-quantized"),
        ]
    ),
    schemes=st.dictionaries(st.sampled_from(MODULES), SCHEMES),
    files=st.dictionaries(
        st.sampled_from(["tokenizer.json", "chat_template.jinja", "README.md"]),
        st.sampled_from([FileFact(1), FileFact(1, "a" * 64), FileFact(1, "b" * 64)]),
    ),
)


# --- laws ---


@given(CHECKPOINTS)
@settings(deadline=None)
def test_nothing_differs_from_itself(one: Checkpoint) -> None:
    assert diff(one, replace(one)) == []


@given(CHECKPOINTS, CHECKPOINTS)
@settings(deadline=None)
def test_differences_the_other_way_round_are_mirrored(one: Checkpoint, other: Checkpoint) -> None:
    assert Counter(map(mirrored, diff(one, other))) == Counter(
        (difference.kind, difference.name, difference.checkpoint, difference.reference)
        for difference in diff(other, one)
    )


@given(structures(), structures())
@settings(deadline=None)
def test_each_tensor_that_is_not_the_same_is_listed_once(ours: Structure, theirs: Structure) -> None:
    names = [difference.name for difference in diff(checkpoint(ours), checkpoint(theirs))]
    assert sorted(names) == sorted(name for name in {*ours, *theirs} if ours.get(name) != theirs.get(name))


@given(CHECKPOINTS, CHECKPOINTS, st.randoms(use_true_random=False))
@settings(deadline=None)
def test_order_of_tensors_does_not_count(one: Checkpoint, other: Checkpoint, chance: Any) -> None:
    names = list(one.structure)
    chance.shuffle(names)
    shuffled = replace(one, structure={name: one.structure[name] for name in names})
    assert diff(shuffled, other) == diff(one, other)


@given(CHECKPOINTS, CHECKPOINTS)
@settings(deadline=None)
def test_groups_stand_for_exactly_the_differences(one: Checkpoint, other: Checkpoint) -> None:
    differences = diff(one, other)
    grouped = Counter(
        Difference(item.kind, name, item.checkpoint, item.reference)
        for item in group(differences)
        if item.kind != "renamed"  # those stand together, whatever they are called
        for name in item.pattern
    )
    assert grouped == Counter(difference for difference in differences if difference.kind != "renamed")
    assert sum(item.count for item in group(differences)) == len(differences)


@given(st.text(max_size=12).filter(lambda key: key not in UNCOMPARED_KEYS))
@settings(deadline=None)
def test_difference_under_any_key_of_a_config_can_be_grouped_and_told(key: str) -> None:
    (item,) = group(diff(checkpoint(config={key: 1}), checkpoint(config={key: 2})))
    assert str(item.pattern) == f"{CONFIG}:{key}"


# --- what differs ---

FP8 = Declaration("compressed-tensors", "float-quantized")
WEIGHT = {"q_proj.weight": Tensor("F8_E4M3", (8, 4))}
FP8_SCHEME, W4_SCHEME = PRESETS["FP8_DYNAMIC"], PRESETS["W4A16"]
KV = QuantizationArgs(8, "float", "tensor")
LAYER_TYPES = ["sliding_attention"] * 29

# checkpoint, reference, the only difference
DIFFERENCES: dict[str, tuple[Checkpoint, Checkpoint, Difference]] = {
    "missing": (
        checkpoint(),
        checkpoint(WEIGHT),
        Difference("only-in-reference", "q_proj.weight", "", "F8_E4M3 [8, 4]"),
    ),
    "extra": (
        checkpoint(WEIGHT),
        checkpoint(),
        Difference("only-in-checkpoint", "q_proj.weight", "F8_E4M3 [8, 4]", ""),
    ),
    "dtype": (
        checkpoint({"w": Tensor("BF16", (8, 4))}),
        checkpoint({"w": Tensor("F8_E4M3", (8, 4))}),
        Difference("dtype", "w", "BF16 [8, 4]", "F8_E4M3 [8, 4]"),
    ),
    "shape": (
        checkpoint({"w": Tensor("BF16", (8, 4))}),
        checkpoint({"w": Tensor("BF16", (4, 8))}),
        Difference("shape", "w", "BF16 [8, 4]", "BF16 [4, 8]"),
    ),
    "shape and dtype are one difference": (
        checkpoint({"w": Tensor("BF16", (8, 4))}),
        checkpoint({"w": Tensor("U8", (8, 2))}),
        Difference("shape", "w", "BF16 [8, 4]", "U8 [8, 2]"),
    ),
    "scheme": (
        checkpoint(WEIGHT, declaration=FP8, schemes={"q_proj": FP8_SCHEME}),
        checkpoint(WEIGHT, declaration=FP8, schemes={"q_proj": W4_SCHEME}),
        Difference("scheme", "q_proj", str(FP8_SCHEME), str(W4_SCHEME)),
    ),
    "not quantized": (
        checkpoint(WEIGHT, declaration=FP8, schemes={}),
        checkpoint(WEIGHT, declaration=FP8, schemes={"q_proj": FP8_SCHEME}),
        Difference("scheme", "q_proj", "not quantized", str(FP8_SCHEME)),
    ),
    "no quantization config": (
        checkpoint(WEIGHT),
        checkpoint(WEIGHT, declaration=FP8, schemes={"q_proj": FP8_SCHEME}),
        Difference("quantization-config", CONFIG, "none", "compressed-tensors float-quantized"),
    ),
    "kv cache": (
        checkpoint(WEIGHT, declaration=replace(FP8, kv_cache=KV)),
        checkpoint(WEIGHT, declaration=FP8),
        Difference("kv-cache", CONFIG, "float8 per tensor", "none"),
    ),
    "a key of config.json": (
        checkpoint(config={"rope_theta": 1e6}),
        checkpoint(config={"rope_theta": 1e4}),
        Difference("config", f"{CONFIG}:rope_theta", "1000000.0", "10000.0"),
    ),
    "a key within a key": (
        checkpoint(config={"text_config": {"head_dim": 64}, "model_type": "a"}),
        checkpoint(config={"text_config": {}, "model_type": "a"}),
        Difference("config", f"{CONFIG}:text_config.head_dim", "64", "absent"),
    ),
    "a file that changes behaviour": (
        checkpoint(files={"chat_template.jinja": FileFact(9, "a" * 64)}),
        checkpoint(files={"chat_template.jinja": FileFact(9, "b" * 64)}),
        Difference("file", "chat_template.jinja", "SHA-256 aaaaaaaaaaaa...", "SHA-256 bbbbbbbbbbbb..."),
    ),
}


@pytest.mark.parametrize(("one", "other", "difference"), DIFFERENCES.values(), ids=DIFFERENCES)
def test_difference_is_found_and_told(one: Checkpoint, other: Checkpoint, difference: Difference) -> None:
    assert diff(one, other) == [difference]


def test_late_item_of_a_long_list_in_the_config_counts() -> None:
    one = checkpoint(config={"layer_types": [*LAYER_TYPES, "full_attention"]})
    other = checkpoint(config={"layer_types": [*LAYER_TYPES, "sliding_attention"]})
    assert [difference.name for difference in diff(one, other)] == [f"{CONFIG}:layer_types"]


# checkpoint, reference
ALIKE: dict[str, tuple[Checkpoint, Checkpoint]] = {
    "a lock without a config": (checkpoint(config={"model_type": "a"}), checkpoint()),
    "version of the writer": (
        checkpoint(config={"model_type": "a", "transformers_version": "5.5"}),
        checkpoint(config={"model_type": "a", "transformers_version": "5.17"}),
    ),
    "spelling of the quantization config": (
        checkpoint(WEIGHT, config={"a": 1, "quantization_config": {"ignore": ["re:x"]}}, declaration=FP8),
        checkpoint(WEIGHT, config={"a": 1, "quantization_config": {"ignore": ["x"]}}, declaration=FP8),
    ),
    "older key of the quantization config": (
        checkpoint(WEIGHT, config={"a": 1, "compression_config": {"ignore": ["x"]}}, declaration=FP8),
        checkpoint(WEIGHT, config={"a": 1, "quantization_config": {"ignore": ["x"]}}, declaration=FP8),
    ),
    "where it was loaded from": (
        checkpoint(config={"a": 1, "_name_or_path": "org/base"}),
        checkpoint(config={"a": 1, "_name_or_path": "/models/base"}),
    ),
    "files of unknown digest": (
        checkpoint(files={"tokenizer.json": FileFact(9, "a" * 64)}),
        checkpoint(files={"tokenizer.json": FileFact(10)}),
    ),
    "files that change nothing": (
        checkpoint(files={"README.md": FileFact(9, "a" * 64), "tokenizer.json": FileFact(9, "c" * 64)}),
        checkpoint(files={"README.md": FileFact(9, "b" * 64), "tokenizer.json": FileFact(9, "c" * 64)}),
    ),
    "how scales were observed": (
        checkpoint(WEIGHT, declaration=FP8, schemes={"q_proj": FP8_SCHEME}),
        checkpoint(
            WEIGHT,
            declaration=FP8,
            schemes={"q_proj": replace(FP8_SCHEME, weights=replace(FP8_SCHEME.weights, observer="mse"))},
        ),
    ),
}


@pytest.mark.parametrize(("one", "other"), ALIKE.values(), ids=ALIKE)
def test_what_has_no_effect_is_no_difference(one: Checkpoint, other: Checkpoint) -> None:
    assert diff(one, other) == []


FUSED = {"e.gate_up_proj": Tensor("BF16", (2, 8, 4)), "e.down_proj": Tensor("BF16", (2, 4, 4))}
SPLIT = {
    f"e.{expert}.{name}.weight": Tensor("BF16", (4, 4))
    for expert in range(2)
    for name in ("gate_proj", "up_proj", "down_proj")
}


def test_fused_experts_differ_from_split_ones_in_layout_alone() -> None:
    assert [(difference.kind, difference.name) for difference in diff(checkpoint(SPLIT), checkpoint(FUSED))] == [
        ("layout", "e.down_proj"),
        ("layout", "e.gate_up_proj"),
    ]


@pytest.mark.parametrize(
    "changed",
    [
        {"e.1.up_proj.weight": Tensor("F8_E4M3", (4, 4))},
        {"e.1.up_proj.weight": Tensor("BF16", (4, 5))},
    ],
    ids=["another dtype", "another shape"],
)
def test_experts_that_are_not_the_same_are_more_than_a_layout(changed: Structure) -> None:
    kinds = {difference.kind for difference in diff(checkpoint({**SPLIT, **changed}), checkpoint(FUSED))}
    assert kinds == {"layout", "only-in-checkpoint", "only-in-reference"}


# names here, names there, names here that a rule renames -> their names there, rules
RENAMED: dict[str, tuple[list[str], list[str], dict[str, str], list[str]]] = {
    "another prefix": (
        ["model.a.w", "model.b.w", "c.w"],
        ["language.a.w", "language.b.w", "c.w"],
        {"model.a.w": "language.a.w", "model.b.w": "language.b.w"},
        ["says model where the other says language"],
    ),
    "a prefix more": (
        ["model.a.w", "model.b.w"],
        ["a.w", "b.w"],
        {"model.a.w": "a.w", "model.b.w": "b.w"},
        ["begins with model. where the other begins with nothing"],
    ),
    "a prefix less": (
        ["a.w", "b.w"],
        ["model.a.w", "model.b.w"],
        {"a.w": "model.a.w", "b.w": "model.b.w"},
        ["begins with nothing where the other begins with model."],
    ),
    "a part in the middle": (
        ["a.0.mlp.w", "a.1.mlp.w", "a.0.mixer.w"],
        ["a.0.ffn.w", "a.1.ffn.w", "a.0.mixer.w"],
        {"a.0.mlp.w": "a.0.ffn.w", "a.1.mlp.w": "a.1.ffn.w"},
        ["says mlp where the other says ffn"],
    ),
    "the number of an expert behind its projection": (
        ["experts.up.0.w", "experts.up.1.w"],
        ["experts.0.up.w", "experts.1.up.w"],
        {"experts.up.0.w": "experts.0.up.w", "experts.up.1.w": "experts.1.up.w"},
        ["has the number of the expert on the other side of its projection"],
    ),
    "four rules at most, those that rename most": (
        [f"{part}.{number}.w" for count, part in enumerate("abcde", 2) for number in range(count)],
        [f"{part}{part}.{number}.w" for count, part in enumerate("abcde", 2) for number in range(count)],
        {
            f"{part}.{number}.w": f"{part}{part}.{number}.w"
            for count, part in enumerate("bcde", 3)
            for number in range(count)
        },
        [f"says {part} where the other says {part}{part}" for part in "edcb"],
    ),
    "one name alone is no rule": (["a.0.w"], ["b.0.w"], {}, []),
    "another number is no rule": (["a.0.w", "a.1.w"], ["a.2.w", "a.3.w"], {}, []),
    "another end is no rule": (["a.0.w", "a.1.w"], ["a.0.v", "a.1.v"], {}, []),
    "two parts at once are no rule": (["a.b.0.w", "a.b.1.w"], ["c.d.0.w", "c.d.1.w"], {}, []),
    "names that both have stay": (
        ["a.0.w", "a.1.w", "a.2.w", "b.2.w"],
        ["b.0.w", "b.1.w", "a.2.w", "b.2.w"],
        {"a.0.w": "b.0.w", "a.1.w": "b.1.w"},
        ["says a where the other says b"],
    ),
}


def test_renamed_tensors_of_one_rule_stand_together_by_the_first_of_them() -> None:
    rule = "another prefix"
    differences = [Difference("renamed", f"a.{name}", rule, f"b.{name}") for name in ("x", "y", "z")]
    (found,) = group([*differences])
    assert (str(found.pattern), found.reference, found.count) == ("a.x", "b.x", 3)


@pytest.mark.parametrize(("ours", "theirs", "renamed", "rules"), RENAMED.values(), ids=RENAMED)
def test_names_that_a_rule_turns_into_the_others_are_renamed_and_no_more(
    ours: list[str], theirs: list[str], renamed: dict[str, str], rules: list[str]
) -> None:
    tensor = Tensor("BF16", (8, 4))
    differences = diff(checkpoint(dict.fromkeys(ours, tensor)), checkpoint(dict.fromkeys(theirs, tensor)))
    found = {item.name: item.reference for item in differences if item.kind == "renamed"}
    assert found == renamed
    assert list(dict.fromkeys(item.checkpoint for item in differences if item.kind == "renamed")) == rules
    left = {item.name for item in differences if item.kind != "renamed"}
    assert left == {*ours, *theirs} - (set(ours) & set(theirs)) - renamed.keys() - set(renamed.values())


def test_renamed_modules_are_compared_under_the_others_name() -> None:
    ours = {f"a.{number}.weight": Tensor("F8_E4M3", (8, 4)) for number in range(2)}
    theirs = {f"b.{number}.weight": Tensor("F8_E4M3", (8, number + 4)) for number in range(2)}
    one = checkpoint(ours, declaration=FP8, schemes={"a.0": FP8_SCHEME, "a.1": FP8_SCHEME})
    other = checkpoint(theirs, declaration=FP8, schemes={"b.0": FP8_SCHEME, "b.1": W4_SCHEME})
    assert [(item.kind, item.name) for item in diff(one, other)] == [
        ("renamed", "a.0.weight"),
        ("renamed", "a.1.weight"),
        ("shape", "b.1.weight"),
        ("scheme", "b.1"),
    ]


def test_published_builds_of_one_base_differ_only_where_they_are_quantized() -> None:
    fp8 = reference_lock("RedHatAI/gemma-4-26B-A4B-it-FP8-dynamic")
    nvfp4 = reference_lock("RedHatAI/gemma-4-26B-A4B-it-NVFP4")
    differences = diff(fp8, nvfp4)
    quantized = {difference.name.rpartition(".")[0] for difference in differences if difference.kind == "shape"}
    assert quantized == set(fp8.schemes)
    assert [
        item for item in differences if item.kind == "only-in-checkpoint" and not item.name.endswith(".weight")
    ] == []


# --- explanations ---

WHY = "A reason of a test."
DIFFERING = [Difference("only-in-reference", f"a.{number}.w") for number in range(4)]


def entry(tensors: str, kind: Any = "only-in-reference") -> Explanation:
    return Explanation(difference=kind, tensors=tensors, why=WHY)


# entries; which of a.{0-3}.w no entry explains or several do; which entries overreach, by which name
EXPLAINED: dict[str, tuple[list[Explanation], set[int], list[tuple[str, str]]]] = {
    "by one entry": ([entry("a.{0-3}.w")], set(), []),
    "by several that share them out": ([entry("a.{0-1}.w"), entry("a.2.w"), entry("a.3.w")], set(), []),
    "by none": ([], {0, 1, 2, 3}, []),
    "in part": ([entry("a.{0-1}.w")], {2, 3}, []),
    "by an entry of another kind": (
        [entry("a.{0-3}.w", "only-in-checkpoint")],
        {0, 1, 2, 3},
        [("a.{0-3}.w", "a.0.w")],
    ),
    "twice": ([entry("a.{0-3}.w"), entry("a.3.w")], {3}, []),
    "with an entry that explains nothing": ([entry("a.{0-3}.w"), entry("b.w")], set(), [("b.w", "b.w")]),
    "by an entry that names more": ([entry("a.{0-5}.w")], set(), [("a.{0-5}.w", "a.4.w")]),
}


@pytest.mark.parametrize(("entries", "unexplained", "overreaching"), EXPLAINED.values(), ids=EXPLAINED)
def test_each_difference_is_explained_by_exactly_one_entry(
    entries: list[Explanation], unexplained: set[int], overreaching: list[tuple[str, str]]
) -> None:
    explained = explain(DIFFERING, entries)
    failed = {*explained.unexplained, *explained.contested}
    assert {DIFFERING.index(difference) for difference in failed} == unexplained
    assert [(reaching.tensors, name) for reaching, name in explained.overreaching] == overreaching
    assert explained.holds == (not unexplained and not overreaching)


def test_difference_that_two_entries_explain_stands_with_neither() -> None:
    explained = explain(DIFFERING, [entry("a.{0-3}.w"), entry("a.3.w")])
    assert (explained.unexplained, explained.contested) == ((), (DIFFERING[3],))
    assert [differences for _, differences in explained.by_entry] == [tuple(DIFFERING[:3]), ()]


def test_no_difference_needs_no_explanation() -> None:
    assert explain([], []).holds


def test_explained_differences_stand_with_the_entry_that_explains_them() -> None:
    entries = [entry("a.{0-1}.w"), entry("a.{2-3}.w")]
    assert explain(DIFFERING, entries).by_entry == (
        (entries[0], tuple(DIFFERING[:2])),
        (entries[1], tuple(DIFFERING[2:])),
    )


NUMBERS = st.integers(0, 3)


@given(
    st.sets(NUMBERS).map(sorted),
    st.lists(st.tuples(NUMBERS, st.sampled_from(["only-in-reference", "dtype"])), max_size=5),
)
@settings(deadline=None)
def test_explanations_hold_exactly_if_they_and_the_differences_pair_off(
    differing: list[int], explained: list[tuple[int, str]]
) -> None:
    differences = [DIFFERING[number] for number in differing]
    entries = [entry(f"a.{number}.w", kind) for number, kind in explained]
    pairs = sorted(explained) == [(number, "only-in-reference") for number in differing]
    assert explain(differences, entries).holds == pairs
