"""What runs inside a vLLM environment, as ``python -m vllm_client REQUEST ANSWER``: the standard library, torch, vLLM.

It is started by `weighbridge.serving.client` with this folder's parent on the path, and knows nothing of Weighbridge.
"""
