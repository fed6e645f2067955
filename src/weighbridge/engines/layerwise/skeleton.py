"""A model whose weights are not in memory: on the meta device, until the weights of a part of it are read.

How transformers 5.17 loads a model was read in ``PreTrainedModel.from_pretrained`` and ``core_model_loading``; how
llm-compressor 0.14.0.1 takes experts apart in ``modeling.moe``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weighbridge.engines.layerwise.source import Source, open_tensors
from weighbridge.engines.oneshot.load import loader_of
from weighbridge.errors import BuildError, first_line
from weighbridge.planning import Plan

if TYPE_CHECKING:
    import torch

ORIGINAL = "weighbridge_original"
"""Attribute of a norm that multiplies by 1 + weight: the weight as it is stored, while it calibrates with the sum."""


MAPPED_BYTES = 1 << 28


@dataclass(frozen=True)
class Skeleton:
    """A model as llm-compressor takes it, experts one by one, and what its weights are read by.

    Attributes:
        model: every parameter is on the meta device, every buffer that no checkpoint stores is filled.
        device: where weights are when they are there.
        fused: modules that hold the experts of a layer as they are loaded, by the name of those that took their place.
        loaded: name of a parameter as transformers loads it -> the stored tensors that it comes from.
        source: where those are.
        settings: how transformers loads them.
        stored: every name of the model, with experts one by one, that a checkpoint stores a tensor for.
    """

    model: Any
    device: torch.device
    fused: Mapping[str, Any]
    loaded: Mapping[str, Sequence[str]]
    source: Source
    settings: Any
    stored: frozenset[str]

    @property
    def bytes(self) -> int:
        """Of all weights."""
        return bytes_of(self.model)

    def modules(self, name: str) -> list[tuple[str, Any]]:
        """A module and all inside it by their names; of the name of a tensor, none."""
        return [] if self._is_tensor(name) else list(self.model.get_submodule(name).named_modules(prefix=name))

    def tensors(self, name: str) -> Iterator[tuple[str, Any, str, torch.Tensor]]:
        """Tensors inside a module, or that of this name: each by its owner's name, its owner, and its name there.

        Buffers that each run makes anew are none of them.
        """
        owner, _, own = name.rpartition(".")
        alone = self._is_tensor(name)
        modules = [(owner, self.model.get_submodule(owner))] if alone else self.modules(name)
        for path, part in modules:
            for local, tensor in own_tensors(part):
                if local == own or not alone:
                    yield path, part, local, tensor

    def _is_tensor(self, name: str) -> bool:
        owner, _, own = name.rpartition(".")
        return own in dict(own_tensors(self.model.get_submodule(owner)))


def bytes_of(module: Any) -> int:
    """Of the tensors of a module and of all inside it."""
    return sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))


def open_skeleton(plan: Plan, *, device: str) -> Skeleton:
    """The model of a plan's source on disk, of whose weights none is read.

    Raises:
        BuildError: transformers does not know the architecture, or cannot load it.
    """
    import torch
    from compressed_tensors.utils import patch_attr
    from llmcompressor.modeling.moe import linear_experts
    from llmcompressor.modeling.moe.linearize import get_non_linearized_moes, linearize_moe
    from transformers import modeling_utils
    from transformers.core_model_loading import LoadStateDictInfo

    directory = plan.source.directory
    assert directory is not None
    tensors = open_tensors(plan)
    asked: dict[str, Any] = {}

    def read_nothing(model: Any, load_config: Any, **_: Any) -> tuple[Any, None]:
        asked.update(loaded=_renamed(model, [*tensors.files, *tensors.codes], load_config), settings=load_config)
        nothing: set[str] = set()
        info = LoadStateDictInfo(
            missing_keys=nothing,
            unexpected_keys=nothing,
            mismatched_keys=nothing,
            conversion_errors={},
            error_msgs=[],
            skipped_pp_keys=nothing,
        )
        return info, None

    try:
        with ExitStack() as stack:
            stack.enter_context(patch_attr(modeling_utils, "convert_and_load_state_dict_in_model", read_nothing))
            # Upstream gives what it makes of experts the device that they are offloaded to; there is none.
            stack.enter_context(patch_attr(linear_experts, "offload_module", lambda module, **_: module))
            # Without a device: for one that is named, transformers sets aside as much of it as the whole model takes.
            loader, config = loader_of(directory)
            if hasattr(config, "quantization_config"):
                del config.quantization_config  # floats come in the place of codes
            model = loader.from_pretrained(directory, config=config, dtype="auto", local_files_only=True)
            fused = dict(get_non_linearized_moes(model))
            with torch.device("meta"):
                linearize_moe(model)
    except (ValueError, KeyError, RuntimeError, NotImplementedError, OSError, ImportError) as error:
        raise BuildError(f"the model cannot be loaded ({first_line(error)})", where=plan.source.label) from error
    stored = frozenset(model.state_dict())
    for module in model.modules():
        for name in module._non_persistent_buffers_set & module._buffers.keys():
            module._buffers[name] = None if module._buffers[name] is None else module._buffers[name].to(device)
    settings = replace(asked["settings"], device_map={"": device})
    return Skeleton(model, torch.device(device), fused, asked["loaded"], tensors, settings, stored)


def _renamed(model: Any, stored: Iterable[str], settings: Any) -> dict[str, list[str]]:
    """Names of parameters -> the stored tensors that transformers makes them of; of several, the first stands here."""
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    known = model.state_dict()
    mapping = settings.weight_mapping or []
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    prefix = model.base_model_prefix
    loaded: dict[str, list[str]] = {}
    for name in stored:
        renamed, _ = rename_source_key(name, renamings, converters, prefix, known)
        if renamed not in known and name in known:
            renamed, _ = rename_source_key(name, [], [], base_model_prefix=prefix, meta_state_dict=known)
        loaded.setdefault(renamed, []).append(name)
    return loaded


def within(name: str, module: str) -> bool:
    """Whether a name is that of a module, or of something in it."""
    return not module or name == module or name.startswith(f"{module}.")


def fill(skeleton: Skeleton, name: str) -> None:
    """Read the weights of a module and of all inside it, or one; scales that nothing set hold what new memory holds.

    Raises:
        BuildError: a weight that is not stored, or that transformers cannot make of what is.
    """
    model = skeleton.model
    fused = {path: module for path, module in skeleton.fused.items() if within(path, name)}
    linear = {path: model.get_submodule(path) for path in fused}
    for path, module in fused.items():
        model.set_submodule(path, module)
    try:
        _read(skeleton, name)
        for path, module in fused.items():
            _take_apart(module, linear[path], getattr(module, "config", model.config))
            empty(skeleton, path)
    finally:
        for path, module in linear.items():
            model.set_submodule(path, module)
    _complete(skeleton, name)


def take_over(skeleton: Skeleton, name: str) -> None:
    """Give the tensors inside a module memory of their own in the place of the file's, which then is no longer mapped.

    Experts have theirs already. What is larger than `MAPPED_BYTES` stays: of an embedding a few rows are looked at.
    """
    apart = tuple(skeleton.fused)
    for path, part, local in [(path, part, local) for path, part, local, _ in skeleton.tensors(name)]:
        tensor = getattr(part, local).data
        if tensor.nbytes <= MAPPED_BYTES and not any(within(path, experts) for experts in apart):
            _put(part, local, tensor.clone())


@contextmanager
def fill_when_called(skeleton: Skeleton, names: Iterable[str]) -> Iterator[list[str]]:
    """Modules that read their weights when something passes through them, until the block ends.

    Returns:
        The names of those that did; whoever empties them takes them out.
    """
    filled: list[str] = []
    hooks = []

    def fill_first(module: Any, _: object, *, name: str) -> None:
        if any(tensor.device.type == "meta" for _, tensor in own_tensors(module)):
            fill(skeleton, name)
            filled.append(name)

    for name in names:
        module = skeleton.model.get_submodule(name)
        hooks.append(module.register_forward_pre_hook(partial(fill_first, name=name), prepend=True))
    try:
        yield filled
    finally:
        for hook in hooks:
            hook.remove()


def empty(skeleton: Skeleton, name: str) -> None:
    """Take the weights of a module and of all inside it out of memory, or one."""
    import torch

    for _, part, local, tensor in list(skeleton.tensors(name)):
        vars(part).pop(ORIGINAL, None)
        _put(part, local, torch.empty_like(tensor, device="meta"))


def tensors_of(skeleton: Skeleton, name: str) -> dict[str, torch.Tensor]:
    """Every tensor inside a module, or that of this name, without those of observers.

    A norm that calibrates with 1 + weight has both: the sum, and the weight as it is stored.
    """
    from llmcompressor.observers import Observer

    tensors = {}
    for path, part, local, tensor in skeleton.tensors(name):
        if not isinstance(part, Observer):
            tensors[f"{path}.{local}"] = tensor.data
        if ORIGINAL in vars(part):
            tensors[f"{path}.{ORIGINAL}"] = vars(part)[ORIGINAL]
    return tensors


def put_tensors(skeleton: Skeleton, name: str, place: Path) -> None:
    """Give a module the tensors that `tensors_of` gave of it, or of what it is a part of, read from a file."""
    from safetensors import safe_open

    with safe_open(place, framework="pt", device=str(skeleton.device)) as file:
        for whole in file.keys():  # noqa: SIM118 (it is no mapping)
            if within(whole, name):
                owner, _, local = whole.rpartition(".")
                part = skeleton.model.get_submodule(owner)
                if local == ORIGINAL:
                    setattr(part, ORIGINAL, file.get_tensor(whole))
                else:
                    _put(part, local, file.get_tensor(whole))
    _attach_observers(skeleton, name)


def _read(skeleton: Skeleton, name: str) -> None:
    """Let transformers load what is stored of a module, as it is loaded."""
    from transformers.core_model_loading import convert_and_load_state_dict_in_model

    wanted = [stored for loaded, names in skeleton.loaded.items() if within(loaded, name) for stored in names]
    if not wanted:
        return
    with skeleton.source.opened(wanted) as tensors:
        info, _ = convert_and_load_state_dict_in_model(skeleton.model, tensors, skeleton.settings)
    problems = [*info.error_msgs, *map(str, info.conversion_errors.values()), *map(str, info.mismatched_keys)]
    if problems:
        raise BuildError(f"its weights cannot be loaded ({first_line(ValueError(problems[0]))})", where=name)


def _take_apart(fused: Any, linear: Any, config: Any) -> None:
    """Give the experts of a layer their weights, of the module that holds all of them."""
    import torch
    from compressed_tensors.utils import patch_attr
    from llmcompressor.modeling.moe import linear_experts

    with (
        torch.device(next(fused.parameters()).device),
        patch_attr(linear_experts, "offload_module", lambda module, **_: module),
    ):
        apart = type(linear).from_experts_module(fused, config)
    for name, parameter in apart.named_parameters():
        owner, _, local = name.rpartition(".")
        _put(linear.get_submodule(owner), local, parameter.data)


def _complete(skeleton: Skeleton, name: str) -> None:
    """What is on the meta device yet: weights that are another's, norms with their sum, scales that nothing set."""
    import torch
    from llmcompressor.modeling.offset_norm import CalibrationOffsetNorm

    tied = skeleton.model.all_tied_weights_keys
    for path, part, local, tensor in list(skeleton.tensors(name)):
        if tensor.device.type != "meta":
            continue
        whole = f"{path}.{local}"
        if whole in tied:
            _put(part, local, weight_of_another(skeleton, tied[whole]))
        elif whole in skeleton.stored:
            raise BuildError("no tensor of the weights is loaded as this one", where=whole)
        else:
            _put(part, local, torch.empty_like(tensor, device=skeleton.device))
    _attach_observers(skeleton, name)
    for _, part in skeleton.modules(name):
        if isinstance(part, CalibrationOffsetNorm):
            original = part.weight.data
            setattr(part, ORIGINAL, original)
            part.weight.data = (1.0 + original.float()).to(original.dtype)


