"""Calibration on a card that is replaced: every launch takes what the test's model of it says."""

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest

from lab.cards import CLOCKS
from lab.gpu import calibrate, ceilings, probes
from lab.gpu.calibrate import L2_SHARES, Progress
from lab.gpu.device import Conditions
from lab.gpu.timing import Clock, Contestant, Timing
from lab.record import Provenance
from sim.errors import EnvironmentFailure
from sim.machine import H200

ORIGIN = Provenance(run="r", time="now", commit="c", dirty=True, command="lab calibrate", versions={})
SIZES = (2**20, 2**24, 2**28)
LAUNCH_US = {Clock.COLD: 2.5, Clock.GRAPH: 0.9, Clock.CHAIN: 0.6}
HBM_RATE = {"read4": 4.4e12, "read8": 4.2e12, "copy": 4.3e12}  # B/s of each probe, where each SM has four CTAs
L2_RATE = 6e12
PEER_RATE = 4e11


class FakeCard:
    """Reckons what each contestant takes from the launches that it would make."""

    def __init__(self) -> None:
        self.gpus = 2
        self.facts = SimpleNamespace(
            name="NVIDIA H200", driver="580", sms=132, l2_bytes=H200.l2_bytes, clusters=True, shared_bytes_per_block=1
        )
        self.largest_cluster = 8
        self.gemms = 0
        self.busy_mhz = 1980.0

    def gemm(self) -> None:
        """The clock falls under it."""
        self.gemms += 1
        self.busy_mhz = 1300.0

    def measure(self, contestants: list[Contestant], clock: Clock, rounds: int = 30) -> dict[str, Timing]:
        assert len({c.name for c in contestants}) == len(contestants)
        found = {}
        for contestant in contestants:
            for call in contestant.calls:
                us, mhz = call() or (0.0, self.busy_mhz)
            samples = tuple(us + LAUNCH_US[clock] + 0.01 * (i - (rounds - 1) / 2) for i in range(rounds))
            found[contestant.name] = Timing(contestant.name, clock, "sustained", samples, Conditions(mhz))
        return found

    def launch(self, name: str, grid: tuple[int], block: tuple[int], arguments: tuple[Any, ...]) -> tuple[float, float]:
        """Microseconds beyond an empty launch, and the clock meanwhile."""
        if name.startswith("empty"):
            return 0.0, 1980.0
        (data, words), full = arguments[:2], grid[0] % 528 == 0 and block == (512,)
        assert data.nbytes == 16 * words
        moved = 16 * words
        if name == "read_l2":
            return arguments[2] * moved / (L2_RATE if full else L2_RATE / 2) * 1e6, 1980.0
        rate = HBM_RATE[name.removesuffix("_dependent")] * (1.0 if full else 0.5)
        return (2 if name == "copy" else 1) * moved / rate * 1e6, 1900.0

    def kernel(self, name: str) -> Callable[..., tuple[float, float]]:
        return partial(self.launch, name)

    def dependent(self, name: str, blocks: int, threads: int, arguments: tuple[Any, ...]) -> Callable[[], Any]:
        assert name.endswith("_dependent")
        return partial(self.launch, name, (blocks,), (threads,), arguments)

    def clusters(self, ctas: int) -> int:
        if ctas > self.largest_cluster:
            raise EnvironmentFailure("the driver refused")
        return sum(sms // ctas for sms in H200.gpcs)

    def copy_peer(self, _to: int, device: int, _from: int, source: int, nbytes: int, _stream: int) -> Any:
        assert (device, source) == (1, 0)
        return nbytes / PEER_RATE * 1e6, 1980.0


class Data:
    """An array of the device: its size is all that matters."""

    data = SimpleNamespace(ptr=0)

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes

    def __getitem__(self, part: slice) -> "Data":
        assert 0 <= part.start < part.stop <= self.nbytes // 4
        return Data(4 * (part.stop - part.start))


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeCard:
    found = FakeCard()
    runtime = SimpleNamespace(
        CUDARuntimeError=RuntimeError,
        getDeviceCount=lambda: found.gpus,
        deviceCanAccessPeer=lambda *_: True,
        deviceEnablePeerAccess=lambda _: None,
        deviceSynchronize=lambda: None,
        memcpyPeerAsync=found.copy_peer,
    )
    cuda = SimpleNamespace(
        Stream=lambda **_: nullcontext(SimpleNamespace(ptr=9)), Device=lambda _: nullcontext(), runtime=runtime
    )
    array = lambda count, _: Data(4 * count)  # noqa: E731
    cupy = SimpleNamespace(cuda=cuda, zeros=array, empty=array, uint32=int, uint64=int)
    monkeypatch.setattr(ceilings, "cupy", cupy)
    monkeypatch.setattr(ceilings, "random_words", Data)
    monkeypatch.setattr(ceilings, "kernel", found.kernel)
    monkeypatch.setattr(ceilings, "dependent_call", found.dependent)
    monkeypatch.setattr(ceilings, "measure", found.measure)
    monkeypatch.setattr(probes, "clusters_at_once", found.clusters)
    for module in (ceilings, calibrate):
        monkeypatch.setattr(module, "card", lambda: found.facts)
    monkeypatch.setattr(calibrate, "conditions", lambda: Conditions(sm_clock=345.0))
    return found


def steps(gemm: Callable[[], None] | None) -> list[Progress]:
    """All steps of a calibration."""
    return list(calibrate.calibrate(H200, ORIGIN, lambda: gemm, SIZES, rounds=5))


def test_it_measures_everything(gpu: FakeCard) -> None:
    done = steps(gpu.gemm)
    found = done[-1].calibration
    found.require_sound("it")
    assert found.not_measured == ()
    assert (found.machine, found.card) == ("h200", "NVIDIA H200")
    assert (found.runs["r"].commit, found.runs["r"].dirty, found.runs["r"].driver) == ("c", True, "580")
    assert [step.done for step in done] == list(range(1, len(done) + 1))
    assert {step.steps for step in done} == {len(done)}
    assert len({step.what for step in done}) == len(done)
    for clock in CLOCKS:
        assert found.launch(clock) == pytest.approx(LAUNCH_US[Clock(clock)])
        assert [read.nbytes for read in found.reads[clock] or ()] == list(SIZES)
        for nbytes in SIZES:
            beyond = (found.read_us(nbytes, clock) or 0.0) - (found.launch(clock) or 0.0)
            assert beyond == pytest.approx(nbytes / HBM_RATE["read4"] * 1e6)
            assert (found.launch_shape(nbytes, clock) or "").startswith("read4")
            assert (found.launch_shape(nbytes, clock) or "").endswith("x 512")
    copied = 2**32 / ((2**32 / HBM_RATE["copy"]) + LAUNCH_US[Clock.COLD] * 1e-6)
    assert found.copy_bytes_per_s
    assert found.copy_bytes_per_s.value == pytest.approx(copied)
    assert found.l2_bytes
    assert found.l2_bytes.value == H200.l2_bytes
    assert found.l2_rate == pytest.approx(L2_RATE)  # neither the launch nor the first pass is in it
    assert len(found.l2_reads or ()) == len(L2_SHARES)
    assert {name: figure.value for name, figure in found.sm_clock_mhz.items() if figure} == {
        "idle": 345.0,
        "read": 1900.0,
        "mma": 1300.0,
    }
    clusters = {ctas: figure.value for ctas, figure in (found.clusters_at_once or {}).items()}
    assert clusters == {"2": 66, "3": 42, "4": 31, "5": 23, "6": 19, "7": 16, "8": 15}
    assert found.peer_bytes_per_s
    assert found.peer_bytes_per_s.value == pytest.approx(PEER_RATE, rel=0.01)


def test_what_the_card_has_not_stays_null(gpu: FakeCard) -> None:
    gpu.gpus = 1
    gpu.facts.clusters = False  # and no dependent launches
    found = steps(None)[-1].calibration
    assert {*found.not_measured} == {
        "launch_us.chain",
        "reads.chain",
        "sm_clock_mhz.mma",
        "clusters_at_once",
        "peer_bytes_per_s",
    }


def test_nobody_reads_clocks_where_nvml_is_silent(gpu: FakeCard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrate, "conditions", Conditions)
    assert steps(gpu.gemm)[-1].calibration.sm_clock_mhz["idle"] is None
