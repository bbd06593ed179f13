"""Where the linear layers of a model run: the interface, the float32 reference and the simulated chip."""

from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lab import catalog
from lab.kernel import Kernel
from lab.problems import Linear
from lab.verify import workspaces
from sim.counts import Counts
from sim.errors import InputError
from sim.formats import decode, encode
from sim.launch import Launch
from sim.machine import Machine
from sim.predict import predict_us


@dataclass(frozen=True)
class Done:
    """One linear layer that ran: by which kernel in how many launches, and its counts (of theory on a real chip).

    `predicted_us` is what the simulated chip would take; None on a real one, whose time is measured.
    """

    kernel: str
    launches: int
    problem: Linear
    counts: Counts
    predicted_us: float | None


class LinearUnit(Protocol):
    """A chip's linear layers. Between them activations are float32 arrays of `xp`; each layer rounds what it takes."""

    @property
    def xp(self) -> Any:
        """NumPy, or a module of the same interface."""

    @property
    def format(self) -> str:
        """The format of weights, activations and KV cache, a name of sim.formats."""

    def load(self, weights: NDArray[np.float32]) -> Any:
        """Take a weight matrix [n, k] onto the chip, once; returns the handle to call it by."""

    def round(self, x: Any) -> Any:
        """x as `format` stores it, in float32 again."""

    def __call__(self, x: Any, weights: Any) -> Any:
        """y[m, n] = x[m, k] @ weights[n, k].T"""

    def settle(self) -> list[Done]:
        """The layers that ran since the last call, in order."""


class Reference:
    """float32 NumPy: the oracle."""

    xp = np
    format = "fp32"

    def __init__(self) -> None:
        self._done: list[Done] = []

    def load(self, weights: NDArray[np.float32]) -> NDArray[np.float32]:
        return weights

    def round(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        return x

    def __call__(self, x: NDArray[np.float32], weights: NDArray[np.float32]) -> NDArray[np.float32]:
        n, k = weights.shape
        problem = Linear(x.shape[0], n, k, self.format)
        self._done.append(Done("numpy", 1, problem, Counts(flops=problem.flops), None))
        return x @ weights.T

    def settle(self) -> list[Done]:
        done, self._done = self._done, []
        return done


@dataclass(frozen=True)
class _Plan:
    """How one shape runs, worked out once."""

    kernel: Kernel
    problem: Linear
    launches: tuple[Launch, ...]
    workspaces: dict[str, NDArray]


class SimulatedChip:
    """The lab's own kernels on the simulated machine, in bf16 with float32 accumulation."""

    xp = np
    format = "bf16"

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self._plans: dict[tuple[int, int, int], _Plan] = {}
        self._done: list[Done] = []

    def load(self, weights: NDArray[np.float32]) -> NDArray[np.uint16]:
        bits = encode(weights, self.format)
        if not np.isfinite(decode(bits, self.format)).all():
            raise InputError("a weight is too large for bf16")
        return bits

    def round(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        return decode(encode(x, self.format), self.format)

    def __call__(self, x: NDArray[np.float32], weights: NDArray[np.uint16]) -> NDArray[np.float32]:
        m, (n, k) = x.shape[0], weights.shape
        plan = self._plan(m, n, k)
        y = np.empty((m, n), np.uint16)
        arrays = {"x": encode(x, self.format), "w": weights, "y": y, **plan.workspaces}
        counts = [plan.kernel.module.simulate(launch, arrays, self.machine) for launch in plan.launches]
        times = [predict_us(c, self.format, self.machine, a.ctas) for c, a in zip(counts, plan.launches, strict=True)]
        self._done.append(Done(plan.kernel.name, len(counts), plan.problem, reduce(add, counts), sum(times)))
        return decode(y, self.format)

    def settle(self) -> list[Done]:
        done, self._done = self._done, []
        return done

    def _plan(self, m: int, n: int, k: int) -> _Plan:
        if (m, n, k) not in self._plans:
            problem = Linear(m, n, k, self.format)
            kernel = kernel_for(m, self.machine)
            launches = kernel.launches(problem, kernel.best_guess(problem, self.machine), self.machine)
            self._plans[m, n, k] = _Plan(kernel, problem, launches, workspaces(launches))
        return self._plans[m, n, k]


def kernel_for(m: int, machine: Machine) -> Kernel:
    """The kernel for m rows of activations: a GEMM where there are several and the machine runs it, else a GEMV."""
    names = ("gemm_wgmma", "gemv_vectorized") if m > 1 else ("gemv_vectorized",)
    return next(kernel for kernel in map(catalog.get, names) if kernel.solves.runs_on(machine.arch))
