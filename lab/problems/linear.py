"""Linear: y[m, n] = x[m, k] @ w[n, k].T, row-major."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from sim.errors import InputError
from sim.formats import FORMATS, decode, encode, format_named

MAX_DIMENSION = 2**31 - 1  # extents are int32 parameters of every kernel


def require_extents(problem: Any, names: tuple[str, ...]) -> None:
    """Raise InputError where one of the named fields is outside 1 to 2^31 - 1."""
    for name in names:
        value = getattr(problem, name)
        if not 1 <= value <= MAX_DIMENSION:
            raise InputError(f"{name} must be from 1 to {MAX_DIMENSION:,}; {name} = {value:,}")


@dataclass(frozen=True)
class Linear:
    """y[m, n] = x[m, k] @ w[n, k].T; m tokens, n outputs, k inputs; `weights` is the format of w.

    fp32 and fp16 weights have activations and outputs of their own format; every other format has bf16 ones.
    Raises InputError for extents outside 1 to 2^31 - 1 and for unknown formats.
    """

    kind: ClassVar[str] = "linear"

    m: int
    n: int
    k: int
    weights: str = "bf16"

    def __post_init__(self) -> None:
        require_extents(self, ("m", "n", "k"))
        format_named(self.weights)

    @property
    def activations(self) -> str:
        """The format of x, whose unit does the arithmetic."""
        return self.weights if self.weights in ("fp32", "fp16") else "bf16"

    @property
    def output(self) -> str:
        """The format of y."""
        return self.activations

    @property
    def flops(self) -> int:
        """2 m n k: one multiply and one add for each term of each dot product."""
        return 2 * self.m * self.n * self.k

    @property
    def bytes(self) -> dict[str, int]:
        """Compulsory HBM bytes: each weight and each activation once."""
        weights = FORMATS[self.weights].nbytes(self.n, self.k)
        activations = self.read_bytes - weights + self.write_bytes
        return {"weights": weights, "kv": 0, "activations": activations, "total": weights + activations}

    @property
    def read_bytes(self) -> int:
        return FORMATS[self.weights].nbytes(self.n, self.k) + FORMATS[self.activations].nbytes(self.m, self.k)

    @property
    def write_bytes(self) -> int:
        return FORMATS[self.output].nbytes(self.m, self.n)

    @property
    def weight_intensity(self) -> float:
        """FLOP per weight byte, the article's estimate: m for 2-byte weights."""
        return self.flops / self.bytes["weights"]

    @property
    def details(self) -> dict[str, int]:
        return {}

    def as_dict(self) -> dict[str, Any]:
        return {"kind": self.kind, **asdict(self)}

    def draw(self, rng: np.random.Generator) -> dict[str, NDArray]:
        """Random inputs as storage bits: x and w from N(0, 1)."""
        shapes = {"x": (self.m, self.k), "w": (self.n, self.k)}
        formats = {"x": self.activations, "w": self.weights}
        return {name: encode(rng.standard_normal(shape, np.float32), formats[name]) for name, shape in shapes.items()}

    def reference(self, arrays: Mapping[str, NDArray], rows: slice = slice(None)) -> tuple[NDArray, NDArray]:
        """(y, bound) for the chosen rows of x: the result and the error a right kernel may have.

        y is computed in float64, above 2^34 FLOPs in float32.
        bound = u_out |y| + k 2^-24 sum |x||w|: the rounding of the output plus k float32 additions in any order
        (Higham, "Accuracy and Stability of Numerical Algorithms", 3.1). An output that overflows its format is
        outside this bound's promise.
        """
        dtype: Any = np.float64 if self.flops <= 2**34 else np.float32
        x: NDArray[Any] = decode(arrays["x"][rows], self.activations).astype(dtype)
        w: NDArray[Any] = decode(arrays["w"], self.weights).astype(dtype)
        y = x @ w.T
        magnitude = np.abs(x) @ np.abs(w).T
        return y, FORMATS[self.output].unit_roundoff * np.abs(y) + self.k * 2.0**-24 * magnitude
