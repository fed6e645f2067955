"""Patterns match as compressed-tensors matches them, in bounded time; what cannot be so matched is refused by name."""

from __future__ import annotations

import re

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from weighbridge.text.lookarounds import Expression, NotCovered, Steps
from weighbridge.text.patterns import MAX_PATTERN_LENGTH, PatternError, PatternList, check_pattern

Q_PROJ = "model.language_model.layers.0.self_attn.q_proj"
EMBED = "model.language_model.embed_tokens"

# entry, module name, whether it matches
MATCHES: dict[str, tuple[str, str, bool]] = {
    "equal name": ("lm_head", "lm_head", True),
    "name is no prefix": ("lm_head", "lm_head.inner", False),
    "name is no suffix": ("embed_tokens", EMBED, False),
    "name is no expression": ("model.layers", "model_layers", False),
    "the prefix of an expression is part of a name": ("lm_head", "re:lm_head", False),
    "anchored at the start": ("re:embed_tokens", EMBED, False),
    "anything before it": ("re:.*embed_tokens", EMBED, True),
    "not anchored at the end": ("re:.*self_attn", Q_PROJ, True),
    "anchored at the end when asked to": ("re:.*self_attn$", Q_PROJ, False),
    "end": ("re:.*q_proj$", Q_PROJ, True),
    "start": ("re:^model", Q_PROJ, True),
    "a dot is any character": ("re:model.language.model", Q_PROJ, True),
    "an escaped dot is a dot": (r"re:model\.language\.model", Q_PROJ, False),
    "alternatives": (r"re:.*(q|k)_proj", Q_PROJ, True),
    "alternatives at the top": (r"re:vision|model", Q_PROJ, True),
    "character class": (r"re:.*layers\.[0-4]\.", Q_PROJ, True),
    "digits": (r"re:.*layers\.\d+\.mlp", Q_PROJ, False),
    "repetition": (r"re:.*layers\.[0-9]{1,2}\.", Q_PROJ, True),
    "empty expression": ("re:", Q_PROJ, True),
    "case counts": ("re:MODEL", Q_PROJ, False),
    "case does not count when told so": ("re:(?i)MODEL", Q_PROJ, True),
    "empty name": ("re:.*", "", True),
}


@pytest.mark.parametrize(("entry", "name", "matches"), MATCHES.values(), ids=MATCHES)
def test_entry_matches_as_in_compressed_tensors(entry: str, name: str, matches: bool) -> None:
    from compressed_tensors.utils.match import match_name

    assert (PatternList([entry]).first(name) == 0, match_name(name, entry)) == (matches, matches)


def test_all_entries_that_match_are_told_in_their_order() -> None:
    entries = PatternList(["re:.*proj$", "lm_head", Q_PROJ, "re:.*k_proj", "re:model"])
    assert entries.matches(Q_PROJ) == [0, 2, 4]


def test_no_entry_matches_a_name_that_none_is_for() -> None:
    entries = PatternList(["re:.*k_proj", "lm_head"])
    assert (entries.matches(Q_PROJ), entries.first(Q_PROJ)) == ([], None)


def test_empty_list_matches_nothing() -> None:
    assert PatternList([]).first(Q_PROJ) is None


# The expressions of a list are joined in one: groups of the same name, flags and bars must stay what they were.
UNFRIENDLY_NEIGHBOURS = ["re:(?P<layer>a)", "re:(?P<layer>b)", "re:(?i)C", "re:c|d", "re:"]


@pytest.mark.parametrize("name", ["a", "b", "c", "C", "d", "e"])
def test_expressions_of_one_list_do_not_disturb_each_other(name: str) -> None:
    from compressed_tensors.utils.match import match_name

    expected = [index for index, entry in enumerate(UNFRIENDLY_NEIGHBOURS) if match_name(name, entry)]
    assert PatternList(UNFRIENDLY_NEIGHBOURS).matches(name) == expected


LITERALS = st.sampled_from(
    ["a", "b", "0", "1", ".", r"\.", r"\d", r"\w", r"\D", "[ab]", "[^a]", "[0-9]", "_", "^", "$"]
)


def expressions() -> st.SearchStrategy[str]:
    """Expressions that mean the same to Python and to RE2."""
    return st.recursive(
        LITERALS,
        lambda inner: st.one_of(
            st.lists(inner, min_size=1, max_size=3).map("".join),
            st.lists(inner, min_size=1, max_size=3).map(lambda parts: f"({'|'.join(parts)})"),
            st.builds("(?:{}){}".format, inner, st.sampled_from(["*", "+", "?", "*?", "{2}", "{1,2}", "{1,}"])),
        ),
        max_leaves=6,
    )


NAMES = st.text(alphabet="ab01._", max_size=8)


