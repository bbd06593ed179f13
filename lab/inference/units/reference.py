"""The oracle: linear layers in float32 NumPy."""

import numpy as np
from numpy.typing import NDArray

from lab.inference.units.protocol import Done, Ledger, Weights
from lab.problems import Linear
from sim import int4
from sim.counts import Counts


class Reference(Ledger):
    """float32 NumPy: the oracle."""

    xp = np
    format = "fp32"

    def load(self, weights: Weights) -> NDArray[np.float32]:
        return weights.values if isinstance(weights, int4.Groups) else weights

    def round(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        return x

    def __call__(self, x: NDArray[np.float32], weights: NDArray[np.float32]) -> NDArray[np.float32]:
        n, k = weights.shape
        problem = Linear(x.shape[0], n, k, self.format)
        self._done.append(Done("numpy", 1, problem, Counts(flops=problem.flops), None))
        return x @ weights.T