def _attach_observers(skeleton: Skeleton, name: str) -> None:
    """Let observers inside a module count on the device of its weights, which were not there when they began."""
    from llmcompressor.observers import Observer

    for _, part in skeleton.modules(name):
        for observer in part.children():
            if isinstance(observer, Observer) and _counts_nothing_yet(observer):
                observer.attach(part)


def _counts_nothing_yet(observer: Any) -> bool:
    """Whether an observer has tensors of its own to count in, that lie where nothing is."""
    import torch

    return any(isinstance(value, torch.Tensor) and value.device.type == "meta" for value in vars(observer).values())


def weight_of_another(skeleton: Skeleton, name: str) -> torch.Tensor:
    """A weight that a module shares with another; read, if the other has it not."""
    owner, _, local = name.rpartition(".")
    module = skeleton.model.get_submodule(owner)
    there = getattr(module, local)
    if there.device.type != "meta":
        return there.data  # type: ignore[no-any-return]
    _read(skeleton, name)
    read = getattr(module, local).data
    _put(module, local, there.data)
    return read  # type: ignore[no-any-return]


def own_tensors(module: Any) -> list[tuple[str, torch.Tensor]]:
    """Parameters and buffers of a module itself, without what each run makes anew."""
    own = (*module._parameters.items(), *module._buffers.items())
    made = module._non_persistent_buffers_set
    return [(name, tensor) for name, tensor in own if tensor is not None and name not in made]


def _put(module: Any, name: str, tensor: torch.Tensor) -> None:
    from torch.nn import Parameter

    if name in module._buffers:
        module._buffers[name] = tensor
    else:
        module._parameters[name] = Parameter(tensor, requires_grad=False)
