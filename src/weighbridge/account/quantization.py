"""Keys of the declared quantization, each held against what the recipe's plan declares, or against the tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from weighbridge.account.leaves import Path, leaves, shown
from weighbridge.account.model import Kind, State, Verdict
from weighbridge.formats import modelopt
from weighbridge.formats.quantization import find_config
from weighbridge.plan import Plan
from weighbridge.report import Finding, Severity
from weighbridge.structure.checkpoint import CONFIG_FILE, Checkpoint
from weighbridge.structure.strict_json import parse_object

PLAN = "the recipe's plan"
TENSORS = "the tensors, which are stored as it declares"
SPELLING = "spelled otherwise than the plan spells it; every module gets the same"

_RECORDS: Mapping[str, str] = {
    **dict.fromkeys(("version", "producer"), "a record of what wrote it; nothing is computed from it"),
    **dict.fromkeys(("observer", "observer_kwargs"), "how scales were chosen; servers read the scales"),
    "global_compression_ratio": "a record of the size; nothing is computed from it",
}
_COMPARED_BY_EFFECT = frozenset(
    {
        *("config_groups", "ignore", "targets", "exclude_modules", "quantized_layers", "kv_cache_scheme"),
        *("quant_algo", "kv_cache_quant_algo", "format", "quant_method", "sparsity_config", "transform_config"),
    }
)
"""Keys whose effect the comparison with the plan decides: the scheme of each module, the format, the KV cache."""


def judge_quantization(checkpoint: Checkpoint, plan: Plan | None) -> Iterator[Verdict]:
    """Every key of the quantization config in config.json."""
    found = find_config(checkpoint.config, where=checkpoint.label)
    if found is None:
        return
    planned = None if plan is None else leaves(plan.quantization or {})
    yield from _judged(f"{CONFIG_FILE}:{found.place}.", leaves(found.raw), planned)


def judge_hf_quant_config(raw: bytes, plan: Plan | None) -> Iterator[Verdict]:
    """Every key of modelopt's own file, which says the same as config.json.

    Raises:
        StructureError: it is not JSON.
    """
    name = modelopt.HF_QUANT_CONFIG
    planned = None
    if plan is not None and name in plan.documents:
        planned = leaves(parse_object(plan.documents[name], where=name))
    yield from _judged(f"{name}:", leaves(parse_object(raw, where=name)), planned)


def _judged(prefix: str, own: dict[Path, str], planned: dict[Path, str] | None) -> Iterator[Verdict]:
    for path, text in own.items():
        name = prefix + ".".join(path)
        if planned is None:
            yield Verdict(Kind.KEY, name, State.HELD, TENSORS)
        elif planned.get(path) == text:
            yield Verdict(Kind.KEY, name, State.FOLLOWS, PLAN)
        else:
            yield _judge_other(name, path, text, planned.get(path))
    if planned is not None:
        for path in planned.keys() - own.keys():
            yield _judge_other(prefix + ".".join(path), path, None, planned[path])


def _judge_other(name: str, path: Path, own: str | None, planned: str | None) -> Verdict:
    """A key that is not as the plan has it."""
    record = next((_RECORDS[part] for part in path if part in _RECORDS), None)
    if record is not None:
        return Verdict(Kind.KEY, name, State.HARMLESS, record)
    if any(part in _COMPARED_BY_EFFECT for part in path):
        return Verdict(Kind.KEY, name, State.HARMLESS, SPELLING)
    finding = Finding(
        "account/key-changed",
        Severity.ERROR,
        name,
        f"is {shown(own)}; {PLAN} has {shown(planned)}",
        remedy="build it again by the recipe",
    )
    return Verdict(Kind.KEY, name, State.HELD, PLAN, (finding,))
