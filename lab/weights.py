"""Weights that other programs pack once and pass to `lab.linear` for every m: int4 groups, where x lives."""

import sys
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim import int4
from sim.errors import InputError
from sim.formats import FORMATS, decode

_BITS = {"float16": "fp16", "bfloat16": "bf16", "uint16": "bf16"}  # element types whose bits `decode` reads


@dataclass(frozen=True, eq=False)
class Int4Weights:
    """An [n, k] matrix in int4 groups as kernels read it: `w` and `w_scale` as sim/int4.py lays them out.

    Both are NumPy's, CuPy's, or PyTorch CUDA tensors: bytes, and 16-bit words of any type.
    """

    w: Any
    w_scale: Any
    shape: tuple[int, int]
    group: int
    zero_points: bool = False

    def __post_init__(self) -> None:
        require_group(self.group)
        wanted = int4.shapes(*self.shape, self.group)
        have = tuple(self.w.shape), tuple(self.w_scale.shape)
        if have != wanted:
            raise InputError(
                f"packed weights {list(self.shape)} are {wanted[0]} and {wanted[1]}; got {have[0]}, {have[1]}"
            )

    @classmethod
    def of(cls, groups: int4.Groups, like: Any = None) -> "Int4Weights":
        """A quantised matrix, packed, in arrays of the library and on the device of `like`, by default NumPy's."""
        n, k = groups.q.shape
        w, w_scale = (_beside(array, like) for array in int4.pack(groups))
        return cls(w, w_scale, (n, k), groups.group, groups.zero_points)

    @property
    def format(self) -> str:
        return f"int4_g{self.group}"

    @cached_property
    def dtype(self) -> str:
        """What tells these weights from others of their shape."""
        return f"{self.format} {self.offset}"

    @property
    def offset(self) -> str:
        return "zero" if self.zero_points else "min"


def pack(weights: Any, group: int = 128) -> Int4Weights:
    """Round a float matrix [n, k] to int4 groups, scale + min, where it lives: NumPy, CuPy or PyTorch.

    float32, float16 or bfloat16 (uint16 bits count as bfloat16). Raises InputError for anything else, for values that
    are not finite and for groups other than 32, 64 and 128.
    """
    require_group(group)
    return Int4Weights.of(int4.quantise(_floats(weights), group), weights)


def require_group(group: int) -> None:
    """Raise InputError where no format has groups of so many columns."""
    if f"int4_g{group}" not in FORMATS:
        raise InputError(f"int4 groups are of 32, 64 or 128 columns; got {group}")


def _floats(weights: Any) -> NDArray[np.float32]:
    if hasattr(weights, "data_ptr"):
        found: Any = weights.detach().float().cpu().numpy()
    else:
        found = weights.get() if hasattr(weights, "get") else weights
        kind = getattr(getattr(found, "dtype", None), "name", type(found).__name__)
        if kind in _BITS:
            found = decode(found.view(np.uint16), _BITS[kind])
        elif kind != "float32":
            raise InputError(f"weights to pack are in float32, float16 or bfloat16; these are in {kind}")
    if found.ndim != 2:
        raise InputError(f"weights to pack are [n, k]; these are {list(found.shape)}")
    return np.ascontiguousarray(found, np.float32)


def _beside(array: NDArray, like: Any) -> Any:
    if like is None or isinstance(like, np.ndarray):
        return array
    if hasattr(like, "data_ptr"):
        signed = array.view(np.int16) if array.dtype == np.uint16 else array  # PyTorch has few unsigned types
        return sys.modules["torch"].from_numpy(signed).to(like.device)
    import cupy  # loaded on first use: the simulated chip needs no GPU library

    return cupy.asarray(array)
