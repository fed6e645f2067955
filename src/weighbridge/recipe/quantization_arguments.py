"""Quantization arguments as recipes spell them out: as strict as compressed-tensors 0.19.0 itself, on observers more.

compressed-tensors hands an observer's arguments through unread, and llm-compressor's observers take what they know and
drop the rest: both are refused here, so that nothing a recipe says is lost.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any

from pydantic_core import PydanticCustomError

from weighbridge.errors import WeighbridgeError
from weighbridge.formats.compressed_tensors import ARGUMENTS, read_args
from weighbridge.formats.observers import MIN_MAX, OBSERVERS, observer_of
from weighbridge.formats.schemes import QuantizationArgs


def check_arguments(raw: Mapping[str, Any]) -> QuantizationArgs:
    """Read arguments of a config group.

    Raises:
        PydanticCustomError: a key that is not known; its context names the key, for the line.
        ValueError: a value that compressed-tensors refuses, or an observer or argument of one that there is not.
    """
    for key in raw:
        if key not in ARGUMENTS:
            raise PydanticCustomError(
                "unknown_argument",
                "{message}",
                {"message": f"unknown key {str(key)[:40]!r}{_suggested(str(key), ARGUMENTS)}", "key": key},
            )
    try:
        args = read_args(dict(raw), where="")
    except WeighbridgeError as error:
        raise ValueError(f"{error.what}; {error.remedy}" if error.remedy else error.what) from None
    if args.reordered:
        raise ValueError(
            f"actorder: {raw['actorder']} is no longer known to compressed-tensors 0.19 and vLLM 0.32, which refuse "
            "it; take actorder: weight, or none"
        )
    _check_observer(args)
    return args


def check_order(order: Any) -> None:
    """Check the ``actorder`` of a modifier.

    Raises:
        ValueError: there is no such order, or servers no longer take it.
    """
    check_arguments({"actorder": order})


def _check_observer(args: QuantizationArgs) -> None:
    observer = OBSERVERS.get(args.observer or MIN_MAX)
    if observer is None:
        raise ValueError(f"there is no observer {args.observer!r}{_suggested(str(args.observer), OBSERVERS)}")
    known = observer.arguments
    for key in args.observer_kwargs:
        if key not in known:
            takes = f"takes {', '.join(sorted(known))}" if known else "takes none"
            name = args.observer or f"{MIN_MAX}, the default,"
            raise ValueError(f"the observer {name} {takes}, and no {key!r}{_suggested(key, known)}")
    observer_of(args)


def _suggested(word: str, known: Iterable[str]) -> str:
    close = get_close_matches(word[:64], list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
