"""Where the linear layers of a model run: the interface, the float32 reference and the simulated chip."""

from dataclasses import dataclass, replace
from functools import reduce
from operator import add
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lab.choice import choose, is_solvable
from lab.kernel import Kernel
from lab.problems import Linear
from lab.verify import workspaces
from sim import int4
from sim.counts import Counts
from sim.errors import InputError
from sim.formats import decode, encode
from sim.launch import Launch
from sim.machine import Machine


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


Weights = NDArray[np.float32] | int4.Groups  # a matrix [n, k]: floats, or the int4 groups that the file itself holds


@dataclass(frozen=True, eq=False)
class Matrix:
    """Weights on a chip: what a linear layer of so many tokens asks of it, and its arrays by operand."""

    of_one_token: Linear
    arrays: dict[str, Any]

    def problem(self, m: int) -> Linear:
        return replace(self.of_one_token, m=m)


def matrix_of(weights: Weights, machine: Machine) -> Matrix:
    """Weights as the machine's kernels read them, on the host; raises InputError for one beyond bf16.

    Groups are packed, or dequantised where no kernel of the machine takes them; floats are rounded to bf16.
    """
    if isinstance(weights, int4.Groups):
        (n, k), form = weights.q.shape, f"int4_g{weights.group}"
        problem = Linear(1, n, k, form, offset="zero" if weights.zero_points else "min")
        if is_solvable(problem, machine):
            return Matrix(problem, dict(zip(("w", "w_scale"), int4.pack(weights), strict=True)))
        weights = weights.values
    bits = encode(weights, "bf16")
    if not np.isfinite(decode(bits, "bf16")).all():
        raise InputError("a weight is too large for bf16")
    n, k = weights.shape
    return Matrix(Linear(1, n, k, "bf16"), {"w": bits})


class LinearUnit(Protocol):
    """A chip's linear layers. Between them activations are float32 arrays of `xp`; each layer rounds what it takes."""

    @property
    def xp(self) -> Any:
        """NumPy, or a module of the same interface."""

    @property
    def format(self) -> str:
        """The format of activations and KV cache, and of weights that come as floats, a name of sim.formats."""

    def load(self, weights: Weights) -> Any:
        """Take a weight matrix [n, k] onto the chip, once; returns the handle to call it by."""

    def round(self, x: Any) -> Any:
        """x as `format` stores it, in float32 again."""

    def __call__(self, x: Any, weights: Any) -> Any:
        """y[m, n] = x[m, k] @ weights[n, k].T"""

    def drain(self) -> list[Done]:
        """The layers that ran since the last call, in order."""


class Reference:
    """float32 NumPy: the oracle."""

    xp = np
    format = "fp32"

    def __init__(self) -> None:
        self._done: list[Done] = []

    def load(self, weights: Weights) -> NDArray[np.float32]:
        return weights.values if isinstance(weights, int4.Groups) else weights

    def round(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        return x

    def __call__(self, x: NDArray[np.float32], weights: NDArray[np.float32]) -> NDArray[np.float32]:
        n, k = weights.shape
        problem = Linear(x.shape[0], n, k, self.format)
        self._done.append(Done("numpy", 1, problem, Counts(flops=problem.flops), None))
        return x @ weights.T

    def drain(self) -> list[Done]:
        done, self._done = self._done, []
        return done


@dataclass(frozen=True)
class _Plan:
    """How one shape runs, worked out once."""

    kernel: Kernel
    launches: tuple[Launch, ...]
    workspaces: dict[str, NDArray]
    predicted_us: float


class SimulatedChip:
    """The lab's own kernels on the simulated machine: activations in bf16, weights too unless they are int4 groups."""

    xp = np
    format = "bf16"

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self._plans: dict[Linear, _Plan] = {}
        self._done: list[Done] = []

    def load(self, weights: Weights) -> Matrix:
        return matrix_of(weights, self.machine)

    def round(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        return decode(encode(x, self.format), self.format)

    def __call__(self, x: NDArray[np.float32], weights: Matrix) -> NDArray[np.float32]:
        problem = weights.problem(x.shape[0])
        plan = self._plan(problem)
        y = np.empty((problem.m, problem.n), np.uint16)
        arrays = {"x": encode(x, self.format), **weights.arrays, "y": y, **plan.workspaces}
        counts = [plan.kernel.module.simulate(launch, arrays, self.machine) for launch in plan.launches]
        done = Done(plan.kernel.name, len(counts), problem, reduce(add, counts), plan.predicted_us)
        self._done.append(done)
        return decode(y, self.format)

    def drain(self) -> list[Done]:
        done, self._done = self._done, []
        return done

    def _plan(self, problem: Linear) -> _Plan:
        if problem not in self._plans:
            kernel, schedule, launches = choose(problem, self.machine)
            predicted = kernel.predicted_us(problem, schedule, launches, self.machine)
            self._plans[problem] = _Plan(kernel, launches, workspaces(launches), predicted)
        return self._plans[problem]