@given(expressions(), NAMES)
@settings(deadline=None, max_examples=400)
def test_any_expression_matches_as_in_compressed_tensors(expression: str, name: str) -> None:
    from compressed_tensors.utils.match import match_name

    entry = f"re:{expression}"
    assert (PatternList([entry]).first(name) == 0) == match_name(name, entry)


PIECES = st.one_of(
    LITERALS, st.sampled_from([r"\b", r"\B", r"\Z", r"\A", "(?i:B)", "[^ab]", "(?s:.)", r"\W", "(?m:^)", "(?m:$)"])
)


def looking() -> st.SearchStrategy[str]:
    """Expressions with lookarounds anywhere, also within each other and under repetitions."""
    return st.recursive(
        PIECES,
        lambda inner: st.one_of(
            st.lists(inner, min_size=1, max_size=3).map("".join),
            st.lists(inner, min_size=1, max_size=3).map(lambda parts: f"({'|'.join(parts)})"),
            st.builds("(?:{}){}".format, inner, st.sampled_from(["*", "+", "?", "*?", "{2}", "{1,2}", "{0,3}?"])),
            st.builds("({}{})".format, st.sampled_from(["?=", "?!", "?<=", "?<!"]), inner),
        ),
        max_leaves=8,
    )


@given(looking(), st.lists(st.text(alphabet="abB01._\n", max_size=9), min_size=1, max_size=6))
@settings(deadline=None, max_examples=1500)
def test_any_expression_with_lookarounds_matches_as_python_matches_it(expression: str, names: list[str]) -> None:
    try:
        compiled = re.compile(expression)
    except re.error:
        assume(False)
    ours = Expression(expression)
    assert [ours.matches(name, Steps()) for name in names] == [compiled.match(name) is not None for name in names]


# As published checkpoints and vLLM's own tests write them.
PUBLISHED = {
    "not in a drafting head": r"^(?!mtp\.).*layers\.\d+\.mlp\.experts\.\d+\.(gate_proj|up_proj|down_proj)$",
    "not the shared experts": r"^(?!.*shared_experts).*$",
    "not the last layer": r"model\.layers\.(?!61\.).*proj$",
    "before a projection": r".*mlp\.(?=gate_proj|up_proj)",
    "behind attention": r".*(?<=self_attn\.)[qkv]_proj",
    "not behind a vision tower": r"(?!.*vision)(?=.*(attn|mlp)).*(?<!norm)$",
}
MODULE_NAMES = [
    f"{prefix}{layer}.{rest}"
    for prefix in ("model.layers.", "mtp.layers.", "model.language_model.layers.", "model.vision_tower.layers.")
    for layer in (0, 6, 61)
    for rest in (
        *("self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.experts.17.down_proj", "input_layernorm"),
        "mlp.shared_experts.up_proj",
    )
]


@pytest.mark.parametrize("expression", PUBLISHED.values(), ids=PUBLISHED)
def test_published_lookarounds_match_as_in_compressed_tensors(expression: str) -> None:
    from compressed_tensors.utils.match import match_name

    entries = PatternList([f"re:{expression}"])
    matched = [name for name in MODULE_NAMES if entries.first(name) == 0]
    assert matched == [name for name in MODULE_NAMES if match_name(name, f"re:{expression}")]
    assert 0 < len(matched) < len(MODULE_NAMES)


def test_lookarounds_and_plain_expressions_of_one_list_are_told_in_their_order() -> None:
    entries = PatternList(["re:.*proj$", "re:(?!mtp).*q_proj", Q_PROJ, "re:(?=mtp)"])
    assert entries.matches(Q_PROJ) == [0, 1, 2]


def test_an_expression_takes_no_more_steps_than_are_left() -> None:
    steps = Steps()
    steps.left = 100
    nested = Expression("(?!x)(?:(?:(?:ab)+c?)+d?)+e$")
    with pytest.raises(NotCovered, match="takes more steps than any honest one"):
        nested.matches("ab" * 100, steps)
    assert nested.matches("ababe", Steps())


@given(st.lists(st.one_of(expressions().map("re:{}".format), NAMES), max_size=5), NAMES)
@settings(deadline=None)
def test_list_matches_exactly_the_entries_that_match_alone(entries: list[str], name: str) -> None:
    alone = [index for index, entry in enumerate(entries) if PatternList([entry]).first(name) == 0]
    assert PatternList(entries).matches(name) == alone


