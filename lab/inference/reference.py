"""The oracle: linear layers in float32 NumPy."""

import numpy as np
from numpy.typing import NDArray

from lab.problems import Linear


class Reference:
    """Matrix products in float32, which it keeps a list of."""

    format = "fp32"

    def __init__(self) -> None:
        self._done: list[Linear] = []

    def __call__(self, x: NDArray[np.float32], weights: NDArray[np.float32]) -> NDArray[np.float32]:
        """y[m, n] = x[m, k] @ weights[n, k].T"""
        n, k = weights.shape
        self._done.append(Linear(x.shape[0], n, k, self.format))
        return x @ weights.T

    def drain(self) -> list[Linear]:
        """The layers that ran since the last call, in order."""
        done, self._done = self._done, []
        return done
