"""vLLM's ``--load-format weighbridge``: a checkpoint is judged by a policy before it is loaded, and while it is.

    policy and evidence judged -> parameters filled with a pattern -> each shard read once, hashed, loaded
    -> digests as promised, no pattern left -> the engine starts

vLLM calls `register` in each of its processes (entry point ``vllm.general_plugins``), so that every worker of a
tensor-parallel server judges what it loads itself. It is written against vLLM 0.32; tests/test_private_doors.py names
what of vLLM it relies on.
"""

LOAD_FORMAT = "weighbridge"


def register() -> None:
    """Make vLLM know the load format."""
    from vllm.model_executor.model_loader import register_model_loader

    from weighbridge.extras.vllm_plugin.loader import GatedLoader

    register_model_loader(LOAD_FORMAT)(GatedLoader)
