"""What makes a server take other weights, or other code, than those that lie in the shards."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from weighbridge.account.leaves import Path, leaves
from weighbridge.checkpoint.model import Checkpoint
from weighbridge.formats.quantization import without_quantization
from weighbridge.report import Finding, Severity

ADAPTER = "adapter_config.json"
_OTHER_MODEL = "take it out: what is judged here is not what would be served"


def redirects(checkpoint: Checkpoint, base: Mapping[str, Any] | None) -> Iterator[Finding]:
    """Everything in a checkpoint that names other weights or other code.

    Args:
        base: the base's config.json; what stands there just so is the base's own and no finding, unless it makes a
            server pass over the shards.
    """
    if ADAPTER in checkpoint.files:
        what = "makes transformers load the adapter, and the model that it names"
        yield _finding(ADAPTER, what, "merge the adapter into the weights before they are quantized")
    theirs = {} if base is None else leaves(base)
    for path, text in leaves(without_quantization(checkpoint.config)).items():
        what = _elsewhere(path, json.loads(text), checkpoint)
        if what and (theirs.get(path) != text or path[0] in _IN_PLACE_OF_SHARDS):
            yield _finding(f"{checkpoint.form.config}:{'.'.join(path)}", what, _OTHER_MODEL)


_IN_PLACE_OF_SHARDS = ("transformers_weights", "speculators_config")


def _elsewhere(path: Path, value: Any, checkpoint: Checkpoint) -> str:
    """What a key of config.json makes a server load from elsewhere; empty for nothing."""
    key = path[-1]
    if path == ("transformers_weights",):
        own = value is None or list(checkpoint.shards) == [value]
        return "" if own else f"makes transformers load {_named(value)} in place of the shards"
    if path[0] == "speculators_config":
        return f"makes vLLM serve the model that it names ({_named(value)})" if key == "name_or_path" else ""
    if "auto_map" in path:
        return f"runs code of another repository ({_named(value)})" if "--" in json.dumps(value) else ""
    return _elsewhere_by_key(key, value)


def _elsewhere_by_key(key: str, value: Any) -> str:
    """What a key makes a server load from elsewhere wherever in config.json it stands; empty for nothing."""
    if key.endswith(("name_or_path", "_model_id")) and key != "_name_or_path" and isinstance(value, str) and value:
        return f"names weights that lie elsewhere ({_named(value)})"
    if key in ("attn_implementation", "_attn_implementation") and "/" in str(value):
        return f"makes transformers take a kernel from elsewhere ({_named(value)})"
    if key == "use_pretrained_backbone" and value:
        return "makes transformers load a backbone from elsewhere"
    return ""


def _named(value: Any) -> str:
    return json.dumps(value)[:120]


def redirects_beside(name: str, document: Mapping[str, Any]) -> Iterator[Finding]:
    """Code and models of other repositories that a tokenizer's or a processor's config names."""
    for path, text in leaves(document).items():
        where = f"{name}:{'.'.join(path)}"
        if "auto_map" in path and "--" in text:
            yield _finding(where, f"runs code of another repository ({text[:120]})", _OTHER_MODEL)
        elif len(path) > 1 and path[-1].endswith("name_or_path") and text not in ("null", '""'):
            yield _finding(where, f"names a model that lies elsewhere ({text[:120]})", _OTHER_MODEL)


def _finding(where: str, what: str, remedy: str) -> Finding:
    return Finding("account/redirect", Severity.ERROR, where, what, remedy=remedy)
