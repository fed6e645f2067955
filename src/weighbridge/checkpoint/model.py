"""A checkpoint as its headers, index and config describe it, wherever it lies."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, field, replace
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from weighbridge.checkpoint.coded import CodedModule, coded_modules, dropped_scales
from weighbridge.checkpoint.form import MISTRAL, Form, find_form, form_of, read_config
from weighbridge.checkpoint.header import Header, check_names, read_header
from weighbridge.checkpoint.listing import list_files
from weighbridge.checkpoint.modules import FusedExperts, check_experts, fused_experts, quantizable_modules
from weighbridge.checkpoint.own_names import in_own_names
from weighbridge.checkpoint.quantized import quantized_modules
from weighbridge.checkpoint.weights import is_pickle, is_weights
from weighbridge.errors import StructureError
from weighbridge.families import Family, family_of
from weighbridge.formats import modelopt, modelopt_reading
from weighbridge.formats.declaration import Declaration
from weighbridge.formats.quantization import read_declaration
from weighbridge.formats.schemes import Scheme
from weighbridge.formats.tensors import Structure, Tensor
from weighbridge.machine.standing import Standing, check_same, check_stands, standing_of
from weighbridge.text.strict_json import MAX_JSON_BYTES, parse_object

GITS_OWN = (".gitattributes", ".github", ".gitignore")
"""What git and its hosts keep at the top of a repository: no part of a model, and no signature covers it."""
EVIDENCE = "evidence"
"""The folder of a build that says how it was made; see `weighbridge.evidence`."""


BEHAVIOUR_FILES = frozenset(
    {
        *("chat_template.jinja", "chat_template.json", "generation_config.json"),
        *("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json"),
        *("vocab.json", "merges.txt", "processor_config.json", "preprocessor_config.json"),
    }
)
"""Files that change what a served model says without touching a weight."""


@dataclass(frozen=True)
class FileFact:
    """What is known of a file without reading it: its size in bytes and, where somebody recorded it, its SHA-256.

    Attributes:
        standing: for a file on disk, as it was when it was listed, or read; see `weighbridge.machine.standing`.
    """

    size: int | None = None
    sha256: str | None = None
    standing: Standing | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Origin:
    """Where a checkpoint comes from, and how anybody knows.

    Attributes:
        repository: hub id ``org/name``; empty for a directory.
        revision: the commit, or empty where it is not known.
        branch: the branch or tag that it was asked for by; empty for a commit. It says nothing about what came.
        base: hub id of the base model that it is (its own id) or derives from.
        basis: ``read`` (its own headers, now), or what a lock says: ``exact``, ``seen`` or ``derived``.
        note: for a lock, where the fact comes from.
    """

    repository: str = ""
    revision: str = ""
    base: str = ""
    basis: str = "read"
    note: str = ""
    branch: str = field(default="", compare=False)


@dataclass(frozen=True)
class Checkpoint:
    """Everything about a checkpoint except its weights' values.

    Attributes:
        label: how messages call it.
        structure: tensor name -> dtype and shape.
        config: config.json, parsed, or what stands in its place (`weighbridge.checkpoint.form`); for a lock what it
            keeps of it.
        declaration: its quantization config as written, in the config or in modelopt's own file, and by names of this
            checkpoint; None where it declares none.
        schemes: module -> scheme, for every module of the structure that the declaration quantizes.
        shards: file name -> header; empty where only a lock is at hand.
        files: every other file's name -> size and digest, as far as known.
        directory: where it lies on disk, if it does.
        quant_config: modelopt's hf_quant_config.json, parsed; None where there is none.
    """

    label: str
    structure: Structure
    config: Mapping[str, Any]
    declaration: Declaration | None = None
    schemes: Mapping[str, Scheme] = field(default_factory=dict)
    shards: Mapping[str, Header] = field(default_factory=dict)
    files: Mapping[str, FileFact] = field(default_factory=dict)
    directory: Path | None = None
    origin: Origin = Origin()
    quant_config: Mapping[str, Any] | None = None

    @cached_property
    def family(self) -> Family:
        """The family that its config names; the unknown one where it names none that is described."""
        return family_of(self.config)

    @property
    def form(self) -> Form:
        """What its files are called."""
        return form_of(self.family)

    @property
    def read_beside(self) -> frozenset[str]:
        """The files beside the shards that say what the shards hold."""
        return frozenset({self.form.config, self.form.index, modelopt.HF_QUANT_CONFIG})

    @cached_property
    def fused_experts(self) -> Mapping[str, FusedExperts]:
        """The tensors that hold all experts of a layer, and how the experts lie in each."""
        return fused_experts(self.structure, self.family)

    @property
    def declared_in(self) -> str:
        """The file that says how it is quantized: its config, or modelopt's own where that is the only one."""
        alone = self.declaration is not None and self.declaration.place == modelopt.HF_QUANT_CONFIG
        return modelopt.HF_QUANT_CONFIG if alone else self.form.config

    @cached_property
    def modules(self) -> Mapping[str, Mapping[str, Tensor]]:
        """Every module that a scheme could apply to, with its tensors by local name; see `quantizable_modules`."""
        return quantizable_modules(self.structure)

    @cached_property
    def coded(self) -> Mapping[str, Mapping[str, CodedModule]]:
        """Its quantized modules as codes that stand for weights, see `coded_modules`."""
        if self.declaration is None:
            return {}
        return coded_modules(self.declaration, self.modules, self.schemes, self.fused_experts)

    @cached_property
    def dropped(self) -> Mapping[str, str]:
        """Scales that do not go along with its weights once these are no longer its codes, and why."""
        if self.declaration is None:
            return {}
        modules = {module: self.modules[module] for module in self.coded}
        return dropped_scales(self.structure, self.declaration, modules, self.family)


