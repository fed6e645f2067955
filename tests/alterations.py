"""Ways to alter a quantized checkpoint that no honest tool would, of random place and size; each says what it harmed.

By bytes, with none of the code that is under test. Every alteration changes what a server computes: at least one code
becomes one that is not the nearest to its weight, or a kept value is no copy any more.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from tests.checkpoints import RawTensor, Tensors

Random = np.random.Generator
Codes = npt.NDArray[np.uint8]

CODES = ("weight", "weight_packed")
_EXPERT = re.compile(r"(?P<layer>.*\.experts)\.(?P<number>\d+)\.(?P<rest>.*)")


@dataclass(frozen=True)
class Altered:
    """What was done.

    Attributes:
        what: in words.
        names: modules, or kept tensors, that a report must name.
    """

    what: str
    names: frozenset[str]


Alteration = Callable[[Random, Tensors], Altered]


def coded(tensors: Tensors) -> list[str]:
    """Modules whose codes are stored, in order of name."""
    found = []
    for name, tensor in tensors.items():
        module, _, local = name.rpartition(".")
        if local in CODES and f"{module}.weight_scale" in tensors and tensor.dtype not in ("BF16", "F32"):
            found.append(module)
    return sorted(found)


def kept(tensors: Tensors) -> list[str]:
    """Names of tensors that no module's codes go with, in order."""
    modules = set(coded(tensors))
    return sorted(name for name in tensors if name.rpartition(".")[0] not in modules and tensors[name].dtype == "BF16")


def codes_of(tensors: Tensors, module: str) -> str:
    """The name of a module's codes."""
    return next(f"{module}.{local}" for local in CODES if f"{module}.{local}" in tensors)


def code_array(tensors: Tensors, module: str) -> Codes:
    """One code an element, [rows, columns]; of packed ones the first is the lower half of a byte."""
    tensor = tensors[codes_of(tensors, module)]
    raw = np.frombuffer(tensor.data, np.uint8).reshape(tensor.shape[0], -1)
    if _halves(tensor):
        raw = np.stack([raw & 15, raw >> 4], axis=-1).reshape(tensor.shape[0], -1)
    return raw.copy()


def put_codes(tensors: Tensors, module: str, codes: Codes) -> None:
    """Store codes as `code_array` gives them."""
    name = codes_of(tensors, module)
    tensor = tensors[name]
    raw = codes[:, 0::2] | (codes[:, 1::2] << 4) if _halves(tensor) else codes
    tensors[name] = replace(tensor, data=raw.astype(np.uint8).tobytes())


def stepped(code: int, dtype: str, steps: int) -> int:
    """The code so many steps of its grid further from zero, or nearer to it where there is none."""
    if dtype == "F8_E4M3":
        sign, magnitude, top = code & 0x80, code & 0x7F, 0x7E
    elif dtype == "U8":
        sign, magnitude, top = code & 8, code & 7, 7
    elif dtype == "I32":  # less eight
        return code + steps if code + steps <= 15 else code - steps
    else:  # two's complement
        value = code - 256 if code > 127 else code
        return (value + steps if value + steps <= 127 else value - steps) & 0xFF
    return sign | (magnitude + steps if magnitude + steps <= top else magnitude - steps)


def one_element(random: Random, tensors: Tensors) -> Altered:
    """One element moved by two steps or more."""
    module = _any(random, coded(tensors))
    codes = code_array(tensors, module)
    row, column = (int(random.integers(size)) for size in codes.shape)
    dtype = tensors[codes_of(tensors, module)].dtype
    steps = int(random.integers(2, 4))
    codes[row, column] = stepped(int(codes[row, column]), dtype, steps)
    put_codes(tensors, module, codes)
    return Altered(f"{module}[{row}, {column}] moved by {steps} steps", frozenset({module}))


