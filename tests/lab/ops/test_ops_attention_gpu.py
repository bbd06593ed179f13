"""lab.attention on a GPU, which a driver that computes by hand stands for: repeated calls, graphs, checks, pointers."""

import ctypes
from collections.abc import Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

import lab
from lab.execute import Plan
from lab.gpu import driver
from lab.ops import arrays as ops_arrays
from lab.ops import attention, calls
from lab.ops.arrays import TORCH
from lab.problems import Attention
from sim.errors import InputError
from sim.launch import Array, Launch, Role
from sim.machine import H100
from tests.lab.execute.conftest import fake
from tests.lab.gpu.fake_driver import DeviceArray, FakeDriver
from tests.lab.ops.attention_by_hand import compute
from tests.lab.ops.attention_calls import CACHE, PAGED, Q

__all__ = ["fake"]


class Tensor:
    """It looks like PyTorch's, on a GPU, as far as a repeated call looks."""

    def __init__(
        self, shape: tuple[int, ...], pointer: int, dtype: str = "torch.bfloat16", strides: tuple[int, ...] = ()
    ) -> None:
        self.shape, self.pointer, self.dtype, self.strides = shape, pointer, dtype, strides

    def stride(self) -> tuple[int, ...]:
        return self.strides

    def data_ptr(self) -> int:
        return self.pointer

    def is_contiguous(self) -> bool:
        return not self.strides

    def get_device(self) -> int:
        return 0


