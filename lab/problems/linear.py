"""Linear: y[m, n] = x[m, k] @ w[n, k].T, row-major, and what a transformer step does to y on its way out."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from math import prod
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from lab.problems._linear_reference import reference
from sim import int4
from sim.errors import InputError
from sim.formats import FORMATS, encode, format_named

MAX_DIMENSION = 2**31 - 1  # extents are int32 parameters of every kernel
SCALES = ("none", "tensor", "row")
ACCUMULATIONS = ("float32", "fast")
EPILOGUES = ("none", "residual", "swiglu")
OFFSETS = ("min", "zero")


def require_extents(problem: Any, names: tuple[str, ...]) -> None:
    """Raise InputError where one of the named fields is outside 1 to 2^31 - 1."""
    for name in names:
        value = getattr(problem, name)
        if not 1 <= value <= MAX_DIMENSION:
            raise InputError(f"{name} must be from 1 to {MAX_DIMENSION:,}; {name} = {value:,}")


@dataclass(frozen=True)
class Linear:
    """y[m, n] = x[m, k] @ w[n, k].T; m tokens, n rows of weights, k inputs.

    `weights` is the format of w. `activations`, that of x, and `output`, that of y, are by default the weights' own
    for fp32 and fp16, else bf16. fp8 operands may have float32 scales, one for a whole tensor or one for each row of
    x and of w; an fp8 output is then divided by one scale of its own. `accumulate` says whether products are summed in
    float32 or, usual for fp8 activations, `fast` in the few bits that the tensor cores keep. `epilogue`: residual adds
    r[m, n]; swiglu takes the rows of w in two halves, gate and up, and makes y[m, n / 2] = silu(gate) * up. `offset`:
    a group of int4 weights is scale * q + min, or scale * (q - zero).
    Raises InputError for extents outside 1 to 2^31 - 1, for unknown words and for combinations that mean nothing.
    """

    kind: ClassVar[str] = "linear"

    m: int
    n: int
    k: int
    weights: str = "bf16"
    activations: str = ""
    output: str = ""
    scales: str = "none"  # none, tensor, row
    accumulate: str = ""  # float32, fast
    epilogue: str = "none"  # none, residual, swiglu
    offset: str = "min"  # min, zero

    def __post_init__(self) -> None:
        require_extents(self, ("m", "n", "k"))
        own = self.weights if self.weights in ("fp32", "fp16") else "bf16"
        for name in ("activations", "output"):
            if not getattr(self, name):
                object.__setattr__(self, name, own)
        if not self.accumulate:
            object.__setattr__(self, "accumulate", "fast" if self.activations == "fp8" else "float32")
        for name in ("weights", "activations", "output"):
            if format_named(getattr(self, name)).group and name != "weights":
                raise InputError(f"{name} are in fp32, fp16, bf16 or fp8, not {getattr(self, name)}")
        for name, legal in (
            ("scales", SCALES), ("accumulate", ACCUMULATIONS), ("epilogue", EPILOGUES), ("offset", OFFSETS)
        ):  # fmt: skip
            if getattr(self, name) not in legal:
                raise InputError(f"{name} is {', '.join(legal)}; got {getattr(self, name)!r}")
        if self.scales != "none" and self.weights != "fp8":
            raise InputError(f"scales are for fp8 weights; weights = {self.weights}")
        if self.zero_points and not self.group:
            raise InputError(f"zero points are for int4 weights; weights = {self.weights}")
        if self.accumulate == "fast" and self.activations != "fp8":
            raise InputError(f"fast accumulation is for fp8 activations; activations = {self.activations}")
        if self.swiglu and self.n % 2:
            raise InputError(f"swiglu halves the rows of w, so n is even; n = {self.n:,}")

    @property
    def residual(self) -> bool:
        return self.epilogue == "residual"

    @property
    def swiglu(self) -> bool:
        return self.epilogue == "swiglu"

    @property
    def fast(self) -> bool:
        return self.accumulate == "fast"

    @property
    def scaled(self) -> bool:
        return self.scales != "none"

    @property
    def row_scales(self) -> bool:
        return self.scales == "row"

    @property
    def group(self) -> int:
        """Columns of w that share a scale and an offset; 0 where the format has none."""
        return FORMATS[self.weights].group

    @property
    def zero_points(self) -> bool:
        return self.offset == "zero"

    @property
    def columns(self) -> int:
        """Columns of y."""
        return self.n // 2 if self.swiglu else self.n

    @property
    def operands(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Shape and format of every input array; int4 weights are packed as sim/int4.py says."""
        found: dict[str, tuple[tuple[int, ...], str]] = {
            "x": ((self.m, self.k), self.activations),
            "w": ((self.n, self.k), self.weights),
        }
        if self.group:
            packed, pairs = int4.shapes(self.n, self.k, self.group)
            found |= {"w": (packed, self.weights), "w_scale": (pairs, "fp16")}
        if self.residual:
            found["residual"] = ((self.m, self.columns), "bf16" if self.output == "fp8" else self.output)
        if self.scaled:
            found["w_scale"] = ((self.n if self.row_scales else 1,), "fp32")
            if self.activations == "fp8":
                found["x_scale"] = ((self.m if self.row_scales else 1,), "fp32")
            if self.output == "fp8":
                found["y_scale"] = ((1,), "fp32")
        return found

    @property
    def flops(self) -> int:
        """2 m n k: one multiply and one add for each term of each dot product."""
        return 2 * self.m * self.n * self.k

    @property
    def bytes(self) -> dict[str, int]:
        """Compulsory HBM bytes: each weight, each activation and each scale once."""
        weights = sum(self._nbytes(name) for name in ("w", *(("w_scale",) if self.group else ())))
        activations = self.read_bytes - weights + self.write_bytes
        return {"weights": weights, "kv": 0, "activations": activations, "total": weights + activations}

    @property
    def read_bytes(self) -> int:
        return sum(self._nbytes(name) for name in self.operands)

    def _nbytes(self, name: str) -> int:
        shape, form = self.operands[name]
        return prod(shape) * FORMATS[form].storage.itemsize

    @property
    def write_bytes(self) -> int:
        return FORMATS[self.output].nbytes(self.m, self.columns)

    @property
    def weight_intensity(self) -> float:
        """FLOP per weight byte, the article's estimate: m for 2-byte weights."""
        return self.flops / self.bytes["weights"]

    @property
    def details(self) -> dict[str, int]:
        return {}

    def as_dict(self) -> dict[str, Any]:
        """Extents, weights, and every other field that is not what the weights and activations imply."""
        kept = ["m", "n", "k", "weights"]
        if self.activations != Linear(self.m, self.n, self.k, self.weights).activations:
            kept.append("activations")
        usual = Linear(self.m, self.n, self.k, self.weights, self.activations)
        names = [f.name for f in fields(self) if f.name in kept or getattr(self, f.name) != getattr(usual, f.name)]
        return {"kind": self.kind, **{name: getattr(self, name) for name in names}}

    def draw(self, rng: np.random.Generator) -> dict[str, NDArray]:
        """Random inputs as storage bits: scales from 1/2 to 2, everything else from N(0, 1).

        int4 weights are uniform, their groups centred near zero.
        """

        def one(name: str, shape: tuple[int, ...], form: str) -> NDArray:
            if name.endswith("scale"):
                return np.exp2(rng.uniform(-1, 1, shape)).astype(np.float32)
            return encode(rng.standard_normal(shape, np.float32), form)

        if not self.group:
            return {name: one(name, shape, form) for name, (shape, form) in self.operands.items()}
        own = {name: one(name, *self.operands[name]) for name in self.operands.keys() - {"w", "w_scale"}}
        w, w_scale = int4.pack(self._draw_groups(rng))
        return {**own, "w": w, "w_scale": w_scale}

    def _draw_groups(self, rng: np.random.Generator) -> int4.Groups:
        q = rng.integers(0, int4.LEVELS, (self.n, self.k), np.uint8)
        shape = (self.n, -(-self.k // self.group))
        scale = (np.exp2(rng.uniform(-1, 1, shape)) / int4.LEVELS).astype(np.float16)
        zero = rng.integers(5, 12, shape).astype(np.float16)
        offset = zero if self.zero_points else (scale * (rng.random(shape, np.float32) - zero)).astype(np.float16)
        return int4.Groups(q, scale, offset, self.group, self.zero_points)

    def reference(self, arrays: Mapping[str, NDArray], rows: slice = slice(None)) -> tuple[NDArray, NDArray]:
        """(y, bound) for the chosen rows of x: the result and the error a right kernel may have.

        y is computed in float64, above 2^34 FLOPs in float32. bound = e + u_out (|y| + e) + half the output's smallest
        value, where e starts as k 2^-24 sum |x||w|, k float32 additions in any order (Higham, "Accuracy and Stability
        of Numerical Algorithms", 3.1), and grows with every rounding of scales and epilogue. Products of fp8 with fp8
        add what the tensor cores cut off: in partial sums of 128 along k where `accumulate` is float32, all the way
        where it is fast; that part is probabilistic, for inputs of random sign (see _linear_reference).
        An output that overflows fp16 or bf16 is outside this bound's promise.
        """
        return reference(self, arrays, rows)
