"""What honest compensation (GPTQ) and smoothing (AWQ, SmoothQuant) do to weights, beside what alterations do.

    python -m benchmarks.compensation [--models llama,smollm2] [--parts modules,builds,attacks,smoothing]

Modules are quantized by llm-compressor's own `quantize_weight`, with Hessians of what models were given; builds are
whole runs of `oneshot`. Each module's stored weight is then held against its base, row by row, in figures that one
pass over both can have. Tables (`compensation_report`) give least, median, 99.9th percentile and largest of each.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks import compensation_models as models
from benchmarks.compensation_figures import Figures, Stored, factors_of, figures_of, replaced, smoothing_figures, store
from benchmarks.compensation_report import report
from weighbridge.errors import BuildError

Tensor = torch.Tensor
SAMPLES = 32
"""Sequences that a whole build sees."""


@dataclass(frozen=True)
class Setting:
    """How modules are quantized.

    Attributes:
        scheme: ``int4``, ``int8``, or a preset of compressed-tensors (``NVFP4A16``, ``MXFP4A16``, ``FP8_DYNAMIC``).
        group: columns that share a scale; 0 for a whole row. Of integers only.
        order: ``static`` takes the columns with the largest activations first.
        tokens: ``few`` are fewer than there are columns, so that the Hessian has no full rank.
    """

    scheme: str = "int4"
    symmetric: bool = True
    group: int = 32
    dampening: float = 0.01
    order: str | None = "static"
    tokens: str = "many"
    observer: str = "memoryless_minmax"

    @property
    def label(self) -> str:
        """One word for the scheme: bits, symmetry and group."""
        if not self.scheme.startswith("int"):
            return self.scheme
        kind = "" if self.symmetric else "-asym"
        seen = "" if self.observer == "memoryless_minmax" else "-mse"
        return f"{self.scheme}{kind}-{self.group or 'channel'}{seen}"

    def as_said(self) -> dict[str, Any]:
        """For records."""
        return {"scheme": self.label, "dampening": self.dampening, "order": self.order, "tokens": self.tokens}

    def args(self) -> Any:
        """As compressed-tensors has it (``QuantizationArgs``)."""
        from compressed_tensors.quantization import QuantizationArgs, preset_name_to_scheme

        if not self.scheme.startswith("int"):
            found = preset_name_to_scheme(self.scheme, ["Linear"]).weights
            return found.model_copy(update={"actorder": self.order, "observer": self.observer})
        options = {"strategy": "group", "group_size": self.group} if self.group else {"strategy": "channel"}
        return QuantizationArgs(
            num_bits=int(self.scheme[3:]),
            type="int",
            symmetric=self.symmetric,
            actorder=self.order,
            observer=self.observer,
            **options,
        )


EVERY = 3
"""A model is quantized under every third setting, beginning elsewhere for each."""


def settings() -> Iterator[Setting]:
    """All settings, 102: what recipes say most often with its neighbours."""
    for tokens in ("many", "few"):
        for dampening in (0.001, 0.01, 0.1):
            usual = Setting(dampening=dampening, tokens=tokens)
            for group in (32, 128, 0):
                yield replace(usual, group=group)
                yield replace(usual, group=group, order=None)
                yield replace(usual, group=group, symmetric=False)
            yield replace(usual, group=64)
            yield replace(usual, group=128, observer="memoryless_mse")
            for group in (128, 0):
                yield replace(usual, scheme="int8", group=group)
            yield replace(usual, scheme="int8", group=0, symmetric=False)
            for scheme in ("NVFP4A16", "MXFP4A16", "FP8_DYNAMIC"):
                yield replace(usual, scheme=scheme, group=0)


def record_of(found: Figures, **of: Any) -> dict[str, Any]:
    """A module's figures as a line of JSON: those of rows as least, median, 99.9 % and largest."""
    rows = {
        name: torch.quantile(values.float(), torch.tensor([0, 0.5, 0.999, 1])).tolist()
        for name, values in found.rows.items()
    }
    return {**of, "rows": rows, "count": len(next(iter(found.rows.values()))), **found.module}


