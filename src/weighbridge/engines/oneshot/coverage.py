"""Which experts calibration reached: the tokens that each saw, counted while the data pass through the model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

from weighbridge.errors import BuildError
from weighbridge.report import Finding, Grid, Severity, Table
from weighbridge.text.names import NamePattern, compact, layer_of

if TYPE_CHECKING:
    import torch

COLUMNS = ("experts of", "experts", "saw at least", "median", "at most", "routed at least", "routed at most")


@dataclass(frozen=True)
class ExpertCoverage:
    """The experts of one layer.

    Attributes:
        module: the module that holds them, e.g. ``model.language_model.layers.0.experts``.
        seen: tokens that each expert was shown; what its scales were chosen by.
        routed: tokens that the router sent it. Where only routed tokens are shown, the two are the same.
    """

    module: str
    seen: tuple[int, ...]
    routed: tuple[int, ...]


class Watch:
    """Counts tokens while `watching`; one for a model whose experts are linearized.

    llm-compressor passes data through the model once for each modifier that needs them, and again for what follows;
    its hooks count in the first pass of each modifier alone, and so do these. What stands here in the end is of the
    last modifier: `begin` is called when a pass begins.
    """

    def __init__(self) -> None:
        self._seen: dict[str, torch.Tensor] = {}
        self._routed: dict[str, torch.Tensor] = {}

    def begin(self) -> None:
        """Start counting anew."""
        for counts in (*self._seen.values(), *self._routed.values()):
            counts.zero_()

    def follow(self, name: str, experts: Any, hooks: Any) -> None:
        """Register hooks on the experts (``LinearExperts2D``) of one layer."""
        import torch

        count = experts.num_experts
        seen, routed = torch.zeros(count, dtype=torch.int64), torch.zeros(count, dtype=torch.int64)
        self._seen[name], self._routed[name] = seen, routed

        def count_routed(_: object, inputs: tuple[torch.Tensor, ...]) -> None:
            if len(inputs) > 1:  # hidden states, the experts that each goes to, their weights
                routed.add_(torch.bincount(inputs[1].flatten(), minlength=count).cpu())
            else:  # Llama 4 repeats the tokens for each expert, and silences what is not routed to it
                routed.add_(inputs[0].shape[0] // count)

        hooks.register_hook(experts, count_routed, "forward_pre")
        for index in range(count):

            def count_seen(_: object, inputs: tuple[torch.Tensor, ...], *, index: int = index) -> None:
                seen[index] += inputs[0].shape[:-1].numel()

            hooks.register_hook(experts[index], count_seen, "forward_pre")

    def counted(self, modules: Sequence[str]) -> dict[str, list[list[int]]]:
        """What was counted of the experts inside some modules: what each saw, and what was routed to it."""
        return {
            name: [seen.tolist(), self._routed[name].tolist()]
            for name, seen in self._seen.items()
            if any(name.startswith(f"{module}.") for module in modules)
        }

    def recall(self, counted: Mapping[str, Sequence[Sequence[int]]]) -> None:
        """Take over what `counted` said in a run that was killed."""
        for name, (seen, routed) in counted.items():
            self._seen[name].copy_(self._seen[name].new_tensor(seen))
            self._routed[name].copy_(self._routed[name].new_tensor(routed))

    def coverage(self) -> tuple[ExpertCoverage, ...]:
        """What was counted, in the order of the model's layers."""
        return tuple(
            ExpertCoverage(name, tuple(seen.tolist()), tuple(self._routed[name].tolist()))
            for name, seen in self._seen.items()
        )


@contextmanager
def watching(model: Any) -> Iterator[Watch]:
    """Count the tokens that each expert of a model sees until the block ends."""
    from llmcompressor.modeling.moe.linearize import get_linearized_moes
    from llmcompressor.modifiers.utils.hooks import HooksMixin

    watch, hooks = Watch(), HooksMixin()  # llm-compressor's own hooks, which are off in the passes that do not count
    for name, experts in get_linearized_moes(model):
        watch.follow(name, experts, hooks)
    try:
        yield watch
    finally:
        hooks.remove_hooks(set(hooks._hooks))


def check_sums(coverage: Sequence[ExpertCoverage], tokens: int) -> None:
    """Refuse counts that cannot be: every layer routes each token to the same number of experts.

    Raises:
        BuildError: with the first layer whose counts do not add up.
    """
    for layer in coverage:
        total = sum(layer.routed)
        if total == 0 or total % tokens:
            raise BuildError(f"{total:,} routings of {tokens:,} tokens were counted", where=layer.module)


def starved(coverage: Sequence[ExpertCoverage], least: int) -> tuple[Finding, ...]:
    """A finding for all experts that saw nothing, and one for those that saw fewer than `least` tokens, by pattern."""
    seen = {f"{layer.module}.{index}": count for layer in coverage for index, count in enumerate(layer.seen)}
    nothing = compact(expert for expert, count in seen.items() if count == 0 < least)
    little = compact(expert for expert, count in seen.items() if 0 < count < least)
    return (
        *(_starved(pattern, "saw no token of the calibration data") for pattern in nothing),
        *(
            _starved(pattern, f"saw {min(map(seen.__getitem__, pattern)):,} tokens, {least:,} are asked for at least")
            for pattern in little
        ),
    )


def _starved(experts: NamePattern, message: str) -> Finding:
    remedy = "calibrate with more text, or show every expert every token (calibration.experts: all)"
    return Finding("calibration/starved-expert", Severity.ERROR, str(experts), message, len(experts), remedy=remedy)


def table(coverage: Sequence[ExpertCoverage]) -> Table:
    """Tokens by layer: what the least, the median and the most served expert saw, and what was routed."""
    return Table(
        COLUMNS,
        tuple(
            (
                *(layer.module, len(layer.seen), min(layer.seen), int(median(layer.seen)), max(layer.seen)),
                *(min(layer.routed), max(layer.routed)),
            )
            for layer in coverage
        ),
    )


def grids(coverage: Sequence[ExpertCoverage]) -> tuple[Grid, ...]:
    """Tokens that each expert of each layer saw; and those that were routed to it, where it saw others too."""
    seen = _grid("tokens that each expert saw", coverage, [layer.seen for layer in coverage])
    routed = _grid("tokens that were routed to each expert", coverage, [layer.routed for layer in coverage])
    return (seen,) if routed.values == seen.values else (seen, routed)


def _grid(title: str, coverage: Sequence[ExpertCoverage], counts: Sequence[Sequence[int]]) -> Grid:
    columns = max(map(len, counts))
    return Grid(
        title=title,
        corner="layer",
        rows=tuple(str(layer_of(layer.module)) for layer in coverage),
        columns=tuple(f"expert {number}" for number in range(columns)),
        values=tuple((*map(float, row), *(None,) * (columns - len(row))) for row in counts),
    )
