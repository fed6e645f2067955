"""Answer one request: load a checkpoint with vLLM, say what became of each key, generate, score given tokens.

The request and the answer are JSON files; `weighbridge.extras.serving.answer` defines both. Everything else that is
printed is vLLM's own log.
"""

from __future__ import annotations

import json
import sys
import traceback
from pathlib import Path
from typing import Any


def main(request_path: Path, answer_path: Path) -> None:
    """Read a request, write its answer."""
    request = json.loads(request_path.read_text())
    answer: dict[str, Any] = {}
    try:
        _serve(request, answer)
    except ImportError:
        raise  # the environment is at fault, not the checkpoint
    except Exception as error:  # whatever vLLM says against a checkpoint is the answer; its log has the rest
        traceback.print_exc()
        answer["refused"] = f"{type(error).__name__}: {error}"
    answer_path.write_text(json.dumps(answer))


def _serve(request: dict[str, Any], answer: dict[str, Any]) -> None:
    import torch
    import vllm
    from vllm.platforms import current_platform

    from .kernels import replace_kernels
    from .loading import is_harmless, watched_loader

    answer["versions"] = {"vllm": vllm.__version__, "torch": torch.__version__}
    answer["device"] = current_platform.device_type
    torch.set_num_threads(request["threads"])
    answer["replaced"] = replace_kernels(exact=request["exact"])
    with watched_loader(answer):
        model = vllm.LLM(
            model=request["checkpoint"],
            enforce_eager=True,
            max_model_len=request["length"],
            dtype="float32" if request["exact"] else "bfloat16",
            limit_mm_per_prompt={} if request["towers"] else {"image": 0, "audio": 0, "video": 0},
            skip_mm_profiling=True,
            model_loader_extra_config={"enable_weights_track": False},  # it stops at the first; this says all
            enable_prefix_caching=False,
            trust_remote_code=False,
            seed=0,
        )
    if all(is_harmless(name, request["harmless"]) for name in answer["unfilled"]) and not answer["not_finite"]:
        prompts = [{"prompt_token_ids": tokens} for tokens in request["token_ids"]]
        scored = model.generate(
            prompts,
            vllm.SamplingParams(max_tokens=request["generate"], temperature=0, prompt_logprobs=0),
            use_tqdm=False,
        )
        answer["generated"] = [list(each.outputs[0].token_ids) for each in scored]
        answer["text"] = [each.outputs[0].text for each in scored]
        answer["log_probabilities"] = [
            [found[token].logprob for token, found in zip(tokens[1:], each.prompt_logprobs[1:], strict=True)]
            for tokens, each in zip(request["token_ids"], scored, strict=True)
        ]


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
