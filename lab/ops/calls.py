"""What every front door does between its arrays and a chip: they lie together, results lie apart, plans are kept."""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from math import prod
from typing import TYPE_CHECKING, Any, cast

from lab.execute import Plan, plan
from lab.gpu.device import machine
from lab.gpu.parameters import ALIGNMENT
from lab.ops.arrays import Library, Strides, View
from lab.problems import Problem
from sim.errors import InputError
from sim.formats import storage_of
from sim.machine import H100

if TYPE_CHECKING:
    from lab.execute.device import DeviceBound

MOST_READY = 4096  # plans that repeated calls find at once


@dataclass(frozen=True, slots=True)
class Ready:
    """What calls on arrays of the same shapes and types find at once, on one GPU and stream.

    `nbytes` are those of each operand. `strides` are the arrays' own where rows lie apart. Addresses that were checked
    once have a call of their own.
    """

    bound: "DeviceBound"
    nbytes: Mapping[str, int]
    device: int
    stream: int
    written: tuple[str, ...] = ("y",)
    strides: Strides = ()
    _known: dict[tuple[int, ...], Callable[[], None]] = field(default_factory=dict)

    def run(self, library: Library, names: Iterable[str], arrays: Iterable[Any]) -> bool:
        """Run on a library's arrays, named in their order; False where any cannot be taken so."""
        pointers = library.addresses(arrays, self.device, self.strides)
        call = self._known.get(pointers)
        if call is None:
            at = dict(zip(names, pointers, strict=True))
            if not self._apart(at):
                return False
            if len(self._known) >= MOST_READY:
                self._known.clear()
            call = self._known[pointers] = self.bound.at(at, self.stream)
        call()
        return True

    def _apart(self, pointers: Mapping[str, int]) -> bool:
        """Whether the arrays are there, aligned, and no result overlaps another array."""
        if any(not at or at % ALIGNMENT for at in pointers.values()):
            return False
        for result in self.written:
            start = pointers[result]
            end = start + self.nbytes[result]
            for name, at in pointers.items():
                if name != result and at < end and start < at + self.nbytes[name]:
                    return False
        return True


def sizes(problem: Problem) -> dict[str, int]:
    """The bytes of each operand."""
    return {name: operand.nbytes for name, operand in (problem.inputs | problem.outputs).items()}


def spoken(name: str) -> str:
    """What a caller calls an operand."""
    return "out" if name == "y" else name


def one_device(described: Mapping[str, View]) -> int | None:
    """The GPU that all arrays lie on, None for the host; raises InputError where they lie apart."""
    first, *others = described
    device = described[first].device
    for name in others:
        if described[name].device != device:
            raise InputError(f"{spoken(name)} is on GPU {described[name].device} and {first} on GPU {device}")
    return device


def require_apart(described: Mapping[str, View], written: Collection[str]) -> None:
    """Raise InputError where a result overlaps another one, or what is still read while it is written."""
    ends = {name: o.pointer + _nbytes(o.shape, o.format, o.pitch) for name, o in described.items()}
    for result in written:
        start = described[result].pointer
        for name, operand in described.items():
            if name != result and operand.pointer < ends[result] and start < ends[name]:
                why = "" if name in written else f", which is still read while {spoken(result)} is written"
                raise InputError(f"{spoken(result)} must not overlap {spoken(name)}{why}")


@lru_cache(maxsize=4096)
def _nbytes(shape: tuple[int, ...], form: str, pitch: int) -> int:
    """From the first element to the last one."""
    row = prod(shape[-2:])
    apart = (pitch - row) * (prod(shape[:-2]) - 1) if pitch else 0
    return storage_of(form).itemsize * (prod(shape) + apart)


@lru_cache(maxsize=1024)
def simulated(problem: Problem) -> Plan:
    """The plan of a problem on the simulated chip."""
    return plan(problem, H100)


def on_gpu(problem: Problem, device: int, given: Collection[str] = ()) -> "DeviceBound":
    """A problem's launches on a GPU, bound to its own index arrays where none are among those given by name."""
    from lab.gpu.launch import resident  # loaded on first use: the simulated chip needs no GPU library

    own = {name: array for name, array in problem.indices().items() if name not in given}
    return cast("DeviceBound", plan(problem, machine(device)).bind(resident(own, device), device))
