"""Which files of a directory a server would take for the weights, as servers ask that question.

Read in the sources of vLLM 0.32 (``DefaultModelLoader._prepare_weights``), SGLang (which has vLLM's) and transformers
5.17 (``_get_resolved_checkpoint_files``), and tried with vLLM; see docs/explanation/account.md.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from itertools import chain

INDEX_SUFFIX = ".index.json"

PICKLES = frozenset({".bin", ".ckpt", ".distcp", ".joblib", ".pdparams", ".pickle", ".pkl", ".pt", ".pt2", ".pth"})
"""Endings of weights that are pickled: opening one can run code."""

_OTHER_PROGRAMS: Mapping[str, tuple[str, ...]] = {
    "llama.cpp, Ollama, and a vLLM or SGLang that is given it": (".gguf", ".ggml", ".llamafile"),
    "MLX": (".npz", ".npy"),
    "TensorFlow's loaders": (".h5", ".hdf5", ".keras", ".pb", ".tflite"),
    "Flax's loaders": (".msgpack", ".orbax"),
    "ONNX Runtime": (".onnx", ".onnx_data", ".ort"),
    "TensorRT": (".engine", ".plan", ".trt"),
    "Core ML": (".mlmodel", ".mlpackage"),
    "whoever unpacks it": (".nemo", ".dduf", ".mar", ".tar", ".zip", ".gz", ".tgz", ".7z", ".zst"),
}
WEIGHT_SUFFIXES = (*sorted(PICKLES), ".safetensors", *chain.from_iterable(_OTHER_PROGRAMS.values()))
"""Endings of files that hold weights, in any format."""

PUBLISHERS_FOLDERS = ("original/", "metal/", "onnx/", "openvino/", "coreml/", "gguf/")
"""Folders in which publishers keep the same model for other programs. vLLM leaves ``original/**`` out of downloads, and
no server looks below the top of a directory for weights."""


_MODULE = re.compile(r"[0-9]+_[A-Za-z]+/model\.safetensors")
"""A module of sentence-transformers (``2_Dense/model.safetensors``), which modules.json names and vLLM loads beside the
shards: part of the model that no scheme touches."""


def is_weights(name: str) -> bool:
    """Whether a file holds weights of the model itself, or is the index of some, by its name."""
    lowered = name.lower()
    return (lowered.endswith(WEIGHT_SUFFIXES) or is_index(lowered)) and not _MODULE.fullmatch(name)


def is_index(name: str) -> bool:
    """Whether a file says which of several files holds which tensor."""
    return name.lower().endswith(tuple(f"{suffix}{INDEX_SUFFIX}" for suffix in WEIGHT_SUFFIXES))


def is_pickle(name: str) -> bool:
    """Whether a file is a pickle by its name."""
    return name.lower().endswith(tuple(PICKLES))


def other_weights(files: Iterable[str], shards: Iterable[str], index: str) -> Iterator[str]:
    """The files that hold weights and are neither a shard nor `index`, that of the shards, in order."""
    shards = frozenset(shards)
    return (name for name in sorted(files) if is_weights(name) and name not in shards and name != index)


def taken_by(name: str, *, indexed: bool) -> str:
    """Who would take such a file for the weights beside, or in place of, the shards: a clause.

    Args:
        name: of a file that `other_weights` gives.
        indexed: whether an index says which files are the shards.
    """
    lowered = name.lower()
    return next(
        clause
        for pattern, where_indexed, clause in _TAKEN
        if fnmatchcase(lowered, pattern) and where_indexed in (indexed, None)
    )


_TAKEN: tuple[tuple[str, bool | None, str], ...] = (
    ("*/*", None, "no server looks there by itself, but one that is pointed to the folder does"),
    (
        "consolidated*.safetensors",
        None,
        "vLLM (load format auto) loads consolidated*.safetensors and nothing else where there is one",
    ),
    ("model.safetensors", None, "transformers takes model.safetensors before any index"),
    (
        "*.safetensors",
        False,
        "vLLM and SGLang load every *.safetensors where there is no index, and of one tensor the last",
    ),
    ("*.safetensors", True, "servers pass it over only as long as the index is there and is obeyed"),
    (f"*{INDEX_SUFFIX}", None, "it names other files than the index that was read"),
    *(
        (f"*{suffix}", None, "vLLM and transformers take it where they find no safetensors")
        for suffix in (".bin", ".pt")
    ),
    *((f"*{suffix}", None, "it is a pickle, which runs code in whoever opens it") for suffix in sorted(PICKLES)),
    *((f"*{suffix}", None, f"{who} would take it") for who, suffixes in _OTHER_PROGRAMS.items() for suffix in suffixes),
)
"""Glob, whether it holds with or without an index (None: both), clause; the first that matches says it."""
