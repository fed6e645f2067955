"""Passing data through a model with llm-compressor's modifiers at work on it.

What is patched meanwhile was read in llm-compressor 0.14.0.1 and compressed-tensors 0.19.0; `_upstream` says why.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from weighbridge.engines.oneshot.coverage import ExpertCoverage, Watch, check_sums, watching
from weighbridge.engines.oneshot.modifiers import Modifiers
from weighbridge.engines.oneshot.samples import Samples
from weighbridge.errors import BuildError, WeighbridgeError, first_line
from weighbridge.recipe.calibration import Calibration
from weighbridge.report import Finding, Severity

if TYPE_CHECKING:
    import torch
    from torch.utils.data import DataLoader

CUBLAS = "CUBLAS_WORKSPACE_CONFIG"

TELLING = ("Hessian inversion failed", "Skipping smooth_layer", "without statistics")
"""What llm-compressor only logs and a build has to say: rounded to nearest after all, not smoothed, not observed."""


@dataclass(frozen=True)
class Passed:
    """What there is to say once data have passed through a model.

    Attributes:
        coverage: what each expert saw; empty for a model without experts.
        findings: what llm-compressor warned of, if it bears on the result.
    """

    coverage: tuple[ExpertCoverage, ...]
    findings: tuple[Finding, ...]


@dataclass(frozen=True)
class Given:
    """What a model is calibrated by.

    Attributes:
        calibration: None where no modifier needs data, as are the samples.
    """

    modifiers: Modifiers
    tokenizer: Any
    calibration: Calibration | None
    samples: Samples | None

    @property
    def seed(self) -> int:
        return 0 if self.calibration is None else self.calibration.seed

    @property
    def tokens(self) -> int:
        return 0 if self.samples is None else self.samples.tokens

    @property
    def title(self) -> str:
        """What is going on, for a bar."""
        return "quantizing" if self.samples is None else f"calibrating with {len(self.samples.chosen):,} samples"


@dataclass(frozen=True)
class Calibrating:
    """What is at hand while a model is calibrated.

    Attributes:
        oneshot: llm-compressor's own.
        watch: what each expert sees.
        warnings: grows by what llm-compressor says that bears on the result.
    """

    oneshot: Any
    watch: Watch
    warnings: list[str]

    def passed(self, tokens: int) -> Passed:
        """What there is to say in the end.

        Raises:
            BuildError: the counts do not add up to as many tokens.
        """
        coverage = self.watch.coverage()
        if tokens:
            check_sums(coverage, tokens)
        findings = (
            Finding("calibration/upstream", Severity.WARNING, "llm-compressor", warning) for warning in self.warnings
        )
        return Passed(coverage, tuple(findings))


@contextmanager
def calibrating(model: Any, *, seed: int, device: torch.device, where: str) -> Iterator[Calibrating]:
    """Let llm-compressor work on a model until the block ends.

    A scale that no sample reaches is NaN afterwards, not what lay in memory.

    Raises:
        BuildError: upstream stopped.
    """
    with (
        _deterministic(seed),
        watching(model) as watch,
        _warnings() as warnings,
        _upstream(model, device=device, where=where) as oneshot,
    ):
        yield Calibrating(oneshot, watch, warnings)


def apply_modifiers(at_hand: Calibrating, model: Any, given: Given) -> None:
    """Apply modifiers to a model while it sees the samples, layer by layer, each modifier with a pass of its own."""
    recipe = list(given.modifiers.instances)
    if given.samples is None or given.calibration is None:
        at_hand.oneshot(model=model, processor=given.tokenizer, recipe=recipe)
        return
    at_hand.oneshot(
        model=model,
        processor=given.tokenizer,
        recipe=recipe,
        dataset=_loader(given.samples.batches(given.calibration.batch_size), at_hand.watch.begin),
        moe_calibrate_all_experts=given.calibration.experts == "all",
    )


def _loader(batches: Sequence[Sequence[Sequence[int]]], begin: Any) -> DataLoader[Any]:
    """The batches as llm-compressor takes them; `begin` is called whenever a pass over them begins."""
    import torch
    from torch.utils.data import DataLoader

    class Passes(DataLoader[Any]):
        def __iter__(self) -> Any:
            begin()
            return super().__iter__()

    tensors = [torch.tensor(batch) for batch in batches]
    inputs = [{"input_ids": ids, "attention_mask": torch.ones_like(ids)} for ids in tensors]
    return Passes(inputs, batch_size=None)  # type: ignore[arg-type]


@contextmanager
def _upstream(model: Any, *, device: torch.device, where: str) -> Iterator[Any]:
    """llm-compressor's ``oneshot``, on the model's own device; its errors become one sentence.

    Files that cannot be read or written are no error of its own: a full disk must leave what is done.
    """
    import torch
    from compressed_tensors.quantization.lifecycle import apply
    from compressed_tensors.utils import patch_attr
    from llmcompressor import oneshot
    from llmcompressor.core import reset_session
    from llmcompressor.modeling.offset_norm import CalibrationOffsetNorm
    from llmcompressor.modifiers.transform.awq import AWQModifier
    from llmcompressor.pipelines.cache import IntermediatesCache
    from llmcompressor.pipelines.data_free import pipeline as data_free
    from llmcompressor.pipelines.sequential import pipeline as sequential

    text_config = model.config.get_text_config(decoder=True)
    try:
        with ExitStack() as stack:
            # The layers of Gemma 4 differ in heads and their size; upstream reads one number for all, and for a scheme
            # per tensor does not use it.
            stack.enter_context(patch_attr(text_config, "allow_global_per_layer_attribute_access", True))
            # The pipelines take the first accelerator of the machine, whatever device was asked for.
            for pipeline in (sequential, data_free):
                stack.enter_context(patch_attr(pipeline, "get_main_device", lambda: device))
            if not torch.accelerator.is_available():
                # AWQ pins what it has cached, to copy it to an accelerator faster, and stops where there is none.
                stack.enter_context(patch_attr(IntermediatesCache, "pin_memory", lambda *_: None))
            # This bar shows whatever TQDM_DISABLE says, and this warning is for developers of torch.
            stack.enter_context(patch_attr(apply, "tqdm", lambda items, **_: items))
            stack.enter_context(patch_attr(logging.getLogger("torch.fx._symbolic_trace"), "disabled", True))
            stack.enter_context(patch_attr(CalibrationOffsetNorm, "restore", _restored))
            resolve = AWQModifier._set_resolved_mappings
            mapped = lambda modifier, model: _resolved(resolve, modifier, model)  # noqa: E731
            stack.enter_context(patch_attr(AWQModifier, "_set_resolved_mappings", mapped))
            yield oneshot
    except (WeighbridgeError, OSError):  # of this project's own part in it: says where, and what to do
        raise
    except Exception as error:  # a modifier may raise anything, and some raise Exception itself
        raise BuildError(f"llm-compressor stopped: {first_line(error)}", where=where) from error
    finally:
        reset_session()  # it holds the model


def _resolved(resolve: Callable[[Any, Any], None], modifier: Any, model: Any) -> None:
    """Resolve AWQ's mappings, without those of which no balance layer is quantized: there is nothing to gain by them.

    llm-compressor leaves them out unless the smooth layer is quantized, and then divides by a count of zero where
    ``duo_scaling`` looks at the weights of the balance layers.
    """
    from loguru import logger

    resolve(modifier, model)
    if modifier.duo_scaling is False:
        return
    kept = []
    for mapping in modifier._resolved_mappings:
        if any(hasattr(layer, "quantization_scheme") for layer in mapping.balance_layers):
            kept.append(mapping)
        else:
            names = ", ".join(mapping.balance_names)
            logger.warning(f"Skipping smooth_layer {mapping.smooth_name}: {names} stays as it is")
    modifier._resolved_mappings = kept


def _restored(calibrated: Any, original: Any) -> Any:
    """A norm that multiplies by 1 + weight, as it was, or as a modifier has smoothed it."""
    original.weight.data = unshifted(calibrated.weight.data, original.weight.data)
    return original


def unshifted(shifted: torch.Tensor, original: torch.Tensor) -> torch.Tensor:
    """The weight of a norm that multiplies by 1 + weight: as it was, or as a modifier has smoothed the sum.

    llm-compressor calibrates with the sum in its place and takes 1 away again, which rounds what nothing has changed.

    Args:
        shifted: the sum, as calibration leaves it.
        original: the weight as it was; of the same shape and dtype.
    """
    import torch

    if torch.equal(shifted, (1.0 + original.float()).to(original.dtype)):
        return original
    return (shifted.float() - 1.0).to(original.dtype)


@contextmanager
def _warnings() -> Iterator[list[str]]:
    """Collect what llm-compressor logs until the block ends, as far as it is `TELLING`, each once."""
    from loguru import logger

    found: list[str] = []

    def keep(message: Any) -> None:
        text = message.record["message"]
        if any(words in text for words in TELLING) and text not in found:
            found.append(text)

    handler = logger.add(keep, level="INFO")
    try:
        yield found
    finally:
        logger.remove(handler)


@contextmanager
def _deterministic(seed: int) -> Iterator[None]:
    """Torch with this seed, deterministic algorithms, and NaN in memory that nothing has written to."""
    import torch
    from torch.utils import deterministic

    os.environ.setdefault(CUBLAS, ":4096:8")  # read when cuBLAS is first used
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    filled = deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        torch.use_deterministic_algorithms(True, warn_only=True)
        deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before[0], warn_only=before[1])
            deterministic.fill_uninitialized_memory = filled  # type: ignore[attr-defined]
