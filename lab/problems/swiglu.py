"""SwiGLU: y = silu(gate) * up of the two halves of a projection's rows."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from lab.problems._linear_reference import swiglu
from lab.problems.protocol import EVERY_ROW, Arrays, Estimate, Operand, Problem, require_extents, sprinkle
from sim.errors import InputError
from sim.formats import FORMATS, decode, encode

FLOPS = 3  # an element: a sum, a division, a product; the exponential is counted apart


@dataclass(frozen=True)
class SwiGLU(Problem):
    """y[m, n] = silu(gate) * up (Shazeer, arXiv 2002.05202), the halves of gate_up[m, 2 n], all in `activations`.

    Raises InputError for extents outside 1 to 2^31 - 1 and other formats.
    """

    kind: ClassVar[str] = "swiglu"
    FORMAT: ClassVar[str] = "activations"
    EXTENTS: ClassVar[tuple[str, ...]] = ("m", "n")
    OPTIONS: ClassVar[tuple[str, ...]] = ()

    m: int
    n: int
    activations: str = "bf16"

    def __post_init__(self) -> None:
        require_extents(self, ("m", "n"))
        if self.activations not in ("fp32", "fp16", "bf16"):
            raise InputError(f"activations are in fp32, fp16 or bf16, not {self.activations}")

    @classmethod
    def tiny(cls, form: str, alike: bool = False) -> Self:  # noqa: ARG003 (there is one format)
        return cls(1, 1, form)

    def usual(self, alike: bool = False) -> "SwiGLU":  # noqa: ARG002
        return SwiGLU(self.m, self.n, self.activations)

    @property
    def unit(self) -> str:
        return "fp32"

    @property
    def inputs(self) -> dict[str, Operand]:
        return {"gate_up": Operand((self.m, 2 * self.n), self.activations)}

    @property
    def outputs(self) -> dict[str, Operand]:
        return {"y": Operand((self.m, self.n), self.activations)}

    @property
    def flops(self) -> int:
        return FLOPS * self.m * self.n

    def part(self, flops: float) -> Self:
        return replace(self, m=max(1, min(self.m, int(flops // (FLOPS * self.n)))))

    def tuned_class(self) -> dict[str, Any]:
        """m rounded up to a power of two."""
        return {**self.as_dict(), "m": 1 << (self.m - 1).bit_length()}

    def multiples(self, row_bytes: int) -> dict[str, int]:
        return {"n": 8 * row_bytes // FORMATS[self.activations].bits}

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
