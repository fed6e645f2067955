"""What is understood of a checkpoint: enough to judge it, enough to decode its numbers; or one sentence why not."""

from __future__ import annotations

from weighbridge.checkpoint.form import HUGGING_FACE
from weighbridge.checkpoint.model import Checkpoint
from weighbridge.checkpoint.modules import FUSED_WEIGHT
from weighbridge.errors import StructureError
from weighbridge.formats import FORMATS
from weighbridge.formats.layouts import LAYOUTS
from weighbridge.formats.modelopt import ALGORITHMS, METHOD
from weighbridge.formats.quantization import NOT_READ


def check_judged(checkpoint: Checkpoint) -> None:
    """Refuse a checkpoint whose quantization is not understood: it is never said to hold.

    Raises:
        StructureError: its method, or what it declares, is not read here.
    """
    declaration = checkpoint.declaration
    if declaration is None:
        return
    known = declaration.quant_method in FORMATS or declaration.quant_method in LAYOUTS  # a lock may say anything
    unread = declaration.unread or ("" if known else NOT_READ)
    if unread:
        raise StructureError(
            f"cannot be judged: quantized by {declaration.quant_method}, {unread}",
            where=f"{checkpoint.label}/{checkpoint.declared_in}",
            remedy="hold it against what its producer publishes, or judge a build in a form that is read here",
        )


def check_read_by_transformers(checkpoint: Checkpoint) -> None:
    """Refuse a checkpoint that transformers has no config for, where its models are to compute.

    Raises:
        StructureError: it is in Mistral's own form.
    """
    if checkpoint.form is not HUGGING_FACE:
        raise StructureError(
            f"is in Mistral's own form ({checkpoint.form.config}), of which transformers makes no model",
            where=checkpoint.label,
            remedy=f"name the model in Hugging Face's form ({HUGGING_FACE.config}, {HUGGING_FACE.stem}*.safetensors)",
        )


def check_decoded(checkpoint: Checkpoint) -> None:
    """Refuse a checkpoint whose codes are not turned into numbers here, though its structure may be judged.

    Raises:
        StructureError: its method, a scheme, or the way its experts lie is not decoded here.
    """
    check_judged(checkpoint)
    for module, found in checkpoint.coded.items():
        why = next((item.undecoded for item in found.values() if item.coded is None), None)
        if why is not None:
            assert checkpoint.declaration is not None
            what = f"{module} is quantized by {checkpoint.declaration.quant_method} and not decoded here: {why}"
            raise StructureError(what, where=checkpoint.label, remedy=_BY_STRUCTURE)


def check_measured(checkpoint: Checkpoint) -> None:
    """Refuse a checkpoint whose codes are not held against a base here.

    Raises:
        StructureError: its method, a scheme, or the way its experts lie is not measured here.
    """
    check_judged(checkpoint)
    declaration = checkpoint.declaration
    if declaration is None:
        return
    method = declaration.quant_method
    if method not in FORMATS:
        raise _not_measured(checkpoint, f"quant_method is {method}; only {', '.join(FORMATS)} are measured here")
    if any(scheme.weights.reordered for scheme in checkpoint.schemes.values()):
        raise _not_measured(
            checkpoint, "its columns are grouped by activation (weight_g_idx), which is not measured here"
        )
    if method != METHOD:
        return
    for module, scheme in checkpoint.schemes.items():
        if scheme not in ALGORITHMS.values():
            raise _not_measured(checkpoint, f"{module} is {scheme}, which modelopt's format is not measured for here")
        if FUSED_WEIGHT in checkpoint.modules.get(module, {}):
            raise _not_measured(
                checkpoint, f"{module} holds all experts in one tensor of modelopt's, not measured here"
            )


def _not_measured(checkpoint: Checkpoint, what: str) -> StructureError:
    return StructureError(what, where=checkpoint.label, remedy=_BY_STRUCTURE)


_BY_STRUCTURE = "validate.py without --source judges its names, dtypes and shapes; for more, name what it was made from"
