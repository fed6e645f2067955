"""Structure locks: a structure written down compactly, pinned to a repository and revision, and how it is known.

A lock is YAML and known by its first key, ``structure_lock``, whatever the file is called. It holds what a comparison
needs: tensors, the scheme of each module, digests of files, and for a source its config.json.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field

from weighbridge.checkpoint.header import MAX_AXES, MAX_AXIS, check_dtype, check_name
from weighbridge.checkpoint.model import Checkpoint, FileFact, Origin, read_small
from weighbridge.checkpoint.modules import check_experts, fused_experts
from weighbridge.errors import StructureError
from weighbridge.families import family_of
from weighbridge.formats.compressed_tensors import read_args, read_scheme
from weighbridge.formats.declaration import Declaration
from weighbridge.formats.quantization import without_quantization
from weighbridge.formats.schemes import QuantizationArgs, Scheme, to_config
from weighbridge.formats.tensors import DTYPE_BITS, Structure, Tensor
from weighbridge.machine.standing import explained
from weighbridge.text.names import MAX_NAMES, NamePattern, compact, parse_pattern
from weighbridge.text.strict_yaml import Document, Strict, parse_yaml, validate

VERSION = 1
LOCK_KEY = b"structure_lock"
#: A lock may begin with comments; a shard that was named by mistake is not read whole to find out.
SEARCHED_BYTES = 64 * 1024
_AXIS = re.compile(r"[0-9]{1,15}")

BASES = Literal["read", "exact", "seen", "derived"]


class LockedFile(Strict):
    """A file of the checkpoint: bytes and SHA-256 (lower-case hex), each as far as known."""

    size: int | None = Field(default=None, ge=0)
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")


class LockedQuantization(Strict):
    """Quantization by effect: schemes by a short name, and ``PATTERN: short name`` for each module that gets one."""

    quant_method: str = "compressed-tensors"
    format: str = ""
    kv_cache: dict[str, Any] | None = None
    schemes: dict[str, dict[str, Any]]
    modules: list[str]


class StructureLock(Strict):
    """The file's own schema; see docs of each field in references/README.md."""

    structure_lock: Annotated[int, Field(ge=VERSION, le=VERSION)]
    repository: str
    revision: str = ""
    base: str
    basis: BASES
    note: str = ""
    tensors: list[str]
    quantization: LockedQuantization | None = None
    files: dict[str, LockedFile] = {}
    config: dict[str, Any] = {}


@dataclass(frozen=True)
class ReadLock:
    """A lock as it stands in its file; `expand_lock` makes a checkpoint of it, which for a large model takes long."""

    document: Document
    lock: StructureLock

    @property
    def origin(self) -> Origin:
        """Of which repository and base it is, and how it is known."""
        lock = self.lock
        return Origin(lock.repository, lock.revision, lock.base, lock.basis, lock.note)

    @property
    def is_source(self) -> bool:
        """Whether it is of a base model, which is its own base."""
        return self.lock.repository == self.lock.base

    def tensor_count(self) -> int:
        """For how many tensors it stands.

        Raises:
            StructureError: a line is malformed.
        """
        where = self.document.where
        return sum(len(parse_tensor_line(line, where=where)[0]) for line in self.lock.tensors)


def read_lock(path: Path) -> ReadLock:
    """Read a structure lock, and expand none of its patterns.

    Raises:
        StructureError: not a lock, or malformed.
    """
    where = str(path)
    no_lock = StructureError(
        "is a file, but no structure lock", where=where, remedy="name a checkpoint's directory, a hub id or a lock"
    )
    with explained(where), path.open("rb") as file:
        if LOCK_KEY not in file.read(SEARCHED_BYTES):
            raise no_lock
    document = parse_yaml(read_small(path, label=where), where=where, error=StructureError)
    if "structure_lock" not in document.value:
        raise no_lock
    return ReadLock(document, validate(document, StructureLock, error=StructureError))


def open_lock(path: Path) -> Checkpoint:
    """Read a structure lock as a checkpoint that has no weights.

    Raises:
        StructureError: not a lock, or malformed.
    """
    return expand_lock(read_lock(path))


