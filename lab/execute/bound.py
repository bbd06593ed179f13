"""Launches with the arrays they work on: what that means on any chip, and the simulated one."""

from collections.abc import Callable, Collection, Mapping
from copy import copy
from types import SimpleNamespace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lab.kernel import Kernel
from lab.verify import workspaces
from sim.counts import Counts
from sim.errors import InputError
from sim.launch import Array, Launch, Role
from sim.machine import Machine

Copy = Callable[[int | None], None]  # on a stream; lab.inference.chip makes them


class Bound(Protocol):
    """Launches on a chip, with workspaces of their own: not for two streams at once."""

    def bind(self, arrays: Mapping[str, Any]) -> "Bound":
        """Let these arrays take the place of what was bound by their names; names of no launch are passed over."""

    def run(self, stream: int | None = None) -> Counts:
        """Run the launches in order; returns what was counted, which on a GPU is nothing.

        On a GPU they are enqueued on `stream`, a CUstream address, by default CuPy's current one. Raises InputError
        where an array was never bound.
        """


def described_arrays(launches: tuple[Launch, ...]) -> dict[str, Array]:
    """Every array argument of the launches by its name."""
    return {a.name: a for launch in launches for a in launch.arrays}


def require_all(described: Collection[str], bound: Collection[str]) -> None:
    """Raise InputError where some arrays were never bound."""
    if missing := [name for name in described if name not in bound]:
        raise InputError(f"no array was bound for {', '.join(missing)}")


class SimulatedBound:
    """Launches on the simulated chip; running them executes the kernel's tile simulation on NumPy arrays."""

    def __init__(self, kernel: Kernel, launches: tuple[Launch, ...], machine: Machine) -> None:
        self._kernel, self._launches, self._machine = kernel, launches, machine
        self._described = described_arrays(launches)
        indices = launches[0].problem.indices()  # simulations need those too that no launch takes, as all are alike
        untaken = {name: array for name, array in indices.items() if name not in self._described}
        self._arrays: dict[str, NDArray] = {**untaken, **workspaces(launches)}

    def bind(self, arrays: Mapping[str, Any]) -> "SimulatedBound":
        for name, described in self._described.items():
            if name in arrays:
                self._arrays[name] = host_bits(arrays[name], described)
        return self

    def run(self, stream: int | None = None) -> Counts:  # noqa: ARG002 (the host has no streams)
        self.require_all()
        return self._kernel.simulate(self._launches, self._arrays, self._machine)

    def require_all(self) -> None:
        """Raise InputError where an array was never bound."""
        require_all(self._described, self._arrays)

    def copy(self) -> "SimulatedBound":
        """What is bound now, to be run later; workspaces are shared, as on a GPU."""
        other = copy(self)
        other._arrays = dict(self._arrays)
        return other


def host_bits(array: Any, described: Array) -> NDArray:
    """A NumPy array as the storage and shape described, without a copy; raises InputError where it is not that."""
    if not isinstance(array, np.ndarray):
        given = f"{type(array).__module__}.{type(array).__qualname__}"
        raise InputError(f"{described.name} must be a NumPy array on the simulated chip; it is {given}")
    if array.nbytes != described.nbytes or array.itemsize != described.storage.itemsize:
        wanted = f"{described.nbytes:,} B in elements of {described.storage.itemsize} B"
        raise InputError(f"{described.name} must hold {wanted}; it holds {array.nbytes:,} B in {array.dtype}")
    if not array.flags.c_contiguous:
        raise InputError(f"{described.name} must be dense and row-major")
    if described.role is not Role.IN and not array.flags.writeable:
        raise InputError(f"{described.name} is read-only")
    return _writable(array).view(described.storage).reshape(described.shape)


def _writable(array: NDArray) -> NDArray:
    """The same memory as an array that may be written, or Numba would compile each kernel anew: 10 to 30 seconds."""
    if array.flags.writeable:
        return array
    interface = array.__array_interface__
    pointer, _ = interface["data"]
    return np.asarray(SimpleNamespace(owner=array, __array_interface__={**interface, "data": (pointer, False)}))
