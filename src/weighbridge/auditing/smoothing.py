"""Smoothed pairs (AWQ, SmoothQuant): one layer's outputs are divided by what the next layers' input columns gain.

Neither side follows from the base alone; their product does. What a channel was multiplied by is recovered from the
side that is divided, and the other side must then be the base's weight times it, rounded.
docs/explanation/audit.md derives how uncertain each recovered factor is.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from weighbridge.auditing.arithmetic import narrowed
from weighbridge.auditing.grid import Floats, float_values, grid_of, rows_of
from weighbridge.auditing.method import Mapped
from weighbridge.auditing.pairing import KeptPair, Pair, QuantizedPair
from weighbridge.auditing.reading import read_whole
from weighbridge.auditing.work import Allowance, stored_rows
from weighbridge.checkpoint.modules import split_parameter
from weighbridge.formats.quantization import text_config
from weighbridge.text.patterns import PatternList, pattern_list
from weighbridge.work.reading import Reader

UNIT_ROUNDOFF: Mapping[str, float] = {"BF16": 2.0**-8, "F16": 2.0**-11, "F32": 2.0**-24}
"""The largest relative error of one rounding to a dtype."""

COARSENESS: Mapping[str, float] = {"AWQModifier": 8.0}
"""By modifier: how much larger the squared error of a smoothed module may be than that of rounding the base's own by
min-max. 4.6 is measured of AWQ (`python -m benchmarks.compensation`). SmoothQuant moves errors from activations to
weights without such a limit; of its modules the error beside the weight alone is limited."""

COARSER_BY_COMPENSATION = 1.5
"""How many times as much that may be where GPTQ rounds what AWQ smoothed, which makes up for errors with larger ones:
8.7 in all is measured, of one build."""

LARGEST_SLACK = 1 / 16
"""How uncertain the factors of a norm may be, as a share of them, if what follows from them is to say anything."""

OFFSET_NORMS = frozenset(
    {
        *("gemma", "gemma2", "gemma3", "minimax_m3_vl", "muse_glimmer", "nemotron", "qwen3_5", "qwen3_5_moe"),
        *("qwen3_next", "qwen4_exp", "recurrent_gemma", "step3p7", "t5gemma", "t5gemma2", "vaultgemma", "videoprism"),
    }
)
"""Types of models whose norms multiply by 1 + weight. Source: transformers 5.17, whose modules a test reads."""
_OWN_NORMS = re.compile(r"(?:^|\.)(?:linear_attn|vision_tower|vision_model|visual|audio_tower)\.")
"""Parts of such models whose norms multiply by their weights all the same."""
_LAYER = re.compile(r"(?:^|\.)(?:layers|blocks|h)\.\d+(?=\.)")


Factors = tuple[Floats, float]
"""What each channel was multiplied by, float32 [channels], and how uncertain that is, as a share of it."""


@dataclass(frozen=True)
class Smoothed:
    """What smoothing excuses.

    Attributes:
        allowances: module -> by what its base's weight is multiplied and divided.
        divided: names of kept tensors that are divided, or multiplied, by what their pair says.
        refused: module or tensor -> why no factor can be recovered from it.
    """

    allowances: Mapping[str, Allowance]
    divided: frozenset[str]
    refused: Mapping[str, str]


def has_offset_norms(config: Mapping[str, Any]) -> bool:
    """Whether the norms of a model multiply by one more than their weights, by its config.json."""
    types = {part.get("model_type") for part in (config, text_config(config))}
    return any(isinstance(one, str) and one.removesuffix("_text") in OFFSET_NORMS for one in types)


def recover(
    pairs: Sequence[Pair], mappings: Sequence[Mapped], checkpoint: Reader, base: Reader, *, offset: bool = False
) -> Smoothed:
    """Recover the factors of all channels that `mappings` say are smoothed.

    Mappings are taken in their order, as the modifiers do: a layer whose columns were multiplied before its rows are
    divided is measured with both.

    Args:
        offset: whether norms multiply by one more than their weights.
    """
    by_name = {item.name: item for item in pairs}
    modules = {module: item for item in pairs if (module := _module(item)) is not None}
    modifiers: dict[str, set[str]] = {}
    columns: dict[str, Factors] = {}
    rows: dict[str, Factors] = {}
    divided: set[str] = set()
    refused: dict[str, str] = {}
    for modifier, smooth, fed in _resolved(modules, mappings):
        item = modules[smooth]
        if isinstance(item, KeptPair):
            shift = np.float32(offset and _OWN_NORMS.search(smooth) is None)
            recovered = _by_norm(item, shift, checkpoint, base)
        else:
            recovered = _by_linear(item, columns.get(smooth), checkpoint, base)
        if recovered is None:
            refused[item.name] = "is smoothed, but the factors of its channels cannot be recovered"
            continue
        if isinstance(item, KeptPair):
            divided.add(item.name)
        rows[smooth] = recovered
        columns.update(dict.fromkeys(fed, recovered))
        for name in (smooth, *fed):
            modifiers.setdefault(name, set()).add(modifier)
    for kept, (factors, slack), why in (*_biases(rows, by_name), *_fed_and_kept(columns, modules)):
        if _is_product(kept, factors, slack, checkpoint, base):
            divided.add(kept.name)
        else:
            refused[kept.name] = why
    allowances = {}
    for name in columns.keys() | rows.keys():
        item = modules[name]
        if isinstance(item, QuantizedPair):
            own, own_slack = columns.get(name, (None, 0.0))
            over, over_slack = rows.get(name, (None, 0.0))
            unit = UNIT_ROUNDOFF[item.weight.dtype]
            # Each product or quotient was rounded to the weight's dtype, and so was the place on the grid.
            steps = (own is not None) + (over is not None) + 1
            allowances[name] = Allowance(
                columns=own,
                rows=over,
                slack=own_slack + over_slack + steps * unit,
                coarseness=max(COARSENESS.get(modifier, math.inf) for modifier in modifiers[name]),
            )
    return Smoothed(allowances, frozenset(divided), refused)


def _biases(rows: Mapping[str, Factors], by_name: Mapping[str, Pair]) -> Iterator[tuple[KeptPair, Factors, str]]:
    """The biases of smoothed layers, which are divided as the layers' rows are."""
    for smooth, (factors, slack) in rows.items():
        bias = by_name.get(f"{smooth}.bias")
        if isinstance(bias, KeptPair):
            yield (
                bias,
                (np.float32(1) / factors, slack),
                "is the bias of a smoothed layer, and not the base's over its factors",
            )