def honest(given: models.Given, setting: Setting) -> Iterator[tuple[models.Sample, Stored, bool]]:
    """Quantize the modules of a model: each with what is stored, and whether llm-compressor gave up compensating."""
    by_shape: dict[tuple[int, ...], list[models.Sample]] = defaultdict(list)
    for sample in given.samples:
        if not setting.group or sample.weight.shape[1] % setting.group == 0:
            by_shape[tuple(sample.weight.shape)].append(sample)
    for batch in by_shape.values():
        yield from compensated(batch, [sample.weight for sample in batch], setting)


def compensated(
    batch: Sequence[models.Sample], aims: Sequence[Tensor], setting: Setting
) -> Iterator[tuple[models.Sample, Stored, bool]]:
    """Compensate weights (`aims`, mostly the samples' own) of one shape under scales of the samples' own weights."""
    from llmcompressor.modifiers.gptq.gptq_quantize import quantize_weight

    args = setting.args()
    scales = [scales_of(sample.weight, args) for sample in batch]
    shared = [found["global_scale"] for found in scales]
    quantized, _, fallback = quantize_weight(
        weights=torch.stack(list(aims)),
        hessians=torch.stack([sample.hessians[setting.tokens] for sample in batch]),
        scale=torch.stack([found["scale"] for found in scales]),
        zero_point=torch.stack([found["zero_point"] for found in scales]),
        global_scale=None if shared[0] is None else torch.stack([each.reshape(-1)[0] for each in shared]),
        quant_args=args,
        percdamp=setting.dampening,
    )
    for number, sample in enumerate(batch):
        yield sample, store(sample.weight, quantized[number], args, scales[number]), bool(fallback[number])


def scales_of(weight: Tensor, args: Any) -> dict[str, Any]:
    """Scale, zero point and global scale of a weight, by the observer that its arguments name."""
    from llmcompressor.observers.base import Observer

    observer = Observer.load_from_registry(args.observer, base_name="weight", args=args)
    observer(weight.to(torch.bfloat16))
    return dict(observer.get_qparams())


def by_modules(name: str) -> Iterator[dict[str, Any]]:
    """Quantize a model's modules under all settings."""
    given = models.given(name)
    for setting in list(settings())[models.NAMES.index(name) % EVERY :: EVERY]:
        for sample, stored, fallback in honest(given, setting):
            found = figures_of(sample.weight, stored)
            yield record_of(
                found, part="modules", model=name, module=sample.name, fallback=fallback, **setting.as_said()
            )


ATTACKED = (
    Setting(),
    Setting(group=128),
    Setting(group=128, symmetric=False),
    Setting(scheme="int8", group=0),
    Setting(scheme="NVFP4A16", group=0),
    Setting(scheme="FP8_DYNAMIC", group=0),
)


def by_attacks(name: str) -> Iterator[dict[str, Any]]:
    """Alter honest modules in every known way; one column that was wholly nearest stays as it was."""
    given = models.given(name)
    for setting in ATTACKED:
        for number, (sample, stored, _) in enumerate(honest(given, setting)):
            generator = torch.Generator().manual_seed(number)
            others = [
                other.weight
                for other in given.samples
                if other is not sample and other.weight.shape == sample.weight.shape
            ]
            for attack, places in attacks(sample, stored, others, setting, generator):
                found = figures_of(sample.weight, replaced(stored, places))
                yield record_of(
                    found, part="attacks", model=name, module=sample.name, attack=attack, **setting.as_said()
                )


