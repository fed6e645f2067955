"""Lint of what vLLM makes of a build in Mistral's own form: what it reorders as it loads, and what it cannot load."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from weighbridge.families import Family
from weighbridge.formats.schemes import Scheme
from weighbridge.linting.rules import Raised
from weighbridge.linting.served import Served, served_by_plan
from weighbridge.planning import Plan
from weighbridge.text.names import compact


def check(plan: Plan) -> Iterator[Raised]:
    """Modules whose rows would no longer lie as their scales do, and models that vLLM has no names for."""
    served = served_by_plan(plan)
    if served is not None:
        yield from check_served(served)


def check_served(served: Served) -> Iterator[Raised]:
    """The same of a checkpoint that lies there."""
    if not served.family.params:
        return
    yield from _turned(served)
    yield from _no_loader(served)


def _turned(served: Served) -> Iterator[Raised]:
    wrong = [
        module
        for module, scheme in served.schemes.items()
        if served.family.unquantized(module, scheme) is None
        and not turns_along(module, scheme, served.family, served.config)
    ]
    for pattern in compact(wrong):
        module = next(iter(pattern))
        turned = served.family.turned(module)
        assert turned is not None
        what = "the scales of its rows" if _is_plain(served.schemes[module]) else "packed codes"
        message = (
            f"{turned.server} reorders the rows of this weight within each head as it loads it ({turned.read}), "
            f"and not {what}: it would compute with wrong numbers"
        )
        remedy = "keep it and what it is merged with, or take FP8_BLOCK where a block is as high as whole heads"
        yield Raised("serve/turned-rows", str(pattern), message, remedy, len(pattern))


def turns_along(module: str, scheme: Scheme, family: Family, config: Mapping[str, Any]) -> bool:
    """Whether what a scheme stores means the same once a server has reordered the rows of the module's weight.

    Args:
        config: params.json, which says how many rows a head has.
    """
    if family.turned(module) is None:
        return True
    args, rows = scheme.weights, config.get("head_dim")
    whole_heads = args.block_structure is not None and type(rows) is int and rows > 0
    fits = args.strategy == "tensor" or (whole_heads and args.block_structure[0] % rows == 0)  # type: ignore[index,operator]
    return _is_plain(scheme) and fits


def kept_for_turning(modules: Collection[str], scheme: Scheme, family: Family, config: Mapping[str, Any]) -> set[str]:
    """Modules of which `turns_along` does not hold, and those that servers merge them with."""
    found = {module for module in modules if not turns_along(module, scheme, family, config)}
    for module in tuple(found):
        merge = family.merge_of(module)
        parent = module.rpartition(".")[0]
        found.update(f"{parent}.{member}" for member in (merge.members if merge is not None else ()))
    return found.intersection(modules)


def _is_plain(scheme: Scheme) -> bool:
    """Whether a scheme stores a weight under its own name, one code for each value."""
    return not scheme.format.endswith("pack-quantized")


def _no_loader(served: Served) -> Iterator[Raised]:
    """vLLM 0.32 makes a Mixtral of experts without shared ones, and has no names for that in this form
    (``adapt_config_dict`` in transformers_utils/configs/mistral.py)."""
    moe = served.config.get("moe")
    if moe and not (isinstance(moe, Mapping) and moe.get("num_shared_experts")):
        message = (
            "has experts and no shared ones: vLLM 0.32 loads such a model from Hugging Face's form alone, and stops at "
            "the names of this one"
        )
        remedy = "start from the model in Hugging Face's form (config.json, model-*.safetensors)"
        yield Raised("serve/no-loader", served.name, message, remedy)
