"""Drafting a recipe for a model that nobody has written one for, from its headers alone."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from weighbridge.checkpoint.model import Checkpoint
from weighbridge.errors import RecipeError
from weighbridge.families import Family, Role
from weighbridge.formats.schemes import PRESETS
from weighbridge.formats.tensors import Tensor
from weighbridge.linting import lint
from weighbridge.linting.mistral_form import kept_for_turning
from weighbridge.linting.quantized import BULK, not_covered
from weighbridge.linting.suggest import matching
from weighbridge.linting.vllm_kernels import INTEGER_GROUP_SIZES, unserved
from weighbridge.planning import Part, Plan, find_merged_groups, make_plan, tied_heads
from weighbridge.recipe import read_recipe
from weighbridge.recipe.catalogue import RECIPES
from weighbridge.report import Finding, Severity
from weighbridge.text.names import expert_of
from weighbridge.text.patterns import REGEX_PREFIX

DATA_FREE = tuple(
    name
    for name, scheme in PRESETS.items()
    if not (scheme.needs_calibration or not_covered(scheme) or unserved(scheme))
)
"""The presets that a draft can be of: nobody but a person can say which data a calibration should see."""

_REASONS: Mapping[Role, str] = {
    Role.ROUTER: "Routers choose experts by small differences, and vLLM does not load a quantized one.",
    Role.NORMS: "llm-compressor keeps names that end in norm; these end otherwise and would stop model_free_ptq.",
    Role.EMBEDDINGS: "Looked up, not multiplied; model_free_ptq would quantize it silently.",
    Role.HEAD: "The output head decides between tokens that are close.",
    Role.VISION: "The vision tower is small and sensitive, and servers load it unquantized.",
    Role.AUDIO: "The audio tower is small and sensitive, and vLLM serves it unquantized.",
    Role.INDEXER: "Chooses by small differences which keys sparse attention looks at.",
    Role.LATENT: "Projections to and from the space in which the experts work: all of them pass here.",
    Role.SMALL: "Small projections beside the bulk, which save little.",
    Role.CONVOLUTION: "A convolution: servers hold it as it is.",
    Role.MTP: "Joins embedding and hidden state for speculative decoding; vLLM's drafters have it unquantized.",
    Role.TALKER: "The part that speaks is sensitive, and servers load it unquantized.",
    Role.OTHER: "Its role is not known here. Kept, which is safe: take the entry out once you know better.",
}
_UNKNOWN_FAMILY = """\
# Unknown family: no descriptor of {architecture} is known here, so that roles are read off names that many families
# share. Compare every entry below with the model's own code before you trust it."""
_NO_MATRIX = (
    "Not a matrix, so no scheme applies and it stays unquantized. If it holds experts, that is most of the model."
)
_TURNED = (
    "vLLM reorders rows of queries and keys in this form as it loads them, and not what this scheme stores for them."
)
_TIED = "Tied to the embedding and not stored in the source; listed so that a server does not expect it quantized."


@dataclass(frozen=True)
class Draft:
    """A recipe as YAML with comments, and what lint has to say of it that only a person can settle."""

    text: str
    findings: tuple[Finding, ...]


@dataclass(frozen=True)
class _Entry:
    """An entry of the ignore list, why it is there, and how many modules it keeps."""

    pattern: str
    why: str
    modules: int


def draft_recipe(source: Checkpoint, *, model: str, licence: str, path: Path, scheme: str = "FP8_DYNAMIC") -> Draft:
    """Write a recipe that quantizes attention, mlp and experts of a model, and keeps the rest by name.

    Args:
        source: the model by its headers, not quantized.
        model: its hub id.
        licence: what its card declares, as an SPDX identifier.
        path: where it is to be written: what findings name, and what the path of its JSON Schema starts from.
        scheme: name of a data-free preset; integers in groups get the largest groups that divide every width.

    Raises:
        RecipeError: nothing in it is recognised, or the scheme does not fit its shapes.
    """
    opening = _opening(source, model, licence, scheme, path)
    everything = _planned([*opening, f"scheme: {scheme}", "ignore: []"], source, path)
    weights = {part.module: part.weight for part in everything.parts if _is_weight(part)}
    weights |= {obstacle.module: obstacle.weight for obstacle in everything.obstacles}
    reasons = {module: _reason_to_keep(module, weight, source.family, scheme) for module, weight in weights.items()}
    reasons |= _misfits({module: weights[module] for module, why in reasons.items() if not why}, scheme, source.family)
    unkept = [module for module, why in reasons.items() if not why]
    reasons |= dict.fromkeys(kept_for_turning(unkept, PRESETS[scheme], source.family, source.config), _TURNED)
    wanted = sorted(module for module, reason in reasons.items() if not reason)
    if not wanted:
        what = "none of its modules is known as attention, mlp, experts or recurrent mixer, so no recipe can be drafted"
        raise RecipeError(what, where=source.label, remedy="write one after the pattern of recipes/")
    kept = {module: reason for module, reason in reasons.items() if reason}
    entries = [*_heads(source, weights), *_entries(kept, wanted, source.family)]
    widths = {weights[module].shape[-1] for module in wanted}
    lines = [*opening, *_scheme(scheme, widths), *_ignore(entries), *_merged(_fused_groups(wanted, source.family))]
    plan = _planned(lines, source, path)
    findings = tuple(finding for finding in lint(plan) if finding.severity is not Severity.NOTE)
    errors = [finding for finding in findings if finding.severity is Severity.ERROR]
    if errors:
        what = f"{scheme} does not fit: {errors[0].where} {errors[0].message}"
        raise RecipeError(what, where=source.label, remedy=errors[0].remedy)
    return Draft(_text(lines), findings)


