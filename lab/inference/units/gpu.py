"""The lab's own kernels on a GPU: activations in bf16, sums in float32, arrays CuPy's."""

from typing import Any, cast

import numpy as np

from lab.execute.device import DeviceBound
from lab.gpu.bits import decode_bf16, encode_bf16, xp
from lab.gpu.device import card, machine_of
from lab.inference.units.protocol import Done, KernelUnit, Matrix, Weights, matrix_of
from sim.errors import NoDeviceError
from sim.machine import Machine


class GpuLinears(KernelUnit):
    """One GPU of this process; counts are those of theory, times are measured by the caller.

    Raises NoDeviceError where that GPU is not `machine`.
    """

    xp = xp

    def __init__(self, machine: Machine, device: int = 0) -> None:
        if machine_of(card(device)) != machine:
            raise NoDeviceError(f"this GPU is {card(device).name}, not the {machine.title}")
        super().__init__(machine, device)

    def load(self, weights: Weights) -> Matrix:
        """Weights on the device, int4 groups as they are, floats in bf16; raises InputError for one beyond bf16."""
        matrix = matrix_of(weights, self.machine)
        return Matrix(matrix.of_one_token, {name: xp.asarray(array) for name, array in matrix.arrays.items()})

    def round(self, x: Any) -> Any:
        return decode_bf16(encode_bf16(x))

    def __call__(self, x: Any, weights: Matrix) -> Any:
        problem = weights.problem(x.shape[0])
        how, bound = self._ready(problem)
        y = xp.empty((problem.m, problem.n), np.uint16)
        arrays = {"x": encode_bf16(x), **weights.arrays, "y": y}
        cast(DeviceBound, bound).run_at({name: array.data.ptr for name, array in arrays.items()})
        self._done.append(Done(how.kernel.name, len(how.launches), problem, how.theory, None))
        return decode_bf16(y)
