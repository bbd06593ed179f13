"""SwiGLU: y = silu(gate) * up of the two halves of a projection's rows."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from lab.problems._linear_reference import swiglu
from lab.problems._rowwise import RowWise
from lab.problems.protocol import EVERY_ROW, Arrays, Estimate, Operand, sprinkle
from sim.formats import decode, encode

FLOPS = 3  # an element: a sum, a division, a product; the exponential is counted apart


@dataclass(frozen=True)
class SwiGLU(RowWise):
    """y[m, n] = silu(gate) * up (Shazeer, arXiv 2002.05202), the halves of gate_up[m, 2 n], all in `activations`.

    Raises InputError for extents outside 1 to 2^31 - 1 and other formats.
    """

    kind: ClassVar[str] = "swiglu"

    @property
    def inputs(self) -> dict[str, Operand]:
        return {"gate_up": Operand((self.m, 2 * self.n), self.activations)}

    @property
    def outputs(self) -> dict[str, Operand]:
        return {"y": Operand((self.m, self.n), self.activations)}

    @property
    def flops(self) -> int:
        return FLOPS * self.m * self.n

    def draw(self, rng: np.random.Generator, special: str = "") -> dict[str, NDArray]:
        """N(0, 1); special values are anywhere."""
        operand = self.inputs["gate_up"]
        return {
            "gate_up": encode(sprinkle(rng.standard_normal(operand.shape, np.float32), rng, special), operand.format)
        }

    def reference(self, arrays: Arrays, rows: slice = EVERY_ROW) -> dict[str, Estimate]:
        """In float64, with the bound of a linear layer's swiglu epilogue on exact sums.

        silu of -infinity is NaN, as its definition, a quotient of infinities, is.
        """
        both = decode(arrays["gate_up"][rows], self.activations).astype(np.float64)
        gate, up = (Estimate(part, np.zeros_like(part)) for part in (both[:, : self.n], both[:, self.n :]))
        with np.errstate(invalid="ignore", over="ignore"):
            return {"y": swiglu(gate, up).stored(self.activations)}
