"""What several tests generate with hypothesis: names, tensors and structures as a header may hold them."""

from __future__ import annotations

from hypothesis import strategies as st

from weighbridge.formats.tensors import DTYPE_BITS, Structure, Tensor

WORDS = ("model", "layers", "experts", "self_attn", "q_proj", "weight", "weight_scale", "layernorm_1")


def names() -> st.SearchStrategy[str]:
    """Dotted names of words, numbers that vary, and any other characters that a tensor name may have."""
    odd = st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters=".{}"), min_size=1, max_size=6)
    part = st.one_of(st.sampled_from(WORDS), st.integers(0, 12).map(str), odd)
    return st.lists(part, min_size=1, max_size=5).map(".".join)


def tensors(dtypes: tuple[str, ...] = tuple(DTYPE_BITS)) -> st.SearchStrategy[Tensor]:
    """Small tensors, scalars and empty ones among them, that take a whole number of bytes."""
    shapes = st.lists(st.integers(0, 5), max_size=4).map(tuple)
    return st.builds(
        lambda dtype, shape: Tensor(dtype, shape if DTYPE_BITS[dtype] >= 8 else (*shape, 8)),
        st.sampled_from(dtypes),
        shapes,
    )


def structures(dtypes: tuple[str, ...] = tuple(DTYPE_BITS), *, min_size: int = 0) -> st.SearchStrategy[Structure]:
    """Up to a dozen named tensors."""
    return st.dictionaries(names(), tensors(dtypes), min_size=min_size, max_size=12)
