"""llm-compressor's passes over a model, of which one layer at a time is in memory.

The order of what happens is that of ``pipelines.sequential`` and ``pipelines.data_free`` of llm-compressor 0.14.0.1:
their modifiers, their traced parts, their hooks. What differs is where weights and activations are meanwhile.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from weighbridge.engines.layerwise.activations import Activations
from weighbridge.engines.layerwise.hessians import (
    blocks,
    experts_of,
    gathered_in_turn,
    hessian_bytes,
    only_hessians,
    round_block,
)
from weighbridge.engines.layerwise.kept import Kept
from weighbridge.engines.layerwise.naming import lasting_names
from weighbridge.engines.layerwise.skeleton import (
    Skeleton,
    bytes_of,
    empty,
    fill,
    fill_when_called,
    own_tensors,
    put_tensors,
    take_over,
    tensors_of,
    within,
)
from weighbridge.engines.layerwise.stored import freeze_and_compress, stored_tensors
from weighbridge.engines.oneshot.coverage import Watch
from weighbridge.machine.resources import give_back_memory
from weighbridge.progress import Progress

REST_BYTES = 1 << 30
"""Of what lies outside the layers, so many bytes are held at a time, or one module."""


@dataclass
class Passing:
    """A calibration that is going on.

    Attributes:
        watch: what each expert saw.
        warnings: what llm-compressor said that bears on the result.
        room: bytes of Hessians at a time.
        turn: modules whose Hessians are gathered now.
        number: the pass that is going on, from zero.
        finished: what was written down of each of its parts that is done.
        left: modules that an earlier pass left as they are now, and the file of each.
    """

    skeleton: Skeleton
    kept: Kept
    progress: Progress
    watch: Watch
    warnings: list[str]
    room: int
    turn: set[Any] = field(default_factory=set)
    number: int = 0
    finished: list[Any] = field(default_factory=list)
    left: dict[str, Path] = field(default_factory=dict)

    @property
    def last(self) -> bool:
        return self.number == self.kept.passes - 1


@contextmanager
def passing_by_layer(passing: Passing) -> Iterator[None]:
    """Let llm-compressor pass by layer until the block ends, whatever pipeline it chooses."""
    from compressed_tensors.utils import patch_attr
    from llmcompressor.entrypoints.oneshot import Oneshot
    from llmcompressor.modeling.offset_norm import CalibrationOffsetNorm
    from llmcompressor.pipelines.data_free.pipeline import DataFreePipeline
    from llmcompressor.pipelines.sequential.pipeline import SequentialPipeline

    def with_data(model: Any, dataloader: Any, dataset_args: Any) -> None:
        _pass_with_data(passing, model, dataloader, dataset_args)
        _leave(passing)

    def without_data(model: Any, _dataloader: Any, dataset_args: Any) -> None:
        _pass_without_data(passing, model, dataset_args)
        _leave(passing)

    with ExitStack() as stack:
        for pipeline, instead in ((SequentialPipeline, with_data), (DataFreePipeline, without_data)):
            stack.callback(setattr, pipeline, "__call__", vars(pipeline)["__call__"])  # a static method, as it stands
            pipeline.__call__ = staticmethod(instead)
        # What was smoothed is on disk already; what would be restored here is empty.
        stack.enter_context(patch_attr(CalibrationOffsetNorm, "restore", lambda _calibrated, original: original))
        # It asks whether the source was quantized; what is read of it are floats.
        stack.enter_context(patch_attr(Oneshot, "validate_model", lambda *_: None))
        stack.enter_context(gathered_in_turn(passing.turn))
        yield


def _leave(passing: Passing) -> None:
    """End a pass: what it wrote down is what the next one begins with."""
    for part, entry in enumerate(passing.finished):
        passing.left |= dict.fromkeys(entry["modules"], passing.kept.place(passing.number, part))
    passing.number += 1


def _pass_with_data(passing: Passing, model: Any, dataloader: Any, dataset_args: Any) -> None:
    from llmcompressor.core import LifecycleCallbacks, active_session
    from llmcompressor.modifiers.utils.hooks import HooksMixin
    from llmcompressor.pipelines.sequential.helpers import trace_subgraphs
    from llmcompressor.utils.helpers import DisableQuantization, calibration_forward_context
    from llmcompressor.utils.pytorch.module import infer_sequential_targets

    batches = list(dataloader)
    targets = infer_sequential_targets(model, dataset_args.sequential_targets)
    parts = trace_subgraphs(model, batches[0], targets, dataset_args.tracing_ignore)
    modules = [_called(part) for part in parts]
    called = [name for part in modules for name in part]
    names = {name: name for name in batches[0]} | lasting_names(parts)
    activations = Activations(passing.kept.activations / str(passing.number), names, passing.skeleton.device)
    done = _resumed(passing, parts, activations, len(batches))
    first: dict[str, dict[str, str]] = {}
    if not done:
        first = {f"{index}": activations.put(index, batch) for index, batch in enumerate(batches)}
    LifecycleCallbacks.calibration_start()
    state = active_session().state
    state.loss_masks, state.sequential_prefetch = None, False
    outside = _outside(model, called)
    with ExitStack() as stack:
        stack.enter_context(calibration_forward_context(model))
        stack.enter_context(DisableQuantization(model))
        filled = stack.enter_context(fill_when_called(passing.skeleton, outside))
        for index, part in enumerate(parts[done:], start=done):
            _fill(passing, modules[index])
            size = _bytes(passing, modules[index])
            step = size // (2 * len(batches) + 1)

            def pass_through(part: Any = part) -> None:
                for batch in range(len(batches)):
                    state.current_batch_idx = batch
                    part.forward(model, **activations.get(batch, part.input_names))

            _observe(passing, modules[index], pass_through)
            passing.progress.advance(step * len(batches))
            LifecycleCallbacks.sequential_epoch_end(part.submodules(model))
            written = {} if index else first
            if index < len(parts) - 1:
                with HooksMixin.disable_hooks():
                    for batch in range(len(batches)):
                        values = part.forward(model, **activations.get(batch, part.input_names))
                        written[str(batch)] = {**written.get(str(batch), {}), **activations.put(batch, values)}
                        passing.progress.advance(step)
            _finish(passing, modules[index], {"values": written})
            passing.progress.advance(size - step * len(batches) * (2 if index < len(parts) - 1 else 1))
            for name in filled:
                empty(passing.skeleton, name)
            filled.clear()
            for batch in range(len(batches)):
                activations.drop(batch, part.consumed_names)
    if passing.last:
        _keep_rest(passing, len(parts), called, lambda _modules: None)
    LifecycleCallbacks.calibration_end()


def _observe(passing: Passing, names: Sequence[str], pass_through: Callable[[], None]) -> None:
    """Let a part of the model see the samples; several times, where GPTQ's Hessians of its experts are too many."""
    skeleton = passing.skeleton
    inside = [module for name in names for _, module in skeleton.modules(name)]
    passing.turn.clear()
    passing.turn.update(inside)
    for modifier in _gptq():
        rounded = [module for module in inside if module in modifier._module_names and hasattr(module, "weight")]
        experts = experts_of(skeleton, names, rounded)
        held = sum(map(hessian_bytes, set(rounded).difference(*experts)))
        apart = blocks(experts, passing.room - held)
        for block in apart[1:]:
            passing.turn.difference_update(block)
        pass_through()
        for number, block in enumerate(apart if len(apart) > 1 else []):
            if number:
                passing.turn.clear()
                passing.turn.update(block)
                with only_hessians(modifier, skeleton, names, block):
                    pass_through()
            round_block(modifier, block)
            give_back_memory()
        return
    pass_through()