def assemble(
    *,
    label: str,
    shards: Mapping[str, Header],
    index: Mapping[str, str] | None,
    config: Mapping[str, Any],
    files: Mapping[str, FileFact],
    directory: Path | None = None,
    origin: Origin = Origin(),
    quant_config: Mapping[str, Any] | None = None,
) -> Checkpoint:
    """Put headers, index and config together, holding each against the others.

    What the config declares goes before `quant_config`, as in vLLM; whether they agree is for who judges.

    Raises:
        StructureError: a tensor in two shards, or index and headers that disagree; or a malformed quantization config.
    """
    structure: dict[str, Tensor] = {}
    for shard, header in shards.items():
        for name, stored in header.tensors.items():
            if name in structure:
                raise StructureError(f"tensor {name!r} is in two shards", where=f"{label}/{shard}")
            structure[name] = stored.tensor
            if index is not None and index.get(name) != shard:
                named = f"says it is in {index[name]}" if name in index else "does not name it"
                raise StructureError(f"tensor {name!r} is in {shard}, but the index {named}", where=label)
    for name, shard in (index or {}).items():
        if name not in structure:
            raise StructureError(f"the index names tensor {name!r} in {shard}, which does not hold it", where=label)
    if not structure:
        raise StructureError("holds no tensor", where=label)
    family = family_of(config)
    fused = fused_experts(structure, family)
    check_experts(structure, fused, where=label)
    declared_in = form_of(family).config
    declaration = read_declaration(config, where=f"{label}/{declared_in}")
    if declaration is None and quant_config is not None:
        declared_in = modelopt.HF_QUANT_CONFIG
        declaration = modelopt_reading.read_document(quant_config, where=f"{label}/{declared_in}")
    checkpoint = Checkpoint(
        label=label,
        structure=structure,
        config=config,
        declaration=declaration,
        shards=shards,
        files=files,
        directory=directory,
        origin=origin,
        quant_config=quant_config,
    )
    vars(checkpoint)["fused_experts"] = fused  # cached, and the same
    if declaration is None:
        return checkpoint
    where = f"{label}/{declared_in}"
    declaration = in_own_names(declaration, checkpoint.modules, family, where=where)
    schemes = quantized_modules(declaration, checkpoint.modules, family, where=where)
    resolved = replace(checkpoint, declaration=declaration, schemes=schemes)
    vars(resolved).update(fused_experts=fused, modules=checkpoint.modules)  # likewise
    return resolved


