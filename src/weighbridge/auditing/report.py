"""An audit as sections of a report: the verdict for the whole, figures by layer and role, what diverges by name."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

from weighbridge.auditing.assess import Audit
from weighbridge.auditing.judge import ORDER, Judged, Verdict, chosen_by
from weighbridge.auditing.measure import Measure, decibels, signal_to_noise
from weighbridge.auditing.moves import moved_further
from weighbridge.auditing.pairing import OF_RECIPE, QuantizedPair
from weighbridge.auditing.recomputed import PROVEN, Quantized, names_of
from weighbridge.auditing.unexplained import bits_of_kept, bits_of_module
from weighbridge.checkpoint.problems import said_of
from weighbridge.families import Family
from weighbridge.formats.observers import by_largest_values
from weighbridge.report import Finding, Grid, Section, Severity, Table
from weighbridge.text.names import compact, layer_of

_REMEDY = {
    "audit/not-exact": "the recipe promises round-to-nearest under these scales, bit by bit; find out what made them",
    "audit/unexplained": "",
    "audit/not-recomputed": "name the data that it was calibrated with; without recomputing, it is judged by limits",
}
_CHANGED = {
    Verdict.PAIRED: "smoothed",
    Verdict.COMPENSATED: "compensated",
    Verdict.DEQUANTIZED: "made floats again",
}
_DISTRUST = "do not serve it: take another build, or build it here from the base"
_UNSAID = f"{_DISTRUST}; if GPTQ, AWQ or SmoothQuant made it, name the recipe that says so"


def sections(audit: Audit) -> list[Section]:
    """The audit, the verdict for the whole first."""
    return [_whole(audit), _quantized(audit), _kept(audit), _leftovers(audit)]


def metrics(audit: Audit) -> dict[str, int | float]:
    """The audit as numbers: elements, and how many weights and kept tensors came to each verdict."""
    counts = Counter(item.verdict for item in audit.judged)
    return {
        "elements_checked_count": audit.checked,
        "elements_count": audit.total,
        "weights_diverging_count": len(audit.diverging),
        **{f"judged_{verdict}_count": counts[verdict] for verdict in Verdict},
    }


def conclusion(audit: Audit) -> str:
    """The verdict for the whole, in words."""
    if not _derives(audit):
        return "does not derive from the base"
    before = ", which its publisher had quantized" if audit.base_quantized else ""
    return f"{_how(audit)}{before}{_as_far_as(audit)}"


def _derives(audit: Audit) -> bool:
    return not audit.diverging and all(leftover.excused for leftover in audit.leftovers)


def _as_far_as(audit: Audit) -> str:
    """What limits a verdict that nothing speaks against."""
    if audit.sample is None:
        return ""
    return f", as far as a sample of {100 * audit.sample.share:g} % of each tensor's rows shows"


def _how(audit: Audit) -> str:
    """How closely a checkpoint derives from its base."""
    verdicts = {judged.verdict for judged in audit.judged}
    others = sum(1 for _ in _not_recomputed(audit))
    if others:
        return f"is not what running its recipe again gives: {others:,} of its weights and scales are others"
    if audit.recomputed and verdicts <= {*PROVEN, Verdict.RECOMPUTED}:
        return "derives exactly from the base, as running its recipe again shows"
    if audit.method.promises_exact and Verdict.NEAREST in verdicts:
        return "derives from the base, but is not bit-exact, which its recipe promises"
    if verdicts & {Verdict.COMPENSATED, Verdict.PAIRED, Verdict.DEQUANTIZED}:
        named = [word for verdict, word in _CHANGED.items() if verdict in verdicts]
        return f"derives from the base as {' and '.join(named)}, within stated limits"
    if Verdict.NEAREST in verdicts:
        return "derives from the base"
    return "derives exactly from the base"


def _whole(audit: Audit) -> Section:
    decides = _counted(audit.judged) or "nothing could be compared"
    facts: dict[str, str | int] = {
        "weights quantized": f"{100 * audit.quantized_share:.2f} % of the base's",
        "bits a weight": f"{audit.bits_a_weight:.3f}",
        "bits a weight that the recipe does not explain": _unexplained(audit),
        "elements checked": f"{audit.checked:,} of {audit.total:,} ({100 * audit.checked / max(audit.total, 1):.2f} %)",
    }
    if audit.base_quantized:
        facts["the base's own rounding"] = f"{audit.base_quantized}; what it lost of the model is not judged here"
        again = [seen for item, seen, _ in audit.quantized if item.source.coded is not None]
        same = sum(seen.lossless for seen in again)
        facts["lossless"] = f"{same:,} of {len(again):,} modules stand for the very values that the base's codes do"
    facts |= {f"scales chosen by {how}": f"{count:,} modules" for how, count in _choices(audit).items()}
    if audit.found:
        facts["found from an earlier run"] = f"{audit.found:,} pieces"
    if audit.sample is not None:
        facts["sample"] = f"seed {audit.sample.seed}, {100 * audit.sample.share:g} % of each tensor's rows"
        for rows in (1, 10, 100):
            missed = audit.missed(rows)
            facts[f"missed with {rows} altered row{'s' if rows > 1 else ''}"] = f"probability {missed:.4g} at most"
    if audit.recomputed:
        compared, others = audit.recomputed.compared, len(audit.recomputed.others)
        facts["come out the same when the recipe is run again"] = f"{compared - others:,} of {compared:,} tensors"
    if audit.method.dampening is not None:
        facts["surely seen where compensated"] = _limits(audit)
    if audit.smoothed_limit:
        facts["surely seen where smoothed"] = f"a code moved by {audit.smoothed_limit:.3g} steps"
    where = "" if _derives(audit) else "; the parts that failed say where"
    summary = f"{conclusion(audit)}: {decides}{where}"
    return Section("audit", "the audit", summary, facts=facts, failed=not _derives(audit))


def _unexplained(audit: Audit) -> str:
    """How much can lie in what neither the base nor the recipe decides."""
    bits = sum(bits_of_module(*each) * each[0].weight.parameters for each in audit.quantized)
    bits += sum(bits_of_kept(*each) for each in audit.kept) + sum(leftover.bits for leftover in audit.leftovers)
    return (f"{bits / max(audit.base_parameters, 1):.2g} at most" if bits else "0") + _as_far_as(audit)


def _choices(audit: Audit) -> Counter[str]:
    """By what the scales of modules are said to be chosen, other than by the largest values, and who says so."""
    return Counter(
        f"{chosen_by(item)}{'' if item.observed_by == OF_RECIPE else ' (the choice of who made it)'}"
        for item, _, _ in audit.quantized
        if not by_largest_values(item.scheme.weights)
    )


def _limits(audit: Audit) -> str:
    """The alterations of a compensated module that cannot stay unseen; docs/explanation/audit.md derives them."""
    assert audit.method.dampening is not None
    settled = [
        (seen.settled & ((1 << item.weight.shape[1]) - 1)).bit_count()
        for item, seen, judged in audit.quantized
        if judged.verdict is Verdict.COMPENSATED
    ]
    said = [f"a row moved by {math.sqrt(1 + 1 / audit.method.dampening):.3g} of its widest steps, root mean square"]
    if audit.method.promises_scales and audit.sample is None:
        said.append("any change of a scale")
    if settled:
        columns = f"{min(settled):,} to {max(settled):,}" if min(settled) < max(settled) else f"{settled[0]:,}"
        said.append(
            f"a change of codes that reaches each of the columns ({columns} a module) that are rounded to nearest"
        )
    return "; ".join(said)


def _counted(judged: Iterable[Judged]) -> str:
    """How many verdicts of each kind there are, the best first."""
    counts = Counter(item.verdict for item in judged)
    return ", ".join(f"{counts[verdict]:,} {verdict}" for verdict in sorted(counts, key=lambda item: ORDER[item]))


def _quantized(audit: Audit) -> Section:
    quantized = audit.quantized
    said = _counted(judged for _, _, judged in quantized)
    diverging = (judged for _, _, judged in quantized if judged.verdict is Verdict.DIVERGES)
    findings = [*_findings(diverging, distrust=_DISTRUST if audit.method.said_by else _UNSAID)]
    findings += _findings(
        (judged for _, _, judged in quantized if judged.verdict is Verdict.NEAREST),
        Severity.ERROR if audit.method.promises_exact else Severity.NOTE,
    )
    findings += _findings(_not_recomputed(audit))
    return Section(
        "quantized-weights",
        "its quantized weights",
        f"{len(quantized):,} modules: {said}{_as_far_as(audit)}" if quantized else "it has none",
        findings=tuple(findings),
        tables=(_by_role(quantized, audit.family),) if quantized else (),
        figures=tuple(_by_layer(quantized, audit.family)),
    )


def _not_recomputed(audit: Audit) -> Iterator[Judged]:
    """What is not what running the recipe again gives, though nothing else speaks against it."""
    if audit.recomputed is None:
        return
    why = "is not what running its recipe again gives: other data, another machine, or an alteration within the limits"
    left = set(audit.recomputed.others)
    for judged, names in (
        *((judged, names_of(item)) for item, _, judged in audit.quantized),
        *((judged, [item.name]) for item, judged in audit.kept),
    ):
        other = not left.isdisjoint(names)
        left -= set(names)
        if other and judged.verdict is not Verdict.DIVERGES:
            yield Judged(judged.name, judged.verdict, "audit/not-recomputed", why)
    for name in sorted(left):
        yield Judged(name, Verdict.DIVERGES, "audit/not-recomputed", why)


def _kept(audit: Audit) -> Section:
    judged = [judged for _, judged in audit.kept]
    same = sum(item.verdict is Verdict.IDENTICAL for item in judged)
    paired = sum(item.verdict is Verdict.PAIRED for item in judged)
    summary = f"{same:,} of {len(judged):,} tensors are bit-identical to the base's{_as_far_as(audit)}"
    again = sum(item.verdict is Verdict.DEQUANTIZED for item in judged)
    if again:
        summary += f", {again:,} are what their codes meant, as the recipe says"
    if paired:
        summary += f", {paired:,} are divided as the recipe says"
    findings = [*_findings(item for item in judged if item.verdict is Verdict.DIVERGES)]
    bare = [item.name for item, _ in audit.kept if item.copy_of == f"{item.name}.weight"]
    what = "holds the base's weight unquantized, under a name without .weight that no server loads"
    remedy = "build with llm-compressor 0.13 or newer (0.11 and 0.12 left experts so)"
    findings += said_of(bare, "audit/left-unquantized", what, remedy)
    return Section("kept-tensors", "its kept tensors", summary, findings=tuple(findings))


def _leftovers(audit: Audit) -> Section:
    findings: list[Finding] = []
    counts = Counter[str]()
    for leftover in audit.leftovers:
        severity = Severity.NOTE if leftover.excused else Severity.ERROR
        findings += said_of(leftover.names, f"audit/{leftover.kind}", leftover.message, severity=severity)
        counts[leftover.kind] += len(leftover.names)
    said = ", ".join(f"{count:,} {kind}" for kind, count in counts.items())
    return Section("dropped-and-added", "dropped and added tensors", said or "none", findings=tuple(findings))


def _findings(
    judged: Iterable[Judged], severity: Severity = Severity.ERROR, *, distrust: str = _DISTRUST
) -> Iterator[Finding]:
    """Tensors of one trouble together; one that stands alone says where and how much."""
    alike: dict[tuple[str, str], dict[str, str]] = {}
    for item in judged:
        alike.setdefault((item.rule, item.why), {})[item.name] = item.detail
    for (rule, why), details in alike.items():
        for pattern in compact(details):
            first = next(iter(pattern))
            detail = details[first] if len(pattern) == 1 else f"{first}: {details[first]}" if details[first] else ""
            yield Finding(
                rule,
                severity,
                str(pattern),
                f"{why}: {detail}" if detail else why,
                count=len(pattern),
                remedy=_REMEDY.get(rule, distrust) if severity is Severity.ERROR else "",
            )


def _by_role(quantized: Quantized, family: Family) -> Table:
    roles: dict[str, list[tuple[QuantizedPair, Measure, Judged]]] = {}
    for item, seen, judged in quantized:
        roles.setdefault(family.role_of(item.name), []).append((item, seen, judged))
    rows = []
    for role, entries in roles.items():
        whole = sum((seen for _, seen, _ in entries), Measure())
        worst = min((seen for _, seen, _ in entries), key=lambda seen: seen.snr)
        unexplained = sum(bits_of_module(*entry) * entry[1].elements for entry in entries)
        rows.append(
            (
                str(role),
                len(entries),
                str(max((judged.verdict for _, _, judged in entries), key=lambda verdict: ORDER[verdict])),
                decibels(whole.signal, whole.noise),
                decibels(worst.signal, worst.noise),
                f"{whole.steps:.3f}",
                _percent(whole.saturated, whole.elements),
                _percent(whole.zeroed, whole.elements),
                whole.dead_scales + whole.bad_scales,
                whole.subnormal_scales,
                f"{unexplained / max(whole.elements, 1):.4f}" if unexplained else "0",
                _percent(round(moved_further(whole.moves) * sum(whole.moves)), whole.elements),
            )
        )
    columns = (
        *("role", "modules", "worst verdict", "SNR dB", "lowest SNR dB", "largest error, steps", "saturated %"),
        *("zeroed %", "dead or bad scales", "subnormal scales"),
        *("unexplained bits a weight", "moved further than a place %"),
    )
    return Table(columns, tuple(rows))


def _by_layer(quantized: Quantized, family: Family) -> Iterator[Grid]:
    """Signal to noise of each layer, by role."""
    cells: dict[int, dict[str, Measure]] = {}
    for item, seen, _ in quantized:
        layer_of_item = layer_of(item.name)
        if layer_of_item is not None:
            layer = cells.setdefault(layer_of_item, {})
            role = str(family.role_of(item.name))
            layer[role] = layer.get(role, Measure()) + seen
    roles = tuple(dict.fromkeys(role for layer in cells.values() for role in layer))
    if cells:
        yield Grid(
            title="SNR dB",
            corner="layer",
            rows=tuple(str(layer) for layer in sorted(cells)),
            columns=roles,
            values=tuple(tuple(_cell(cells[layer], role) for role in roles) for layer in sorted(cells)),
        )


def _cell(layer: Mapping[str, Measure], role: str) -> float | None:
    """None where there is nothing to compare, and where nothing differs."""
    ratio = signal_to_noise(layer[role].signal, layer[role].noise) if role in layer else math.nan
    return ratio if math.isfinite(ratio) else None


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.3f}" if whole else ""
