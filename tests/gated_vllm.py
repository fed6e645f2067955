"""Start vLLM behind the gate, and answer: what tests run inside vLLM's environment.

    python gated_vllm.py CHECKPOINT [POLICY]

Without a policy vLLM's own loader is taken; with an empty one the gate, which is told of none. Reference arithmetic
stands in for kernels, since vLLM has not got all of them on a CPU.
Prints the tokens as JSON in its last line; vLLM's own log goes to standard error.
"""

from __future__ import annotations

import json
import sys
from typing import Any


def main() -> None:
    """Entry point."""
    import torch
    import vllm
    from vllm.plugins import load_general_plugins

    from weighbridge.extras.serving.inside.vllm_client.kernels import replace_kernels

    checkpoint, *policy = sys.argv[1:]
    torch.set_num_threads(1)
    load_general_plugins()
    replace_kernels(exact=True)
    gated: dict[str, Any] = {}
    if policy:
        named = {"policy": policy[0]} if policy[0] else {}
        gated = {"load_format": "weighbridge", "model_loader_extra_config": named}
    model = vllm.LLM(
        model=checkpoint,
        enforce_eager=True,
        max_model_len=64,
        dtype="bfloat16",
        limit_mm_per_prompt={"image": 0, "audio": 0, "video": 0},
        skip_mm_profiling=True,
        seed=0,
        **gated,
    )
    prompt = vllm.SamplingParams(max_tokens=8, temperature=0)
    (answer,) = model.generate([{"prompt_token_ids": [3, 5, 7]}], prompt, use_tqdm=False)
    print(json.dumps(list(answer.outputs[0].token_ids)))


if __name__ == "__main__":
    main()