def open_directory(
    directory: Path, *, label: str = "", follow: Sequence[Path] = (), origin: Origin = Origin()
) -> Checkpoint:
    """Read the headers of a checkpoint on disk.

    Args:
        follow: directories into which its links may lead; see `weighbridge.checkpoint.listing`.
        origin: where it comes from, if that is known.

    Raises:
        StructureError: no checkpoint there, only pickled weights, or anything malformed.
    """
    label = label or str(directory)
    if not directory.is_dir():
        raise StructureError("no such directory" if not directory.exists() else "is no directory", where=label)
    names = list_files(directory, label=label, follow=follow)
    read: dict[str, Standing] = {}

    def content(name: str) -> bytes:
        raw, read[name] = _read_known(directory / name, label=label)
        return raw

    form = find_form(names, label=label)
    index = None
    if form.index in names:
        index = read_index(content(form.index), where=f"{label}/{form.index}")
        missing = sorted(set(index.values()) - set(names))
        if missing:
            what = f"the index names the shard {missing[0]}, which is not there"
            raise StructureError(what, where=label, remedy="fetch or copy the checkpoint again, whole")
    shard_names = choose_shards(names, index, form, label=label)
    check_config_is_there(names, form, label=label)
    config = read_config(content(form.config), form, where=f"{label}/{form.config}")
    quant_config = None
    if modelopt.HF_QUANT_CONFIG in names:
        quant_config = parse_object(content(modelopt.HF_QUANT_CONFIG), where=f"{label}/{modelopt.HF_QUANT_CONFIG}")
    shards = {shard: read_header(directory / shard, where=f"{label}/{shard}") for shard in shard_names}
    read.update({name: header.standing for name, header in shards.items() if header.standing is not None})
    return assemble(
        label=label,
        shards=shards,
        index=index,
        config=config,
        files={name: _file_fact(directory / name, read.get(name), label=label) for name in names},
        directory=directory,
        origin=origin,
        quant_config=quant_config,
    )


def read_index(raw: bytes, *, where: str) -> dict[str, str]:
    """Read an index (``model.safetensors.index.json``): tensor name -> shard.

    Raises:
        StructureError: malformed, or a shard that is not a plain file name.
    """
    weight_map = parse_object(raw, where=where).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise StructureError("has no weight_map", where=where)
    check_names(weight_map, where=where)
    checked: set[str] = set()
    for shard in weight_map.values():
        if not isinstance(shard, str) or shard not in checked:
            checked.add(check_shard_name(shard, where=where))
    return weight_map


def check_shard_name(shard: object, *, where: str) -> str:
    """A plain file name that stays inside the checkpoint's directory.

    Raises:
        StructureError: a path, a name of another kind of file, or characters that do not belong there.
    """
    if (
        not isinstance(shard, str)
        or not shard.endswith(".safetensors")
        or not (shard.isascii() and shard.isprintable())
        or PurePosixPath(shard).name != shard
        or "\\" in shard
        or len(shard) > 255
    ):
        raise StructureError(
            f"{str(shard)[:80]!r} is no plain name of a safetensors file beside the index", where=where
        )
    return shard


def choose_shards(names: Iterable[str], index: Mapping[str, str] | None, form: Form, *, label: str) -> list[str]:
    """The shards that hold a checkpoint's tensors, sorted: those that the index names, or the single file.

    Raises:
        StructureError: no safetensors file, or several and no index that says which belong.
    """
    if index is not None:
        return sorted(set(index.values()))
    candidates = sorted(name for name in names if name.endswith(".safetensors") and "/" not in name)
    if form.single in candidates:
        return [form.single]
    if len(candidates) == 1:
        return candidates
    if candidates:
        raise StructureError(
            f"holds {len(candidates)} safetensors files and no {form.index} that says which belong to it", where=label
        )
    pickles = sorted(filter(is_pickle, names))
    if pickles:
        raise StructureError(
            f"holds only pickled weights ({pickles[0]}), which can run code and are never opened",
            where=label,
            remedy="take a revision of the model that has safetensors",
        )
    raise StructureError(
        "holds no safetensors file", where=label, remedy="name the directory that has config.json and the weights"
    )


