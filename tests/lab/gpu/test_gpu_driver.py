"""No driver, no device and a refused call are one sentence each; contexts are lent and given back."""

import ctypes
from collections.abc import Iterator
from typing import Any

import cuda.bindings.driver
import pytest

from lab.gpu import driver
from sim.errors import EnvironmentFailure, NoDeviceError
from tests.lab.gpu.fake_driver import SUCCESS, FakeDriver


@pytest.fixture
def unprobed() -> Iterator[None]:
    """No driver has been looked for, and what is found here is forgotten."""
    driver.api.cache_clear()
    yield
    driver.api.cache_clear()


@pytest.mark.usefixtures("unprobed")
def test_no_driver_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", missing)
    monkeypatch.setattr(cuda.bindings.driver, "cuInit", lambda _: pytest.fail("the bindings were asked"))
    with pytest.raises(NoDeviceError, match=r"^there is no NVIDIA driver here \(libcuda.so.1 was not found\)$"):
        driver.api()


NO_DEVICE, NOT_READY = (
    cuda.bindings.driver.CUresult.CUDA_ERROR_NO_DEVICE,
    cuda.bindings.driver.CUresult.CUDA_ERROR_SYSTEM_NOT_READY,
)


@pytest.mark.usefixtures("unprobed")
@pytest.mark.parametrize(
    ("init", "count", "sentence"),
    [
        (NO_DEVICE, 0, "no GPU that this process can see"),
        (SUCCESS, 0, "no GPU that this process can see"),
        (NOT_READY, 0, r"^the NVIDIA driver cannot start \(CUDA_ERROR_SYSTEM_NOT_READY\)$"),
    ],
)
def test_no_device_is_one_sentence(monkeypatch: pytest.MonkeyPatch, init: Any, count: int, sentence: str) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _: None)
    monkeypatch.setattr(cuda.bindings.driver, "cuInit", lambda _: (init,))
    monkeypatch.setattr(cuda.bindings.driver, "cuDeviceGetCount", lambda: (SUCCESS, count))
    with pytest.raises(NoDeviceError, match=sentence):
        driver.api()


def test_a_failed_call_names_its_meaning_and_function(monkeypatch: pytest.MonkeyPatch, fake: FakeDriver) -> None:
    status = cuda.bindings.driver.CUresult.CUDA_ERROR_ILLEGAL_ADDRESS
    monkeypatch.setattr(fake, "cuStreamSynchronize", lambda _: (status,), raising=False)
    with pytest.raises(EnvironmentFailure) as caught:
        driver.synchronize(3)
    assert str(caught.value) == (
        "a kernel accessed an illegal address (CUDA_ERROR_ILLEGAL_ADDRESS in cuStreamSynchronize)"
    )


def test_a_code_that_the_bindings_do_not_know_is_its_number() -> None:
    assert str(driver.failure(12345, "cuX")) == "the CUDA driver refused a call (CUDA error 12345 in cuX)"


@pytest.mark.parametrize(("before", "after"), [(0, 101), (100, 100), (101, 101)])
def test_a_context_is_lent_and_given_back(fake: FakeDriver, before: int, after: int) -> None:
    fake.context = before
    with driver.current(1):
        assert fake.context == 101
    assert fake.context == after
