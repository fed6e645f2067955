"""A checkpoint against its base, from two structures and their bytes to a verdict for every tensor."""

from __future__ import annotations

import logging
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, islice
from math import comb

from weighbridge.auditing import compensation
from weighbridge.auditing.dequantized import find_dequantized
from weighbridge.auditing.example import MOST, example
from weighbridge.auditing.judge import (
    Judged,
    Verdict,
    group_amaxes,
    judge_choice,
    judge_kept,
    judge_quantized,
    right_scale,
    scale_holds,
    too_wide,
)
from weighbridge.auditing.measure import Difference, Measure
from weighbridge.auditing.method import Method, compensated, observed
from weighbridge.auditing.pairing import (
    ATTENTION_SCALES,
    HEAD,
    KeptPair,
    Pair,
    Pairing,
    QuantizedPair,
    pair,
    regions,
)
from weighbridge.auditing.pieces import Sample, cut, units_of
from weighbridge.auditing.recomputed import Kept, Quantized, Recomputed, compare, improved
from weighbridge.auditing.run import WORKER_PIECES, Figures, run
from weighbridge.auditing.smoothing import COARSER_BY_COMPENSATION, Smoothed, has_offset_norms, recover
from weighbridge.auditing.work import (
    STRICT,
    Allowance,
    Job,
    errors_of_choice,
    examine,
    stored_shape,
    volume_of,
    whole_scale,
)
from weighbridge.checkpoint.model import Checkpoint, check_unchanged, identities
from weighbridge.checkpoint.modules import split_parameter
from weighbridge.families import Family
from weighbridge.formats.observers import search_of
from weighbridge.formats.quantization import text_config
from weighbridge.formats.tensors import payload_bytes
from weighbridge.machine.cache import cache_directory, key_of
from weighbridge.machine.hashing import hash_file
from weighbridge.machine.resources import Resources, affordable_workers
from weighbridge.planning import FusedGroup
from weighbridge.progress import Progress
from weighbridge.version import __version__
from weighbridge.work.journal import Journal
from weighbridge.work.pieces import PIECE_BYTES
from weighbridge.work.reading import HUB_BYTES, HubReader, reader_of, worker_bytes

log = logging.getLogger(__name__)

ACTIVATION_SCALES = frozenset({"input_scale", "input_global_scale", "output_scale"})
_LAYER_OF = re.compile(r"(?:^|\.)layers\.(\d+)\.self_attn\.(?:k_proj|v_proj|k_norm|v_norm)(?:\.|$)")


@dataclass(frozen=True)
class Leftover:
    """Tensors that stand on one side alone, or that cannot be compared.

    Attributes:
        kind: ``dropped``, ``added`` or ``mismatched``.
        excused: there is a reason for it that needs no judgement.
        bits: of the checkpoint's own tensors among them, which nothing of the base explains.
    """

    kind: str
    names: tuple[str, ...]
    message: str
    excused: bool = False
    bits: int = 0


