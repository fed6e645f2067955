"""Observers: how the scale of a tile is chosen from its values, as facts; who computes has arithmetic of his own.

Those of llm-compressor 0.14.0.1 (``llmcompressor.observers``), as they are for weights, and two of this project's own
for symmetric integers (docs/explanation/formats.md). llm-compressor puts the memoryless observer in the place of every
other one of weights, and has no other 4/6 than the expanded search.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from weighbridge.formats.schemes import QuantizationArgs, Scheme

MOST_STEPS = 1024
"""Candidates that a search may try; llm-compressor's longest has 111."""


@dataclass(frozen=True, slots=True)
class Search:
    """A search for the range of a tile that gives the smallest sum of \\|error\\|^norm.

    The range of the tile's values is multiplied by `expand`, then by ``1 - step / grid`` for each step from 0 on; of
    the ranges with the least error the first is taken.

    Attributes:
        maxshrink: the share by which the last step narrows the range, at most.
        grid: steps to zero.
        patience: so many steps in a row without less error for any tile of a module end the search for all of them.
    """

    expand: float = 1.0
    maxshrink: float = 0.2
    grid: float = 100.0
    patience: float = 5.0
    norm: float = 2.4

    @property
    def steps(self) -> int:
        """How many ranges are tried at most; with none, the expanded range is taken."""
        return int(self.maxshrink * self.grid)

    @property
    def may_stop(self) -> bool:
        """Whether all of a module has to be seen before it is known how many ranges are tried."""
        return max(self.patience, 1) < self.steps

    def reached(self, improving: int) -> int:
        """How many ranges are tried, if these steps lessened the error of any tile (a bit for each)."""
        stale = 0
        for step in range(self.steps):
            stale = 0 if improving >> step & 1 else stale + 1
            if stale >= max(self.patience, 1) and stale:
                return step + 1
        return self.steps

    def share(self, step: int) -> float:
        """What the expanded range is multiplied by in a step."""
        return 1 - step / self.grid


@dataclass(frozen=True, slots=True)
class Observer:
    """What is known of an observer.

    Attributes:
        search: with its defaults; None for one that takes the range of the values as it is.
        signed: a scale has the sign that puts the value of the largest magnitude at the smallest code.
        further: arguments that have no effect on weights, or none on a CPU.
        needs_data: it looks at activations.
    """

    search: Search | None = None
    signed: bool = False
    further: frozenset[str] = frozenset()
    needs_data: bool = False

    @property
    def arguments(self) -> frozenset[str]:
        """The names that its arguments may have."""
        return self.further if self.search is None else self.further | _ARGUMENTS


_ARGUMENTS = frozenset(field.name for field in fields(Search))
_FAR = 1e300
"""Beyond it lies no number that anybody could mean; an integer of JSON may be larger than any float."""
_ERROR, _AVERAGE, _STRICT = (frozenset({name}) for name in ("triton_error_buffer", "averaging_constant", "strict"))
_EXPANDED = Search(expand=1.8, maxshrink=1 - 0.8 / 1.8, grid=200.0, patience=1000)

MIN_MAX = "memoryless_minmax"
"""What is taken for weights where nothing is said."""
MOVING_MIN_MAX = "minmax"
"""What is taken for static activations and KV caches where nothing is said: ends that follow each batch by a share."""

OBSERVERS: Mapping[str, Observer] = {
    MIN_MAX: Observer(),
    "static_minmax": Observer(),
    "minmax": Observer(further=_AVERAGE),
    "memoryless_mse": Observer(Search(), further=_ERROR),
    "mse": Observer(Search(), further=_ERROR | _AVERAGE),
    "imatrix_mse": Observer(Search(), further=_STRICT, needs_data=True),
    "nvfp4_expanded_mse": Observer(_EXPANDED, further=_ERROR),
    "nvfp4_expanded_imatrix": Observer(_EXPANDED, further=_STRICT, needs_data=True),
    "fouroversix": Observer(_EXPANDED, further=_ERROR),
    "signed_minmax": Observer(signed=True),
    "signed_mse": Observer(Search(expand=1.25, maxshrink=0.36, patience=1000), signed=True),
}
"""By the name that ``observer`` has in recipes and in config.json."""


