"""The sum of what two ranks have, on each of them: what tensor parallelism needs after every half of a layer."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from lab.problems._rowwise import RowWise
from lab.problems.protocol import EVERY_ROW, Arrays, Estimate, Operand, sprinkle
from sim.formats import FORMATS, decode, encode

RANKS = 2


@dataclass(frozen=True)
class AllReduce(RowWise):
    """y[r] = x[0] + x[1] for both ranks r, [m, n] on each, all in the format `activations`, added in float32.

    Both ranks find the same bits. Raises InputError for extents outside 1 to 2^31 - 1 and other formats.
    """

    kind: ClassVar[str] = "all_reduce"

    @property
    def inputs(self) -> dict[str, Operand]:
        return {"x": Operand((RANKS, self.m, self.n), self.activations)}

    @property
    def outputs(self) -> dict[str, Operand]:
        return {"y": Operand((RANKS, self.m, self.n), self.activations)}

    @property
    def rank_bytes(self) -> int:
        """What each rank has."""
        return FORMATS[self.activations].nbytes(self.m, self.n)

    @property
    def flops(self) -> int:
        return RANKS * self.m * self.n

    def draw(self, rng: np.random.Generator, special: str = "") -> dict[str, NDArray]:
        """N(0, 1)."""
        x = self.inputs["x"]
        return {"x": encode(sprinkle(rng.standard_normal(x.shape, np.float32), rng, special), x.format)}

    def reference(self, arrays: Arrays, rows: slice = EVERY_ROW) -> dict[str, Estimate]:
        """In float64; a sum is rounded to float32, then to its format."""
        x = decode(arrays["x"], self.activations).astype(np.float64)
        with np.errstate(invalid="ignore"):
            total = np.broadcast_to(x.sum(axis=0), x.shape)[rows]
        return {"y": Estimate(total, np.zeros_like(total)).rounded(1).stored(self.activations)}
