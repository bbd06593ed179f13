"""Launches on a GPU: loaded, with workspaces in its memory and the arrays they work on; graphs of them."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from threading import Lock
from typing import Any

from lab.execute.bound import Bound, Copy, described_arrays, require_all
from lab.gpu.graph import CapturedGraph
from lab.gpu.launch import Prepared, current_stream, device_workspaces
from lab.gpu.parameters import pointer_of, require_on
from sim.counts import Counts
from sim.errors import InputError
from sim.launch import Launch
from sim.machine import Machine

_NOT_COUNTED = Counts()


class DeviceBound:
    """Launches on one GPU. Two threads may bind and run it, one at a time."""

    def __init__(self, launches: tuple[Launch, ...], machine: Machine, device: int) -> None:
        self.device = device
        self._described = described_arrays(launches)
        self._prepared = Prepared(launches, machine, device)
        self.arrays: dict[str, Any] = device_workspaces(launches, device)  # they must live as long as this
        self._prepared.bind({name: array.data.ptr for name, array in self.arrays.items()})
        self._lock = Lock()

    def bind(self, arrays: Mapping[str, Any]) -> "DeviceBound":
        given = {name: arrays[name] for name in self._described if name in arrays}
        pointers = {name: pointer_of(array, self._described[name]) for name, array in given.items()}
        for name, pointer in pointers.items():
            if not self._described[name].peer:  # which may lie where the device reaches it
                require_on(self.device, pointer, name)
        with self._lock:
            self._prepared.bind(pointers)
            self.arrays |= given
        return self

    def run(self, stream: int | None = None) -> Counts:
        require_all(self._described, self.arrays)
        with self._lock:
            self._prepared(stream)
        return _NOT_COUNTED

    def at(self, pointers: Mapping[str, int], stream: int) -> Callable[[], None]:
        """A call that runs on arrays at these addresses, which the caller has checked and keeps, on one stream."""
        return self._prepared.at(pointers, stream)

    def run_at(self, pointers: Mapping[str, int], stream: int | None = None) -> None:
        """Run on arrays at these addresses, which the caller has checked and keeps."""
        with self._lock:
            self._prepared.bind(pointers)(stream)


class DeviceGraph:
    """Launches of one GPU in a CUDA graph, and copies before and after them."""

    def __init__(self, bound: Sequence[Bound], before: Sequence[Copy] = (), after: Sequence[Copy] = ()) -> None:
        self._bound = [one for one in bound if isinstance(one, DeviceBound)]
        devices = {one.device for one in self._bound}
        if len(self._bound) < len(bound) or len(devices) > 1:
            raise InputError("a graph is of launches on one chip; these are bound on several")
        (self._device,) = devices
        self._graph = CapturedGraph(
            partial(_run_all, [*before, *(one.run for one in self._bound), *after]), self._device
        )
        self._arrays = [dict(one.arrays) for one in self._bound]  # the graph has their addresses

    def replay(self, stream: int | None = None) -> Counts:
        self._graph.launch(current_stream(self._device) if stream is None else stream)
        return _NOT_COUNTED

    def update(self) -> None:
        self._graph.update()
        self._arrays = [dict(one.arrays) for one in self._bound]


def _run_all(calls: Sequence[Callable[[int], object]], stream: int) -> None:
    for call in calls:
        call(stream)
