"""Names of what passes between the layers of a model, the same in every process.

torch.fx numbers values in the order in which code makes them. Some models of transformers walk through a set of strings
(``set(config.layer_types)``), whose order each process draws anew; what one run calls ``cos`` another calls ``cos_1``.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any


def lasting_names(parts: Sequence[Any]) -> dict[str, str]:
    """A name for each value that goes into a part of a traced model or comes out of it: what it is computed by.

    Args:
        parts: what ``trace_subgraphs`` gives, in their order.

    Returns:
        The name that the trace has for a value -> SHA-256 (hex) of how it comes of the model's inputs. Of values that
        are computed alike, the second and later have their number behind it.
    """
    said: dict[str, str] = {}
    alike: Counter[str] = Counter()
    for part in parts:
        inside: dict[Any, str] = {}
        for node in part.graph.nodes:
            if node.op == "output":
                (values,) = node.args
                if isinstance(values, Mapping):
                    said |= {name: inside[value] for name, value in values.items() if value in inside}
            elif node.op == "placeholder":
                inside[node] = said.setdefault(node.name, node.name)
            else:
                made = f"{node.op} {_target(node.target)} {_told(node.args, inside)} {_told(node.kwargs, inside)}"
                digest = hashlib.sha256(made.encode()).hexdigest()
                inside[node] = f"{digest}-{alike[digest]}" if alike[digest] else digest
                alike[digest] += 1
    return said


def _target(target: Any) -> str:
    """What a node calls, without where in memory it is."""
    if isinstance(target, str):
        return target
    return f"{getattr(target, '__module__', '')}.{getattr(target, '__qualname__', type(target).__name__)}"


def _told(value: Any, inside: Mapping[Any, str]) -> str:
    """An argument: of another node's value its name, of what has no order the same each time."""
    from torch.fx import Node

    match value:
        case Node():
            return inside[value]
        case list() | tuple():
            return f"({','.join(_told(item, inside) for item in value)})"
        case dict():
            return f"{{{','.join(sorted(f'{key!r}:{_told(item, inside)}' for key, item in value.items()))}}}"
        case slice():
            return f"slice{_told((value.start, value.stop, value.step), inside)}"
    return repr(value)
