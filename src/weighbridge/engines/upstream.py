"""The data-free engine of llm-compressor itself: ``llmcompressor.model_free_ptq``."""

from __future__ import annotations

import tempfile
from pathlib import Path

from weighbridge.checkpoint.form import HUGGING_FACE
from weighbridge.checkpoint.model import Checkpoint
from weighbridge.engines.quiet import quieted
from weighbridge.errors import BuildError
from weighbridge.planning import Plan
from weighbridge.planning.declare import compressed_tensors_config, declaration_of


def quantize(plan: Plan, source: Checkpoint, output: Path, *, device: str | None, workers: int) -> None:
    """Write quantized shards into `output` (an existing directory) with ``model_free_ptq``.

    Upstream is given a directory of links to the shards that the index names, and nothing else: it would stop at a
    ``consolidated.safetensors`` and copy what is not wanted. It loads a whole shard, 2.5 times its size in memory.

    Raises:
        BuildError: upstream stopped.
    """
    assert source.directory is not None
    quantization = compressed_tensors_config(declaration_of(plan.loaded.recipe))
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f"{output.name}.links.") as links, quieted():
        from compressed_tensors.quantization import QuantizationConfig
        from llmcompressor import model_free_ptq
        from safetensors import SafetensorError

        form = source.form
        called = {form.single: HUGGING_FACE.single}  # upstream looks for one shard by this name alone
        for name in [*source.shards, form.config, form.index]:
            if name in source.files:
                (Path(links) / called.get(name, name)).symlink_to((source.directory / name).resolve())
        try:
            model_free_ptq(
                model_stub=links,
                save_directory=output,
                config=QuantizationConfig.model_validate(
                    {key: quantization[key] for key in ("config_groups", "format", "ignore", "quant_method")}
                ),
                max_workers=workers,
                device=device,
            )
        except (ValueError, KeyError, RuntimeError, NotImplementedError, SafetensorError) as error:
            raise BuildError(f"model_free_ptq stopped: {error}", where=source.label) from error