@dataclass(frozen=True)
class Audit:
    """What an audit found.

    Attributes:
        quantized: each quantized module with its figures and verdict.
        kept: each kept tensor with its verdict.
        leftovers: what could not be compared.
        family: what the base is one of.
        base_quantized: how its publisher quantized the base; empty where it is of floats.
        base_parameters: elements of the base.
        bits_a_weight: bits of the checkpoint's payload for each of them.
        checked: elements that were looked at.
        total: elements that could have been.
        digests: SHA-256 (hex) of the base's shards.
        found: pieces that an earlier run had finished.
        recomputed: what came of running the recipe again, if it was.
        smoothed_limit: steps by which any code of a smoothed module can be moved without being surely seen.
    """

    method: Method
    quantized: Sequence[tuple[QuantizedPair, Measure, Judged]]
    kept: Sequence[tuple[KeptPair, Judged]]
    leftovers: Sequence[Leftover]
    family: Family
    base_quantized: str
    base_parameters: int
    bits_a_weight: float
    checked: int
    total: int
    digests: Mapping[str, str]
    sample: Sample | None = None
    found: int = 0
    smoothed_limit: float = 0.0
    recomputed: Recomputed | None = None

    @property
    def judged(self) -> list[Judged]:
        """Every verdict."""
        return [*(judged for _, _, judged in self.quantized), *(judged for _, judged in self.kept)]

    @property
    def diverging(self) -> list[Judged]:
        """The verdicts of what does not follow from the base."""
        return [judged for judged in self.judged if judged.verdict is Verdict.DIVERGES]

    @property
    def quantized_share(self) -> float:
        """Share of the base's weights that are quantized."""
        return sum(item.weight.parameters for item, _, _ in self.quantized) / max(self.base_parameters, 1)

    def missed(self, rows: int) -> float:
        """The largest probability, over all quantized modules, that so many altered rows of one were all left out."""
        if self.sample is None:
            return 0.0
        worst = 0.0
        for total, unit in {units_of(item) for item, _, _ in self.quantized}:
            units = -(-total // unit)
            taken = min(units, max(1, round(units * self.sample.share)))
            altered = -(-min(rows, total) // unit)
            worst = max(worst, comb(units - altered, taken) / comb(units, taken))
        return worst


def audit(
    checkpoint: Checkpoint,
    base: Checkpoint,
    *,
    method: Method,
    groups: Sequence[FusedGroup],
    sample: Sample | None,
    resources: Resources,
    progress: Progress,
    again: Checkpoint | None = None,
) -> Audit:
    """Hold every tensor of `checkpoint` against the rows of `base` that it must come from.

    Args:
        again: what running the recipe again gave, to be compared with byte by byte; for recipes that calibrate.

    Raises:
        StructureError, HubError: a side cannot be read, or changed while it was; or is quantized in a way that is not
            decoded here.
        WeighbridgeError: too little memory for one worker.
    """
    pairing = pair(checkpoint, base, groups)
    pairing = replace(pairing, pairs=observed(pairing.pairs, method))
    pieces = cut(pairing, sample)
    key = _key(checkpoint, base, method, sample)
    journal = Journal(cache_directory("audits") / f"{key}.jsonl", key.encode())
    blocks = sum(HUB_BYTES for side in (checkpoint, base) if side.directory is None)
    largest = max((strip.nbytes for piece in pieces for strip in piece.strips), default=0)
    each = worker_bytes(WORKER_PIECES, largest, (item.source for item in pairing.pairs))
    workers = affordable_workers(resources.workers, resources.limit - blocks, each=each)
    stored, source = reader_of(checkpoint), reader_of(base)
    offset = has_offset_norms(base.config)
    smoothed = recover(pairing.pairs, method.smoothing, stored, source, offset=offset)
    job = Job(pairing.pairs, stored, source, _allowances(pairing, method, smoothed))
    hashing = _hashing(base, progress) if resources.digests else {}
    log.info("%d pieces to look at, %d workers", len(pieces), workers)
    figures = run(job, pieces, journal=journal, workers=workers, hashing=hashing, progress=progress)
    if isinstance(source, HubReader) and resources.digests and sample is None:
        figures.digests.update({name: source.digest(name) for name in base.shards})
    differing = list(_different(pairing, figures)) if sample is None else []
    dequantized = find_dequantized(differing, method, base, stored, source)
    quantized, kept = _judged(job, pairing, figures, smoothed, dequantized, method, sample)
    recomputed = None
    if again is not None:
        recomputed = compare(regions(checkpoint), stored, regions(again), reader_of(again))
        quantized, kept = improved(quantized, kept, recomputed)
    for side in (checkpoint, base):
        check_unchanged(side, (*side.shards, *side.read_beside & side.files.keys()))
    journal.forget()
    seen = figures.seen.values()
    parameters = sum(tensor.parameters for tensor in base.structure.values())
    return Audit(
        method=method,
        quantized=quantized,
        kept=kept,
        leftovers=_leftovers(checkpoint, base, pairing, smoothed),
        family=base.family,
        base_quantized=_quantized_by(base),
        base_parameters=parameters,
        bits_a_weight=8 * payload_bytes(checkpoint.structure) / max(1, parameters),
        checked=sum(result.elements for result in seen),
        total=sum(item.source.tensor.parameters for item in pairing.pairs),
        digests=figures.digests,
        sample=sample,
        found=figures.found,
        recomputed=recomputed,
        smoothed_limit=max((_limit(item, job.allowances) for item in pairing.pairs), default=0.0),
    )


def _limit(item: Pair, allowances: Mapping[str, Allowance]) -> float:
    """Steps beyond which a moved code of a smoothed module is further off than its uncertain factors could explain."""
    allowance = allowances.get(item.name)
    if allowance is None or allowance.dampening is not None or not isinstance(item, QuantizedPair):
        return 0.0
    args = item.scheme.weights
    # In steps, a float is at most twice its fraction's range from zero: 16 for E4M3, 4 for E2M1.
    integers = 1 << (args.num_bits - 1 if args.symmetric else args.num_bits)
    widest = float(integers) if args.type == "int" else 16.0 if args.num_bits == 8 else 4.0
    return 1 + 2 * allowance.slack * widest


def _allowances(pairing: Pairing, method: Method, smoothed: Smoothed) -> dict[str, Allowance]:
    found = dict(smoothed.allowances)
    modules = [item.name for item in pairing.pairs if isinstance(item, QuantizedPair)]
    for module in compensated(modules, method):
        own = found.get(module, STRICT)
        coarseness = COARSER_BY_COMPENSATION * own.coarseness
        found[module] = replace(own, dampening=method.dampening, coarseness=coarseness)
    return found


def _judged(
    job: Job,
    pairing: Pairing,
    figures: Figures,
    smoothed: Smoothed,
    dequantized: frozenset[str],
    method: Method,
    sample: Sample | None,
) -> tuple[Quantized, Kept]:
    modules = {item.name: index for index, item in enumerate(pairing.pairs) if isinstance(item, QuantizedPair)}
    measures = {name: _measure(figures.seen[index]) for name, index in modules.items()}
    job = replace(job, allowances={**job.allowances, **_stopped(job, measures, modules)})
    again = {name: index for name, index in modules.items() if job.allowances.get(name, STRICT).steps is not None}
    measures |= {name: _look_again(job, job.pairs[index]) for name, index in again.items()}
    amaxes = group_amaxes({name: seen.amax for name, seen in measures.items()}, pairing.groups)
    quantized: list[tuple[QuantizedPair, Measure, Judged]] = []
    kept: list[tuple[KeptPair, Judged]] = []
    for index, item in enumerate(pairing.pairs):
        result = figures.seen[index]
        if isinstance(item, KeptPair):
            assert isinstance(result, Difference)
            meant = item.name in dequantized
            kept.append((item, judge_kept(item, result, smooth=item.name in smoothed.divided, dequantized=meant)))
            continue
        seen = measures[item.name]
        allowance = job.allowances.get(item.name, STRICT)
        whole = whole_scale(job.checkpoint, item)
        plain = not allowance.smoothed and allowance.dampening is None
        holds = scale_holds(item, whole, seen.amax, amaxes[item.name], sampled=sample is not None)
        if plain and seen.exact and not holds:
            right = replace(allowance, instead=right_scale(item, amaxes[item.name]))
            seen = _look_again(replace(job, allowances={item.name: right}), item)
        judged = judge_quantized(
            item,
            seen,
            scale_holds=holds,
            sampled=sample is not None,
            smoothed=allowance.smoothed,
            coarseness=allowance.coarseness,
            dampening=allowance.dampening,
            promises_scales=method.promises_scales,
        )
        search = search_of(item.scheme.weights)
        if judged.rule == "audit/not-exact" and seen.different_scales and search is not None:
            judged = judge_choice(judged, item, *errors_of_choice(job, item, search))
        if allowance.dampening is not None and judged.verdict in (Verdict.COMPENSATED, Verdict.PAIRED) and not sample:
            judged = _judge_volume(job, item, judged)
        shape = stored_shape(job.checkpoint, item)
        if judged.verdict is not Verdict.DIVERGES and shape not in (None, item.weight.shape):
            why = "says that its weight has another shape than it has"
            judged = Judged(item.name, Verdict.DIVERGES, "audit/weight-shape", why, f"{shape}, not {item.weight.shape}")
        if judged.verdict is not Verdict.DIVERGES and too_wide(item, whole, seen.amax, sampled=sample is not None):
            why = "has a scale of more than twice, or less than 0.7 of, what its largest value asks for"
            judged = Judged(item.name, Verdict.DIVERGES, "audit/scale-too-coarse", why, f"the scale is {whole}")
        quantized.append((item, seen, judged))
    return _with_examples(job, figures, quantized, kept)


def _with_examples(job: Job, figures: Figures, quantized: Quantized, kept: Kept) -> tuple[Quantized, Kept]:
    """The verdicts, with what the base has and what is stored where tensors begin to diverge."""
    first = {item.name: figures.seen[index].first for index, item in enumerate(job.pairs)}
    places: Iterator[tuple[Pair, int]] = chain(
        ((item, seen.first) for item, seen, judged in quantized if judged.rule == "audit/not-nearest"),
        ((item, first[item.name]) for item, judged in kept if judged.rule == "audit/kept-differs"),
    )
    found = {item.name: example(job, item, index) for item, index in islice(places, MOST) if index >= 0}

    def told(judged: Judged) -> Judged:
        return replace(judged, detail=f"{judged.detail} ({found[judged.name]})") if found.get(judged.name) else judged

    return [(item, seen, told(judged)) for item, seen, judged in quantized], [
        (item, told(judged)) for item, judged in kept
    ]


def _different(pairing: Pairing, figures: Figures) -> Iterator[KeptPair]:
    """Kept tensors that are not the base's."""
    for index, item in enumerate(pairing.pairs):
        result = figures.seen[index]
        if isinstance(item, KeptPair) and isinstance(result, Difference) and result.different:
            yield item


def _look_again(job: Job, item: Pair) -> Measure:
    """Measure a module once more, with what only the whole of it could tell."""
    assert isinstance(item, QuantizedPair)
    strips = (strip for piece in cut(Pairing((item,))) for strip in piece.strips)
    return sum((examine(job, item, strip) for strip in strips), Measure())


def _stopped(job: Job, measures: Mapping[str, Measure], modules: Mapping[str, int]) -> dict[str, Allowance]:
    """The modules whose search stopped before it had tried all ranges, each with how many it tried."""
    found = {}
    for name, seen in measures.items():
        item, allowance = job.pairs[modules[name]], job.allowances.get(name, STRICT)
        assert isinstance(item, QuantizedPair)
        search = search_of(item.scheme.weights)
        if search is None or not search.may_stop or allowance.smoothed or math.isnan(seen.amax):
            continue
        if search.reached(seen.improving) < search.steps:
            # Of a sample, rows that were left out may have lessened an error where these did not.
            improving = seen.improving if seen.rows == item.weight.shape[0] else _look_again(job, item).improving
            if search.reached(improving) < search.steps:
                found[name] = replace(allowance, steps=search.reached(improving))
    return found


def _judge_volume(job: Job, item: QuantizedPair, judged: Judged) -> Judged:
    """Ask of a whole module what no rows alone can tell."""
    found = volume_of(job, item)
    if found is None or found <= compensation.VOLUME:
        return judged
    why = "is not what compensation makes of the base's weight"
    detail = (
        f"its errors span {found:.2f} times the volume of rounding errors, where {compensation.VOLUME:g} is possible"
    )
    return Judged(item.name, Verdict.DIVERGES, "audit/beyond-compensation", why, detail)


def _measure(result: Measure | Difference) -> Measure:
    assert isinstance(result, Measure)
    return result


def _quantized_by(base: Checkpoint) -> str:
    """How a base is quantized, in words; empty where it is of floats."""
    if base.declaration is None or not base.schemes:
        return ""
    schemes = sorted({str(scheme.weights) for scheme in set(base.schemes.values())})
    return f"{base.declaration.quant_method}: {', '.join(schemes)}"


def _leftovers(checkpoint: Checkpoint, base: Checkpoint, pairing: Pairing, smoothed: Smoothed) -> list[Leftover]:
    found: list[Leftover] = []
    by_reason: dict[str, list[str]] = {}
    for name, why in (*pairing.mismatched.items(), *smoothed.refused.items()):
        by_reason.setdefault(why, []).append(name)
    bits = _bits_by_name(checkpoint)
    found += [
        Leftover("mismatched", tuple(names), why, bits=sum(bits[name] for name in names))
        for why, names in by_reason.items()
    ]
    tied = {item.name: other for item in pairing.pairs if (other := _tied_to(item))}
    if tied:
        message = f"is a copy of the base's {next(iter(tied.values()))}, to which it is tied"
        found.append(Leftover("added", tuple(tied), message, excused=True))
    dropped = {name: _excuse(name, base) for name in pairing.dropped}
    added = {name: _reason(name, checkpoint) for name in pairing.added}
    for kind, names, otherwise in (
        ("dropped", dropped, "is in the base, and nothing in the checkpoint comes from it"),
        ("added", added, "comes from no tensor of the base"),
    ):
        for excuse in dict.fromkeys(names.values()):
            members = tuple(name for name, own in names.items() if own == excuse)
            own_bits = sum(bits[name] for name in members) if kind == "added" else 0
            found.append(Leftover(kind, members, excuse or otherwise, excused=bool(excuse), bits=own_bits))
    return found


def _bits_by_name(checkpoint: Checkpoint) -> Counter[str]:
    """Bits of the payload of each tensor, and of all that belongs to a module."""
    found = Counter[str]()
    for name, tensor in checkpoint.structure.items():
        own = 8 * payload_bytes({name: tensor})
        found[name] += own
        found[split_parameter(name)[0]] += own
    return found


def _tied_to(item: Pair) -> str:
    """The base's tensor that a head is tied to, or nothing."""
    if isinstance(item, KeptPair):
        return item.copy_of if item.name == f"{HEAD}.weight" else ""
    return item.derived_from if item.name == HEAD else ""


def _excuse(name: str, base: Checkpoint) -> str:
    """Why a server does without a tensor of the base, or nothing."""
    config = text_config(base.config)
    shared, layers = config.get("num_kv_shared_layers"), config.get("num_hidden_layers")
    match = _LAYER_OF.search(name)
    if match and type(shared) is int and type(layers) is int and int(match[1]) >= layers - shared > 0:
        return "is left out: its layer takes keys and values from another"
    if any(part == "mtp" or part.startswith("mtp_") for part in name.split(".")):
        return "is left out: it predicts further tokens, which servers do without"
    if split_parameter(name) == (HEAD, "weight") and (
        base.config.get("tie_word_embeddings") or config.get("tie_word_embeddings")
    ):
        return "is left out: it is tied to the embedding"
    return ""


def _reason(name: str, checkpoint: Checkpoint) -> str:
    """Why a tensor comes from no tensor of the base, or nothing."""
    module, local = split_parameter(name)
    if local in ATTENTION_SCALES:
        return "is a scale of the KV cache"
    if local in ACTIVATION_SCALES and module in checkpoint.schemes:
        return "is a scale of activations"
    return ""


def _hashing(base: Checkpoint, progress: Progress) -> dict[str, tuple[int, Callable[[], str]]]:
    """What hashes each shard of a base on disk, beside the work; one on the hub is hashed as it passes."""
    if base.directory is None:
        return {}
    paths = {name: base.directory / name for name in base.shards}
    return {
        name: (path.stat().st_size, partial(hash_file, path, progress, known=base.shards[name].standing))
        for name, path in paths.items()
    }


def _key(checkpoint: Checkpoint, base: Checkpoint, method: Method, sample: Sample | None) -> str:
    """A name for everything that decides the figures of an audit: one of a file that was touched since is another."""
    return key_of(
        {
            "structures": [
                {name: [tensor.dtype, *tensor.shape] for name, tensor in side.structure.items()}
                for side in (checkpoint, base)
            ],
            "read as": [[repr(side.declaration), side.config] for side in (checkpoint, base)],
            "schemes": {module: repr(scheme) for module, scheme in checkpoint.schemes.items()},
            "shards": [identities(side) for side in (checkpoint, base)],
            "method": repr(method),
            "sample": repr(sample),
            "piece_bytes": PIECE_BYTES,
            "weighbridge": __version__,
        }
    )
