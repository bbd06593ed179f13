"""What a bench's outputs must be: a reference for evenly spaced rows, which costs a host little."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lab.problems import Estimate, Problem
from lab.verify import Check, compare_output, joined

REFERENCE_FLOPS = 2**33  # above it the reference covers evenly spaced rows: comparing them takes a host 20 ms


@dataclass(frozen=True)
class Expectation:
    """Fresh random inputs of a problem and what the outputs must be on the rows `rows`."""

    inputs: dict[str, NDArray]
    rows: slice
    expected: dict[str, Estimate]

    @classmethod
    def of(cls, problem: Problem, seed: int | None) -> "Expectation":
        inputs = problem.draw(np.random.default_rng(seed))
        step = max(1, -(-problem.flops // REFERENCE_FLOPS)) | 1  # odd, so that every row of a tile has its turn
        rows = slice(None, None, step)
        return cls(inputs, rows, problem.reference(inputs, rows))

    def narrowed(self, problem: Problem) -> "Expectation":
        """What those rows of the inputs make that a narrower problem has."""
        inputs = {name: self.inputs[name][: operand.shape[0]] for name, operand in problem.inputs.items()}
        expected = {}
        rows = len(range(problem.rows)[self.rows])
        for name in problem.outputs:
            expected[name] = Estimate(*(part[:rows] for part in self.expected[name]))
        return Expectation(inputs, self.rows, expected)

    def check(self, problem: Problem, outputs: Mapping[str, Any], intact: bool = True) -> Check:
        """Compare outputs, which may lie on the device: only the expected rows of them come to the host."""
        checks = []
        for name, operand in problem.outputs.items():
            rows = outputs[name].reshape(operand.shape)[: problem.written(name)][self.rows]
            host = rows if isinstance(rows, np.ndarray) else rows.get()
            checks.append(compare_output(self.expected[name], host, operand.format, name))
        found = joined(checks)
        if found.first_mismatch is not None:
            row, *rest = found.first_mismatch
            found = replace(found, first_mismatch=(row * (self.rows.step or 1), *rest))
        return replace(found, guards_intact=intact)
