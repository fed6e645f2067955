"""What fits on a card, as an option of ``build.py --plan`` and ``validate.py``: ``--gpu`` and what goes with it."""

from __future__ import annotations

import argparse

from weighbridge.checks.capacity.accounting import GIB, KV_BYTES, Demand
from weighbridge.cli.run import positive, refuse, size
from weighbridge.machine.resources import parse_size

OF_A_CARD = (
    *("kv_dtype", "context", "gpu_memory_utilization", "reserve"),
    *("max_num_batched_tokens", "swa_full_tokens_ratio"),
)
"""Options that say more of the card that ``--gpu`` names."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of capacity."""
    asked, options = Demand(memory=0), parser.add_argument_group("capacity (computed from config and headers)")
    options.add_argument(
        "--gpu",
        type=_card,
        metavar="SIZE",
        help="say how much of a GPU's memory the weights leave for the KV cache; as on the label: 24GB means 24 GiB",
    )
    options.add_argument(
        "--kv-dtype",
        choices=tuple(KV_BYTES),
        help="dtype of the KV cache (default: fp8 where the build declares it, else bf16)",
    )
    options.add_argument(
        "--context", type=positive, metavar="TOKENS", help="context length of a request (default: the model's maximum)"
    )
    options.add_argument(
        "--gpu-memory-utilization",
        type=_share,
        default=asked.utilization,
        metavar="SHARE",
        help="share of the memory for weights and cache; SGLang calls it --mem-fraction-static (default: 0.9)",
    )
    options.add_argument(
        "--reserve",
        type=size,
        metavar="SIZE",
        help="how much of that share is left to activations and the rest (default: 2GiB for vLLM, 480MiB for SGLang)",
    )
    options.add_argument(
        "--max-num-batched-tokens",
        type=positive,
        default=asked.batched_tokens,
        metavar="TOKENS",
        help="vLLM's option of this name (default: 8192)",
    )
    options.add_argument(
        "--swa-full-tokens-ratio",
        type=_share,
        default=asked.sliding_share,
        metavar="SHARE",
        help="SGLang's option of this name (default: 0.8, as in SGLang)",
    )


def demand_of(options: argparse.Namespace) -> Demand | None:
    """What was asked for; None without ``--gpu``."""
    if options.gpu is None:
        refuse(options, *OF_A_CARD, without="--gpu")
        return None
    return Demand(
        memory=options.gpu,
        kv_dtype=options.kv_dtype,
        context=options.context,
        utilization=options.gpu_memory_utilization,
        reserve=options.reserve,
        batched_tokens=options.max_num_batched_tokens,
        sliding_share=options.swa_full_tokens_ratio,
    )


def _card(text: str) -> int:
    """Bytes of a card: vendors print GB and count in powers of 1024."""
    try:
        memory = parse_size(text.upper().replace("GB", "GIB"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no size such as 24GB") from None
    if memory < GIB // 4:
        raise argparse.ArgumentTypeError(f"{text!r} is no card's memory; write it with its unit, as 24GB")
    return memory


def _share(text: str) -> float:
    """A share of more than nothing, up to all."""
    try:
        share = float(text)
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise argparse.ArgumentTypeError(f"must be more than 0 and at most 1, not {text!r}")
    return share
