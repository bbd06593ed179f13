"""Rows of a table by their numbers: token embeddings, or the hidden states whose logits are asked for."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from lab.problems._rowwise import RowWise
from lab.problems.protocol import EVERY_ROW, Arrays, Estimate, Operand, require_extents, sprinkle
from sim.formats import FORMATS, decode, encode


@dataclass(frozen=True)
class Embedding(RowWise):
    """y[m, n] = table[ids[m]], the table [vocab, n] and y in the format `activations`.

    A vocab of 0 is m rows. Ids are rows of the table; a kernel takes one beyond it for the last. Raises InputError for
    extents outside 1 to 2^31 - 1 and other formats.
    """

    kind: ClassVar[str] = "embedding"

    vocab: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_extents(self, ("vocab",), least=0)

    @property
    def table_rows(self) -> int:
        return self.vocab or self.m

    @property
    def inputs(self) -> dict[str, Operand]:
        return {
            "ids": Operand((self.m,), "int32", indexes=True),
            "table": Operand((self.table_rows, self.n), self.activations),
        }

    @property
    def outputs(self) -> dict[str, Operand]:
        return {"y": Operand((self.m, self.n), self.activations)}

    @property
    def flops(self) -> int:
        return 0

    @cached_property
    def read_bytes(self) -> int:
        """Each id, and each row of the table that one names."""
        rows = len(np.unique(self.indices()["ids"]))
        return 4 * self.m + FORMATS[self.activations].nbytes(rows, self.n)

    def part(self, flops: float) -> Self:  # noqa: ARG002 (a row costs no operation)
        return replace(self, m=min(self.m, 2**12))

    def tuned_class(self) -> dict[str, Any]:
        """m rounded up to a power of two, whatever the table holds."""
        return {name: value for name, value in super().tuned_class().items() if name != "vocab"}

    def indices(self) -> dict[str, NDArray[np.int32]]:
        """Rows all over the table."""
        ids = np.random.default_rng(0).integers(0, self.table_rows, self.m)
        return {"ids": ids.astype(np.int32)}

    def draw(self, rng: np.random.Generator, special: str = "") -> dict[str, NDArray]:
        """N(0, 1); special values are among those of the table."""
        table = self.inputs["table"]
        values = sprinkle(rng.standard_normal(table.shape, np.float32), rng, special)
        return {**self.indices(), "table": encode(values, table.format)}

    def reference(self, arrays: Arrays, rows: slice = EVERY_ROW) -> dict[str, Estimate]:
        """The rows themselves."""
        value = decode(arrays["table"][arrays["ids"][rows]], self.activations).astype(np.float64)
        return {"y": Estimate(value, np.zeros_like(value))}
