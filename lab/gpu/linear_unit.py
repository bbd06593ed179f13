"""The linear layers of a model on the GPU: the lab's kernels on CuPy arrays, activations in bf16, sums in float32."""

from dataclasses import dataclass
from typing import Any

import cupy

from lab.choice import choose
from lab.gpu import device
from lab.gpu.launch import Prepared, device_workspaces
from lab.inference.units import Done, Matrix, Weights, matrix_of
from lab.problems import Linear
from sim.counts import Counts
from sim.errors import NoDeviceError
from sim.machine import Machine

# To nearest even; NaN stays NaN (the quiet bit is set), as sim.formats does it.
_to_bf16 = cupy.ElementwiseKernel(
    "float32 x",
    "uint16 y",
    """
    const unsigned bits = __float_as_uint(x);
    const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
    y = nan ? (bits >> 16) | 0x40u : (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
    """,
    "float32_to_bf16",
)
_from_bf16 = cupy.ElementwiseKernel(
    "uint16 x", "float32 y", "y = __uint_as_float(unsigned(x) << 16)", "bf16_to_float32"
)


@dataclass(frozen=True)
class _Plan:
    """How one shape runs: loaded and packed once. The workspaces belong to it."""

    done: Done
    prepared: Prepared
    workspaces: dict[str, Any]


class GpuLinears:
    """The GPU as `lab.inference` takes a chip; its counts are those of theory, its times are measured by the caller.

    Raises NoDeviceError where the GPU of this process is not `machine`.
    """

    xp = cupy
    format = "bf16"

    def __init__(self, machine: Machine) -> None:
        if device.machine() != machine:
            raise NoDeviceError(f"this GPU is {device.card().name}, not the {machine.title}")
        self._machine = machine
        self._plans: dict[Linear, _Plan] = {}
        self._done: list[Done] = []

    def load(self, weights: Weights) -> Matrix:
        """Weights on the device, int4 groups as they are, floats in bf16; raises InputError for one beyond bf16."""
        matrix = matrix_of(weights, self._machine)
        return Matrix(matrix.of_one_token, {name: cupy.asarray(array) for name, array in matrix.arrays.items()})

    def round(self, x: Any) -> Any:
        return _from_bf16(_to_bf16(x))

    def __call__(self, x: Any, weights: Matrix) -> Any:
        problem = weights.problem(x.shape[0])
        plan = self._plan(problem)
        bits, y = _to_bf16(cupy.ascontiguousarray(x)), cupy.empty((problem.m, problem.n), cupy.uint16)
        arrays = {"x": bits, **weights.arrays, "y": y}
        plan.prepared.bind({name: array.data.ptr for name, array in arrays.items()})()
        self._done.append(plan.done)
        return _from_bf16(y)

    def drain(self) -> list[Done]:
        done, self._done = self._done, []
        return done

    def _plan(self, problem: Linear) -> _Plan:
        if problem not in self._plans:
            kernel, schedule, launches = choose(problem, self._machine)
            counts: Counts = kernel.module.theory(problem, schedule, self._machine)
            scratch = device_workspaces(launches)
            prepared = Prepared(launches, self._machine).bind({name: a.data.ptr for name, a in scratch.items()})
            done = Done(kernel.name, len(launches), problem, counts, None)
            self._plans[problem] = _Plan(done, prepared, scratch)
        return self._plans[problem]
