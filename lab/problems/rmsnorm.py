"""RMSNorm with the residual stream: total = x + residual, y = total / sqrt(mean(total^2) + eps) * weight."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from lab.problems._rowwise import RowWise
from lab.problems.protocol import EVERY_ROW, RSQRT_ROUNDINGS, UNIT, Arrays, Estimate, Operand, sprinkle
from sim.errors import InputError
from sim.formats import decode, encode

FLOPS = 4  # an element: a square added to the sum, two products


@dataclass(frozen=True)
class RMSNorm(RowWise):
    """y[m, n] for m tokens of n elements (Zhang and Sennrich, arXiv 1910.07467), all in the format `activations`.

    With `residual`, x is first added to the residual stream, rounded to the format, and that sum, `total`, is a second
    output; else y is of x alone. Raises InputError for extents outside 1 to 2^31 - 1 and other formats.
    """

    kind: ClassVar[str] = "rmsnorm"
    OPTIONS: ClassVar[tuple[str, ...]] = ("residual",)

    residual: bool = True
    eps: float = 1e-5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.eps < 1:
            raise InputError(f"eps must be between 0 and 1; eps = {self.eps}")

    def usual(self, alike: bool = False) -> "RMSNorm":  # noqa: ARG002
        return RMSNorm(self.m, self.n, self.activations, eps=self.eps)

    @property
    def inputs(self) -> dict[str, Operand]:
        rows = Operand((self.m, self.n), self.activations)
        added = {"residual": rows} if self.residual else {}
        return {"x": rows, **added, "weight": Operand((self.n,), self.activations)}

    @property
    def outputs(self) -> dict[str, Operand]:
        rows = Operand((self.m, self.n), self.activations)
        return {"y": rows, "total": rows} if self.residual else {"y": rows}

    @property
    def weight_names(self) -> tuple[str, ...]:
        return ("weight",)

    @property
    def flops(self) -> int:
        return (FLOPS + self.residual) * self.m * self.n

    def draw(self, rng: np.random.Generator, special: str = "") -> dict[str, NDArray]:
        """N(0, 1); special values are among those of x."""

        def one(name: str, operand: Operand) -> NDArray:
            values = rng.standard_normal(operand.shape, np.float32)
            return encode(sprinkle(values, rng, special if name == "x" else ""), operand.format)

        return {name: one(name, operand) for name, operand in self.inputs.items()}

    def reference(self, arrays: Arrays, rows: slice = EVERY_ROW) -> dict[str, Estimate]:
        """`total` has one right value, the float32 sum rounded once; y is in float64.

        n squares are added in any order, each rounded, so their sum is off by n u of itself, u = 2^-24, and its mean
        with eps by three roundings more; the root is off by half of that, and approximate, and two products are
        rounded: |y| (n / 2 + 2 + 4 + 2) u. A sum that overflows float32 is infinite, and its row zero.
        """
        total, found = arrays["x"][rows], {}
        if self.residual:
            both = (decode(arrays[name][rows], self.activations) for name in ("x", "residual"))
            with np.errstate(invalid="ignore", over="ignore"):
                total = encode(np.add(*both), self.activations)
            value = decode(total, self.activations).astype(np.float64)
            found["total"] = Estimate(value, np.zeros_like(value))
        h = decode(total, self.activations).astype(np.float64)
        with np.errstate(invalid="ignore"):
            squares = (h * h).sum(axis=1, keepdims=True)
            squares = np.where(squares > np.finfo(np.float32).max, np.inf, squares)
            root = 1 / np.sqrt(squares / self.n + self.eps)
            y = h * root * decode(arrays["weight"], self.activations)
        error = np.abs(y) * (self.n / 2 + 2 + RSQRT_ROUNDINGS + 2) * UNIT
        return {"y": Estimate(y, error).stored(self.activations), **found}
