"""vLLM's own weight loading, watched: what it left unfilled, and which keys of the checkpoint it used for what.

Every parameter and every stored buffer is filled with a pattern before vLLM loads into it, twice with two patterns: an
element that shows the first after the first loading and the second after the second was filled by neither. That is
exact for every dtype, also where all values can occur (packed codes). All bits set, and all but the highest, are NaN
for BF16, F16, F32, E4M3 and E5M2, so that what compares values while it loads takes neither for a loaded one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

LARGEST_RESTORED = 1 << 20
"""Elements up to which a tensor's initial value is kept: scales and their like, which may stay unfilled harmlessly."""

MAX_REGIONS = 64
"""Unfilled regions of one parameter that are told one by one."""

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_SHARED_SCALES = ("global_scale", "weight_scale_2", "input_scale")

Region = list[list[int]]
"""For each axis the first index and the one behind the last."""


class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records which part of which parameter is written while a key of the checkpoint is being loaded.

    Attributes:
        current: the key that is being loaded.
        keys: key -> dtype and shape as vLLM read it, in its order.
        writes: (key, parameter, region) in the order they were made.
        homeless: writes to parameters while no key was being loaded.
    """

    def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._home = {tensor.untyped_storage().data_ptr(): (name, tensor) for name, tensor in tensors.items()}
        self.current: str | None = None
        self.keys: dict[str, list[Any]] = {}
        self.writes: list[tuple[str, str, Region]] = []
        self.homeless = 0
        self.not_finite: dict[str, int] = {}
        self.shared_scales: dict[str, float] = {}

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func._schema.is_mutable:
            for argument, value in zip(func._schema.arguments, args, strict=False):
                if argument.alias_info is not None and argument.alias_info.is_write and isinstance(value, torch.Tensor):
                    self._note(value)
        return result

    def _note(self, written: torch.Tensor) -> None:
        home = self._home.get(written.untyped_storage().data_ptr())
        if home is None or written.numel() == 0:
            return
        if self.current is None:
            self.homeless += 1
        else:
            self.writes.append((self.current, home[0], _region(written, home[1])))

    def reading(self, weights: Iterator[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
        """The same weights; each is `current` until the next is asked for."""
        for name, tensor in weights:
            self.current = None
            self.keys[name] = [str(tensor.dtype).removeprefix("torch."), list(tensor.shape)]
            count = _count_not_finite(tensor)
            if count:
                self.not_finite[name] = count
            if tensor.numel() == 1 and name.endswith(_SHARED_SCALES):
                self.shared_scales[name] = float(tensor.float())
            self.current = name
            yield name, tensor
        self.current = None


def stored_tensors(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Every parameter and every stored buffer of a model, each storage once, by its first name."""
    found: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    computed = {
        f"{prefix}.{name}" if prefix else name
        for prefix, module in model.named_modules(remove_duplicate=False)
        for name in module._non_persistent_buffers_set
    }
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        pointer = tensor.untyped_storage().data_ptr()
        if name not in computed and tensor.numel() and pointer not in seen:
            seen.add(pointer)
            found[name] = tensor.data
    return found


def load_watched(model: torch.nn.Module, load: Callable[[], None], *, watch: Watch) -> dict[str, list[Region]]:
    """Load twice, each time over another pattern; the second time under `watch`.

    Returns:
        parameter -> regions that no loading filled. The initial values of small tensors are put back there.
    """
    tensors = stored_tensors(model)
    initial = {name: tensor.clone() for name, tensor in tensors.items() if tensor.numel() <= LARGEST_RESTORED}
    first = _fill(tensors, highest_bit=True)
    load()
    suspects = {
        name: untouched
        for name, tensor in stored_tensors(model).items()
        if name in first and (untouched := bits_of(tensor) == first[name]).any()
    }
    second = _fill(tensors, highest_bit=False)
    with watch:
        load()
    unfilled: dict[str, list[Region]] = {}
    for name, tensor in stored_tensors(model).items():
        if name in suspects:
            bits = bits_of(tensor)
            untouched = suspects[name] & (bits == second[name])
            if untouched.any():
                unfilled[name] = _regions(untouched.reshape(tensor.shape))
                if name in initial:
                    bits[untouched] = bits_of(initial[name])[untouched]
    return unfilled


