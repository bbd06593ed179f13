"""The runner on GPUs that the fake driver stands for: arrays, streams, contexts and graphs reach the driver."""

import ctypes
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from lab import catalog
from lab.execute import capture, plan
from lab.gpu.launch import MOST_CONSTANTS, constant
from lab.problems import Linear
from sim.errors import EnvironmentFailure, InputError
from sim.formats import encode
from sim.launch import Array, Role
from sim.machine import H100
from tests.lab.gpu.fake_driver import DeviceArray, FakeDriver, index_of
from tests.strategies import compare_y

PROBLEM = Linear(3, 24, 64)
KERNEL = catalog.get("gemv_vectorized")
PLAN = plan(PROBLEM, H100, kernel=KERNEL)
(LAUNCH,) = PLAN.launches


def at(pointer: int, shape: tuple[int, ...]) -> Any:
    count = int(np.prod(shape))
    return np.ctypeslib.as_array((ctypes.c_uint16 * count).from_address(pointer)).reshape(shape)


def compute(device: FakeDriver) -> None:
    """What the kernel does, wherever its arrays are."""
    x, w, y = (device.pointer(index_of(LAUNCH, name)) for name in ("x", "w", "y"))
    found = PROBLEM.reference({"x": at(x, (3, 64)), "w": at(w, (24, 64))})["y"]
    at(y, (3, 24))[...] = encode(found.value, "bf16")


@pytest.fixture
def gpus(fake: FakeDriver) -> FakeDriver:
    fake.kernel, fake.devices, fake.arguments = compute, 2, len(LAUNCH.arguments)
    return fake


def arrays_of(seed: int) -> dict[str, Any]:
    drawn = PROBLEM.draw(np.random.default_rng(seed))
    return {name: DeviceArray(a) for name, a in drawn.items()} | {"y": DeviceArray(np.zeros((3, 24), np.uint16))}


def right(arrays: dict[str, Any]) -> bool:
    return compare_y(PROBLEM, {name: a.get() for name, a in arrays.items()}, arrays["y"].get()).passed


def test_a_run_is_enqueued_on_the_stream_asked_for_or_the_current_one(gpus: FakeDriver) -> None:
    arrays = arrays_of(1)
    bound = PLAN.bind(arrays)
    bound.run()
    assert right(arrays)
    bound.run(stream=3)
    assert [config["stream"] for config in gpus.configs] == [9, 3]


def test_another_gpu_has_its_own_context_module_and_stream(gpus: FakeDriver) -> None:
    arrays = arrays_of(1)
    gpus.homes = {array.data.ptr: 1 for array in arrays.values()}
    gpus.context = 100  # the caller uses GPU 0
    bound = PLAN.bind(arrays, device=1)
    bound.run()
    assert right(arrays)
    assert [(config["context"], config["stream"]) for config in gpus.configs] == [(101, 10)]
    assert gpus.context == 100
    with pytest.raises(InputError, match=r"x is on GPU 0; it must be on GPU 1"):
        bound.bind({"x": DeviceArray(np.zeros((3, 64), np.uint16))})


def test_workspaces_are_zeroed_on_the_device_and_are_no_callers_business(gpus: FakeDriver) -> None:
    partials = Array("partials", Role.WORKSPACE, (4, 8), "fp32")
    between = Array("scores", Role.OUT, (2, 2), "fp32")  # of the first launch for the second
    launches = tuple(replace(LAUNCH, arguments=(*LAUNCH.arguments, own)) for own in (partials, between))
    bound: Any = replace(PLAN, launches=launches).bind(arrays_of(1))
    assert {name: bound.arrays[name].get().shape for name in ("partials", "scores")} == {
        "partials": (4, 8),
        "scores": (2, 2),
    }
    assert not bound.arrays["partials"].get().any()
    bound.run()
    assert gpus.pointer(len(LAUNCH.arguments)) == bound.arrays["scores"].data.ptr
    with pytest.raises(InputError, match="no array was bound for x, w, y"):
        replace(PLAN, launches=launches).bind({}).run()


@pytest.mark.usefixtures("gpus")
def test_host_arrays_are_refused() -> None:
    with pytest.raises(InputError, match="x must be an array on a GPU; it is ndarray"):
        PLAN.bind(PROBLEM.draw(np.random.default_rng(0)))


def test_addresses_that_the_caller_has_checked_run_at_once(gpus: FakeDriver) -> None:
    bound: Any = PLAN.bind({})
    for seed in (1, 2):
        arrays = arrays_of(seed)
        bound.run_at({name: array.data.ptr for name, array in arrays.items()}, 5)
        assert right(arrays)
    assert [config["stream"] for config in gpus.configs] == [5, 5]


def test_calls_keep_their_addresses_beside_what_is_bound(gpus: FakeDriver) -> None:
    """Each call has parameters of its own: neither another call nor binding moves them."""
    bound: Any = PLAN.bind({})
    made = [arrays_of(seed) for seed in (1, 2)]
    calls = [bound.at({name: array.data.ptr for name, array in arrays.items()}, 5) for arrays in made]
    bound.bind(arrays_of(3))
    for call, arrays in zip(calls, made, strict=True):
        call()
        assert right(arrays)
    assert [config["stream"] for config in gpus.configs] == [5, 5]


def test_a_graph_replays_what_it_captured_and_follows_when_told(gpus: FakeDriver) -> None:
    bound = PLAN.bind(first := arrays_of(1))
    graph = capture(bound)
    assert not right(first)  # capturing runs nothing
    bound.bind(second := arrays_of(2))
    graph.replay()
    assert (right(first), right(second)) == (True, False)
    graph.update()
    graph.replay(stream=4)
    assert right(second)
    assert [call for call in gpus.called if "Launch" in call] == ["cuGraphLaunch on 9", "cuGraphLaunch on 4"]
    del graph
    assert {"cuGraphExecDestroy", "cuStreamDestroy"} <= set(gpus.called)


def test_a_graph_is_of_one_chip(gpus: FakeDriver) -> None:
    arrays = arrays_of(1)
    here = PLAN.bind(arrays)
    gpus.homes = {array.data.ptr: 1 for array in arrays.values()}
    there = PLAN.bind(arrays, device=1)
    simulated = PLAN.bind({}, device=None)
    for mixed in ((here, there), (here, simulated)):
        with pytest.raises(InputError, match="a graph is of launches on one chip"):
            capture(*mixed)


def test_a_capture_that_fails_ends(gpus: FakeDriver) -> None:
    bound = PLAN.bind(arrays_of(1))
    gpus.status = gpus.CUresult.CUDA_ERROR_INVALID_VALUE
    with pytest.raises(EnvironmentFailure, match="cuLaunchKernelEx of gemv_vectorized"):
        capture(bound)
    gpus.status = gpus.CUresult.CUDA_SUCCESS
    capture(bound).replay()


def test_a_number_is_one_constant_on_each_gpu(gpus: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: dict[Any, Any] = {}
    monkeypatch.setattr("lab.gpu.launch._constants", kept)
    half = constant(0.5, 0)
    assert half.get() == np.float32([0.5])
    assert constant(0.5, 0) is half
    assert constant(0.5, 1) is not half
    assert constant(float("nan"), 0) is constant(float("nan"), 0)
    assert constant(-0.0, 0) is not constant(0.0, 0)
    kept.update({("more", i): half for i in range(MOST_CONSTANTS)})
    assert constant(0.5, 0) is half
    with pytest.raises(InputError, match="pass those that change as arrays"):
        constant(0.25, 0)
    assert gpus.devices == 2