def _pass_without_data(passing: Passing, model: Any, dataset_args: Any) -> None:
    from compressed_tensors.utils.match import match_named_modules
    from llmcompressor.core import LifecycleCallbacks
    from llmcompressor.utils.pytorch.module import infer_sequential_targets

    targets = infer_sequential_targets(model, dataset_args.sequential_targets)
    layers = [name for name, _ in match_named_modules(model, targets)]
    passing.finished = passing.kept.finished(passing.number)
    for entry in passing.finished:
        _recall(passing, entry)
    LifecycleCallbacks.calibration_start()
    for name in layers[len(passing.finished) :]:
        _fill(passing, [name])
        size = _bytes(passing, [name])
        LifecycleCallbacks.sequential_epoch_end(list(model.get_submodule(name).modules()))
        _finish(passing, [name], {})
        passing.progress.advance(size)
    _keep_rest(passing, len(layers), layers, LifecycleCallbacks.sequential_epoch_end)
    LifecycleCallbacks.calibration_end()


def _called(part: Any) -> list[str]:
    """The modules that a traced part calls, each once."""
    return list(dict.fromkeys(node.target for node in part.graph.find_nodes(op="call_module")))


def _outside(model: Any, names: Sequence[str]) -> list[str]:
    """Modules with tensors of their own that no traced part calls by name; code that is not traced calls some."""
    return [
        path
        for path, module in model.named_modules()
        if (module._parameters or module._buffers) and not any(within(path, name) for name in names)
    ]


def _resumed(passing: Passing, parts: Sequence[Any], activations: Activations, batches: int) -> int:
    """How many parts of this pass an earlier run has finished, with all that the next needs still as it was."""
    said = passing.finished = passing.kept.finished(passing.number)
    written: dict[str, dict[str, str]] = {}
    for entry in said[: len(parts)]:
        for batch, values in entry["values"].items():
            written.setdefault(batch, {}).update(values)
    later = parts[len(said) :]
    needed = {name for part in later for name in part.input_names} - {name for part in later for name in _made(part)}
    for batch in range(batches):
        if not activations.hold(batch, needed, written.get(str(batch), {})):
            passing.finished = []
            return 0
    for entry in said:
        _recall(passing, entry)
    return min(len(said), len(parts))


