"""What GPUs need of each other's memory, on two fake ones: links, and copies of many pages as one call."""

import ctypes
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lab.gpu import copies, driver, shared
from lab.gpu.copies import Copies
from sim.errors import EnvironmentFailure
from tests.lab.gpu.fake_driver import DeviceArray, FakeCupy, FakeDriver


class FakeRuntimeError(Exception):
    """CuPy's, with its number."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class FakeRuntime:
    """Two GPUs, of which `links` reach each other; enabling one raises `status` where that is not 0."""

    CUDARuntimeError = FakeRuntimeError

    def __init__(self, links: set[tuple[int, int]], status: int = 0) -> None:
        self.links, self.status, self.enabled = links, status, []

    def deviceCanAccessPeer(self, here: int, there: int) -> bool:
        return (here, there) in self.links

    def deviceEnablePeerAccess(self, there: int) -> None:
        self.enabled.append(there)
        if self.status:
            raise FakeRuntimeError(self.status)


def reached(monkeypatch: pytest.MonkeyPatch, runtime: FakeRuntime, here: int, there: int) -> bool:
    cuda = SimpleNamespace(Device=FakeCupy.cuda.Device, runtime=runtime)
    monkeypatch.setattr(shared, "cupy", SimpleNamespace(cuda=cuda))
    return shared.reach(here, there)


@pytest.mark.parametrize("status", [0, 704])  # cudaErrorPeerAccessAlreadyEnabled
def test_a_link_is_opened_once_and_may_be_open_already(monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    runtime = FakeRuntime({(0, 1), (1, 0)}, status)
    assert reached(monkeypatch, runtime, 0, 1)
    assert runtime.enabled == [1]
    assert reached(monkeypatch, runtime, 1, 1)
    assert runtime.enabled == [1]


def test_no_link_is_said_and_other_errors_are_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not reached(monkeypatch, FakeRuntime(set()), 0, 1)
    with pytest.raises(FakeRuntimeError):
        reached(monkeypatch, FakeRuntime({(0, 1)}, status=2), 0, 1)


class FakeLibrary:
    """libcuda whose device is this computer's memory: a batch is copied at once."""

    def __init__(self, status: int = 0) -> None:
        self.status = status

    def cuMemcpyBatchAsync_v2(
        self, to: Any, source: Any, sizes: Any, count: Any, attributes: Any, first: Any, number: Any, stream: Any
    ) -> int:
        assert (attributes._obj.order, first._obj.value, number.value, stream.value) == (1, 0, 1, 9)
        arrays = [np.ctypeslib.as_array(ctypes.cast(a, ctypes.POINTER(ctypes.c_uint64)), (count.value,))
                  for a in (to, source, sizes)]  # fmt: skip
        for target, origin, size in zip(*(array.tolist() for array in arrays), strict=True):
            ctypes.memmove(target, origin, size)
        return self.status


def rows() -> tuple[DeviceArray, DeviceArray, Copies]:
    source, target = DeviceArray(np.arange(40, dtype=np.uint16).reshape(5, 8)), DeviceArray(np.zeros((6, 8), np.uint16))
    source.nbytes, DeviceArray.__len__ = 80, lambda self: len(self.host)
    return source, target, Copies(target, np.array([5, 0, 2]), source, np.array([1, 4, 0]), 1)


def require_copied(source: DeviceArray, target: DeviceArray) -> None:
    np.testing.assert_array_equal(target.get()[[5, 0, 2]], source.get()[[1, 4, 0]])
    assert not target.get()[[1, 3, 4]].any()


def test_a_batch_is_one_call_with_every_pages_addresses(fake: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copies.ctypes, "CDLL", lambda _: FakeLibrary())
    source, target, found = rows()
    found.batch(9)
    require_copied(source, target)
    monkeypatch.setattr(copies.ctypes, "CDLL", lambda _: FakeLibrary(status=1))
    with pytest.raises(EnvironmentFailure, match="cuMemcpyBatchAsync"):
        found.batch(9)
    monkeypatch.setattr(copies.ctypes, "CDLL", lambda _: SimpleNamespace())
    with pytest.raises(EnvironmentFailure, match="NOT_SUPPORTED"):
        found.batch(9)
    assert fake.context == 101, "the GPU's own context"


def test_one_by_one_each_page_has_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    def call_on(device: int, function: str, to: int, source: int, nbytes: int, stream: int) -> None:
        assert (device, function, stream) == (1, "cuMemcpyAsync", 9)
        ctypes.memmove(to, source, nbytes)

    monkeypatch.setattr(driver, "call_on", call_on)
    source, target, found = rows()
    found.one_by_one(9)
    require_copied(source, target)
