"""Where a step runs: the simulated chip, on NumPy's arrays, or a GPU of this process, on CuPy's."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.errors import EnvironmentFailure, NoDeviceError
from sim.formats import encode
from sim.machine import Machine
from sim.machine import machine as machine_named


@dataclass(frozen=True)
class Chip:
    """Arrays of a machine, simulated where `device` is None: `xp` makes them."""

    machine: Machine
    device: int | None
    xp: Any

    def encode_bf16(self, x: Any) -> Any:
        """The bits of float32 rounded to bf16."""
        if self.device is None:
            return encode(x, "bf16")
        from lab.gpu.bits import encode_bf16

        return encode_bf16(x)

    def write(self, to: Any, words: NDArray) -> None:
        """Copy words of the host to an array; on a GPU in the order of the current stream."""
        if self.device is None:
            to[...] = words
        else:
            from lab.gpu.launch import current_stream, write

            write(words, to.data.ptr, self.device, current_stream(self.device))

    def read(self, array: Any) -> NDArray:
        """A copy on the host of what an array holds, when all that was enqueued before is done."""
        if self.device is None:
            return np.array(array)
        from lab.gpu.launch import current_stream, read

        return read(array.data.ptr, array.shape, array.dtype, self.device, current_stream(self.device))

    def host(self, shape: tuple[int, ...], storage: np.dtype) -> NDArray:
        """Zeroed memory of the host that `copy` may go on with while the host does."""
        if self.device is None:
            return np.zeros(shape, storage)
        from lab.gpu.marks import pinned

        return pinned(shape, storage)

    def copy(self, to: Any, source: Any) -> None:
        """Copy between dense arrays of one size, its own or `host`'s; on a GPU in the order of the current stream."""
        self.copying(to, source)()

    def copying(self, to: Any, source: Any) -> Callable[..., None]:
        """What makes that copy each time it is called; on a GPU in the order of a stream that it is given, if any."""
        if self.device is None:
            return lambda stream=None: np.copyto(to, source)  # noqa: ARG005 (the host has no streams)
        from lab.gpu.marks import copying

        return copying(to, source, self.device)

    def mark(self) -> Any:
        """A place in a GPU's work to wait for and to time, `lab.gpu.marks.Mark`."""
        from lab.gpu.marks import Mark

        return Mark(self.device or 0)

    def apart(self) -> AbstractContextManager[object]:
        """What threads are to be within, one at a time, whose work has a stream of its own: to be entered often."""
        if self.device is None:
            return nullcontext()
        from lab.gpu.shared import Apart

        return Apart(self.device)

    def reach(self, other: "Chip") -> None:
        """Let its kernels use another chip's memory; raises EnvironmentFailure where no link leads there."""
        if self.device is None or other.device is None:
            return
        from lab.gpu.shared import reach

        if not reach(self.device, other.device):
            raise EnvironmentFailure(f"GPU {self.device} cannot reach the memory of GPU {other.device}")

    def urgent(self) -> int | None:
        """A stream of a GPU whose kernels go ahead of those of others; None on the simulated chip, which has none."""
        if self.device is None:
            return None
        from lab.gpu.marks import urgent_stream

        return urgent_stream(self.device)


def simulated(machine: Machine) -> Chip:
    """The simulated chip."""
    return Chip(machine, None, np)


def gpu(machine: Machine, device: int = 0) -> Chip:
    """A GPU; raises NoDeviceError where there is none, or it is not `machine`."""
    from lab.gpu.device import card, machine_of, require_device

    require_device()
    from lab.gpu.bits import xp  # loads CuPy; only here is it needed

    if machine_of(card(device)) != machine:
        raise NoDeviceError(f"this GPU is {card(device).name}, not the {machine.title}")
    return Chip(machine, device, xp)


def chip_of(name: str, device: int | None) -> Chip:
    """The simulated chip of a machine's name, or the GPU of that number, whatever it is.

    Raises NoDeviceError where there is no such GPU.
    """
    if device is None:
        return simulated(machine_named(name))
    from lab.gpu.device import machine

    return gpu(machine(device), device)
