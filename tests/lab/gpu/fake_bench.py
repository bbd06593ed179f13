"""A device for benches: its memory is the host's, a kernel a Python function, every time what the test says."""

import ctypes
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lab.gpu import bench, ceilings
from lab.gpu.device import Conditions
from lab.gpu.expectation import Expectation
from lab.gpu.timing import GRAPH_SAMPLE_US, Clock, Contestant, Pace, Timing
from lab.problems import Linear, Problem
from sim.errors import KernelError
from sim.formats import FORMATS, encode
from sim.machine import H100


class DeviceArray(np.ndarray):
    """An array of the host that looks like one of the device."""

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return dict(self.__array_interface__)

    def get(self) -> Any:
        return np.array(self)


def on_device(array: Any) -> Any:
    """A copy that is aligned as device memory is."""
    room = np.zeros(array.nbytes + 256, np.uint8).view(DeviceArray)
    start = -room.__array_interface__["data"][0] % 256
    inside = room[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    inside[...] = array
    return inside


class Device:
    """Kernels by schedule: each gets the address of y and the right bits; `us` are the times it will measure."""

    def __init__(self) -> None:
        self.kernels: dict[Any, Callable[[int, Any], None]] = {}
        self.spilling: list[Any] = []
        self.us: dict[str, float] = {}
        self.usual_us = 12.0
        self.measured: list[tuple[list[str], Clock, int, Pace]] = []
        self.right: Any = None  # bits of the main output
        self.others: dict[str, Any] = {}  # and of the others
        self.dependent: list[bool] = []  # of each that was made ready

    def measure(
        self,
        contestants: list[Contestant],
        clock: Clock,
        rounds: int,
        pace: Pace = Pace.SUSTAINED,
        sample_us: float = GRAPH_SAMPLE_US,
    ) -> dict[str, Timing]:
        assert 0 < sample_us <= GRAPH_SAMPLE_US
        self.measured.append(([c.name for c in contestants], clock, rounds, pace))
        conditions = Conditions(1700.0, 2619.0, 500.0, 50.0, ("power cap",))
        times = {c.name: self.us.get(c.name, self.usual_us) for c in contestants}
        samples = {name: tuple(us + i for i in range(rounds)) for name, us in times.items()}
        return {name: Timing(name, clock, pace, found, conditions) for name, found in samples.items()}

    def prepare(self, launches: Any, machine: Any) -> Any:
        assert machine is H100
        self.dependent.append(launches[0].dependent)
        schedule = launches[0].schedule
        if schedule in self.spilling:
            raise KernelError("it spills 8 B a thread")
        kernel = self.kernels.get(schedule, write)

        def bind(pointers: Mapping[str, int]) -> Callable[[], None]:
            main, *others = launches[0].problem.outputs
            assert {*launches[0].problem.inputs, main, *others} <= set(pointers)

            def call() -> None:
                kernel(pointers[main], self.right)
                for name in others:
                    write(pointers[name], self.others[name])

            return call

        return SimpleNamespace(bind=bind)

    def peer(self, problem: Linear, arrays: Mapping[str, Any]) -> Callable[[], None]:
        assert problem
        return lambda: write(arrays["y"].__array_interface__["data"][0], self.right)


def stored(values: Any, form: str) -> Any:
    return encode(values, form) if form in FORMATS else values.astype(form)


def write(y: int, bits: Any) -> None:
    dense = np.ascontiguousarray(bits)  # maybe a copy, which must outlive the move
    ctypes.memmove(y, dense.ctypes.data, dense.nbytes)


def wrong(y: int, bits: Any) -> None:
    changed = bits.copy()
    changed[0, 5] = encode(np.float32(1e9), "bf16")
    write(y, changed)


def install(monkeypatch: pytest.MonkeyPatch) -> Device:
    """Put such a device in the place of CuPy and the driver; a kernel is right unless `kernels` has another."""
    found = Device()
    of = Expectation.of

    def expect(problem: Problem, seed: int | None) -> Expectation:
        expectation = of(problem, seed)
        right = problem.reference(expectation.inputs)
        bits = {name: stored(right[name].value, operand.format) for name, operand in problem.outputs.items()}
        found.right = bits.pop(next(iter(bits)))
        found.others = bits
        return expectation

    stream = SimpleNamespace(Stream=lambda **_: nullcontext(), get_current_stream=lambda: SimpleNamespace(ptr=9))
    zeros = lambda shape, dtype: on_device(np.zeros(shape, dtype))  # noqa: E731
    monkeypatch.setattr(bench, "cupy", SimpleNamespace(cuda=stream, asarray=on_device, zeros=zeros))
    monkeypatch.setattr(bench, "Prepared", found.prepare)
    monkeypatch.setattr(bench, "measure", found.measure)
    monkeypatch.setattr(bench, "rotation", lambda _: 2)
    monkeypatch.setattr(bench, "device_workspaces", lambda steps: {"partials": None} if len(steps) > 9 else {})
    monkeypatch.setattr(bench, "pointers_of", lambda arrays, _: {n: address(a) for n, a in arrays.items()})
    reader = Contestant("read4 9 x 512", (lambda: None,))
    monkeypatch.setattr(ceilings, "read_contestants", lambda nbytes, copies: [reader] if nbytes * copies else [])
    monkeypatch.setattr(bench, "compile_ahead", lambda *_: None)
    monkeypatch.setattr(bench.driver, "synchronize", lambda _: None)
    monkeypatch.setattr(bench, "card", lambda: SimpleNamespace(name="NVIDIA H100 80GB HBM3", driver="580"))
    monkeypatch.setattr(Expectation, "of", expect)
    return found


def address(array: Any) -> int:
    return int(array.__array_interface__["data"][0])
