"""The linear layers of a model on the GPU: the lab's kernels on CuPy arrays, in bf16 with float32 accumulation."""

from dataclasses import dataclass
from typing import Any

import cupy
import numpy as np
from numpy.typing import NDArray

from lab.gpu import device
from lab.gpu.launch import Prepared, device_workspaces
from lab.inference.units import Done, kernel_for
from lab.problems import Linear
from sim.counts import Counts
from sim.errors import InputError, NoDeviceError
from sim.formats import encode
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
        self._plans: dict[tuple[int, int, int], _Plan] = {}
        self._done: list[Done] = []

    def load(self, weights: NDArray[np.float32]) -> Any:
        """The weights as bf16 bits on the device; raises InputError for a weight beyond bf16."""
        bits = encode(weights, self.format)
        if ((bits & 0x7F80) == 0x7F80).any():
            raise InputError("a weight is too large for bf16")
        return cupy.asarray(bits)

    def round(self, x: Any) -> Any:
        return _from_bf16(_to_bf16(x))

    def __call__(self, x: Any, weights: Any) -> Any:
        m, (n, k) = x.shape[0], weights.shape
        plan = self._plan(m, n, k)
        bits, y = _to_bf16(cupy.ascontiguousarray(x)), cupy.empty((m, n), cupy.uint16)
        plan.prepared.bind({"x": bits.data.ptr, "w": weights.data.ptr, "y": y.data.ptr})()
        self._done.append(plan.done)
        return _from_bf16(y)

    def settle(self) -> list[Done]:
        done, self._done = self._done, []
        return done

    def _plan(self, m: int, n: int, k: int) -> _Plan:
        if (m, n, k) not in self._plans:
            problem = Linear(m, n, k, self.format)
            kernel = kernel_for(m, self._machine)
            schedule = kernel.best_guess(problem, self._machine)
            launches = kernel.launches(problem, schedule, self._machine)
            counts: Counts = kernel.module.theory(problem, schedule, self._machine)
            workspaces = device_workspaces(launches)
            prepared = Prepared(launches, self._machine).bind({name: a.data.ptr for name, a in workspaces.items()})
            done = Done(kernel.name, len(launches), problem, counts, None)
            self._plans[m, n, k] = _Plan(done, prepared, workspaces)
        return self._plans[m, n, k]
