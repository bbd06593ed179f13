"""Where a step runs: the simulated chip, on NumPy's arrays, or a GPU of this process, on CuPy's."""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sim.errors import NoDeviceError
from sim.formats import encode
from sim.machine import Machine


class Mailbox(Protocol):
    """Takes copies of an array."""

    def send(self) -> None:
        """Ask for a copy of what the array holds when all that was enqueued before is done."""

    def take(self) -> NDArray:
        """The copy, when it is there; good until the next one is asked for."""


class _HostMailbox:
    """Of the simulated chip, where everything is there at once."""

    def __init__(self, array: NDArray) -> None:
        self._array, self._copy = array, array.copy()

    def send(self) -> None:
        self._copy[...] = self._array

    def take(self) -> NDArray:
        return self._copy


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

    def copy(self, to: Any, array: Any) -> None:
        """Copy an array of the chip to another one as large; on a GPU in the order of the current stream."""
        if self.device is None:
            to[...] = array
        else:
            from lab.gpu.launch import copy, current_stream

            copy(array.data.ptr, to.data.ptr, array.nbytes, self.device, current_stream(self.device))

    def mailbox(self, array: Any) -> "Mailbox":
        """Where copies of an array come to the host, one at a time."""
        if self.device is None:
            return _HostMailbox(array)
        from lab.gpu import mailbox

        return mailbox.Mailbox(array, self.device)

    def read(self, array: Any) -> NDArray:
        """A copy on the host of what an array holds, when all that was enqueued before is done."""
        if self.device is None:
            return np.array(array)
        from lab.gpu.launch import current_stream, read

        return read(array.data.ptr, array.shape, array.dtype, self.device, current_stream(self.device))


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