def _is_weight(part: Part) -> bool:
    """Whether a part is what a recipe without an ignore list would quantize, or a matrix that looks like it."""
    return part.scheme is not None or (f"{part.module}.weight" in part.outputs and len(part.weight.shape) == 2)


def _reason_to_keep(module: str, weight: Tensor, family: Family, scheme: str) -> str:
    """Why a draft keeps a module; empty where it is to be quantized by a preset."""
    if len(weight.shape) != 2:
        return _NO_MATRIX
    role = family.role_of(module)
    if role not in BULK:
        return _REASONS[role]
    unquantized = family.unquantized(module, PRESETS[scheme])
    if unquantized is not None and unquantized.unless:
        return f"{unquantized.server} takes it as floats or by {' or '.join(unquantized.unless)} ({unquantized.read})."
    if unquantized is not None:
        return f"{unquantized.server} loads it unquantized, whatever config.json says ({unquantized.read})."
    return family.kept(module)


def _misfits(wanted: Mapping[str, Tensor], scheme: str, family: Family) -> dict[str, str]:
    """Modules whose width no group of a scheme divides -> why they are kept.

    Empty where they are most of the weights, or experts, which servers want all in one scheme: then the scheme itself
    does not fit.
    """
    args = PRESETS[scheme].weights
    if args.group_size is None:
        return {}
    smallest = min(INTEGER_GROUP_SIZES) if args.type == "int" else args.group_size
    found = {module: weight for module, weight in wanted.items() if weight.shape[-1] % smallest}
    if any(family.role_of(module) is Role.EXPERTS for module in found):
        return {}
    if 2 * sum(weight.parameters for weight in found.values()) > sum(weight.parameters for weight in wanted.values()):
        return {}
    why = "{} columns are no multiple of {}, the smallest group of this scheme that servers have kernels for."
    return {module: why.format(weight.shape[-1], smallest) for module, weight in found.items()}


def _planned(lines: Sequence[str], source: Checkpoint, path: Path) -> Plan:
    return make_plan(read_recipe(_text(lines).encode(), where=str(path)), source)


def _text(lines: Sequence[str]) -> str:
    return "\n".join(lines) + "\n"


def _heads(source: Checkpoint, modules: Iterable[str]) -> Iterator[_Entry]:
    """Heads that are tied and not stored, which no tensor of the source would call for."""
    for head in sorted(tied_heads(source.config, modules) - set(modules)):
        yield _Entry(head, _TIED, 0)


def _entries(unwanted: Mapping[str, str], wanted: Sequence[str], family: Family) -> list[_Entry]:
    """Few entries that match every unwanted module and no wanted one, in the order of roles.

    Args:
        unwanted: module -> why it is kept.

    Raises:
        RecipeError: a module whose name no entry can have.
    """
    found: list[tuple[_Entry, frozenset[str]]] = []
    asked = [*wanted, *(_asked_instead(wanted) - unwanted.keys())]
    left = sorted(unwanted, key=lambda module: (list(Role).index(family.role_of(module)), module))
    while left:
        first = left[0]  # which each pattern must match: a norm that is called ln_1 has no norm in its name
        fitting = (pattern for pattern in _patterns(first, family) if matching(pattern, [first]))
        pattern = next((pattern for pattern in fitting if not matching(pattern, asked)), None)
        if pattern is None:
            what = f"no entry of an ignore list can name its module {first[:80]!r}"
            raise RecipeError(what, where=family.name, remedy="write a recipe by hand whose targets leave it out")
        covered = frozenset(matching(pattern, left))
        same = sum(unwanted[module] == unwanted[first] for module in covered)
        found.append((_Entry(pattern, unwanted[first], same), covered))
        left = [module for module in left if module not in covered]
    return [entry for entry, covered in found if not _is_covered(entry, covered, found)]


def _asked_instead(wanted: Iterable[str]) -> set[str]:
    """The names by which vLLM may ask the ignore list about experts, whatever they are called in the files.

    Where no class of its own names them, it asks about ``gate_proj``, ``up_proj`` and ``down_proj``: an entry that
    means the router ``gate`` would match one of three, and the experts would not load (model_executor/models/
    transformers/moe.py, read in 0.32).
    """
    experts = {module.rpartition(".")[0] for module in wanted if expert_of(module) is not None}
    return {f"{expert}.{linear}" for expert in experts for linear in ("gate_proj", "up_proj", "down_proj")}


