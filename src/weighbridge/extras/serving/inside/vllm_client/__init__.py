"""What runs inside a vLLM environment, as ``python -m vllm_client REQUEST ANSWER``: the standard library, torch, vLLM.

`weighbridge.extras.serving.client` starts it with this folder's parent on the path; it knows nothing of Weighbridge.
"""
