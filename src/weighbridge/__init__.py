"""Declarative, provable quantization of LLM checkpoints."""