# entry, what the sentence says
REFUSED: dict[str, tuple[str, str]] = {
    "lookahead and a back-reference": (r"re:(?=(a))\1", "cannot be matched in a bounded time (it uses groupref)"),
    "lookahead and an atomic group": ("re:(?!a)(?>b+)", "cannot be matched in a bounded time (it uses atomic group)"),
    "lookahead and a possessive repetition": ("re:(?!a)b++", "cannot be matched in a bounded time"),
    "lookbehind of any width": ("re:(?<=a*)b", "does not compile (look-behind requires fixed-width pattern)"),
    "back-reference": (r"re:(a)\1", "cannot be matched in linear time"),
    "named back-reference": ("re:(?P<x>a)(?P=x)", "cannot be matched in linear time"),
    "a thousand and one": ("re:a{1001}", "cannot be matched in linear time"),
    "thousands within thousands": ("re:((a{100}){100}){100}", "cannot be matched in linear time"),
    "open bracket": ("re:layers.[0-4", "does not compile (unterminated character set at position 7)"),
    "open group": ("re:(q|k", "does not compile (missing ), unterminated subpattern at position 0); check brackets"),
    "shell pattern": ("re:*norm*", "does not compile (nothing to repeat at position 0); did you mean 're:.*norm*'?"),
    "stray backslash": ("re:norm\\", "does not compile (bad escape (end of pattern) at position 4)"),
    "reversed range": ("re:[z-a]", "does not compile (bad character range z-a at position 1)"),
    "very long": ("re:" + "a" * (MAX_PATTERN_LENGTH + 1), f"is {MAX_PATTERN_LENGTH + 1:,} characters long"),
}


@pytest.mark.parametrize(("entry", "sentence"), REFUSED.values(), ids=REFUSED)
def test_expression_that_cannot_be_matched_is_refused(entry: str, sentence: str) -> None:
    with pytest.raises(PatternError) as caught:
        check_pattern(entry)
    assert sentence in str(caught.value)
    assert len(str(caught.value)) < 500


# RE2 takes these; compressed-tensors, which matches with Python's re, would stop at them.
FOREIGN = {
    "named group of another kind": "re:(?<layer>a)",
    "flag in the middle": "re:a(?i)b",
    "ungreedy": "re:(?U)a",
    "cleared flag": "re:(?-i)a",
    "quoted": r"re:\Qa.b",
    "end of text": r"re:a\z",
    "Unicode class": r"re:\pL",
    "any byte": r"re:\C",
    "code point": r"re:\x{61}",
    "class in a range": r"re:[\d-z]",
    "repeated anchor": "re:^*",
}


@pytest.mark.parametrize("entry", FOREIGN.values(), ids=FOREIGN)
def test_expression_that_python_does_not_compile_is_refused(entry: str) -> None:
    with pytest.raises(PatternError, match="does not compile"):
        check_pattern(entry)


# Both engines take these, and mean something else.
AMBIGUOUS = {
    "no lower bound": ("re:a{,3}b", ["aab", "a{,3}b"]),
    "class of POSIX": ("re:[[:alpha:]]", ["a]", "b", ":]"]),
}


@pytest.mark.filterwarnings("ignore:Possible nested set:FutureWarning")
@pytest.mark.parametrize(("entry", "candidates"), AMBIGUOUS.values(), ids=AMBIGUOUS)
def test_expression_that_the_engines_read_differently_is_refused_or_read_as_upstream_does(
    entry: str, candidates: list[str]
) -> None:
    from compressed_tensors.utils.match import match_name

    try:
        entries = PatternList([entry])
    except PatternError:
        return
    assert [entries.first(name) == 0 for name in candidates] == [match_name(name, entry) for name in candidates]


@pytest.mark.parametrize("entry", ["re:\ud800", "re:a\ud800b"])
def test_expression_that_is_no_text_is_refused(entry: str) -> None:
    with pytest.raises(PatternError):
        check_pattern(entry)


def test_name_is_never_an_expression() -> None:
    check_pattern("(((not an expression")


# Python's own engine takes longer than anybody lives on each of these; if ours did, the test would not end.
EVIL = {
    "nested plus": (r"re:(a+)+$", "a" * 5000 + "!"),
    "nested star": (r"re:(a*)*x", "a" * 5000),
    "dots": (r"re:(.*)*x", "a" * 5000),
    "overlapping alternatives": (r"re:(a|aa)+$", "a" * 5000 + "!"),
    "many optionals": ("re:" + "a?" * 30 + "a" * 30 + "$", "a" * 29),
    "many stars": ("re:" + ".*" * 30 + "x", "a" * 5000),
    "nested plus behind a lookahead": (r"re:(?!x)((a+)+)+$", "a" * 1000 + "!"),
    "a lookahead of nested stars": (r"re:(?=((a*)*)*x)", "a" * 1000),
    "nested sixty deep": ("re:(?!x)" + "(?:" * 60 + "a" + "+)" * 60 + "$", "aaa!"),
    "lookaheads under stars": (r"re:((?=(.*)*)a)*x", "a" * 300),
}


@pytest.mark.parametrize(("entry", "name"), EVIL.values(), ids=EVIL)
def test_evil_expression_is_matched_at_once(entry: str, name: str) -> None:
    assert PatternList([entry]).first(name) is None


def test_a_thousand_evil_expressions_are_matched_at_once() -> None:
    entries = PatternList([f"re:(a+)+{number}$" for number in range(1000)])
    assert entries.matches("a" * 1000 + "17") == [17]