def _made(part: Any) -> list[str]:
    """The names of what comes out of a traced part; the last gives what the model does, under no name."""
    (node,) = part.graph.find_nodes(op="output")
    return list(node.args[0]) if isinstance(node.args[0], Mapping) else []


def _fill(passing: Passing, names: Sequence[str]) -> None:
    """Read the weights of modules: as the passes before left them, or else those that are stored."""
    left = passing.left
    for name in names:
        if not any(within(name, module) for module in left):
            fill(passing.skeleton, name)
        for module, place in left.items():
            if within(module, name) or within(name, module):
                put_tensors(passing.skeleton, max(module, name, key=len), place)
        take_over(passing.skeleton, name)


def _bytes(passing: Passing, names: Sequence[str]) -> int:
    return sum(tensor.nbytes for name in names for *_, tensor in passing.skeleton.tensors(name))


def _finish(passing: Passing, names: Sequence[str], said: Mapping[str, Any]) -> None:
    """Write down what became of modules, and take them out of memory."""
    skeleton = passing.skeleton
    if passing.last:
        for name in names:
            freeze_and_compress(module for _, module in skeleton.modules(name))
        tensors = stored_tensors(skeleton, names)
    else:
        tensors = {whole: tensor for name in names for whole, tensor in tensors_of(skeleton, name).items()}
    written = {**said, "modules": names, **_so_far(passing, names)}
    passing.finished.append(passing.kept.keep(passing.number, len(passing.finished), tensors, written))
    del tensors
    for name in names:
        empty(skeleton, name)
    gc.collect()  # hooks and observers refer to one another
    give_back_memory()


def _so_far(passing: Passing, names: Sequence[str]) -> dict[str, Any]:
    """What a run that goes on after this part has to know, and can no longer see."""
    known = {warning for entry in passing.finished for warning in entry["warnings"]}
    new = [warning for warning in passing.warnings if warning not in known]
    said: dict[str, Any] = {"coverage": passing.watch.counted(names), "warnings": new}
    for modifier in _gptq():
        said["rounded"] = [list(modifier._rtn_fallback_module_names), modifier._num_compressed_modules]
    return said


def _recall(passing: Passing, entry: Mapping[str, Any]) -> None:
    passing.watch.recall(entry["coverage"])
    passing.warnings += [warning for warning in entry["warnings"] if warning not in passing.warnings]
    for modifier in _gptq():
        modifier._rtn_fallback_module_names, modifier._num_compressed_modules = entry["rounded"]


def _gptq() -> list[Any]:
    """Of the modifiers of this pass, those that count what they could not invert and say it in the end."""
    from llmcompressor.core import active_session
    from llmcompressor.modifiers.gptq import GPTQModifier

    return [modifier for modifier in active_session().lifecycle.recipe.modifiers if isinstance(modifier, GPTQModifier)]


def _keep_rest(passing: Passing, index: int, done: Sequence[str], before: Callable[[list[Any]], object]) -> None:
    """Write down what lies outside the layers and was in none of the parts, some at a time.

    Args:
        index: the number of parts before.
        before: is called with the modules once their weights are there.
    """
    groups = _groups(passing.skeleton.model, done)
    for names in groups[len(passing.finished) - index :]:
        _fill(passing, names)
        size = _bytes(passing, names)
        before([module for name in names for _, module in passing.skeleton.modules(name)])
        _finish(passing, names, {})
        passing.progress.advance(size)


def _groups(model: Any, done: Sequence[str]) -> list[list[str]]:
    """The modules that hold all tensors but those of modules that are done, in groups of `REST_BYTES`."""
    groups: list[list[str]] = []
    room = 0
    for name, size in _apart(model, "", done):
        if not groups or size > room:
            groups.append([])
            room = REST_BYTES
        groups[-1].append(name)
        room -= size
    return groups


def _apart(module: Any, path: str, done: Sequence[str]) -> Iterator[tuple[str, int]]:
    """The largest modules that hold nothing that is done, none above `REST_BYTES` if it can be, and tensors beside.

    Each with its bytes.
    """
    from llmcompressor.observers import Observer

    if path and any(within(path, name) for name in done):
        return
    size = bytes_of(module)
    children = [(name, child) for name, child in module.named_children() if not isinstance(child, Observer)]
    if path and not (any(within(name, path) for name in done) or (size > REST_BYTES and children)):
        if size:
            yield path, size
        return
    inside = f"{path}." if path else ""
    yield from ((f"{inside}{name}", tensor.nbytes) for name, tensor in own_tensors(module))
    for name, child in children:
        yield from _apart(child, f"{inside}{name}", done)
