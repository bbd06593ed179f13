"""The driver's structures are laid out as the official bindings lay them out; no driver is one sentence."""

import ctypes
from dataclasses import replace

import pytest

from lab import catalog
from lab.gpu import driver
from lab.gpu.launch import launch_attributes
from lab.problems import Linear
from sim.errors import EnvironmentFailure, NoDeviceError
from sim.machine import H100
from tests.lab.gpu.fake_driver import FakeLibrary

KERNEL = catalog.get("gemv_vectorized")
PROBLEM = Linear(1, 64, 256)


def test_structures_have_the_bindings_layout() -> None:
    bindings = pytest.importorskip("cuda.bindings.driver")
    theirs = bindings.CUlaunchConfig()
    theirs.gridDimX, theirs.gridDimY, theirs.gridDimZ = 1, 2, 3
    theirs.blockDimX, theirs.blockDimY, theirs.blockDimZ = 4, 5, 6
    theirs.sharedMemBytes, theirs.hStream = 7, 8
    ids = bindings.CUlaunchAttributeID
    cluster, dependent = bindings.CUlaunchAttribute(), bindings.CUlaunchAttribute()
    cluster.id = ids.CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION
    cluster.value.clusterDim.x, cluster.value.clusterDim.y, cluster.value.clusterDim.z = 2, 1, 1
    dependent.id = ids.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
    dependent.value.programmaticStreamSerializationAllowed = 1
    theirs.attrs, theirs.numAttrs = [cluster, dependent], 2

    (launch,) = KERNEL.launches(PROBLEM, KERNEL.best_guess(PROBLEM, H100), H100)
    attributes = launch_attributes(replace(launch, cluster=(2, 1, 1), dependent=True))
    array = (driver.LaunchAttribute * 2)(*attributes)
    ours = driver.LaunchConfig(
        grid=(1, 2, 3), block=(4, 5, 6), shared_bytes=7, stream=8, attributes=array, attribute_count=2
    )
    size = ctypes.sizeof(driver.LaunchConfig)
    a, b = bytearray(ctypes.string_at(theirs.getPtr(), size)), bytearray(ctypes.string_at(ctypes.addressof(ours), size))
    at = driver.LaunchConfig.attributes.offset
    addresses = [int.from_bytes(raw[at : at + 8], "little") for raw in (a, b)]
    a[at : at + 8] = b[at : at + 8] = bytes(8)
    padding = slice(at + 12, size)
    a[padding] = b[padding] = bytes(size - at - 12)
    assert a == b
    # The bindings leave the bytes of the union that the attribute does not use undefined.
    for number, used in enumerate((8 + 12, 8 + 4)):
        step = number * ctypes.sizeof(driver.LaunchAttribute)
        first, second = (ctypes.string_at(address + step, used) for address in addresses)
        assert first[:4] == second[:4]
        assert first[8:] == second[8:]
    assert ctypes.sizeof(driver.LaunchAttribute) == 72


def test_numbers_are_the_bindings_numbers() -> None:
    bindings = pytest.importorskip("cuda.bindings.driver")
    ids, functions = bindings.CUlaunchAttributeID, bindings.CUfunction_attribute
    assert int(ids.CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION) == driver.CLUSTER_DIMENSION
    assert int(ids.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION) == driver.PROGRAMMATIC_STREAM_SERIALIZATION
    assert int(functions.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES) == driver.MAX_DYNAMIC_SHARED_BYTES
    assert int(functions.CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED) == driver.NON_PORTABLE_CLUSTER
    assert int(bindings.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED) == driver.CAPTURE_RELAXED


def test_no_driver_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", missing)
    driver.library.cache_clear()
    with pytest.raises(NoDeviceError, match=r"^there is no NVIDIA driver here \(libcuda.so.1 was not found\)$"):
        driver.library()


@pytest.mark.parametrize(("init", "count"), [(100, 0), (0, 0)])
def test_no_device_is_one_sentence(monkeypatch: pytest.MonkeyPatch, init: int, count: int) -> None:
    class Library(FakeLibrary):
        def cuInit(self, _: int) -> int:
            return init

        def cuDeviceGetCount(self, out: object) -> int:
            out._obj.value = count  # type: ignore[attr-defined]
            return 0

    monkeypatch.setattr(ctypes, "CDLL", lambda _: Library())
    driver.library.cache_clear()
    with pytest.raises(NoDeviceError, match="no GPU that this process can see"):
        driver.library()
    driver.library.cache_clear()


def test_a_failed_call_names_its_meaning_and_function() -> None:
    with pytest.raises(EnvironmentFailure) as caught:
        driver.check(700, "cuStreamSynchronize", FakeLibrary())
    assert str(caught.value) == (
        "a kernel accessed an illegal address (CUDA_ERROR_ILLEGAL_ADDRESS in cuStreamSynchronize)"
    )
