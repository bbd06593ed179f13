"""What reaches the driver, and that the executor really carries guard bands there and back."""

import ctypes
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from lab import catalog
from lab.gpu.launch import Prepared, executor
from lab.problems import Linear
from lab.verify import guarded_array, guards_intact, verify
from sim.counts import Counts
from sim.errors import EnvironmentFailure, NoDeviceError
from sim.formats import encode
from sim.launch import Role
from sim.machine import A100, H100
from tests.lab.gpu.fake_driver import FakeDriver, index_of
from tests.strategies import compare_y

KERNEL = catalog.get("gemv_vectorized")
PROBLEM = Linear(3, 20, 64)
SCHEDULE = KERNEL.best_guess(PROBLEM, H100)
LAUNCHES = KERNEL.launches(PROBLEM, SCHEDULE, H100)


def host(pointer: int, shape: tuple[int, ...]) -> Any:
    """A "device" array of the fake driver, which is host memory."""
    count = int(np.prod(shape))
    return np.ctypeslib.as_array((ctypes.c_uint16 * count).from_address(pointer)).reshape(shape)


def right_kernel(device: FakeDriver) -> None:
    x, w, y = (device.pointer(index_of(LAUNCHES[0], name)) for name in ("x", "w", "y"))
    arrays = {"x": host(x, (3, 64)), "w": host(w, (20, 64))}
    host(y, (3, 20))[...] = encode(PROBLEM.reference(arrays)["y"].value, PROBLEM.output)


def test_the_executor_brings_results_back(fake: Any) -> None:
    fake.kernel = right_kernel
    found = verify(KERNEL, PROBLEM, SCHEDULE, H100, executor(H100))
    assert found.passed
    assert found.counted == Counts()
    (config,) = fake.configs
    assert (config["grid"], config["block"], config["stream"]) == (LAUNCHES[0].grid, LAUNCHES[0].block, 9)


@pytest.mark.parametrize("beyond", [-1, 60])
def test_the_executor_shows_writes_outside_an_output(fake: Any, beyond: int) -> None:
    def kernel(device: FakeDriver) -> None:
        right_kernel(device)
        y = device.pointer(index_of(LAUNCHES[0], "y"))
        ctypes.c_uint16.from_address(y + 2 * beyond).value = 1

    fake.kernel = kernel
    found = verify(KERNEL, PROBLEM, SCHEDULE, H100, executor(H100))
    assert not found.check.guards_intact


def test_an_element_that_no_one_writes_fails(fake: Any) -> None:
    def kernel(device: FakeDriver) -> None:
        right_kernel(device)
        y = device.pointer(index_of(LAUNCHES[0], "y"))
        ctypes.c_uint16.from_address(y + 2 * 7).value = 0xFFFF

    fake.kernel = kernel
    outputs = {a.name: guarded_array(a) for a in LAUNCHES[0].arrays if a.role is Role.OUT}
    inputs = PROBLEM.draw(np.random.default_rng(0))
    arrays = {**inputs, "y": outputs["y"][1]}
    executor(H100)(LAUNCHES, arrays)
    assert guards_intact(outputs["y"][0])
    assert compare_y(PROBLEM, inputs, arrays["y"]).first_mismatch == (0, 7)


def test_clusters_dependent_launches_and_shared_memory_reach_the_driver(fake: FakeDriver) -> None:
    launch = replace(LAUNCHES[0], cluster=(16, 2, 1), dependent=True, shared_bytes=100_000)
    Prepared((launch,), H100)(stream=3)
    (config,) = fake.configs
    assert (config["CLUSTER_DIMENSION"], config["PROGRAMMATIC_STREAM_SERIALIZATION"]) == ((16, 2, 1), 1)
    assert (config["shared_bytes"], config["stream"]) == (100_000, 3)
    attributes = fake.CUfunction_attribute
    assert (attributes.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, 100_000) in fake.attributes_set
    assert (attributes.CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED, 1) in fake.attributes_set


def test_a_plain_launch_has_no_attributes(fake: FakeDriver) -> None:
    Prepared((replace(LAUNCHES[0], dependent=False),), H100)(stream=3)
    (config,) = fake.configs
    assert not config.keys() & {"CLUSTER_DIMENSION", "PROGRAMMATIC_STREAM_SERIALIZATION"}


def test_streams_take_turns(fake: FakeDriver) -> None:
    prepared = Prepared(LAUNCHES, H100)
    for stream in (0, 3, 3, 4, 0):
        prepared(stream)
    assert [config["stream"] for config in fake.configs] == [0, 3, 3, 4, 0]


def test_rebinding_moves_only_what_moved(fake: FakeDriver) -> None:
    prepared = Prepared(LAUNCHES, H100).bind({"x": 16, "w": 32, "y": 48})
    prepared(1)
    prepared.bind({"x": 64})(1)
    assert [fake.pointer(index_of(LAUNCHES[0], name)) for name in ("x", "w", "y")] == [64, 32, 48]


def test_a_refused_launch_is_one_sentence(fake: FakeDriver) -> None:
    fake.status = fake.CUresult.CUDA_ERROR_ILLEGAL_ADDRESS
    with pytest.raises(EnvironmentFailure, match=r"illegal address \(.* in cuLaunchKernelEx of gemv_vectorized\)"):
        Prepared(LAUNCHES, H100)(1)
    with pytest.raises(EnvironmentFailure, match="illegal address"):
        Prepared(LAUNCHES, H100).at({}, 1)()


@pytest.mark.parametrize(("before", "after"), [(0, 101), (100, 100), (101, 101)])
def test_launches_on_another_gpu_leave_the_callers_context(fake: FakeDriver, before: int, after: int) -> None:
    fake.devices, fake.context = 2, before
    prepared = Prepared(LAUNCHES, H100, device=1)
    kept = prepared.at({}, 3)
    for call in (lambda: prepared(1), kept):
        fake.context = before
        call()
        assert fake.context == after
    assert [(config["context"], config["stream"]) for config in fake.configs] == [(101, 1), (101, 3)]


@pytest.mark.usefixtures("fake")
def test_code_for_another_gpu_is_refused() -> None:
    with pytest.raises(NoDeviceError, match=r"A100 SXM 40 GB .* does not run on this NVIDIA H100"):
        Prepared(LAUNCHES, A100)
