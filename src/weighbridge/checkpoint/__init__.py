"""Structures: strict safetensors headers, checkpoints on disk and on the hub, and locks of them."""
