"""What a recipe may say of llm-compressor's modifiers: those of 0.14.0.1 whose outcome a plan can predict.

Their options are spelled out here, for planning must not wait for torch; a test holds them against the classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from weighbridge.recipe.quantization_arguments import check_order
from weighbridge.text.strict_yaml import Strict

SMOOTHING = ("AWQModifier", "SmoothQuantModifier")

ELSEWHERE: Mapping[str, str] = {
    "scheme": "scheme or config_groups",
    "config_groups": "config_groups",
    "targets": "targets of a config group",
    "ignore": "ignore",
    "kv_cache_scheme": "kv_cache",
    "observer": "observer of a config group's arguments",
    "weight_observer": "observer of a config group's weights",
    "input_observer": "observer of a config group's input_activations",
    "output_observer": "observer of a config group's output_activations",
}
"""Keys of a quantizing modifier that a recipe says outside of it -> where it says them."""

_ROTATING = "turns weights by rotations, which servers have to know of and no plan here predicts"
_PRUNING = "removes weights, which is not quantizing; prune first, and quantize the model that comes of it"
_SMOOTHING = "is another name of SmoothQuantModifier with algorithm: log_equalization"

REFUSED: Mapping[str, str] = {
    "SpinQuantModifier": _ROTATING,
    "QuIPModifier": _ROTATING,
    "AutoRoundModifier": "learns its rounding step by step, and is not run here; take GPTQModifier or AWQModifier, or "
    "observer: signed_mse under method: model_free_ptq",
    "IMatrixGatherer": "is of older llm-compressor; say observer: imatrix_mse under weights of a config group",
    "LogarithmicEqualizationModifier": _SMOOTHING,
    "REAPPruningModifier": _PRUNING,
    "SparseGPTModifier": _PRUNING,
    "WandaPruningModifier": _PRUNING,
    "MagnitudePruningModifier": _PRUNING,
    "ConstantPruningModifier": _PRUNING,
}
"""Modifiers of llm-compressor that no recipe takes -> why, and what to do."""


def _checked_order(order: Any) -> Any:
    check_order(order)
    return order


class _Quantizing(Strict):
    """What recipes say of a modifier that quantizes.

    Attributes:
        groups: names of the config groups that it quantizes; without them, all.
    """

    groups: Annotated[list[str], Field(min_length=1)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _says_what_is_its_own(cls, raw: Any) -> Any:
        elsewhere = next((key for key in raw if key in ELSEWHERE), None) if isinstance(raw, dict) else None
        if elsewhere is not None:
            raise ValueError(f"a recipe says {elsewhere!r} once, outside its modifiers: under {ELSEWHERE[elsewhere]}")
        return raw


class Rounding(_Quantizing):
    """Options of QuantizationModifier, which rounds to nearest."""


class GPTQ(_Quantizing):
    """Options of GPTQModifier, which rounds column by column and takes up each one's error in those that follow.

    Attributes:
        block_size: columns between two updates of all that follow.
        dampening_frac: share of the Hessian's mean diagonal that is added to it.
        actorder: the order of columns: ``static`` (llm-compressor's default) or ``weight``, which are one, or null.
        batched_quantization: how many modules of one shape are done at once.
    """

    block_size: int = Field(default=128, ge=1)
    dampening_frac: float = Field(default=0.01, gt=0, allow_inf_nan=False)
    actorder: Annotated[Literal["static", "weight"] | None, BeforeValidator(_checked_order)] = "static"
    batched_quantization: Literal["auto"] | Annotated[int, Field(ge=1)] | None = "auto"


class AWQMapping(Strict):
    """A layer whose outputs are divided by what the inputs of others are multiplied by."""

    smooth_layer: str = Field(min_length=1)
    balance_layers: list[str] = Field(min_length=1)
    activation_hook_target: str | None = None


class AWQ(Strict):
    """Options of AWQModifier, which scales input columns by what their activations show to matter.

    Attributes:
        mappings: what is smoothed against what; without them, llm-compressor's own for the architecture.
        duo_scaling: whether weights count beside activations; ``both`` tries half of the factors each way.
        n_grid: factors that are tried.
    """

    mappings: Annotated[list[AWQMapping], Field(min_length=1)] | None = None
    duo_scaling: bool | Literal["both"] = True
    n_grid: int = Field(default=20, ge=4)
    offload_device: None = None


class SmoothQuant(Strict):
    """Options of SmoothQuantModifier, which moves outliers of activations into weights.

    Attributes:
        smoothing_strength: share of them, from 0 to 1.
        mappings: pairs of balance layers and the layer before them; without them, llm-compressor's own.
        ignore: smooth layers that are passed by.
    """

    smoothing_strength: float = Field(default=0.5, ge=0, le=1)
    mappings: (
        Annotated[list[Annotated[list[str | list[str]], Field(min_length=2, max_length=2)]], Field(min_length=1)] | None
    ) = None
    ignore: list[str] | None = None
    algorithm: Literal["smoothquant", "log_equalization"] = "smoothquant"


class Modifier(Strict):
    """One of llm-compressor's modifiers, by its name, with its options."""

    AWQModifier: AWQ | None = None
    SmoothQuantModifier: SmoothQuant | None = None
    GPTQModifier: GPTQ | None = None
    QuantizationModifier: Rounding | None = None

    @model_validator(mode="before")
    @classmethod
    def _is_one(cls, raw: Any) -> Any:
        if not isinstance(raw, dict):
            return raw
        refused = next((name for name in raw if name in REFUSED), None)
        if refused is not None:
            raise ValueError(f"{refused} {REFUSED[refused]}")
        if len(raw) != 1:
            raise ValueError(f"{len(raw)} modifiers stand where one belongs; begin each with a dash of its own")
        ((name, options),) = raw.items()
        if options is None:
            raise ValueError(f"{name} must be a mapping of keys; write {{}} where nothing is said of it")
        return raw

    @property
    def name(self) -> str:
        """llm-compressor's own."""
        (name,) = self.model_fields_set
        return name

    @property
    def options(self) -> dict[str, Any]:
        """What is said of it, as llm-compressor takes it."""
        said: Strict = getattr(self, self.name)
        return said.model_dump(exclude_unset=True, exclude={"groups"})

    @property
    def quantizing(self) -> GPTQ | Rounding | None:
        """What is said of it, if it quantizes."""
        return self.GPTQModifier or self.QuantizationModifier