def expand_lock(read: ReadLock) -> Checkpoint:
    """A lock that was read as a checkpoint that has no weights.

    Raises:
        StructureError: what its patterns or its schemes say is malformed.
    """
    document, lock = read.document, read.lock
    where = document.where
    if not lock.tensors:
        raise StructureError("describes no tensor", where=where)
    structure = _expand(
        ((line, f"{where}:{document.line(('tensors', index))}") for index, line in enumerate(lock.tensors))
    )
    check_experts(structure, fused_experts(structure, family_of(lock.config)), where=where)
    declaration: Declaration | None = None
    schemes: dict[str, Scheme] = {}
    if lock.quantization is not None:
        lines = [document.line(("quantization", "modules", index)) for index in range(len(lock.quantization.modules))]
        declaration, schemes = _read_quantization(lock.quantization, lines, where=where)
    return Checkpoint(
        label=where,
        structure=structure,
        config=lock.config,
        declaration=declaration,
        schemes=schemes,
        files={name: FileFact(size=file.size, sha256=file.sha256) for name, file in lock.files.items()},
        origin=read.origin,
    )


def write_lock(checkpoint: Checkpoint) -> str:
    """A checkpoint's structure lock as YAML text; `open_lock` reads it back to an equal structure and equal schemes.

    Its config.json stands there without the quantization config, which stands by effect, so that it can be planned.
    """
    origin = checkpoint.origin
    content: dict[str, Any] = {
        "structure_lock": VERSION,
        "repository": origin.repository or checkpoint.label,
        "revision": origin.revision,
        "base": origin.base,
        "basis": origin.basis,
    }
    if origin.note:
        content["note"] = origin.note
    content["tensors"] = tensor_lines(checkpoint.structure)
    if checkpoint.declaration is not None:
        content["quantization"] = _write_quantization(checkpoint.declaration, checkpoint.schemes)
    if checkpoint.files:
        content["files"] = {
            name: {key: value for key, value in (("size", fact.size), ("sha256", fact.sha256)) if value is not None}
            for name, fact in sorted(checkpoint.files.items())
        }
    config = without_quantization(checkpoint.config)
    if config:
        content["config"] = config
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=False, width=1000)


def tensor_lines(structure: Structure) -> list[str]:
    """A structure in the compact form: ``PATTERN DTYPE [SHAPE]``, one line for each pattern and kind of tensor."""
    by_tensor: dict[Tensor, list[str]] = {}
    for name, tensor in structure.items():
        by_tensor.setdefault(tensor, []).append(name)
    lines = [(str(pattern), tensor) for tensor, names in by_tensor.items() for pattern in compact(names)]
    return [f"{pattern} {tensor}" for pattern, tensor in sorted(lines, key=lambda line: line[0])]


def parse_tensor_line(line: str, *, where: str) -> tuple[NamePattern, Tensor]:
    """Read one line of the compact form.

    Raises:
        StructureError: not of the form, unknown dtype, or a pattern that stands for too much.
    """
    pattern, _, described = line.partition(" ")
    dtype, _, shape = described.partition(" ")
    axes = shape.removeprefix("[").removesuffix("]")
    sizes = [axis.strip() for axis in axes.split(",")] if axes.strip() else []
    if shape != f"[{axes}]" or not all(_AXIS.fullmatch(size) and int(size) <= MAX_AXIS for size in sizes):
        raise StructureError(f"{line[:120]!r} is not of the form: name dtype [shape]", where=where)
    check_name(pattern.replace("{", "").replace("}", ""), where=where)
    check_dtype(dtype, name=pattern[:80], where=where)
    tensor = Tensor(dtype, tuple(int(size) for size in sizes))
    if len(sizes) > MAX_AXES or tensor.parameters * DTYPE_BITS[dtype] % 8:
        raise StructureError(f"{line[:120]!r} has too many axes, or takes no whole number of bytes", where=where)
    return parse_pattern(pattern, where=where), tensor