def attacks(
    sample: models.Sample, stored: Stored, others: Sequence[Tensor], setting: Setting, generator: torch.Generator
) -> Iterator[tuple[str, Tensor]]:
    """What each attack does to the codes of a module."""
    weight, honestly = sample.weight, stored.places
    rows, columns = weight.shape
    last = len(stored.grid) - 1
    nothing = stored.nearest(torch.zeros_like(weight))
    near = stored.nearest(weight)
    settled = int((honestly == near).sum(0).argmax())

    def kept(places: Tensor) -> Tensor:
        altered = places.clamp(0, last).clone()
        altered[:, settled] = near[:, settled]
        return altered

    def random(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    yield "nothing", honestly
    yield "all zero but one column", kept(nothing)
    if others:
        yield "another module of this shape", kept(stored.nearest(others[0]))
    for share in (0.01, 0.05, 0.2):
        edit = normal(rows, 1) * normal(1, columns)
        edit *= weight.norm() * share**0.5 / edit.norm()
        yield f"a rank-one edit of {share:.0%} of the energy", kept(stored.nearest(stored.weight + edit))
    turned = stored.nearest(-stored.weight)
    yield "three quarters of the signs turned", kept(torch.where(random(rows, columns) < 0.75, turned, honestly))
    for share in (0.01, 0.05, 0.25):
        hit = torch.randperm(rows, generator=generator)[: max(1, round(rows * share))]
        altered = honestly.clone()
        altered[hit] = stored.nearest(weight.roll(1, 0))[hit]
        yield f"{share:.0%} of the rows replaced", kept(altered)
    altered = honestly.clone()
    hit = torch.randperm(columns, generator=generator)[: columns // 4]
    altered[:, hit] = nothing[:, hit]
    yield "a quarter of the columns zeroed", kept(altered)
    grouped = honestly.reshape(rows, -1, stored.group)
    yield "shuffled within groups", kept(grouped.gather(2, random(*grouped.shape).argsort(2)).reshape(rows, columns))
    yield "all codes one up", kept(honestly + 1)
    steps = torch.where(random(rows, columns) < 0.5, -1, 1)
    for share in (0.1, 0.3, 0.6):
        yield f"{share:.0%} moved by one", kept(torch.where(random(rows, columns) < share, honestly + steps, honestly))
    other = stored.beside(weight / stored.scale + stored.zero, near)
    for share in (0.1, 0.3, 1):
        chosen = torch.where(random(rows, columns) < 0.5, near, other)
        altered = torch.where(random(rows, columns) < share, chosen, honestly)
        yield f"{share:.0%} rounded up or down at will", kept(altered)
    yield "shrunk by a tenth", kept(stored.nearest(0.9 * stored.weight))
    yield "shrunk by 2 %", kept(stored.nearest(0.98 * stored.weight))
    for share in (0.01, 0.02, 0.05, 0.1):
        delta = normal(rows, 8) @ normal(8, columns)
        delta *= weight.norm() * share / delta.norm()
        _, tuned, _ = next(compensated([sample], [weight + delta], setting))
        yield f"fine-tuned by {share:.0%} (rank 8), compensated", kept(tuned.places)


BUILDS = (
    Setting(),
    Setting(group=0, dampening=0.001),
    Setting(scheme="int8", group=0, dampening=0.1),
    Setting(scheme="NVFP4A16", group=0),
)


def by_builds(name: str) -> Iterator[dict[str, Any]]:
    """Whole builds with GPTQ, layer after layer, each with the activations that the rounded layers before it give."""
    from compressed_tensors.quantization import QuantizationScheme
    from llmcompressor.modifiers.gptq import GPTQModifier

    for setting in BUILDS:
        scheme = QuantizationScheme(targets=["Linear"], weights=setting.args())
        modifier = GPTQModifier(
            config_groups={"group_0": scheme},
            ignore=list(models.IGNORED),
            dampening_frac=setting.dampening,
            actorder=setting.order,
        )
        for built in models.build(name, [modifier], SAMPLES):
            found = figures_of(built.before, store(built.before, built.after, built.args, built.qparams))
            yield record_of(found, part="builds", model=name, module=built.name, **setting.as_said())


SMOOTHED = (Setting(), Setting(group=128), Setting(group=128, symmetric=False))
STRENGTHS = (0.5, 0.8, 0.95)


def by_smoothing(name: str) -> Iterator[dict[str, Any]]:
    """Whole builds with AWQ and SmoothQuant, and the base's columns multiplied by factors that no method gives."""
    from compressed_tensors.quantization import QuantizationScheme
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from llmcompressor.modifiers.transform.awq import AWQMapping, AWQModifier
    from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier

    said = models.MAPPINGS.get(name)
    mappings = None if said is None else [AWQMapping(**mapping) for mapping in said]
    plans: list[tuple[str, Setting, Any]] = []
    for setting in SMOOTHED:
        for duo in (True, False, "both"):
            plans.append((f"AWQ, duo {duo}", setting, AWQModifier(mappings=mappings, duo_scaling=duo)))
    if said is None:
        for strength in STRENGTHS:
            setting = Setting(scheme="int8", group=0)
            plans.append((f"SmoothQuant {strength}", setting, SmoothQuantModifier(smoothing_strength=strength)))
    bases: dict[str, Tensor] = {}
    for method, setting, modifier in plans:
        scheme = QuantizationScheme(targets=["Linear"], weights=replace(setting, order=None).args())
        quantizing = QuantizationModifier(config_groups={"group_0": scheme}, ignore=list(models.IGNORED))
        try:
            found = models.build(name, [modifier, quantizing], SAMPLES)
        except BuildError as error:
            sys.stderr.write(f"{method} {name}: {error}\n")
            continue
        for built in found:
            if bool((built.before == built.after).all()):
                continue
            bases[built.name] = built.before
            columns, rows = factors_of(built.before, built.after)
            stored = rounded(built.after, built.args, built.qparams)
            own = rounded(built.before, built.args, scales_of(built.before, built.args))
            figures = smoothing_figures(built.before, stored, columns, rows, own)
            yield record_of(
                figures, part="smoothing", model=name, module=built.name, method=method, **setting.as_said()
            )
    for number, (module, weight) in enumerate(bases.items()):
        for setting in (*SMOOTHED, Setting(scheme="int8", group=0)):
            if setting.group and weight.shape[1] % setting.group:
                continue
            args = replace(setting, order=None).args()
            own = rounded(weight, args, scales_of(weight, args))
            for attack, columns in factor_attacks(weight.shape[1], setting.group or weight.shape[1], number):
                smoothed = (weight * columns).bfloat16().float()
                stored = rounded(smoothed, args, scales_of(smoothed, args))
                figures = smoothing_figures(weight, stored, columns, torch.ones(len(weight)), own)
                yield record_of(figures, part="factors", model=name, module=module, attack=attack, **setting.as_said())


def rounded(weight: Tensor, args: Any, qparams: Mapping[str, Any]) -> Stored:
    """A weight rounded to nearest."""
    return store(weight, weight, args, qparams)


def factor_attacks(columns: int, group: int, seed: int) -> Iterator[tuple[str, Tensor]]:
    """Factors of columns that no smoothing gives: one of each group is large, or all are random."""
    generator = torch.Generator().manual_seed(seed)
    for factor in (2, 4, 8, 16, 64, 1024):
        factors = torch.ones(columns // group, group)
        chosen = torch.randint(group, (len(factors), 1), generator=generator)
        yield f"{factor} on one channel of a group", factors.scatter(1, chosen, float(factor)).reshape(-1)
    for factor in (2, 4, 8, 64):
        exponents = 2 * torch.rand(columns, generator=generator) - 1
        yield f"random from 1/{factor} to {factor}", torch.tensor(float(factor)).pow(exponents)


PARTS: Mapping[str, Callable[[str], Iterator[dict[str, Any]]]] = {
    "modules": by_modules,
    "attacks": by_attacks,
    "builds": by_builds,
    "smoothing": by_smoothing,
}


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--models", default=",".join(models.NAMES), help="names, with commas between them (default: all)"
    )
    parser.add_argument("--parts", default=",".join(PARTS), help=f"of {', '.join(PARTS)} (default: all)")
    parser.add_argument("--records", type=Path, help="add a line of JSON for each module to this file, and no tables")
    parser.add_argument("--threads", type=int, default=1, help="of torch (default: 1)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    records: list[dict[str, Any]] = []
    for part in options.parts.split(","):
        for name in options.models.split(","):
            began, count = time.monotonic(), 0
            for record in PARTS[part](name):
                count += 1
                if options.records is None:
                    records.append(record)
                    continue
                with options.records.open("a") as file:
                    file.write(json.dumps(record) + "\n")
            sys.stderr.write(f"{part} {name}: {count:,} modules in {time.monotonic() - began:.0f} s\n")
    if records:
        report(records)


if __name__ == "__main__":
    main()