def _fed_and_kept(
    columns: Mapping[str, Factors], modules: Mapping[str, Pair]
) -> Iterator[tuple[KeptPair, Factors, str]]:
    """Layers that take what is smoothed, and are not quantized."""
    for name, factors in columns.items():
        item = modules[name]
        if isinstance(item, KeptPair):
            yield item, factors, "takes what a smoothed layer gives, and is not the base's times its factors"


def _module(item: Pair) -> str | None:
    """The module whose weight a pair is; None of biases and the like."""
    if isinstance(item, QuantizedPair):
        return item.name
    module, local = split_parameter(item.name)
    return module if local == "weight" else None


def _columns(item: Pair) -> int:
    return item.source.tensor.shape[-1] if item.source.tensor.shape else 0


def _is_product(item: KeptPair, factors: Floats, slack: float, checkpoint: Reader, base: Reader) -> bool:
    """Whether what is not quantized is the base's times factors, one for each column, rounded once."""
    dtype = item.source.tensor.dtype
    before, after = (
        float_values(read_whole(reader, region), dtype).astype(np.float64)
        for reader, region in ((base, item.source), (checkpoint, item.stored))
    )
    product = before * factors
    return bool((np.abs(after - product) <= (slack + UNIT_ROUNDOFF[dtype]) * np.abs(product)).all())


def _by_norm(item: KeptPair, shift: np.float32, checkpoint: Reader, base: Reader) -> Factors | None:
    """Factors of a norm, whose weight was divided by them and rounded once.

    Args:
        shift: what is added to a weight before a norm multiplies by it. A sum is rounded, divided, rounded, and stored
            less the shift, which rounds once more: of a small sum by much.
    """
    if len(item.source.tensor.shape) != 1:
        return None
    dtype = item.source.tensor.dtype
    stored, after = (
        float_values(read_whole(reader, region), dtype).reshape(-1)
        for reader, region in ((base, item.source), (checkpoint, item.stored))
    )
    before = stored
    slack = UNIT_ROUNDOFF[dtype]
    if shift:
        before = narrowed(stored + shift, dtype)
        with np.errstate(all="ignore"):
            slack += float((np.abs(after) * UNIT_ROUNDOFF[dtype] / np.abs(after + shift)).max(initial=0.0))
        after = after + shift
    with np.errstate(all="ignore"):
        # A weight of zero stays zero and says nothing; what it feeds is zero, whatever the columns are.
        factors = np.where((before == 0) & (after == 0), np.float32(1), before / after).astype(np.float32)
    usable = np.isfinite(factors) & (factors > 0)
    return (factors, slack) if bool(usable.all()) and slack <= LARGEST_SLACK else None


