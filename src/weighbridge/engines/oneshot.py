"""The calibrated engine: ``llmcompressor.oneshot`` on a model that transformers loads."""

from __future__ import annotations

from pathlib import Path

from weighbridge.engines.quiet import quieted
from weighbridge.errors import BuildError
from weighbridge.plan import Plan
from weighbridge.structure.checkpoint import Checkpoint


def quantize(plan: Plan, source: Checkpoint, output: Path, *, device: str | None) -> None:
    """Write quantized shards into `output` (an existing directory) with ``oneshot``; activations must be dynamic.

    The tokenizer is handed over explicitly: Gemma 4's processor needs torchvision, which text does not.

    Raises:
        BuildError: a scheme needs calibration, or the model cannot be loaded, or upstream stopped.
    """
    if any(group.scheme.needs_calibration for group in plan.loaded.recipe.groups):
        raise BuildError(
            "the scheme has static activations, which need calibration data, and recipes cannot name any yet",
            where=plan.loaded.document.where,
            remedy="choose a scheme with dynamic activations",
        )
    assert source.directory is not None
    directory = str(source.directory)
    groups = plan.output_config()["quantization_config"]["config_groups"]
    with quieted():
        from compressed_tensors.quantization import QuantizationConfig
        from llmcompressor import oneshot
        from llmcompressor.modifiers.quantization import QuantizationModifier
        from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer
        from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

        try:
            config = QuantizationConfig.model_validate({"config_groups": groups})
            known = AutoConfig.from_pretrained(directory)
            sees = type(known) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
            loader = AutoModelForImageTextToText if sees else AutoModelForCausalLM
            model = loader.from_pretrained(directory, dtype="auto", device_map=device)
            tokenizer = AutoTokenizer.from_pretrained(directory)
            modifier = QuantizationModifier(
                config_groups=config.config_groups, ignore=list(plan.loaded.recipe.ignored), targets=[]
            )
            oneshot(model=model, processor=tokenizer, recipe=modifier)
            model.save_pretrained(output, save_compressed=True)
        except (ValueError, KeyError, RuntimeError, NotImplementedError, OSError) as error:
            raise BuildError(f"oneshot stopped: {error}", where=source.label) from error
    for path in output.iterdir():
        if path.suffix != ".safetensors":
            path.unlink()