def _expand(lines: Iterable[tuple[str, str]]) -> Structure:
    parsed = []
    count = 0
    for line, where in lines:
        pattern, tensor = parse_tensor_line(line, where=where)
        parsed.append((pattern, tensor, where))
        count += len(pattern)
        if count > MAX_NAMES:
            raise StructureError(f"the lock stands for more than {MAX_NAMES:,} tensors", where=where)
    structure: dict[str, Tensor] = {}
    for pattern, tensor, where in parsed:
        for name in pattern:
            if name in structure:
                raise StructureError(f"tensor {name!r} is described twice", where=where)
            structure[name] = tensor
    return structure


def _read_quantization(
    locked: LockedQuantization, lines: list[int], *, where: str
) -> tuple[Declaration, dict[str, Scheme]]:
    known = {
        name: read_scheme(raw, where=f"{where}: quantization.schemes.{name}") for name, raw in locked.schemes.items()
    }
    schemes: dict[str, Scheme] = {}
    for entry, line in zip(locked.modules, lines, strict=True):
        pattern, _, name = entry.rpartition(" ")
        if name not in known:
            raise StructureError(f"{entry[:120]!r} names no scheme of this lock", where=f"{where}:{line}")
        check_name(pattern.replace("{", "").replace("}", ""), where=f"{where}:{line}")
        names = parse_pattern(pattern, where=f"{where}:{line}")
        if len(schemes) + len(names) > MAX_NAMES:
            raise StructureError(f"the lock stands for more than {MAX_NAMES:,} modules", where=f"{where}:{line}")
        for module in names:
            if module in schemes:
                raise StructureError(f"module {module!r} is described twice", where=f"{where}:{line}")
            schemes[module] = known[name]
    kv_cache = None if locked.kv_cache is None else read_args(locked.kv_cache, where=f"{where}: quantization.kv_cache")
    return Declaration(quant_method=locked.quant_method, format=locked.format, kv_cache=kv_cache), schemes


def _write_quantization(declaration: Declaration, schemes: Mapping[str, Scheme]) -> dict[str, Any]:
    if declaration.unread:
        what = f"cannot be locked: quantized by {declaration.quant_method}, {declaration.unread}"
        raise StructureError(what, where=declaration.place)
    by_scheme: dict[Scheme, list[str]] = {}
    for module, scheme in sorted(schemes.items(), key=lambda item: item[0]):  # numbered alike whatever their order
        by_scheme.setdefault(scheme, []).append(module)
    names = {scheme: f"scheme_{index}" for index, scheme in enumerate(by_scheme)}
    content: dict[str, Any] = {"quant_method": declaration.quant_method, "format": declaration.format}
    if declaration.kv_cache is not None:
        content["kv_cache"] = _lean(declaration.kv_cache)
    content["schemes"] = {name: _lean_scheme(scheme) for scheme, name in names.items()}
    content["modules"] = sorted(
        f"{pattern} {names[scheme]}" for scheme, modules in by_scheme.items() for pattern in compact(modules)
    )
    return content


def _lean_scheme(scheme: Scheme) -> dict[str, Any]:
    parts = {key: getattr(scheme, key) for key in ("weights", "input_activations", "output_activations")}
    return {key: _lean(args) for key, args in parts.items() if args is not None}


def _lean(args: QuantizationArgs) -> dict[str, Any]:
    """Arguments without what has no effect or says nothing: a lock records effects."""
    full: dict[str, Any] = to_config(Scheme(weights=args))["weights"]
    omitted = {"observer", "observer_kwargs", "zp_dtype"} | (set() if args.reordered else {"actorder"})
    return {key: value for key, value in full.items() if key not in omitted and value is not None}


class _Dumper(yaml.SafeDumper):
    """Short lists on one line, items of lists indented: as a person would write it."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:  # noqa: ARG002 (the base names it)
        super().increase_indent(flow, False)


def _represent_list(dumper: yaml.SafeDumper, items: list[Any]) -> yaml.Node:
    flow = len(items) <= 4 and all(isinstance(item, int) for item in items)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", items, flow_style=flow)


_Dumper.add_representer(list, _represent_list)