def _by_linear(item: QuantizedPair, columns: Factors | None, checkpoint: Reader, base: Reader) -> Factors | None:
    """Factors of a quantized linear, whose rows were divided by them: from the scales that its largest values gave.

    Each group of a row gives an interval: its largest value over half of the code range and over the stored scale.
    Their intersection is taken; its half width is the uncertainty.
    """
    grid, weight = grid_of(item.scheme), item.weight
    args = item.scheme.weights
    if grid is None or args.type != "int" or not args.symmetric or grid.height != 1:
        return None
    spans = ((0, weight.shape[0]),)
    values = float_values(read_whole(base, item.source), weight.dtype)
    slack = 0.0
    if columns is not None:
        values = values * columns[0][None, :]
        slack = columns[1] + UNIT_ROUNDOFF[weight.dtype]
    stored = stored_rows(checkpoint, item, spans)
    own = rows_of(grid, item.form, stored, item.stored["weight_scale"].tensor.dtype, weight.shape[1], None)
    # Two roundings more: of the row that was divided, and of the scale.
    slack += 2 * UNIT_ROUNDOFF[weight.dtype]
    largest = np.abs(values).reshape(weight.shape[0], own.divisors.shape[1], -1).max(axis=2).astype(np.float64)
    with np.errstate(all="ignore"):
        middle = largest / (own.divisors.astype(np.float64) * grid.half_range)
        said = largest > 0
        low = np.where(said, middle * (1 - slack), 0).max(axis=1)
        high = np.where(said, middle * (1 + slack), np.inf).min(axis=1)
    if not bool((np.isfinite(high) & (low > 0) & (low <= high)).all()):
        return None
    factors = np.sqrt(low * high)
    return factors.astype(np.float32), float((np.sqrt(high / low) - 1).max())


def _resolved(modules: Mapping[str, Pair], mappings: Sequence[Mapped]) -> Iterator[tuple[str, str, list[str]]]:
    """What chose the factors, and each smooth layer with the balance layers that it feeds, in the modifiers' order."""
    for mapping in mappings:
        for smooth, balance in _near(modules, mapping):
            # Modifiers leave out what does not fit: values of fewer heads than queries have feed no output by channels.
            fed = [name for name in balance if _columns(modules[name]) == modules[smooth].source.tensor.shape[0]]
            if fed:
                yield mapping.modifier, smooth, fed


def _near(modules: Mapping[str, Pair], mapping: Mapped) -> list[tuple[str, list[str]]]:
    """Each smooth layer with the balance layers that share the longest part of its name."""
    smooth = _matching(modules, (mapping.smooth,))
    balance = _matching(modules, mapping.balance)
    found: dict[str, list[str]] = {name: [] for name in smooth}
    by_layer: dict[str, list[str]] = {}
    for name in smooth:
        by_layer.setdefault(_layer(name), []).append(name)
    for name in balance:
        near = by_layer.get(_layer(name), [])
        if near:
            found[max(near, key=lambda other: _shared(other, name))].append(name)
    return [(name, fed) for name, fed in found.items() if fed]


def _matching(modules: Mapping[str, Pair], entries: Sequence[str]) -> list[str]:
    patterns: PatternList = pattern_list(tuple(entries))
    return [name for name in modules if patterns.first(name) is not None]


def _layer(name: str) -> str:
    match = _LAYER.search(name)
    return name[: match.end()] if match else ""


def _shared(one: str, other: str) -> int:
    """How many parts of two names are the same from the left."""
    count = 0
    for left, right in zip(one.split("."), other.split("."), strict=False):
        if left != right:
            break
        count += 1
    return count
