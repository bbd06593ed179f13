"""Probes that the driver launches: what it is asked, with the driver replaced."""

from types import SimpleNamespace
from typing import Any

import pytest

from lab.gpu import driver, probes
from sim.errors import EnvironmentFailure
from sim.machine import H100


class FakeArray:
    data = SimpleNamespace(ptr=0x1000)


class FakeCuda:
    """The bindings' structures, and functions that answer at once."""

    def __init__(self) -> None:
        real = pytest.importorskip("cuda.bindings.driver")
        for name in ("CUlaunchAttribute", "CUlaunchAttributeID", "CUlaunchConfig", "CUfunction_attribute", "CUresult"):
            setattr(self, name, getattr(real, name))
        self.ids = real.CUlaunchAttributeID
        self.status = real.CUresult.CUDA_SUCCESS
        self.calls: list[tuple[Any, ...]] = []

    def cuLaunchKernelEx(self, *arguments: Any) -> Any:
        self.calls.append(arguments)
        return (self.status,)

    def cuFuncSetAttribute(self, *arguments: Any) -> Any:
        self.calls.append(arguments)
        return (self.status,)

    def cuOccupancyMaxActiveClusters(self, *arguments: Any) -> Any:
        self.calls.append(arguments)
        return self.status, 66


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    found = FakeCuda()
    stream = SimpleNamespace(get_current_stream=lambda: SimpleNamespace(ptr=9))
    kernel = SimpleNamespace(kernel=SimpleNamespace(ptr=77), shared_size_bytes=0)
    monkeypatch.setattr(driver, "api", lambda: found)
    monkeypatch.setattr(probes, "cupy", SimpleNamespace(ndarray=FakeArray, cuda=stream))
    monkeypatch.setattr(probes, "kernel", lambda _: kernel)
    monkeypatch.setattr(probes, "card", lambda: SimpleNamespace(shared_bytes_per_block=H100.shared_bytes_per_block))
    return found


def test_a_dependent_call_may_overlap_the_one_before_it(cuda: FakeCuda) -> None:
    call = probes.dependent_call("read4_dependent", 3, 256, (FakeArray(), 2**40, FakeArray()))
    call()
    call()
    (config, function, (values, types), extra), again = cuda.calls
    assert again[0] is config
    assert (config.gridDimX, config.blockDimX, int(config.hStream), function, extra) == (3, 256, 9, 77, 0)
    assert values == (0x1000, 2**40, 0x1000)
    assert [t.__name__ for t in types] == ["c_void_p", "c_ulong", "c_void_p"]
    (attribute,) = config.attrs
    assert attribute.id == cuda.ids.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
    assert attribute.value.programmaticStreamSerializationAllowed == 1


def test_clusters_have_an_sm_for_each_cta(cuda: FakeCuda) -> None:
    assert probes.clusters_at_once(16) == 66
    allowed, (function, config) = cuda.calls
    assert allowed[0] == function == 77
    assert config.sharedMemBytes == H100.shared_bytes_per_block
    assert (config.gridDimX, config.attrs[0].value.clusterDim.x) == (16, 16)


def test_a_refusal_is_one_sentence(cuda: FakeCuda) -> None:
    cuda.status = cuda.CUresult.CUDA_ERROR_INVALID_CLUSTER_SIZE
    with pytest.raises(EnvironmentFailure, match="CUDA_ERROR_INVALID_CLUSTER_SIZE in cuFuncSetAttribute"):
        probes.clusters_at_once(32)