def one_row(random: Random, tensors: Tensors) -> Altered:
    """One row replaced by another of the same module, codes and scales."""
    module = _any(random, coded(tensors))
    codes = code_array(tensors, module)
    one, other = (int(row) for row in random.choice(len(codes), 2, replace=False))
    codes[one] = codes[other]
    put_codes(tensors, module, codes)
    scale = tensors[f"{module}.weight_scale"]
    if scale.shape and scale.shape[0] == len(codes):
        rows = np.frombuffer(scale.data, np.uint8).reshape(len(codes), -1).copy()
        rows[one] = rows[other]
        tensors[f"{module}.weight_scale"] = replace(scale, data=rows.tobytes())
    return Altered(f"row {one} of {module} replaced by row {other}", frozenset({module}))


def some_rows_shuffled(random: Random, tensors: Tensors) -> Altered:
    """Some neighbouring rows in another order."""
    module = _any(random, coded(tensors))
    codes = code_array(tensors, module)
    count = int(random.integers(2, 9))
    first = int(random.integers(len(codes) - count))
    codes[first : first + count] = np.roll(codes[first : first + count], 1, axis=0)
    put_codes(tensors, module, codes)
    return Altered(f"rows {first} to {first + count} of {module} rolled", frozenset({module}))


def two_columns(random: Random, tensors: Tensors) -> Altered:
    """Two columns swapped."""
    module = _any(random, coded(tensors))
    codes = code_array(tensors, module)
    one, other = (int(column) for column in random.choice(codes.shape[1], 2, replace=False))
    codes[:, [one, other]] = codes[:, [other, one]]
    put_codes(tensors, module, codes)
    return Altered(f"columns {one} and {other} of {module} swapped", frozenset({module}))


def two_experts(random: Random, tensors: Tensors) -> Altered:
    """All of two experts of one layer swapped."""
    layers = sorted({match["layer"] for name in tensors if (match := _EXPERT.fullmatch(name))})
    layer = _any(random, layers)
    numbers = sorted(
        {int(match["number"]) for name in tensors if (match := _EXPERT.fullmatch(name)) and match["layer"] == layer}
    )
    one, other = (int(number) for number in random.choice(numbers, 2, replace=False))
    members = [name.removeprefix(f"{layer}.{one}.") for name in tensors if name.startswith(f"{layer}.{one}.")]
    for rest in members:
        first, second = f"{layer}.{one}.{rest}", f"{layer}.{other}.{rest}"
        tensors[first], tensors[second] = tensors[second], tensors[first]
    modules = {f"{layer}.{number}.{rest.rpartition('.')[0]}" for number in (one, other) for rest in members}
    return Altered(f"experts {one} and {other} of {layer} swapped", frozenset(modules))


def zero_expert(random: Random, tensors: Tensors) -> Altered:
    """Every code of an expert's linear stands for zero."""
    module = _any(random, [name for name in coded(tensors) if _EXPERT.fullmatch(f"{name}.")])
    name = codes_of(tensors, module)
    zero = 0x88 if tensors[name].dtype == "I32" else 0
    tensors[name] = replace(tensors[name], data=bytes([zero]) * len(tensors[name].data))
    return Altered(f"all codes of {module} are zero", frozenset({module}))


def signs(random: Random, tensors: Tensors) -> Altered:
    """A row with every sign turned round."""
    module = _any(random, coded(tensors))
    dtype = tensors[codes_of(tensors, module)].dtype
    codes = code_array(tensors, module)
    row = int(random.integers(len(codes)))
    turned = {"F8_E4M3": codes[row] ^ 0x80, "U8": codes[row] ^ 8, "I32": (16 - codes[row].astype(int)) % 16}
    codes[row] = turned.get(dtype, (-codes[row].astype(int)) & 0xFF).astype(np.uint8)
    put_codes(tensors, module, codes)
    return Altered(f"the signs of row {row} of {module} turned round", frozenset({module}))