def test_a_repeated_call_runs_at_once_and_what_differs_goes_the_long_way(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []
    q, cache, out = Tensor(Q.shape, 1 << 12), Tensor(CACHE.shape, 1 << 16), Tensor(Q.shape, 1 << 20)
    lens, table = Tensor((2,), 1 << 21, "torch.int32"), Tensor((2, 2), 1 << 22, "torch.int32")
    call = {"q": q, "k": cache, "kv_lens": lens, "block_table": table}
    monkeypatch.setattr(ops_arrays, "raw_stream", lambda: lambda device: 7 + device)
    key = attention._key(TORCH, {**call, "y": out}, (True, 0, 0.0, None, None, 0, False), None)
    monkeypatch.setattr(attention, "_ready", {key: partial(ran.append, "again")})
    monkeypatch.setattr(attention, "_libraries", {Tensor: TORCH})
    assert lab.attention(**call, out=out) is out
    assert ran == ["again"]
    changes: tuple[dict[str, Any], ...] = (
        {"window": 2},
        {"scale": 0.5},
        {"stream": 8},
        {"check": True},
        {"lse": True},
        {"out": None},
        {"q": Tensor(Q.shape, 0)},
        {"q": Tensor(Q.shape, 1 << 12, strides=(96, 24, 8, 1))},  # a part of a projection
        {"out": Tensor(Q.shape, (1 << 12) + 64)},
        {"kv_lens": Tensor((2,), (1 << 20) + 16, "torch.int32")},
        {"kv_lens": Tensor((2,), (1 << 21) + 4, "torch.int32")},
        {"k": Tensor((8, *CACHE.shape[1:]), 1 << 16)},
    )
    for change in changes:
        with pytest.raises((AttributeError, InputError)):  # these tensors do not look like PyTorch's on the long way
            lab.attention(**{**call, "out": out, **change})
    assert len(ran) == 1


class Device(NamedTuple):
    """A GPU that computes by hand, and the arrays of a paged call there."""

    driver: FakeDriver
    call: dict[str, Any]


@pytest.fixture
def gpu(fake: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> Iterator[Device]:
    def planned(problem: Attention, machine: Any) -> Plan:
        arguments = [Array(name, Role.IN, *operand) for name, operand in problem.inputs.items()]
        arguments += [Array(name, Role.OUT, *operand) for name, operand in problem.outputs.items()]
        fake.kernel, fake.arguments = (lambda device: run(device, problem)), len(arguments)
        launch = Launch("rmsnorm", "rmsnorm", problem, None, (1, 1, 1), (32, 1, 1), tuple(arguments))
        return Plan(problem, machine, SimpleNamespace(), None, (launch,))

    def run(device: FakeDriver, problem: Attention) -> None:
        operands = problem.inputs | problem.outputs
        compute(problem, {name: at(device.pointer(i), o) for i, (name, o) in enumerate(operands.items())})

    monkeypatch.setattr(calls, "plan", planned)
    monkeypatch.setattr(calls, "machine", lambda _: H100)
    attention._bound.cache_clear()
    out, lse = np.zeros(Q.shape, np.uint16), np.zeros(Q.shape[:-1], np.float32)
    here = {**PAGED, "q": Q.view(np.uint16), "k": CACHE.view(np.uint16), "out": out, "lse": lse}
    yield Device(fake, {name: DeviceArray(array) for name, array in here.items()} | {"stream": 5})
    attention._bound.cache_clear()


def at(pointer: int, operand: Any) -> NDArray:
    raw = np.ctypeslib.as_array((ctypes.c_uint8 * operand.nbytes).from_address(pointer))
    return raw.view(operand.storage).reshape(operand.shape)


def right(call: dict[str, Any]) -> bool:
    host = {name: array.host for name, array in call.items() if isinstance(array, DeviceArray)}
    problem = Attention(2, 4, 2, 8, 3, 8, page=4, pool=9, lse=True)
    y, lse = np.zeros_like(host["out"]), np.zeros_like(host["lse"])
    operands = {name: host[name] for name in ("q", "kv_lens", "block_table")} | {"cache": host["k"]}
    compute(problem, {**operands, "q_starts": np.array([0, 3, 6], np.int32), "y": y, "lse": lse})
    return np.array_equal(y, host["out"]) and np.array_equal(lse, host["lse"])


def test_a_graph_replays_as_lengths_and_tables_change(gpu: Device) -> None:
    """What a call does not give, here where queries start, is made once and kept."""
    driver.call("cuStreamBeginCapture", 5, None)
    lab.attention(**gpu.call)
    graph = driver.call("cuGraphInstantiate", driver.call("cuStreamEndCapture", 5), 0)
    for lens, table in (((2, 4), ((1, 2), (8, 3))), ((8, 0), ((4, 5), (0, 0))), ((1, 7), ((6, 0), (7, 2)))):
        gpu.call["kv_lens"].host[...] = lens
        gpu.call["block_table"].host[...] = table
        gpu.call["out"].host[...] = 0xFFFF
        driver.call("cuGraphLaunch", graph, 5)
        assert right(gpu.call)
    assert attention._bound.cache_info().misses == 1


def test_the_gpu_is_given_the_arrays_themselves(gpu: Device) -> None:
    lab.attention(**gpu.call)
    assert right(gpu.call)
    assert gpu.driver.configs[-1]["stream"] == 5
    used = {gpu.driver.pointer(i) for i in range(gpu.driver.arguments)}
    assert {array.data.ptr for name, array in gpu.call.items() if name != "stream"} <= used
    moved = {name: DeviceArray(array.host) for name, array in gpu.call.items() if name != "stream"}
    lab.attention(**moved, stream=5)
    assert right(moved)
    lab.attention(**moved, stream=6)
    assert attention._bound.cache_info().misses == 2  # a stream has workspaces of its own


def test_check_reads_what_is_on_the_gpu(gpu: Device) -> None:
    lab.attention(**gpu.call, check=True)
    assert right(gpu.call)
    gpu.call["block_table"].host[1, 0] = 9
    launches = len(gpu.driver.configs)
    with pytest.raises(InputError, match=r"pages are from 1 to 8; block_table\[1, 0\] = 9"):
        lab.attention(**gpu.call, check=True)
    gpu.call["kv_lens"].host[1] = 9
    with pytest.raises(InputError, match=r"kv_lens are from 0 to 8; kv_lens\[1\] = 9"):
        lab.attention(**gpu.call, check=True)
    assert len(gpu.driver.configs) == launches


def test_check_is_refused_while_a_graph_is_captured(gpu: Device) -> None:
    driver.call("cuStreamBeginCapture", 5, None)
    with pytest.raises(InputError, match="not while a graph is captured"):
        lab.attention(**gpu.call, check=True)


def test_arrays_that_start_off_a_boundary_are_refused(gpu: Device) -> None:
    interface = gpu.call["kv_lens"].__cuda_array_interface__
    pointer, read_only = interface["data"]
    for shift, fine in ((4, True), (2, False)):
        shifted = SimpleNamespace(__cuda_array_interface__={**interface, "data": (pointer + shift, read_only)})
        changed = {**gpu.call, "kv_lens": shifted}
        if fine:
            lab.attention(**changed)
            continue
        with pytest.raises(InputError, match="kv_lens must start at a multiple of 4 B"):
            lab.attention(**changed)