def _is_covered(entry: _Entry, covered: frozenset[str], found: Sequence[tuple[_Entry, frozenset[str]]]) -> bool:
    """Whether another entry with the same reason matches all that an entry is there for."""
    others = (other for other, _ in found if other is not entry and other.why == entry.why)
    return any(len(matching(other.pattern, covered)) == len(covered) for other in others)


def _patterns(module: str, family: Family) -> Iterator[str]:
    """Ways to name a module and its like, widest first: by a part of its name, by its end, by all of it."""
    parts = module.split(".")
    words = [part for part in parts if not part.isdigit()]
    if family.role_of(module) is Role.NORMS:
        words.insert(0, "norm")
    yield from (f"{REGEX_PREFIX}.*{re.escape(word)}.*" for word in words)
    for count in (1, 2):
        yield rf"{REGEX_PREFIX}(?:.*\.)?{re.escape('.'.join(parts[-count:]))}$"
    yield module


def _fused_groups(wanted: Sequence[str], family: Family) -> list[tuple[str, ...]]:
    """What servers merge, of the names that the model has in one place."""
    found = {member for group in find_merged_groups(wanted, family) for member in group.members}
    return [members for members in family.merged.values() if not found.isdisjoint(members)]


def _opening(source: Checkpoint, model: str, licence: str, scheme: str, path: Path) -> list[str]:
    revision = source.origin.revision
    return [
        *_schema(path),
        *([] if source.family.known else [_UNKNOWN_FAMILY.format(architecture=_architecture(source))]),
        f"# {scheme} for {model}, drafted by build.py --new-recipe from the model's headers:",
        "# read it before you trust it.",
        f"name: {scheme.lower().replace('_', '-')}",
        "description: >-",
        f"  {scheme} of the linears of attention, mlp and experts; routers, norms, embeddings, vision and",
        "  audio are kept.",
        "base:",
        f"  model: {_quoted(model)}",
        f"  revision: {_commit(revision)}"
        if revision
        else "  # No revision: its commit is not known, and lint warns of that.",
        f"  licence: {_quoted(licence)}",
        "method: model_free_ptq",
    ]


def _architecture(source: Checkpoint) -> str:
    """What a config.json calls its architecture, in letters and digits alone: it goes into a comment."""
    names = source.config.get("architectures")
    name = names[0] if isinstance(names, list) and names else source.config.get("model_type")
    return name if isinstance(name, str) and re.fullmatch(r"\w{1,80}", name) else "this model"


def _schema(path: Path) -> list[str]:
    """The line by which editors find the JSON Schema; none outside the project, where no relative path would last."""
    directory = path.parent.resolve()
    if not directory.is_relative_to(RECIPES.parent):
        return []
    relative = Path(os.path.relpath(RECIPES / "recipe.schema.json", directory)).as_posix()
    return [f"# yaml-language-server: $schema={relative}"]


def _scheme(name: str, widths: Collection[int]) -> list[str]:
    """The preset by its name, or spelled out with smaller groups where its own do not divide every width."""
    weights = PRESETS[name].weights
    fitting = [size for size in INTEGER_GROUP_SIZES if all(width % size == 0 for width in widths)]
    if weights.type != "int" or weights.group_size is None or weights.group_size in fitting or not fitting:
        return [f"scheme: {name}"]
    undivided = ", ".join(str(width) for width in sorted(widths) if width % weights.group_size)
    return [
        f"# {name} but for its groups: {weights.group_size} does not divide {undivided}.",
        f"# {max(fitting)} is the largest size that divides every width and that vLLM has kernels for.",
        "config_groups:",
        "  group_0:",
        "    targets: [Linear]",
        f"    weights: {{num_bits: {weights.num_bits}, type: int, symmetric: {json.dumps(weights.symmetric)}, "
        f"strategy: group, group_size: {max(fitting)}}}",
    ]


def _ignore(entries: Sequence[_Entry]) -> list[str]:
    lines = ["ignore:" if entries else "ignore: []"]
    for entry in entries:
        kept = f" ({entry.modules:,} modules)" if entry.modules > 1 else ""
        lines += [f"  # {entry.why}{kept}", f"  - {_quoted(entry.pattern)}"]
    return lines


def _merged(groups: Sequence[tuple[str, ...]]) -> list[str]:
    if not groups:
        return []
    why = "# Servers merge these, so that they must have one scheme and, where there is one, one global scale."
    return [why, "fused_groups:", *(f"  - [{', '.join(group)}]" for group in groups)]


def _commit(revision: str) -> str:
    """A commit of digits alone, or of digits and one e, would be read back as a number."""
    return json.dumps(revision) if re.fullmatch(r"[0-9]+(e[0-9]+)?", revision) else revision


def _quoted(text: str) -> str:
    """A plain scalar where YAML reads it back as it is, else a quoted one: names come from a stranger's headers."""
    plain = re.fullmatch(r"[A-Za-z][A-Za-z0-9_./:()?*\\$-]*", text) and not text.endswith(":")
    return text if plain else f'"{"".join(map(_escaped, text))}"'


def _escaped(character: str) -> str:
    """A character within double quotes in YAML, in ASCII."""
    if character in '"\\':
        return f"\\{character}"
    return character if " " <= character <= "~" else f"\\U{ord(character):08X}"
