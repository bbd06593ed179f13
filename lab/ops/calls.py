"""What every front door does between its arrays and a chip: they lie together, results lie apart, plans are kept."""

from collections.abc import Callable, Collection, Mapping
from functools import lru_cache
from math import prod
from typing import TYPE_CHECKING, Any, TypeVar, cast

from lab.execute import Plan, plan
from lab.gpu.device import machine
from lab.ops.arrays import View
from lab.ops.autotuning import settle_first
from lab.problems import Problem
from sim.errors import InputError
from sim.formats import storage_of
from sim.machine import H100

if TYPE_CHECKING:
    from lab.execute.device import DeviceBound

T = TypeVar("T")
MOST_READY = 4096  # calls that are found at once when they are repeated

Calls = dict[Any, Callable[[], None]]  # by all that decides them, addresses too


def remember(ready: dict[Any, T], key: Any, found: T) -> None:
    """Keep what is found for when its key comes again; all that are kept go where they are too many."""
    if len(ready) >= MOST_READY:
        ready.clear()
    ready[key] = found


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


def on_gpu(problem: Problem, device: int, stream: int, given: Collection[str] = ()) -> "DeviceBound":
    """A problem's launches on a GPU, bound to its own index arrays where none are among those given by name.

    `stream` is the first that runs them.
    """
    from lab.gpu.launch import resident  # loaded on first use: the simulated chip needs no GPU library

    settle_first(problem, device, stream)
    own = {name: array for name, array in problem.indices().items() if name not in given}
    return cast("DeviceBound", plan(problem, machine(device)).bind(resident(own, device), device))
