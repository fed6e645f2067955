"""The model card of a build: from the recipe, the tensors and what was measured, and from nothing else.

Its blocks are plain functions of facts that a verifier has too, so each can be written again and looked for.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from weighbridge.base.identity import Claim
from weighbridge.checkpoint.hub import page_of
from weighbridge.checkpoint.model import Checkpoint
from weighbridge.checkpoint.modules import split_parameter
from weighbridge.evidence.results import Result
from weighbridge.families import Role
from weighbridge.formats import FORMATS
from weighbridge.formats.modelopt import METHOD as MODELOPT
from weighbridge.recipe import LoadedRecipe, Recipe

CARD = "README.md"
BASE_CARD = "README.base.md"
_KEPT = re.compile(r"README(\.base)+\.md")
_NAMED_REFERENCE = re.compile(r"against (the recipe's plan|[\w.-]+/[\w.-]+(@\w+)?( \(\w+\))?)", re.ASCII)
QUALITIES = {"PASSED": "passed", "WARNED": "passed with warnings", "FAILED": "failed"}


@dataclass(frozen=True)
class BaseModel:
    """The model that was quantized, as far as it is known.

    Attributes:
        repository: hub id; that of the recipe where the source itself has none.
        revision: the commit, or empty.
        claim: who it is by the digests of its files.
    """

    repository: str
    revision: str
    claim: Claim


@dataclass(frozen=True)
class CardFacts:
    """All that a card is made of.

    Attributes:
        built: the build, by its structure and schemes: as planned, or as its headers have it.
        results: what judged it, by the name of the report.
        base_card: the file that the source's own card is kept as; empty where it has none.
    """

    loaded: LoadedRecipe
    built: Checkpoint
    base: BaseModel
    results: Mapping[str, Sequence[Result]]
    base_card: str = ""

    @property
    def name(self) -> str:
        return model_name(self.base, self.loaded.recipe)


def model_name(base: BaseModel, recipe: Recipe) -> str:
    """What the build is called: the base's name and the recipe's."""
    return f"{base.repository.rpartition('/')[2]}-{recipe.name}"


def kept_card(names: Iterable[str]) -> str:
    """The file that a source's own card is kept as, among the files of a build; empty where there is none."""
    return max((name for name in names if _KEPT.fullmatch(name)), key=len, default="")


def write_card(facts: CardFacts) -> bytes:
    """The card, README.md of a build."""
    return "\n\n".join(blocks(facts).values()).encode() + b"\n"


def blocks(facts: CardFacts) -> Mapping[str, str]:
    """The parts of a card by what they are about, in order."""
    return {
        "metadata": _metadata(facts),
        "title": f"# {facts.name}\n\n{' '.join(facts.loaded.recipe.description.split())}",
        "base": _base(facts),
        "tensors": _tensors(facts.built),
        "recipe": _recipe(facts.loaded),
        "serving": _serving(facts.loaded.recipe, facts.built),
        "results": _results(facts.results),
        "evidence": _evidence(),
    }


def _metadata(facts: CardFacts) -> str:
    from huggingface_hub import ModelCardData

    recipe = facts.loaded.recipe
    schemes = sorted({scheme.format for scheme in facts.built.schemes.values()})
    data = ModelCardData(
        base_model=facts.base.repository,
        base_model_relation="quantized",
        license=recipe.base.licence,
        tags=sorted({"weighbridge", recipe.format, *schemes}),
    )
    return f"---\n{data.to_yaml(line_break=chr(10))}\n---"


def _base(facts: CardFacts) -> str:
    base, kept, recipe = facts.base, facts.base_card, facts.loaded.recipe
    link = f"[{base.repository}]({page_of(base.repository)})"
    made = "Converted" if recipe.method == "convert" else "Quantized"
    at = f" at revision `{base.revision}`" if base.revision else ""
    start = f"{made} from {link}{at}" if base.claim.proven else f"{made} from what was handed over as {link}{at}"
    own = f" Its own card is [{kept}]({kept})." if kept else ""
    return (
        f"## Where it comes from\n\n{start}.\nThe source that was read: {base.claim.sentence}.\n"
        f"Its licence is {recipe.base.licence}.{own}"
    )


def _tensors(built: Checkpoint) -> str:
    lines = [
        "## What is quantized and what is not",
        "",
        "| role | stored as | modules | bytes |",
        "|---|---|---:|---:|",
    ]
    lines += [f"| {role} | {stored} | {modules:,} | {size:,} |" for role, stored, modules, size in tensor_rows(built)]
    return "\n".join(lines)


def tensor_rows(built: Checkpoint) -> list[tuple[str, str, int, int]]:
    """Role, scheme or dtype, number of modules and bytes, for everything that a checkpoint stores."""
    modules: dict[tuple[Role, str], set[str]] = {}
    sizes: dict[tuple[Role, str], int] = {}
    for name, tensor in built.structure.items():
        module = split_parameter(name)[0]
        scheme = built.schemes.get(module)
        row = built.family.role_of(module), str(scheme) if scheme is not None else f"{tensor.dtype}, not quantized"
        modules.setdefault(row, set()).add(module)
        sizes[row] = sizes.get(row, 0) + tensor.nbytes
    order = list(Role)
    rows = sorted(modules, key=lambda row: (order.index(row[0]), row[1]))
    return [(str(role), stored, len(modules[role, stored]), sizes[role, stored]) for role, stored in rows]


def _recipe(loaded: LoadedRecipe) -> str:
    text = loaded.raw.decode()
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"## The recipe\n\n{fence}yaml\n{text.rstrip()}\n{fence}"


def _serving(recipe: Recipe, built: Checkpoint) -> str:
    vllm, sglang = "vllm serve .", "python -m sglang.launch_server --model-path ."
    if recipe.kv_cache is not None:
        vllm += " --kv-cache-dtype fp8"
        sglang += " --kv-cache-dtype fp8_e4m3"
    method = built.declaration.quant_method if built.declaration is not None else ""
    known = f"Both read how it is quantized ({method}) from config.json. " if method in FORMATS else ""
    if method == MODELOPT:
        fp4 = any("nvfp4" in scheme.format for scheme in built.schemes.values())
        sglang += " --quantization modelopt_fp4" if fp4 else " --quantization modelopt"
    return (
        "## Serving\n\n"
        f"```sh\n{vllm}\n{sglang}\n```\n\n"
        f"{known}No server was run as part of this build; what was measured is below."
    )


def _results(results: Mapping[str, Sequence[Result]]) -> str:
    lines = ["## What was checked", "", "| by | what | result | |", "|---|---|---|---|"]
    for judge, found in results.items():
        lines += [
            f"| {judge} | {_cell(result.name)} | {QUALITIES[result.outcome]} | {_cell(result.summary)} |"
            for result in found
            if _is_named(result)
        ]
    return "\n".join(lines)


def _is_named(result: Result) -> bool:
    """Whether what a checkpoint was held against has a name that means something elsewhere: a directory has none."""
    return not result.name.startswith("against ") or _NAMED_REFERENCE.fullmatch(result.name) is not None


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _evidence() -> str:
    return (
        "## The evidence\n\n"
        "`evidence/` holds digests of every file and tensor, statements of how this checkpoint was made and judged,\n"
        "and a bill of materials. [evidence/README.md](evidence/README.md) says what each file is and how to check it\n"
        "with tools of others. With Weighbridge: `python validate.py CHECKPOINT --evidence`."
    )
