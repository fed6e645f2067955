"""What the files are called that say what a checkpoint is and which of them holds which tensor."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from weighbridge.errors import StructureError
from weighbridge.families import Family, family_of
from weighbridge.text.strict_json import parse_config

ITS_QUANTIZATION = "quantization"
"""Where Mistral's own config says how weights are stored; llm-compressor, and with it Mistral since Large 3, say it
there under the name that it has in a config.json."""


@dataclass(frozen=True)
class Form:
    """Names of files.

    Attributes:
        config: what says which model it is.
        stem: how the names of its shards begin.
    """

    config: str
    stem: str

    @property
    def index(self) -> str:
        """What says which shard holds which tensor."""
        return f"{self.stem}.safetensors.index.json"

    @property
    def single(self) -> str:
        """The one shard of a checkpoint that has no other."""
        return f"{self.stem}.safetensors"

    def shards(self, count: int) -> list[str]:
        """Names of so many shards."""
        numbers = range(1, count + 1)
        return [self.single] if count == 1 else [f"{self.stem}-{n:05}-of-{count:05}.safetensors" for n in numbers]


HUGGING_FACE = Form("config.json", "model")
MISTRAL = Form("params.json", "consolidated")


def form_of(family: Family) -> Form:
    """The form of a family's checkpoints: Mistral's own for what its own config describes."""
    return MISTRAL if family.params else HUGGING_FACE


def find_form(names: Iterable[str], *, label: str) -> Form:
    """The form of a checkpoint with these files: Mistral's own where its config is there and no other shards are.

    Where both are there, Hugging Face's is read; vLLM takes the other (`weighbridge.checkpoint.weights`).

    Raises:
        StructureError: there are shards of Mistral's form alone, and configs of both.
    """
    names = set(names)
    shards = [name for name in names if name.endswith(".safetensors") and "/" not in name]
    if MISTRAL.config not in names or not shards or not all(name.startswith(MISTRAL.stem) for name in shards):
        return HUGGING_FACE
    if HUGGING_FACE.config in names:
        what = (
            f"has weights in Mistral's own form alone, and both {MISTRAL.config} and {HUGGING_FACE.config}: vLLM reads "
            "the first and fills it up from the second, transformers reads the second"
        )
        remedy = f"take {HUGGING_FACE.config} out, or name a checkpoint that has the shards that it describes"
        raise StructureError(what, where=label, remedy=remedy)
    return MISTRAL


def read_config(raw: bytes, form: Form, *, where: str) -> dict[str, Any]:
    """Read the config of a checkpoint of a form.

    In Mistral's, what stands under ``quantization`` is given the name and, for its own FP8, the words that vLLM 0.32
    has for it (``_remap_mistral_quantization_args`` in transformers_utils/configs/mistral.py).

    Raises:
        StructureError: malformed, or not in the words of its form.
    """
    config = parse_config(raw, where=where)
    params = family_of(config).params
    if form is HUGGING_FACE:
        if params:
            what = "names neither architectures nor model_type, and is in the words of Mistral's params.json"
            raise StructureError(what, where=where, remedy="take it from where the weights come from")
        return config
    if not params:
        what = "is not in the words of Mistral's own config, which are dim, n_layers, n_heads and hidden_dim"
        raise StructureError(what, where=where, remedy="take it from where the weights come from")
    for key in ("dim", "n_layers", "n_heads", "hidden_dim"):
        if type(config[key]) is not int or config[key] < 1:
            raise StructureError(f"{key} cannot be {str(config[key])[:40]!r}", where=where)
    return _with_quantization(config, where=where)


def _with_quantization(config: dict[str, Any], *, where: str) -> dict[str, Any]:
    raw = config.pop(ITS_QUANTIZATION, None)
    if raw is None:
        return config
    if not isinstance(raw, dict):
        raise StructureError(f"{ITS_QUANTIZATION} is no mapping", where=where)
    if "quantization_config" in config:
        what = f"says how it is quantized twice, under {ITS_QUANTIZATION} and under quantization_config"
        raise StructureError(what, where=where, remedy="keep the one that the tensors agree with")
    return {**config, "quantization_config": _in_vllms_words(raw, where=where)}


def _in_vllms_words(raw: Mapping[str, Any], *, where: str) -> Mapping[str, Any]:
    method = str(raw.get("quant_method", "")).lower().replace("_", "-")
    if method == "compressed-tensors":
        return {**raw, "quant_method": method}
    activations = raw.get("qscheme_act")
    if raw.get("qformat_weight") != "fp8_e4m3" or activations not in ("TENSOR", "NO_SCALES", None):
        what = f"{ITS_QUANTIZATION} is neither compressed-tensors nor fp8_e4m3 by tensor, and vLLM reads no other"
        raise StructureError(what, where=where, remedy="name the model in BF16, or a build of it in one of these")
    unknown = sorted(raw.keys() - {"qformat_weight", "qscheme_act"})
    if unknown:
        raise StructureError(f"{ITS_QUANTIZATION} has the unknown key {unknown[0][:40]!r}", where=where)
    return {"quant_method": "fp8", "activation_scheme": "dynamic" if activations == "NO_SCALES" else "static"}