def one_scale(random: Random, tensors: Tensors) -> Altered:
    """One scale twice as large, or half of it."""
    module = _any(random, coded(tensors))
    name = f"{module}.weight_scale"
    raw = bytearray(tensors[name].data)
    up = bool(random.integers(2))
    if tensors[name].dtype == "BF16":
        index = 2 * int(random.integers(len(raw) // 2))
        exponent = int.from_bytes(raw[index : index + 2], "little") + (0x80 if up else -0x80)
        raw[index : index + 2] = exponent.to_bytes(2, "little")
    else:
        index = int(random.integers(len(raw)))
        step = 8 if tensors[name].dtype == "F8_E4M3" else 1
        up = up or raw[index] < 2 * step
        up = up and raw[index] + step < 0x7F
        raw[index] += step if up else -step
    tensors[name] = replace(tensors[name], data=bytes(raw))
    return Altered(f"scale {index} of {module} {'doubled' if up else 'halved'}", frozenset({module}))


def kept_bit(random: Random, tensors: Tensors) -> Altered:
    """One bit of a kept tensor."""
    name = _any(random, kept(tensors))
    raw = bytearray(tensors[name].data)
    index, bit = int(random.integers(len(raw))), int(random.integers(8))
    raw[index] ^= 1 << bit
    tensors[name] = replace(tensors[name], data=bytes(raw))
    return Altered(f"bit {bit} of byte {index} of {name}", frozenset({name}))


def two_tokens(random: Random, tensors: Tensors) -> Altered:
    """The embeddings of two tokens swapped."""
    name = next(name for name in sorted(tensors) if name.endswith("embed_tokens.weight"))
    tensor = tensors[name]
    rows = np.frombuffer(tensor.data, np.uint8).reshape(tensor.shape[0], -1).copy()
    one, other = (int(row) for row in random.choice(len(rows), 2, replace=False))
    rows[[one, other]] = rows[[other, one]]
    tensors[name] = replace(tensor, data=rows.tobytes())
    return Altered(f"tokens {one} and {other} of {name} swapped", frozenset({name}))


def untied_head(random: Random, tensors: Tensors) -> Altered:
    """A head of its own, which differs from the embedding in a bit."""
    embedding = tensors[next(name for name in sorted(tensors) if name.endswith("embed_tokens.weight"))]
    raw = bytearray(embedding.data)
    index = int(random.integers(len(raw)))
    raw[index] ^= 1
    tensors["lm_head.weight"] = RawTensor(embedding.dtype, embedding.shape, bytes(raw))
    return Altered(f"lm_head is the embedding with byte {index} changed", frozenset({"lm_head.weight"}))


def nan_code(random: Random, tensors: Tensors) -> Altered:
    """A code that stands for NaN."""
    module = _any(random, coded(tensors))
    codes = code_array(tensors, module)
    row, column = (int(random.integers(size)) for size in codes.shape)
    codes[row, column] = 0x7F | (codes[row, column] & 0x80)
    put_codes(tensors, module, codes)
    return Altered(f"{module}[{row}, {column}] is NaN", frozenset({module}))


EVERYWHERE: Mapping[str, Alteration] = {
    "one element": one_element,
    "one row": one_row,
    "some rows shuffled": some_rows_shuffled,
    "two columns": two_columns,
    "signs of a row": signs,
    "two experts": two_experts,
    "an expert of zeros": zero_expert,
    "one scale": one_scale,
    "one bit of a kept tensor": kept_bit,
    "two tokens": two_tokens,
    "an untied head": untied_head,
}
"""Kinds of alterations that every format with experts and a tied head can have."""

FLOATS: Mapping[str, Alteration] = {"a NaN code": nan_code}
"""Those that only E4M3 codes can have."""


def _halves(tensor: RawTensor) -> bool:
    return tensor.dtype in ("U8", "I32")


def _any(random: Random, names: list[str]) -> str:
    return names[int(random.integers(len(names)))]
