"""The lab's own kernels on the simulated machine: activations in bf16, weights too unless they are int4 groups."""

import numpy as np
from numpy.typing import NDArray

from lab.inference.units.protocol import Done, KernelUnit, Matrix, Weights, matrix_of
from sim.formats import decode, encode
from sim.machine import Machine


class SimulatedChip(KernelUnit):
    """Every layer runs its kernel's tile simulation; its counts and its predicted time are told."""

    xp = np

    def __init__(self, machine: Machine) -> None:
        super().__init__(machine, device=None)

    def load(self, weights: Weights) -> Matrix:
        return matrix_of(weights, self.machine)

    def round(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        return decode(encode(x, self.format), self.format)

    def __call__(self, x: NDArray[np.float32], weights: Matrix) -> NDArray[np.float32]:
        problem = weights.problem(x.shape[0])
        how, bound = self._ready(problem)
        y = np.empty((problem.m, problem.n), np.uint16)
        counts = bound.bind({"x": encode(x, self.format), **weights.arrays, "y": y}).run()
        self._done.append(Done(how.kernel.name, len(how.launches), problem, counts, how.predicted_us("chain")))
        return decode(y, self.format)
