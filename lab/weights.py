"""Weights that other programs pack once and pass to `lab.linear` for every m: int4 groups, where x lives."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from lab.ops.arrays import INDEX, beside, format_of, host_floats
from sim import int4
from sim.errors import InputError
from sim.formats import FORMATS


@dataclass(frozen=True, eq=False)
class Int4Weights:
    """An [n, k] matrix in int4 groups as kernels read it: `w` and `w_scale` as sim/int4.py lays them out.

    Both are NumPy's, CuPy's, or PyTorch CUDA tensors: bytes, and 16-bit words (float16, or integers with its bits).
    Zero points are whole numbers. `order`, beside them, int32 [k], is which column of the matrix each packed one is, as
    an act-order layer has it: None for their own order.
    """

    w: Any
    w_scale: Any
    shape: tuple[int, int]
    group: int
    zero_points: bool = False
    order: Any = None

    def __post_init__(self) -> None:
        require_group(self.group)
        if len(self.shape) != 2 or not all(isinstance(size, int | np.integer) and size > 0 for size in self.shape):
            raise InputError(f"packed weights have a shape of two positive integers; got {self.shape!r:.40}")
        if self.order is not None:
            format_of(self.order, "order", INDEX)
            if tuple(self.order.shape) != (self.shape[1],):
                raise InputError(f"order is [{self.shape[1]}], a column each; it is {list(self.order.shape)}")
        for name, array, form in (("w", self.w, self.format), ("w_scale", self.w_scale, "fp16")):
            format_of(array, f"packed {name}", form)
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
        w, w_scale = (beside(array, like) for array in int4.pack(groups))
        order = None if groups.order is None else beside(groups.order.astype(np.int32), like)
        return cls(w, w_scale, (n, k), groups.group, groups.zero_points, order)

    @cached_property
    def in_order(self) -> "Int4Weights":
        """The same arrays for activations whose columns are in their order."""
        return replace(self, order=None)

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
    are not finite or too large or small for fp16 to scale, and for groups other than 32, 64 and 128.
    """
    require_group(group)
    floats = host_floats(weights)
    if floats.ndim != 2 or not floats.size:
        raise InputError(f"weights to pack are [n, k], n and k at least 1; these are {list(floats.shape)}")
    return Int4Weights.of(int4.quantise(floats, group), weights)


def require_group(group: int) -> None:
    """Raise InputError where no format has groups of so many columns."""
    if f"int4_g{group}" not in FORMATS:
        raise InputError(f"int4 groups are of 32, 64 or 128 columns; got {group}")