class UnknownChoice(ValueError):
    """There is no such observer, or none with these arguments; the message says what is wrong."""


def named(args: QuantizationArgs, default: str) -> QuantizationArgs:
    """Arguments that name their observer; values whose scales are taken wholly as they arrive have none."""
    return args if args.observer is not None or args.dynamic is True else replace(args, observer=default)


def with_observers(scheme: Scheme) -> Scheme:
    """A scheme whose observers are named, as whoever quantizes by it has defaults of his own."""
    activations = (scheme.input_activations, scheme.output_activations)
    return Scheme(named(scheme.weights, MIN_MAX), *(args and named(args, MOVING_MIN_MAX) for args in activations))


def observer_of(args: QuantizationArgs) -> Observer:
    """How the scales of weights are chosen, with the arguments that are said put in the place of the defaults.

    Raises:
        UnknownChoice: an observer or an argument that is not known, or an argument that it cannot have.
    """
    known = OBSERVERS.get(args.observer or MIN_MAX)
    if known is None:
        raise UnknownChoice(f"there is no observer {str(args.observer)[:40]!r}")
    for key in args.observer_kwargs:
        if key not in known.arguments:
            raise UnknownChoice(f"the observer {args.observer or MIN_MAX} has no argument {str(key)[:40]!r}")
    if known.search is None:
        return known
    said: dict[str, Any] = {key: value for key, value in args.observer_kwargs.items() if key in _ARGUMENTS}
    return replace(known, search=_checked(replace(known.search, **said), said))


def is_recomputed(args: QuantizationArgs) -> bool:
    """Whether the audit computes the scales that an observer chooses for weights, which the base alone must tell."""
    try:
        observer = observer_of(args)
    except UnknownChoice:
        return False
    return not observer.needs_data and (observer.search is None or args.strategy != "tensor")


def search_of(args: QuantizationArgs) -> Search | None:
    """How ranges are searched for, where they are and the audit does it, too."""
    return observer_of(args).search if is_recomputed(args) else None


def unusual_arguments(args: QuantizationArgs) -> dict[str, float]:
    """The arguments of a search that are not its observer's defaults; empty where the audit knows no such search."""
    search = search_of(args)
    if search is None:
        return {}
    usual = OBSERVERS[args.observer or MIN_MAX].search
    return {key: own for key in sorted(_ARGUMENTS) if (own := getattr(search, key)) != getattr(usual, key)}


def by_largest_values(args: QuantizationArgs) -> bool:
    """Whether scales of weights are those that their largest values give, by min-max."""
    known = OBSERVERS.get(args.observer or MIN_MAX)
    return known is not None and known.search is None and not known.signed


def is_signed(args: QuantizationArgs) -> bool:
    """Whether scales of weights may be negative."""
    known = OBSERVERS.get(args.observer or MIN_MAX)
    return known is not None and known.signed


def _checked(search: Search, said: Mapping[str, Any]) -> Search:
    for key, value in said.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not -_FAR < value < _FAR:
            raise UnknownChoice(f"{key} is a number, and no such one as {str(value)[:40]!r}")
    for key, holds, rule in (
        ("expand", 1 <= search.expand <= 16, "from 1 to 16"),
        ("maxshrink", 0 <= search.maxshrink <= 1, "from 0 to 1"),
        ("grid", 0 < search.grid <= 1e6, "above 0"),
        ("patience", search.patience >= 0, "0 or more"),
        ("norm", 0 < search.norm <= 16, "above 0, and 16 at most"),
        ("maxshrink x grid", search.maxshrink * search.grid < MOST_STEPS + 1, f"{MOST_STEPS} steps at most"),
    ):
        if not holds:
            raise UnknownChoice(f"{key} must be {rule}")
    return search
