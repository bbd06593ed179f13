"""Where the linear layers of a model run: what every chip answers, and weights as its kernels read them."""

from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lab.choice import is_solvable
from lab.execute import Bound, Plan, plan
from lab.problems import Linear
from sim import int4
from sim.counts import Counts
from sim.errors import InputError
from sim.formats import decode, encode
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


class Ledger:
    """The layers that ran, kept until they are asked for."""

    def __init__(self) -> None:
        self._done: list[Done] = []

    def drain(self) -> list[Done]:
        done, self._done = self._done, []
        return done


class KernelUnit(Ledger):
    """The lab's kernels on a machine, simulated where `device` is None: each shape is planned and bound once."""

    format = "bf16"

    def __init__(self, machine: Machine, device: int | None) -> None:
        super().__init__()
        self.machine = machine
        self._device = device
        self._bound: dict[Linear, tuple[Plan, Bound]] = {}

    def _ready(self, problem: Linear) -> tuple[Plan, Bound]:
        if problem not in self._bound:
            found = plan(problem, self.machine)
            self._bound[problem] = found, found.bind({}, self._device)
        return self._bound[problem]
