"""What passes between the layers of a model, kept on disk: each value of each batch in a file of its own, mapped when
it is read.

A value is written once, under a name that lasts (`naming`); a run that was killed finds those that it needs where they
are.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weighbridge.engines.layerwise.kept import digest
from weighbridge.errors import Argument, BuildError, Clause
from weighbridge.machine.cache import put_in_place

if TYPE_CHECKING:
    import torch


class Activations:
    """Values of batches by the names of a trace, in a directory; given back on one device.

    Args:
        names: name of the trace -> name that lasts, which is that of the file.
    """

    def __init__(self, directory: Path, names: Mapping[str, str], device: torch.device) -> None:
        self._directory = directory
        self._names = names
        self._device = device

    def put(self, batch: int, values: Mapping[str, Any]) -> dict[str, str]:
        """Keep values of a batch; one of the same name is replaced.

        Returns:
            Name that lasts -> SHA-256 (hex) of what was written.

        Raises:
            BuildError: a value of a kind that cannot be written down.
        """
        folder = self._directory / str(batch)
        folder.mkdir(parents=True, exist_ok=True)
        digests = {}
        for name, value in values.items():
            written = _written(value, name=name)
            put_in_place(folder / self._names[name], written, 0o600)
            digests[self._names[name]] = hashlib.sha256(written).hexdigest()
        return digests

    def hold(self, batch: int, names: Collection[str], digests: Mapping[str, str]) -> bool:
        """Whether the values of a batch that have these names are there, as they were written."""
        lasting = {self._names[name] for name in names}
        folder = self._directory / str(batch)
        return all(name in digests and digest(folder / name) == digests[name] for name in lasting)

    def get(self, batch: int, names: Collection[str]) -> dict[str, Any]:
        """The values of a batch that have these names."""
        return {name: _read(self._directory / str(batch) / self._names[name], self._device) for name in names}

    def drop(self, batch: int, names: Collection[str]) -> None:
        """Forget values of a batch; those that are not there are forgotten already."""
        for name in names:
            (self._directory / str(batch) / self._names[name]).unlink(missing_ok=True)


def _written(value: Any, *, name: str) -> bytes:
    from safetensors.torch import save

    tensors: dict[str, torch.Tensor] = {}
    form = json.dumps(_form(value, tensors, name=name), separators=(",", ":"))
    content: bytes = save(tensors, metadata={"form": form})
    return content


def _read(path: Path, device: torch.device) -> Any:
    from safetensors import safe_open

    with safe_open(path, framework="pt", device="cpu") as file:
        form = json.loads(file.metadata()["form"])
        return _value(form, {name: file.get_tensor(name).to(device) for name in file.keys()})  # noqa: SIM118


def _form(value: Any, tensors: dict[str, torch.Tensor], *, name: str) -> Any:
    """A value as JSON has it; its tensors are put aside under numbers."""
    import torch

    match value:
        case None | bool() | int() | float() | str():
            return value
        case torch.Tensor():
            tensors[str(len(tensors))] = value.detach().cpu().contiguous()
            return {"tensor": str(len(tensors) - 1)}
        case torch.dtype():
            return {"dtype": str(value).removeprefix("torch.")}
        case torch.device():
            return {"device": str(value)}
        case list() | tuple():
            kind = "list" if type(value) is list else "tuple"
            return {kind: [_form(item, tensors, name=name) for item in value]}
        case dict() if all(isinstance(key, str) for key in value):
            return {"dict": {key: _form(item, tensors, name=name) for key, item in value.items()}}
    raise BuildError(
        f"a value of type {type(value).__name__} passes between its layers, and cannot be kept on disk",
        where=name,
        remedy=Clause("take ", Argument("engine"), " upstream, which holds the whole model in memory"),
    )


def _value(form: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    import torch

    if not isinstance(form, dict):
        return form
    ((kind, content),) = form.items()
    made: Mapping[str, Callable[[Any], Any]] = {
        "tensor": tensors.__getitem__,
        "dtype": lambda name: getattr(torch, name),
        "device": torch.device,
        "list": lambda items: [_value(item, tensors) for item in items],
        "tuple": lambda items: tuple(_value(item, tensors) for item in items),
        "dict": lambda items: {key: _value(item, tensors) for key, item in items.items()},
    }
    return made[kind](content)