def check_config_is_there(names: Iterable[str], form: Form, *, label: str) -> None:
    """Refuse weights without the file that says what they are.

    Raises:
        StructureError: no config of this form among a checkpoint's files.
    """
    present = set(names)
    if form.config in present:
        return
    if MISTRAL.config in present:
        what = f"has {MISTRAL.config}, no {form.config}, and weights that are not called {MISTRAL.stem}*.safetensors"
        remedy = "Mistral's own form has those; name a checkpoint that is wholly in one form"
        raise StructureError(what, where=label, remedy=remedy)
    what = f"holds no {form.config}, which says what model it is and how its weights are stored"
    raise StructureError(what, where=label, remedy="take it from where the weights come from")


def _file_fact(path: Path, read: Standing | None, *, label: str) -> FileFact:
    """Size, and for the small files that change behaviour the digest; `read` is the file as it was read already."""
    if path.name in BEHAVIOUR_FILES:
        content, standing = _read_known(path, label=label)
        return FileFact(len(content), hashlib.sha256(content).hexdigest(), standing)
    try:
        standing = read or standing_of(path.stat())
    except OSError as error:
        raise StructureError(f"{path.name} cannot be read ({error.strerror})", where=label) from error
    return FileFact(standing.size, None, standing)


def check_unchanged(checkpoint: Checkpoint, names: Iterable[str]) -> None:
    """Refuse a checkpoint on disk of which a file is no longer what was read, by its header or when it was listed.

    Raises:
        StructureError: with the first such file.
    """
    for name in names if checkpoint.directory is not None else ():
        assert checkpoint.directory is not None
        known = standing_in(checkpoint, name)
        check_stands(checkpoint.directory / name, known, where=f"{checkpoint.label}/{name}")


def identities(checkpoint: Checkpoint) -> dict[str, list[int | str]]:
    """What tells that a shard was touched since its header was read: its inode, size, times of change; on the hub, the
    commit."""
    if checkpoint.directory is None:
        return {name: [checkpoint.origin.repository, checkpoint.origin.revision] for name in checkpoint.shards}
    standings = {name: header.standing for name, header in checkpoint.shards.items()}
    return {name: [] if it is None else [*astuple(it)] for name, it in standings.items()}


def standing_in(checkpoint: Checkpoint, name: str) -> Standing | None:
    """A file of a checkpoint as it was read first; None where that is not known."""
    if name in checkpoint.shards:
        return checkpoint.shards[name].standing
    fact = checkpoint.files.get(name)
    return None if fact is None else fact.standing


def carried_files(checkpoint: Checkpoint) -> list[str]:
    """Names of the files that a build carries over: no weights, nothing that says how they are stored, no evidence of
    another build, nothing of git's."""
    written = (checkpoint.form.config, modelopt.HF_QUANT_CONFIG)
    return sorted(
        name
        for name in checkpoint.files
        if not is_weights(name) and name not in written and name.partition("/")[0] not in (EVIDENCE, *GITS_OWN)
    )


def read_small(path: Path, *, label: str, known: Standing | None = None) -> bytes:
    """Read a file that should be small.

    Args:
        known: the file as it was read before; None where this is the first time.

    Raises:
        StructureError: unreadable, or larger than any JSON file of a checkpoint is, or no longer what was read before.
    """
    return _read_known(path, known, label=label)[0]


def _read_known(path: Path, known: Standing | None = None, *, label: str) -> tuple[bytes, Standing]:
    """A small file, and which file it was that was read."""
    where = f"{label}/{path.name}"
    try:
        with path.open("rb") as file:
            check_same(file.fileno(), known, where=where)
            standing = standing_of(os.fstat(file.fileno()))
            raw = file.read(MAX_JSON_BYTES + 1)
            check_same(file.fileno(), standing, where=where)
    except OSError as error:
        raise StructureError(f"{path.name} cannot be read ({error.strerror})", where=label) from error
    if len(raw) > MAX_JSON_BYTES:
        raise StructureError(f"{path.name} is larger than {MAX_JSON_BYTES:,} bytes", where=label)
    return raw, standing
