"""Arrays of a model on the GPU, CuPy's, and bits of bf16 in them."""

from typing import Any

import cupy

xp = cupy  # the namespace of a model's arrays

# To nearest even; NaN stays NaN (the quiet bit is set), as sim.formats does it.
_to_bf16 = cupy.ElementwiseKernel(
    "float32 x",
    "uint16 y",
    """
    const unsigned bits = __float_as_uint(x);
    const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
    y = nan ? (bits >> 16) | 0x40u : (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
    """,
    "float32_to_bf16",
)


def encode_bf16(x: Any) -> Any:
    """float32 rounded to the bits of bf16, dense."""
    return _to_bf16(cupy.ascontiguousarray(x))