@contextmanager
def watched_loader(answer: dict[str, Any]) -> Iterator[None]:
    """Have vLLM's default loader watched while the block runs; what is found goes into `answer`."""
    from vllm.model_executor.model_loader.default_loader import DefaultModelLoader

    own_load, own_read = DefaultModelLoader.load_weights, DefaultModelLoader.get_all_weights

    def load_weights(loader: Any, model: torch.nn.Module, model_config: Any) -> None:
        watch = Watch(stored_tensors(model))
        DefaultModelLoader.get_all_weights = lambda *arguments: watch.reading(own_read(*arguments))
        unfilled = load_watched(model, lambda: own_load(loader, model, model_config), watch=watch)
        answer["model"] = type(model).__name__
        answer["parameters"] = {
            name: [str(tensor.dtype).removeprefix("torch."), list(tensor.shape)]
            for name, tensor in stored_tensors(model).items()
        }
        answer["keys"] = watch.keys
        answer["writes"] = watch.writes
        answer["homeless_writes"] = watch.homeless
        answer["unfilled"] = unfilled
        answer["not_finite"] = watch.not_finite
        answer["shared_scales"] = watch.shared_scales

    DefaultModelLoader.load_weights = load_weights
    try:
        yield
    finally:
        DefaultModelLoader.load_weights, DefaultModelLoader.get_all_weights = own_load, own_read


def is_harmless(parameter: str, patterns: Sequence[str]) -> bool:
    """Whether a parameter may stay unfilled."""
    return any(re.fullmatch(pattern, parameter) for pattern in patterns)


def _fill(tensors: dict[str, torch.Tensor], *, highest_bit: bool) -> dict[str, int]:
    """Set all bits of all tensors, or all but the highest; gives what each element then is as a signed integer."""
    patterns = {}
    for name, tensor in tensors.items():
        bits = bits_of(tensor)
        patterns[name] = -1 if highest_bit else torch.iinfo(bits.dtype).max
        bits.fill_(patterns[name])
    return patterns


def bits_of(tensor: torch.Tensor) -> torch.Tensor:
    """The same memory as signed integers; scalars as vectors of one, since views of them cannot change dtype."""
    flat = tensor.reshape(1) if tensor.dim() == 0 else tensor
    return flat.view(_INTEGERS[tensor.element_size()])


def _region(view: torch.Tensor, whole: torch.Tensor) -> Region:
    """Which part of `whole` (contiguous) a view of the same memory covers."""
    first = int(view.storage_offset()) - int(whole.storage_offset())
    last = first + sum(int((size - 1) * stride) for size, stride in zip(view.shape, view.stride(), strict=True))
    return [
        [begin, end + 1] for begin, end in zip(_indices(first, whole.shape), _indices(last, whole.shape), strict=True)
    ]


def _indices(offset: int, shape: Sequence[int]) -> list[int]:
    indices = []
    for size in reversed(shape):
        offset, index = divmod(offset, size)
        indices.append(index)
    return indices[::-1]


def _regions(untouched: torch.Tensor) -> list[Region]:
    """Boxes that hold all that is untouched: one for each index of the first axis, neighbours that agree as one."""
    if untouched.all() or untouched.dim() == 0:
        return [[[0, size] for size in untouched.shape]]
    found: list[Region] = []
    rows = untouched.reshape(untouched.shape[0], -1).any(1).nonzero().flatten().tolist()
    for row in rows:
        places = untouched[row].nonzero()
        if untouched.dim() == 1:
            box: Region = []
        else:
            box = [[int(low), int(high) + 1] for low, high in zip(places.amin(0), places.amax(0), strict=True)]
        if found and found[-1][0][1] == row and found[-1][1:] == box:
            found[-1][0][1] = row + 1
        elif len(found) < MAX_REGIONS:
            found.append([[row, row + 1], *box])
    return found


def _count_not_finite(tensor: torch.Tensor) -> int:
    """Elements that are NaN or infinite."""
    if tensor.dtype == torch.float8_e4m3fn:
        return int(((tensor.view(torch.uint8) & 0x7F) == 0x7F).sum())
    if not tensor.is_floating_point():
        return 0
    return int((~torch.isfinite(tensor.float())).sum())
