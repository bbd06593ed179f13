"""Linear: y[m, n] = x[m, k] @ w[n, k].T, row-major, and the epilogues of a transformer step."""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from math import lcm
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from lab.problems._linear_reference import reference
from lab.problems.protocol import (
    EVERY_ROW,
    SQUARES,
    Arrays,
    Estimate,
    Operand,
    Problem,
    drawn,
    power_of_two,
    require_extents,
)
from sim import int4
from sim.errors import InputError
from sim.formats import FORMATS, format_named

SCALES = ("none", "tensor", "row", "channel", "block")
BLOCK = 128  # along k, and of rows of w, that share a scale
ACCUMULATIONS = ("float32", "fast")
EPILOGUES = ("none", "residual", "swiglu", "norm")
PROLOGUES = ("none", "norm")
OFFSETS = ("min", "zero")
ORDERS = ("same", "given")
PART_ELEMENTS = 2**26  # of each array of a part: it is drawn, decoded and multiplied in float64
MORE_ROWS = 7  # doublings of m whose classes may have a faster kernel: from one token to a tensor core's tile of 128
TILE = 128  # a part keeps the remainder by it, so that it has the same ragged edge


@dataclass(frozen=True)
class Linear(Problem):
    """y[m, n] = x[m, k] @ w[n, k].T; m tokens, n rows of weights, k inputs.

    `weights` is the format of w. `activations`, that of x, and `output`, that of y, are by default the weights' own for
    fp32 and fp16, else bf16. fp8 operands may have float32 scales, one for a whole tensor, one for each row of x and of
    w, one for x and for each row of w, an output channel, or one for each 128 of a row of x and 128 x 128 of w; an fp8
    output is then divided by one scale of its own.
    `accumulate` says whether products are summed in float32 or, usual for fp8 activations, `fast` in the few bits that
    the tensor cores keep. `epilogue`: residual adds r[m, n]; swiglu takes the rows of w in two halves, gate and up, and
    makes y[m, n / 2] = silu(gate) * up. `offset`: a group of int4 weights is scale * q + min, or scale * (q - zero).
    `order`: column j of int4 weights is that of x's column j, or of order[j], given as int32, as an act-order layer has
    it; a kernel takes one beyond x for the last.
    RMSNorm between two layers is in two parts: the `epilogue` norm of the first makes total = x @ w.T + residual,
    y = total * norm, and the sums of each eight of total's squares; with these the `prologue` norm of the second
    multiplies by 1 / sqrt(mean(total^2) + eps) what it makes of y.
    Raises InputError for extents outside 1 to 2^31 - 1, for unknown words and for combinations that mean nothing.
    """

    kind: ClassVar[str] = "linear"
    FORMAT: ClassVar[str] = "weights"
    EXTENTS: ClassVar[tuple[str, ...]] = ("m", "n", "k")
    OPTIONS: ClassVar[tuple[str, ...]] = (
        "activations", "output", "scales", "accumulate", "epilogue", "offset", "order", "prologue"
    )  # fmt: skip

    m: int
    n: int
    k: int
    weights: str = "bf16"
    activations: str = ""
    output: str = ""
    scales: str = "none"  # none, tensor, row, channel, block
    accumulate: str = ""  # float32, fast
    epilogue: str = "none"  # none, residual, swiglu, norm
    offset: str = "min"  # min, zero
    order: str = "same"  # same, given
    prologue: str = "none"  # none, norm
    eps: float = 1e-5

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
            ("scales", SCALES), ("accumulate", ACCUMULATIONS), ("epilogue", EPILOGUES), ("offset", OFFSETS),
            ("order", ORDERS), ("prologue", PROLOGUES),
        ):  # fmt: skip
            if getattr(self, name) not in legal:
                raise InputError(f"{name} is {', '.join(legal)}; got {getattr(self, name)!r}")
        if self.scales != "none" and self.weights != "fp8":
            raise InputError(f"scales are for fp8 weights; weights = {self.weights}")
        for of, name in (("blocks", "block"), ("channels, beside one of x,", "channel")):
            if self.scales == name and self.activations != "fp8":
                raise InputError(f"scales of {of} are for fp8 activations too; activations = {self.activations}")
        if self.block_scales and self.swiglu:
            raise InputError("scales of blocks, which may be gate and up at once, do not go with swiglu")
        if self.zero_points and not self.group:
            raise InputError(f"zero points are for int4 weights; weights = {self.weights}")
        if self.ordered and not self.group:
            raise InputError(f"an order is given for int4 weights; weights = {self.weights}")
        if self.ordered and (self.swiglu or self.summed or self.rooted):
            raise InputError("an order goes with neither swiglu nor the parts of a norm")
        if self.accumulate == "fast" and self.activations != "fp8":
            raise InputError(f"fast accumulation is for fp8 activations; activations = {self.activations}")
        if self.output == "fp8" and self.summed:
            raise InputError("a norm's sum and product are not in fp8: one scale does not serve both")
        if not 0 < self.eps < 1:
            raise InputError(f"eps must be between 0 and 1; eps = {self.eps}")
        if self.swiglu and self.n % 2:
            raise InputError(f"swiglu halves the rows of w, so n is even; n = {self.n:,}")

    @property
    def residual(self) -> bool:
        return self.epilogue == "residual"

    @property
    def swiglu(self) -> bool:
        return self.epilogue == "swiglu"

    @property
    def summed(self) -> bool:
        """Whether the stream that a norm is of, and its squares, are made beside y."""
        return self.epilogue == "norm"

    @property
    def rooted(self) -> bool:
        """Whether y is multiplied by the inverse root of a mean square."""
        return self.prologue == "norm"

    @property
    def fast(self) -> bool:
        return self.accumulate == "fast"

    @property
    def scaled(self) -> bool:
        return self.scales != "none"

    @property
    def row_scales(self) -> bool:
        """Whether each row of w has one."""
        return self.scales in ("row", "channel")

    @property
    def x_row_scales(self) -> bool:
        return self.scales == "row"

    @property
    def block_scales(self) -> bool:
        return self.scales == "block"

    @property
    def group(self) -> int:
        """Columns of w that share a scale and an offset; 0 where the format has none."""
        return FORMATS[self.weights].group

    @property
    def zero_points(self) -> bool:
        return self.offset == "zero"

    @property
    def ordered(self) -> bool:
        return self.order == "given"

    @property
    def columns(self) -> int:
        """Columns of y."""
        return self.n // 2 if self.swiglu else self.n

    @classmethod
    def tiny(cls, form: str, alike: bool = False) -> Self:
        return cls(1, 2, 1, form, activations=form if alike else "")

    def usual(self, alike: bool = False) -> "Linear":
        return Linear(self.m, self.n, self.k, self.weights, self.weights if alike else "")

    @property
    def unit(self) -> str:
        return self.activations

    @property
    def inputs(self) -> dict[str, Operand]:
        """int4 weights are packed as sim/int4.py says."""
        found = {"x": Operand((self.m, self.k), self.activations), "w": Operand((self.n, self.k), self.weights)}
        if self.group:
            packed, pairs = int4.shapes(self.n, self.k, self.group)
            found |= {"w": Operand(packed, self.weights), "w_scale": Operand(pairs, "fp16")}
        if self.ordered:
            found["order"] = Operand((self.k,), "int32", indexes=True)
        if self.residual or self.summed:
            found["residual"] = Operand((self.m, self.columns), "bf16" if self.output == "fp8" else self.output)
        if self.summed:
            found["norm"] = Operand((self.n,), self.output)
        if self.rooted:
            found["squares"] = Operand((self.m, -(-self.k // SQUARES)), "fp32")
        if self.scaled:
            blocks = -(-self.k // BLOCK)
            of_w = (-(-self.n // BLOCK), blocks) if self.block_scales else (self.n if self.row_scales else 1,)
            found["w_scale"] = Operand(of_w, "fp32")
            if self.activations == "fp8":
                of_x = (self.m, blocks) if self.block_scales else (self.m if self.x_row_scales else 1,)
                found["x_scale"] = Operand(of_x, "fp32")
            if self.output == "fp8":
                found["y_scale"] = Operand((1,), "fp32")
        return found

    @property
    def outputs(self) -> dict[str, Operand]:
        y = Operand((self.m, self.columns), self.output)
        own = Operand((self.m, -(-self.n // SQUARES)), "fp32")
        return {"y": y, "total": y, "total_squares": own} if self.summed else {"y": y}

    @property
    def flops(self) -> int:
        """2 m n k: one multiply and one add for each term of each dot product."""
        return 2 * self.m * self.n * self.k

    @property
    def weight_names(self) -> tuple[str, ...]:
        matrix = ("w", "w_scale", "order") if self.group else ("w",)
        return tuple(name for name in (*matrix, "norm") if name in self.inputs)

    def indices(self) -> dict[str, NDArray[np.int32]]:
        """An order without order."""
        return {"order": np.random.default_rng(0).permutation(self.k).astype(np.int32)} if self.ordered else {}

    def part(self, flops: float) -> Self:
        """The first rows and columns: every output element depends on one row of x and one of w alone."""
        n = _shrink(self.n, PART_ELEMENTS // self.k)
        m = _shrink(self.m, min(PART_ELEMENTS // max(self.k, n), int(flops // (2 * n * self.k))))
        n = _shrink(n, int(flops // (2 * m * self.k)))
        return replace(self, m=m, n=n)

    def tuned_class(self) -> dict[str, Any]:
        """Extents, weights and unusual fields but for eps, m rounded up to a power of two."""
        fields = {name: value for name, value in self.as_dict().items() if name not in ("kind", "eps")}
        return {**fields, "m": power_of_two(self.m)}

    def wider_classes(self) -> Iterator[dict[str, Any]]:
        """Those of more rows of x, whose kernels take the few as the first of theirs."""
        own = self.tuned_class()
        for doublings in range(1, MORE_ROWS + 1):
            yield {**own, "m": own["m"] << doublings}

    def multiples(self, row_bytes: int) -> dict[str, int]:
        per_row = {name: 8 * row_bytes // FORMATS[name].bits for name in FORMATS}
        rows_of_w = 1 if self.group else per_row[self.weights]  # groups are packed in tiles
        wide = per_row[self.output] * (2 if self.swiglu else 1)
        if self.group and self.swiglu:  # of each half whole packed tiles
            wide = lcm(wide, 2 * int4.TILE_ROWS)
        return {"k": lcm(per_row[self.activations], rows_of_w), "n": wide}

    def as_dict(self) -> dict[str, Any]:
        """Extents, weights, and every other field that is not what the weights and activations imply."""
        kept = ["m", "n", "k", "weights"]
        if self.activations != Linear(self.m, self.n, self.k, self.weights).activations:
            kept.append("activations")
        usual = Linear(self.m, self.n, self.k, self.weights, self.activations)
        names = [f.name for f in fields(self) if f.name in kept or getattr(self, f.name) != getattr(usual, f.name)]
        return {"kind": self.kind, **{name: getattr(self, name) for name in names}}

    def draw(self, rng: np.random.Generator, special: str = "") -> dict[str, NDArray]:
        """Scales and mean squares from 1/2 to 2, else N(0, 1); int4 weights uniform, their groups centred near zero.

        Special values are among those of x and of the residual.
        """

        def one(name: str, operand: Operand) -> NDArray:
            if name.endswith(("scale", "squares")):
                summands = SQUARES if name == "squares" else 1
                return (summands * np.exp2(rng.uniform(-1, 1, operand.shape))).astype(np.float32)
            return drawn(rng, operand.shape, operand.format, "" if name in self.weight_names else special)

        if not self.group:
            return {name: one(name, operand) for name, operand in self.inputs.items()}
        drawn_so = {name: of for name, of in self.inputs.items() if name not in ("w", "w_scale", "order")}
        own = {name: one(name, operand) for name, operand in drawn_so.items()}
        w, w_scale = int4.pack(self._draw_groups(rng))
        return {**own, "w": w, "w_scale": w_scale, **self.indices()}

    def _draw_groups(self, rng: np.random.Generator) -> int4.Groups:
        q = rng.integers(0, int4.LEVELS, (self.n, self.k), np.uint8)
        shape = (self.n, -(-self.k // self.group))
        scale = (np.exp2(rng.uniform(-1, 1, shape)) / int4.LEVELS).astype(np.float16)
        zero = rng.integers(5, 12, shape).astype(np.float16)
        offset = zero if self.zero_points else (scale * (rng.random(shape, np.float32) - zero)).astype(np.float16)
        return int4.Groups(q, scale, offset, self.group, self.zero_points)

    def reference(self, arrays: Arrays, rows: slice = EVERY_ROW) -> dict[str, Estimate]:
        """y is computed in float64, above 2^34 FLOPs in float32.

        bound = e + u_out (|y| + e) + half the output's smallest value, where e starts as k 2^-24 sum |x||w|, k float32
        additions in any order (Higham, "Accuracy and Stability of Numerical Algorithms", 3.1), and grows with every
        rounding of scales and epilogue. Products of fp8 with fp8 add what the tensor cores cut off: in partial sums of
        128 along k where `accumulate` is float32, all the way where it is fast; that part is probabilistic, for inputs
        of random sign (see _linear_reference). Outside this promise are an output that overflows fp16 or bf16, a sum of
        some products that overflows float32, which depends on their order, and beside int4 groups a token with an
        infinite activation: kernels sum q with a bias that the offset takes away, so its y is NaN or infinite.
        """
        return reference(self, arrays, rows)


def _shrink(extent: int, most: int) -> int:
    """At most `most`, with the remainder of `extent` by a tile; but no less than one tile and that remainder."""
    if extent <= most:
        return extent
    remainder = extent % TILE
    return min(extent, max(1, (most - remainder) // TILE) * TILE + remainder)
