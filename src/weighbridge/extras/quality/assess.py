"""A build's answers beside its source's, as sections of a report, and the judgement by a recipe's limits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from weighbridge.base.model_card import CARD, card_metadata
from weighbridge.base.source import fetch
from weighbridge.checkpoint.model import Checkpoint, read_small
from weighbridge.checkpoint.readable import check_read_by_transformers
from weighbridge.engines.oneshot.load import load_tokenizer
from weighbridge.errors import StructureError
from weighbridge.extras.quality.forward import Dtype, Forward, open_forward
from weighbridge.extras.quality.metrics import (
    LEVEL,
    RESAMPLES,
    SEED,
    Interval,
    Measured,
    gathered,
    interval,
    measure_window,
)
from weighbridge.extras.quality.text import Tokens, Windows, open_text, take_windows
from weighbridge.progress import Progress
from weighbridge.recipe.quality import Quality
from weighbridge.report import Finding, Report, Section, Severity, Table

DEQUANTIZED_TAG = "dequantized"
"""A tag of the model card of a source that was quantized before; `weighbridge.samples.trained.smollm2` writes it."""

FOUR_BITS = 4
KL_DIGITS = 5
"""Digits behind the point of a divergence in nats."""


@dataclass(frozen=True)
class Evaluated:
    """A build that was measured.

    Attributes:
        build: its headers.
        bits: bits a weight of its text model, scales counted.
        notes: what of it took no part.
    """

    build: Checkpoint
    bits: float
    notes: tuple[str, ...]
    measured: Measured

    @property
    def schemes(self) -> str:
        """Its schemes, in words."""
        return "; ".join(sorted({str(scheme) for scheme in self.build.schemes.values()})) or "unquantized"

    @property
    def weight_bits(self) -> frozenset[int]:
        """Bits of a code of its quantized weights."""
        return frozenset(scheme.weights.num_bits for scheme in self.build.schemes.values())


def windows_of(source: Checkpoint, text: str | None, *, count: int) -> Windows:
    """Windows of a text in the tokens of a source that lies on disk.

    Raises:
        DatasetError: the text cannot be read, or is too short.
        BuildError: the source's tokenizer cannot be loaded.
    """
    assert source.directory is not None
    return take_windows(open_text(text), load_tokenizer(source.directory, where=source.label), count=count)


def evaluate(
    builds: Sequence[Checkpoint],
    source: Checkpoint,
    windows: Windows,
    *,
    dtype: Dtype,
    device: str,
    progress: Progress,
) -> list[Evaluated]:
    """Measure builds against their source, one after the other: two models are in memory at a time.

    Raises:
        StructureError, HubError: a side cannot be read.
    """
    original = open_forward(source, dtype=dtype, device=device, progress=progress)
    found = []
    for build in builds:
        forward = open_forward(build, dtype=dtype, device=device, progress=progress)
        measured = measure(original, forward, windows.tokens, progress=progress)
        found.append(Evaluated(build, forward.bits_a_weight, forward.notes, measured))
    return found


def measure(source: Forward, build: Forward, tokens: Tokens, *, progress: Progress) -> Measured:
    """Compare what two models expect after each token, window by window.

    Args:
        tokens: [windows, tokens].

    Raises:
        StructureError: their vocabularies are not the same.
    """
    if source.vocabulary != build.vocabulary:
        what = f"has {build.vocabulary:,} tokens, and {source.label} has {source.vocabulary:,}"
        raise StructureError(what, where=build.label, remedy="name the source that it was built from")
    windows = []
    with progress.stage(f"reading with {build.label}", tokens.nbytes):
        for window in tokens:
            one, other = (model.log_probabilities(window) for model in (source, build))
            windows.append(measure_window(one, other, window))
            progress.advance(window.nbytes)
    return gathered(windows)


def judge(built: Checkpoint, source: Checkpoint, limits: Quality, progress: Progress, *, device: str = "cpu") -> Report:
    """Measure a build and hold it against a recipe's limits.

    Limits are held against the estimates; where the interval reaches across a limit, a warning says so.

    Args:
        built: on disk.
        source: what it was built from; fetched, if it lies on the hub.

    Raises:
        DatasetError: the text that the recipe names cannot be read, or is too short.
        BuildError: the source's tokenizer cannot be loaded.
        StructureError, HubError: a side cannot be read.
    """
    source = fetch(source, progress)
    windows = windows_of(source, limits.text, count=limits.windows)
    (found,) = evaluate([built], source, windows, dtype=limits.dtype, device=device, progress=progress)
    section = section_of(found, source, limits)
    verdict = f"{built.label} answers {'within' if section.holds else 'beyond'} the recipe's limits: {section.summary}"
    sections = (text_section(windows, limits.dtype), section)
    return Report("quality", built.label, verdict, sections, metrics=metrics(found.measured))


def text_section(windows: Windows, dtype: Dtype) -> Section:
    """What was read, and how the intervals were made."""
    count, length = windows.tokens.shape
    return Section(
        "text",
        "the text",
        f"{count:,} windows of {length:,} tokens, spread evenly over {windows.text.name}",
        facts={
            "SHA-256 of the text": windows.text.sha256,
            "arithmetic": f"{dtype}, this project's own dequantization in transformers' architecture",
            "intervals": f"{100 * LEVEL:g} %, percentile bootstrap over windows, {RESAMPLES:,} draws, seed {SEED}",
        },
    )


def section_of(found: Evaluated, source: Checkpoint, limits: Quality | None = None) -> Section:
    """A build beside its source, as the published cards tabulate it: source, build, share retained."""
    seen = found.measured
    kl, agreement, ratio = (figures(seen)[name] for name in ("kl", "agreement", "ratio"))
    source_perplexity, build_perplexity = (interval([losses], np.exp) for losses in (seen.source_loss, seen.build_loss))
    kept = interval([seen.source_loss, seen.build_loss], lambda base, build: 100 * np.exp(base - build))
    retained = interval([seen.build_hits, seen.source_hits], lambda build, base: 100 * build / base)
    source_hits, build_hits = (percent(interval([hits])) for hits in (seen.source_hits, seen.build_hits))
    rows = (
        ("KL divergence, nats a token", "", shown(kl, KL_DIGITS), ""),
        ("same most probable token", "", percent(agreement), ""),
        ("perplexity", shown(source_perplexity), shown(build_perplexity), shown(kept, unit=" %")),
        ("next token hit", source_hits, build_hits, shown(retained, unit=" %")),
    )
    findings = [*_beyond({"max_kl": kl, "min_agreement": agreement, "max_perplexity_ratio": ratio}, limits)]
    findings += _four_bit_source(found, source)
    findings += [Finding("quality/took-no-part", Severity.NOTE, found.build.label, note) for note in found.notes]
    return Section(
        "answers",
        f"{found.build.label} beside {source.label}",
        f"KL {shown(kl, KL_DIGITS)} nats a token, same most probable token {percent(agreement)}, "
        f"perplexity times {shown(ratio, 4)}",
        findings=tuple(findings),
        facts={"schemes": found.schemes, "bits a weight": f"{found.bits:.3f}"},
        tables=(Table(("", "source", "build", "retained"), rows),),
    )


def figures(seen: Measured) -> dict[str, Interval]:
    """KL divergence, agreement, and the build's perplexity by the source's, by the names kl, agreement and ratio."""
    return {
        "kl": interval([seen.kl]),
        "agreement": interval([seen.agreement]),
        "ratio": interval([seen.source_loss, seen.build_loss], lambda source, build: np.exp(build - source)),
    }


def metrics(seen: Measured) -> dict[str, int | float]:
    """The same figures without their intervals, as a report has numbers."""
    kl, agreement, ratio = figures(seen).values()
    return {"kl_nats": kl.value, "agreement_share": agreement.value, "perplexity_ratio": ratio.value}


def comparison(builds: Sequence[Evaluated], source: Checkpoint) -> Section:
    """Builds beside each other, by the bits of a weight, and those of equal code bits in pairs."""
    rows = []
    for found in sorted(builds, key=lambda item: (item.bits, item.build.label)):
        kl, agreement, ratio = figures(found.measured).values()
        perplexity = interval([found.measured.build_loss], np.exp)
        own = shown(kl, KL_DIGITS), percent(agreement), shown(perplexity), shown(ratio, 4)
        rows.append((found.build.label, f"{found.bits:.3f}", *own))
    columns = ("build", "bits a weight", "KL, nats a token", "same token", "perplexity", "times the source's")
    tables = [Table(columns, tuple(rows))]
    pairs = [_paired(one, other) for one, other in combinations(builds, 2) if one.weight_bits == other.weight_bits]
    if pairs and not is_dequantized(source):
        tables.append(Table(("nearer to the source", "than", "KL less by, nats a token", ""), tuple(pairs)))
    perplexity = interval([builds[0].measured.source_loss], np.exp)
    return Section(
        "answers-compared",
        "the builds beside each other",
        f"{len(builds)} builds of {source.label}, whose perplexity is {shown(perplexity)}",
        tables=tuple(tables),
    )


def is_dequantized(source: Checkpoint) -> bool:
    """Whether a source's own model card says that its weights were quantized before and made floats again.

    Raises:
        StructureError: the card cannot be read.
    """
    if source.directory is None or CARD not in source.files:
        return False
    where = f"{source.label}/{CARD}"
    tags = card_metadata(read_small(source.directory / CARD, label=source.label), where=where).get("tags")
    return isinstance(tags, list) and DEQUANTIZED_TAG in tags


def shown(found: Interval, digits: int = 2, unit: str = "") -> str:
    """An estimate and its interval."""
    return f"{found.value:.{digits}f}{unit} [{found.low:.{digits}f}, {found.high:.{digits}f}]"


def percent(found: Interval) -> str:
    """A share, as percent."""
    return shown(Interval(100 * found.value, 100 * found.low, 100 * found.high), unit=" %")


def _paired(one: Evaluated, other: Evaluated) -> tuple[str, str, str, str]:
    """Which of two lies nearer to the source, by the paired bootstrap of the difference of their divergences."""
    near, far = (one, other) if one.measured.kl.mean() <= other.measured.kl.mean() else (other, one)
    less = interval([far.measured.kl - near.measured.kl])
    sure = "beyond the interval" if less.low > 0 else "cannot be told apart on this text"
    return near.build.label, far.build.label, shown(less, KL_DIGITS), sure


def _four_bit_source(found: Evaluated, source: Checkpoint) -> list[Finding]:
    if not is_dequantized(source):
        return []
    what = "was quantized before, as its card says, so what is measured is on top of that"
    if any(bits <= FOUR_BITS for bits in found.weight_bits):
        what += "; four-bit schemes are not ranked by it: the one whose grid lies nearest to the old would win"
    return [Finding("quality/source-was-quantized", Severity.NOTE, source.label, what)]


def _beyond(seen: Mapping[str, Interval], limits: Quality | None) -> list[Finding]:
    """What exceeds a limit, and what only its interval does."""
    findings = []
    for name, found in seen.items():
        limit = None if limits is None else getattr(limits, name)
        if limit is None:
            continue
        least = name.startswith("min_")
        said = f"is {shown(found, 4)}, where the recipe asks for {limit} or {'more' if least else 'less'}"
        if (found.value < limit) if least else (found.value > limit):
            remedy = "keep more modules (make sensitivity says which), or take another scheme"
            findings.append(Finding("quality/limit", Severity.ERROR, f"quality.{name}", said, remedy=remedy))
        elif (found.low < limit) if least else (found.high > limit):
            remedy = "take more windows, or a wider limit"
            findings.append(Finding("quality/near-limit", Severity.WARNING, f"quality.{name}", said, remedy=remedy))
    return findings


def check_source(source: Checkpoint, builds: Sequence[Checkpoint]) -> None:
    """Refuse what cannot be measured before anything is loaded.

    Raises:
        StructureError: the source or a build is a structure lock, which has no weights, or transformers cannot load it.
    """
    for checkpoint in (source, *builds):
        check_read_by_transformers(checkpoint)
        if not checkpoint.shards:
            raise StructureError("is a structure lock, which holds no weights to measure", where=checkpoint.label)
