"""docs/reference/families.md, made from the descriptors: ``python -m tests.families_page`` prints it."""

from __future__ import annotations

import sys
from pathlib import Path

import yaml

from tests.described import architectures
from tests.served_families import SERVED
from weighbridge.families import Role, descriptors, families
from weighbridge.families.descriptor import Descriptor

HEAD = """\
# Families

What is known of the families of models that people serve: what their parts are called, how their experts lie, what
servers merge, and what these load unquantized. It stands as data in `src/weighbridge/families/descriptors/`, one file a
family, and drafts, lint, plans and reports ask it. A model is known by `architectures` in its config.json, or else by
`model_type`, or in Mistral's own form by the keys of params.json; of any other a draft says first that its family is
unknown, and roles are read off the names that many families share.

How each row was tried, in the tests of this repository:

- **tried**: *layout* where transformers 5.17 makes a model of the architecture: its file layout with random weights is
  drafted, linted, planned, built as FP8_DYNAMIC (and as W4A16 where a sixteenth of its widths takes groups), audited as
  exact, and equal to `model_free_ptq` tensor by tensor (where that takes it; fused experts that lie otherwise are held
  against the same experts one by one).
  *names* where transformers has no such class: the descriptor rests on published names alone.
- **vLLM**: *served* where vLLM 0.32 (on a CPU, in a campaign that `make test-all` runs) loads an FP8_DYNAMIC build of a
  small model with random weights and computes the log-probabilities that our own forward does; *registry* where its
  registry has one of the architectures, and no server ran; *params.json* for Mistral's own form, which vLLM gives an
  architecture by its keys (a campaign loads a dense build of it, and compares it with its source). What it merges and
  what it makes without a quantization config is read off its source by `tests/vllm_source.py`.
- **loads unquantized**: what lint refuses to quantize (`serve/unquantized`, `quantize/router`).

"""
COLUMNS = (
    *("family", "architectures", "published, and in which precision", "tried", "vLLM", "merges beside the usual"),
    *("fused experts", "loads unquantized"),
)
USUAL = frozenset({"qkv_proj", "gate_up_proj", "w13", "fused_qkv_a_proj", "in_proj_qkvz", "in_proj_ba"})


def page() -> str:
    """The whole page."""
    registered = _registered()
    made = {name for name, _ in architectures()}
    rows = (_row(descriptor, registered, name in made) for name, descriptor in descriptors().items())
    head = f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}\n"
    return HEAD + head + "".join(f"{row}\n" for row in rows) + _roles()


def _row(own: Descriptor, registered: frozenset[str], made: bool) -> str:
    family = next(family for family in families() if family.name == own.name)
    merges = [f"{merge.into} ({' + '.join(merge.members)})" for merge in family.merges if merge.into not in USUAL]
    merges += [f"{merge.into} ({' + '.join(merge.members)})" for merge in own.merges if merge.into in USUAL]
    experts = [
        f"{layout.tensor}: {'[in, out]' if layout.axes == 'in_out' else '[out, in]'}"
        + (", interleaved" if layout.order == "interleaved" else "")
        for layout in own.experts
    ]
    unquantized = [
        f"{name} (but {' or '.join(item.unless)})" if item.unless else name
        for unit in family.units
        for item in unit.unquantized
        for name in item.names
    ]
    unquantized += [member for merge in family.merges if merge.unquantized for member in merge.members]
    cells = (
        own.name,
        ", ".join(own.architectures) or f"params.json with {', '.join(own.params)}",
        "; ".join(f"{each.model}: {each.precision}" for each in own.published),
        "layout" if made else "names",
        _by_vllm(own, registered),
        "; ".join(merges) or "-",
        "; ".join(experts) or "-",
        "; ".join(f"`{pattern}`" for pattern in unquantized).replace("|", "\\|") or "-",
    )
    return f"| {' | '.join(cells)} |"


def _by_vllm(own: Descriptor, registered: frozenset[str]) -> str:
    if own.params:
        return "params.json"
    if not SERVED.keys().isdisjoint(own.architectures):
        return "served"
    return "registry" if registered.intersection(own.architectures) else "no"


def _registered() -> frozenset[str]:
    models = yaml.safe_load((Path(__file__).parent / "golden/vllm-models.yaml").read_text())
    return frozenset(architecture for facts in models.values() for architecture in facts["architectures"])


def _roles() -> str:
    quantized = ("attention", "dense mlp", "experts", "recurrent mixer")
    named = ", ".join(str(role) for role in Role if str(role) not in quantized)
    return (
        "\n## Roles\n\n"
        f"A draft quantizes {', '.join(quantized[:-1])} and {quantized[-1]}, but for what a server loads unquantized "
        f"and what a descriptor says to keep. Kept are: {named}.\n\n"
        "## A family that is not here\n\n"
        "Write a descriptor: a name, its architectures, a published checkpoint, and what differs from "
        "`units/common.yaml`. `python -m tests.vllm_source WHEEL` prints what vLLM merges and loads unquantized; the "
        "tests then draft, build and audit its layout.\n"
    )


if __name__ == "__main__":
    sys.stdout.write(page())
