"""Pages of a KV cache from one pool to another, by block tables, and a flag that says when all have arrived."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from lab.problems._rowwise import RowWise
from lab.problems.model import Model
from lab.problems.protocol import EVERY_ROW, Arrays, Estimate, Operand, require_extents, sprinkle
from sim.formats import FORMATS, decode, encode

INDEX = 4  # bytes


@dataclass(frozen=True)
class Transfer(RowWise):
    """target[to_rows[i]] = source[from_rows[i]] for m rows of n elements, and then flag[0] = epoch[0].

    A row is a page of one layer, a pool has `pool` of them, those of all layers one after another; 0 is m. A table
    names a row once. Who reads the epoch in the flag finds all rows in place; an epoch is larger than those before it.
    Raises InputError for extents outside 1 to 2^31 - 1, other formats, and a pool without room for m rows.
    """

    kind: ClassVar[str] = "transfer"

    pool: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_extents(self, ("pool",), least=0)
        if 0 < self.pool < self.m:
            require_extents(self, ("pool",), least=self.m)

    @classmethod
    def of(cls, model: Model, tokens: int, page_tokens: int, layers: int = 0) -> Self:
        """The pages of one sequence's tokens in all layers of a model, or in so many; a page moves whole."""
        form = "fp32" if model.kv == "fp32" else "fp16" if model.kv == "fp16" else "bf16"
        row_bytes = page_tokens * model.kv_bytes_per_token // model.layers
        pages = -(-tokens // page_tokens)
        return cls(pages * (layers or model.layers), 8 * row_bytes // FORMATS[form].bits, form)

    @property
    def places(self) -> int:
        """Rows of either pool."""
        return self.pool or self.m

    @property
    def row_bytes(self) -> int:
        return FORMATS[self.activations].nbytes(1, self.n)

    @property
    def moved_bytes(self) -> int:
        """What crosses the link: all rows, the flag left out."""
        return self.m * self.row_bytes

    @property
    def inputs(self) -> dict[str, Operand]:
        return {
            "from_rows": Operand((self.m,), "int32", indexes=True),
            "to_rows": Operand((self.m,), "int32", indexes=True),
            "epoch": Operand((1,), "int32"),
            "source": Operand((self.places, self.n), self.activations),
        }

    @property
    def outputs(self) -> dict[str, Operand]:
        """Of the target, only the rows that `to_rows` names are written."""
        return {
            "target": Operand((self.places, self.n), self.activations),
            "flag": Operand((1,), "int32"),
        }

    def written(self, output: str) -> int:
        return self.outputs[output].shape[0]

    @property
    def flops(self) -> int:
        return 0

    @cached_property
    def read_bytes(self) -> int:
        """The rows that are named, both tables, the epoch."""
        return self.moved_bytes + INDEX * (2 * self.m + 1)

    @cached_property
    def write_bytes(self) -> int:
        """The rows that are named, and the flag."""
        return self.moved_bytes + INDEX

    @property
    def details(self) -> dict[str, int]:
        return {"moved_bytes": self.moved_bytes}

    def part(self, flops: float) -> Self:  # noqa: ARG002 (a row costs no operation)
        return replace(self, m=min(self.m, 2**8))

    def tuned_class(self) -> dict[str, Any]:
        """m rounded up to a power of two, however large the pools are."""
        return {name: value for name, value in super().tuned_class().items() if name != "pool"}

    def indices(self) -> dict[str, NDArray[np.int32]]:
        """Rows all over both pools."""
        rng = np.random.default_rng(0)
        return {name: rng.permutation(self.places)[: self.m].astype(np.int32) for name in ("from_rows", "to_rows")}

    def draw(self, rng: np.random.Generator, special: str = "") -> dict[str, NDArray]:
        """N(0, 1), an epoch above 0; special values are among those of the source."""
        source = self.inputs["source"]
        values = sprinkle(rng.standard_normal(source.shape, np.float32), rng, special)
        epoch = rng.integers(1, 2**31, 1).astype(np.int32)
        return {**self.indices(), "epoch": epoch, "source": encode(values, source.format)}

    def reference(self, arrays: Arrays, rows: slice = EVERY_ROW) -> dict[str, Estimate]:
        """The rows themselves, in their places; the others of the target stay as they are, which is NaN."""
        target = np.full((self.places, self.n), np.nan)
        target[arrays["to_rows"]] = decode(arrays["source"][arrays["from_rows"]], self.activations)
        flag = arrays["epoch"].astype(np.float64)
        return {name: Estimate(value[rows], np.zeros_like(value[rows])) for name, value in
                (("target", target), ("flag", flag))}  # fmt: skip
