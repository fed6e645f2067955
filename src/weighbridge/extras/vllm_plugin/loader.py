"""vLLM's own loader behind a gate."""

from __future__ import annotations

import copy
import os
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from vllm.logger import init_logger
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader

from weighbridge.checkpoint.header import Header
from weighbridge.errors import EvidenceError, WeighbridgeError
from weighbridge.extras.serving.loaded import harmless_parameters
from weighbridge.extras.vllm_plugin.filling import fill, harmful, sentence, unfilled
from weighbridge.extras.vllm_plugin.reading import read_shards
from weighbridge.policy import Judged, judge, open_policy
from weighbridge.policy.digests import as_listed

POLICY = "policy"
"""The key of ``--model-loader-extra-config`` that names the policy's file."""
VARIABLE = "WEIGHBRIDGE_POLICY"
"""The environment's variable that names it where that key does not."""

logger = init_logger("vllm.weighbridge")


class GatedLoader(DefaultModelLoader):  # type: ignore[misc] # vLLM lives in another environment
    """Loads what a policy lets pass.

    The engine starts only if evidence and policy hold, every shard that was read has the digest that the evidence
    lists, and no parameter is left unfilled that a checkpoint fills.
    """

    def __init__(self, load_config: Any) -> None:
        extra = dict(load_config.model_loader_extra_config or {})
        named = extra.pop(POLICY, os.environ.get(VARIABLE))
        if not isinstance(named, str) or not named:
            what, where = "no policy is named", "the load format weighbridge"
            remedy = (
                f"name its file as {POLICY} in vLLM's model_loader_extra_config, or in the environment as {VARIABLE}"
            )
            raise EvidenceError(what, where=where, remedy=remedy)
        own = copy.copy(load_config)
        own.load_format, own.model_loader_extra_config = "auto", {**extra, "enable_weights_track": False}
        super().__init__(own)
        self._policy = Path(named)
        self._judged: dict[str, Judged] = {}

    def download_model(self, model_config: Any) -> None:
        """Nothing is downloaded: what is judged lies here."""
        self._gate(model_config.model)

    def load_model(self, vllm_config: Any, model_config: Any, prefix: str = "") -> torch.nn.Module:
        """Judge first: a model that must not be served takes no memory."""
        self._gate(model_config.model)
        loaded: torch.nn.Module = super().load_model(vllm_config=vllm_config, model_config=model_config, prefix=prefix)
        return loaded

    def load_weights(self, model: torch.nn.Module, model_config: Any) -> None:
        """Load into a model that is there, and look whether all of it was filled."""
        judged = self._gate(model_config.model)
        assert judged.checkpoint is not None
        filled = fill(model)
        with _explained():
            super().load_weights(model, model_config)
            left = harmful(unfilled(model, filled), [each.pattern for each in harmless_parameters(judged.checkpoint)])
            if left:
                raise EvidenceError(
                    f"fills not all that this server makes of it: {sentence(left)} stayed unfilled",
                    where=model_config.model,
                    remedy="run serve-check on it, which says why",
                )
        logger.info("%s; loaded, hashed and filled as promised", judged.report.verdict)

    def _get_weights_iterator(self, source: Any) -> Generator[tuple[str, torch.Tensor], None, None]:
        """vLLM's own choice of files, each read once and hashed."""
        judged = self._gate(source.model_or_path)
        assert judged.checkpoint is not None
        _, files, _, _ = self._prepare_weights(
            source.model_or_path,
            source.subfolder,
            source.revision,
            source.fall_back_to_pt,
            source.allow_patterns_overrides,
        )
        shards: list[tuple[Path, Header]] = []
        for path in sorted(map(Path, files)):
            if path.name not in judged.shards or path.parent.resolve() != Path(source.model_or_path).resolve():
                raise EvidenceError("is a file of weights that was not judged", where=str(path))
            shards.append((path, judged.checkpoint.shards[path.name]))
        for name, tensor in read_shards(shards, judged.shards):
            yield source.prefix + name, tensor

    def _gate(self, model: str) -> Judged:
        """The judgement of a checkpoint by its directory, which is made once.

        Raises:
            EvidenceError: it must not be served.
        """
        with _explained():
            if model not in self._judged:
                judged = judge(Path(model), open_policy(self._policy), hashing=as_listed)
                if not judged.report.holds:
                    raise EvidenceError(judged.report.verdict, remedy="'weighbridge gate' says more")
                self._judged[model] = judged
        return self._judged[model]


@contextmanager
def _explained() -> Iterator[None]:
    """Why a checkpoint is not loaded stands in the log as one line, before what Python says of it."""
    try:
        yield
    except WeighbridgeError as error:
        logger.error("refused: %s", error.sentence(str))
        raise
