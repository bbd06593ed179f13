"""Rotation, order, checks and the records of a race, on a device that is replaced."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab import catalog, tuned
from lab.compile import code_digest
from lab.gpu import bench, expectation, search
from lab.gpu.bench import Bench, Candidate, Loose, floor_us
from lab.gpu.expectation import Expectation
from lab.gpu.timing import Clock, Pace, rotation, round_robin
from lab.problems import Linear
from sim.errors import EnvironmentFailure
from sim.formats import encode
from sim.machine import H100
from tests.lab.gpu.fake_bench import Device, install, write, wrong

KERNEL = catalog.get("gemv_vectorized")
PROBLEM = Linear(1, 64, 512)
SCHEDULES = list(KERNEL.module.candidates(PROBLEM, H100))[:4]
GOOD, SPILLS, WRONG, OTHER = (Candidate(KERNEL, schedule) for schedule in SCHEDULES)


@given(st.integers(1, 2**33))
def test_a_rotation_outgrows_l2_unless_its_data_are_tiny(nbytes: int) -> None:
    copies = rotation(nbytes)
    assert copies >= 2
    assert copies * nbytes > 4 * H100.l2_bytes or copies == 2048


@given(st.integers(1, 9), st.integers(1, 20))
def test_every_round_has_everyone_once(count: int, rounds: int) -> None:
    orders = list(round_robin(count, rounds))
    assert len(orders) == rounds
    assert all(sorted(order) == list(range(count)) for order in orders)


def test_no_one_always_follows_the_same_contestant() -> None:
    before = {(order[i - 1], who) for order in round_robin(4, 8) for i, who in enumerate(order) if i}
    assert all(len({a for a, b in before if b == who}) > 1 for who in range(4))


def test_large_references_cover_rows_that_no_tile_size_divides() -> None:
    problem = Linear(70, 8, 16)
    full = Expectation.of(problem, 0)
    assert full.expected["y"].value.shape == (70, 8)
    sampled = Expectation(full.inputs, slice(None, None, 9), problem.reference(full.inputs, slice(None, None, 9)))
    y = encode(full.expected["y"].value, problem.output)
    assert full.check(problem, {"y": y}).passed
    assert sampled.check(problem, {"y": y}).passed
    y[63, 7] = encode(np.float32(1e6), problem.output)
    assert full.check(problem, {"y": y}).first_mismatch == (63, 7)
    assert sampled.check(problem, {"y": y}).first_mismatch == (63, 7)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    found = install(monkeypatch)
    found.spilling = [SPILLS.schedule]
    found.kernels = {WRONG.schedule: wrong}
    return found


def test_a_race_records_who_was_right_who_was_wrong_and_who_could_not_start(device: Device) -> None:
    records = Bench(PROBLEM, H100, "x", seed=1).race([GOOD, SPILLS, WRONG], {"cublas": device.peer}, rounds=3)
    assert [names for names, *_ in device.measured] == [[GOOD.name, "cublas"]] * 2
    assert len({r.run for r in records}) == 1
    assert {r.experiment for r in records} == {"x"}
    ours = code_digest(GOOD.kernel.source)
    assert {(r.kernel, r.code) for r in records} == {("gemv_vectorized", ours), ("peer:cublas", None)}
    by_name = {(r.kernel, tuple((r.schedule or {}).values()), r.clock): r for r in records}
    assert len(by_name) == len(records) == 2 + 1 + 1 + 2
    timed = [r for r in records if r.us is not None]
    assert {(r.kernel, r.clock) for r in timed} == {
        (name, clock) for name in ("gemv_vectorized", "peer:cublas") for clock in ("cold", "graph")
    }
    for row in timed:
        assert row.samples_us == [12.0, 13.0, 14.0]
        assert row.us == 13.0
        assert (row.clocks, row.throttle, row.power_w) == ({"sm": 1700.0, "memory": 2619.0}, ["power cap"], 500.0)
        assert row.problem == PROBLEM.as_dict()
        assert row.check is not None
        assert row.check.passed
        assert row.metrics["pace"] == "sustained"
    spilled, failed = (r for r in records if r.us is None)
    assert (spilled.check, spilled.metrics["failure"]) == (None, "it spills 8 B a thread")
    assert failed.check is not None
    assert not failed.check.passed
    assert not failed.samples_us
    assert "first at (0, 5)" in str(failed.metrics["failure"])


def test_a_plain_read_races_along_and_is_no_rival(device: Device) -> None:
    device.us = {"read4 9 x 512": 7.0}
    mine, read = Bench(PROBLEM, H100, seed=1).race([GOOD], {}, (Clock.GRAPH,), 3, reads=True)
    assert (read.kernel, read.us, read.check) == ("peer:read", 8.0, None)
    assert read.metrics["launch_shape"] == "read4 9 x 512"
    assert (read.run, read.problem, read.clock) == (mine.run, mine.problem, mine.clock)


def test_fewer_rows_reuse_the_inputs_of_more(device: Device) -> None:
    wide = Bench(replace(PROBLEM, m=5), H100, seed=1)
    narrow = Bench(replace(PROBLEM, m=2), H100, wider=wide)
    assert all(np.shares_memory(a["w"], b["w"]) for a, b in zip(narrow._data, wide._data, strict=True))
    assert np.array_equal(narrow._data[1]["x"], wide._data[1]["x"][:2])
    device.right = encode(narrow._expectation.expected["y"].value, "bf16")
    assert device.right.shape == (2, 64)
    assert narrow.race([GOOD], {}, (Clock.COLD,), 1)[0].us is not None
    device.kernels[OTHER.schedule] = wrong
    assert narrow.race([OTHER], {}, (Clock.COLD,), 1)[0].us is None


@pytest.mark.parametrize(("off", "passed"), [(0.004, True), (0.02, False)])
def test_a_loose_peer_is_held_to_its_own_tolerance(off: float, passed: bool, device: Device) -> None:
    arena = Bench(PROBLEM, H100, seed=1)
    result = arena._expectation.expected["y"].value * (1 + off)
    loose = Loose(lambda: None, lambda: result.astype(np.float32), 0.01)
    _, peer = arena.race([GOOD], {"humming": lambda *_: loose}, (Clock.COLD,), 1)
    assert peer.check is not None
    assert (peer.check.passed, peer.us is not None) == (passed, passed)
    assert peer.check.error == pytest.approx(off / 0.01, rel=1e-3)
    assert device.measured


def test_plain_launches_do_not_overlap_the_one_before(device: Device) -> None:
    split = catalog.get("gemm_split_k")
    problem = Linear(64, 64, 512)
    schedule = split.best_guess(problem, H100)
    for plain in (False, True):
        (found,) = Bench(problem, H100, seed=1).race([Candidate(split, schedule, plain)], {}, (Clock.COLD,), 1)
        assert found.overlapping is not plain
    assert device.dependent == [True, False]


def test_paces_come_in_their_order_and_a_second_race_checks_nothing_again(device: Device) -> None:
    arena = Bench(PROBLEM, H100, seed=1)
    paces = (Pace.BURST, Pace.SUSTAINED)
    first = arena.race([GOOD], {}, (Clock.COLD,), 2, paces, {"part": "large"})
    assert [r.metrics["pace"] for r in first] == ["burst", "sustained"]
    assert {r.metrics["part"] for r in first} == {"large"}
    device.kernels[GOOD.schedule] = wrong  # nobody looks any more
    (again,) = arena.race([GOOD], {}, (Clock.COLD,), 2)
    assert again.us is not None
    assert again.run != first[0].run


def every_second_time(kernel: Callable[[int, Any], None]) -> Callable[[int, Any], None]:
    calls: list[int] = []

    def run(y: int, bits: Any) -> None:
        calls.append(y)
        (kernel if len(calls) % 2 == 0 else write)(y, bits)

    return run


@pytest.mark.parametrize(
    ("kernel", "complaint"),
    [
        (lambda y, bits: write(y, bits[:, :-1]), "1 of 1 rows' elements are wrong"),
        (lambda y, bits: write(y - 2, np.concatenate([bits[:, :1], bits], axis=1)), "wrote outside its output"),
        (lambda y, bits: write(y, np.concatenate([bits, bits[:, :9]], axis=1)), "wrote outside its output"),
        (every_second_time(lambda *_: None), "64 of 1 rows' elements are wrong, the first at (0, 0)"),
    ],
    ids=["leaves one out", "writes before", "writes behind", "fails where its workspace was used"],
)
def test_a_check_on_the_device_notices(kernel: Any, complaint: str, device: Device) -> None:
    device.kernels[GOOD.schedule] = kernel
    (record,) = Bench(PROBLEM, H100, seed=1).race([GOOD], {}, (Clock.COLD,), 1)
    assert record.us is None
    assert complaint in str(record.metrics["failure"])


def test_rows_that_no_reference_covers_must_be_written(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = replace(PROBLEM, m=7)
    monkeypatch.setattr(expectation, "REFERENCE_FLOPS", problem.flops // 2)
    arena = Bench(problem, H100, seed=1)
    entry = Candidate(KERNEL, KERNEL.best_guess(problem, H100))
    (right,) = arena.race([entry], {}, (Clock.COLD,), 1)
    assert right.metrics["rows_checked"] == 3

    def skips_a_row(y: int, bits: Any) -> None:
        write(y, bits[:1])
        write(y + 2 * 64 * 2, bits[2:])

    device.kernels[entry.schedule] = skips_a_row
    (record,) = Bench(problem, H100, seed=1).race([entry], {}, (Clock.COLD,), 1)
    assert record.us is None
    assert record.metrics["failure"] == "64 elements of the output were never written"


def refuse(*_: Any) -> None:
    raise EnvironmentFailure("the CUDA driver refused a call (CUDA_ERROR_INVALID_VALUE in cuLaunchKernelEx)")


def test_a_launch_that_is_refused_is_out_of_the_race(device: Device) -> None:
    device.kernels[OTHER.schedule] = refuse
    out, mine = Bench(PROBLEM, H100, seed=1).race([OTHER, GOOD], {}, (Clock.COLD,), 1)
    assert (out.us, mine.us) == (None, 12.0)
    assert "refused a call" in str(out.metrics["failure"])
    assert Bench(PROBLEM, H100, seed=1).times([OTHER, GOOD], Clock.COLD, 1) == {GOOD: 12.0}


def test_a_kernel_that_breaks_the_device_is_named(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    device.kernels[GOOD.schedule] = refuse
    monkeypatch.setattr(bench.driver, "synchronize", refuse)
    with pytest.raises(EnvironmentFailure, match=r"gemv_vectorized\(rows=.* broke the device: the CUDA driver refused"):
        Bench(PROBLEM, H100, seed=1).race([GOOD], {}, (Clock.COLD,), 1)


@pytest.mark.usefixtures("device")
def test_a_peer_that_has_no_kernel_is_no_failure_of_ours() -> None:
    def refusing(problem: Linear, arrays: Any) -> Callable[[], None]:  # noqa: ARG001
        def call() -> None:
            raise RuntimeError("no such kernel\nand a stack")

        return call

    mine, peer = Bench(PROBLEM, H100, seed=1).race([GOOD], {"torch": refusing}, (Clock.COLD,), 1)
    assert mine.us is not None
    assert (peer.us, peer.metrics["failure"]) == (None, "no such kernel")


@pytest.mark.usefixtures("device")
def test_operands_of_an_epilogue_and_an_fp8_output_are_on_the_device() -> None:
    problem = Linear(4, 32, 64, "fp8", "fp8", "fp8", scales="row", epilogue="swiglu")
    data = Bench(problem, H100, seed=1)._data
    assert len(data) == 2
    for arrays in data:
        assert set(arrays) == {"x", "w", "x_scale", "w_scale", "y_scale", "y"}
        assert (arrays["y"].shape, arrays["y"].dtype) == ((4, 16), np.uint8)
        assert arrays["w_scale"].shape == (32,)


def test_a_time_below_the_floor_is_flagged(device: Device) -> None:
    device.usual_us = floor_us(PROBLEM, H100) / 2
    (row,) = Bench(PROBLEM, H100, seed=1).race([GOOD], {}, (Clock.COLD,), 1)
    assert row.metrics["impossible"] is True


def test_a_search_races_the_best_again_beside_the_peers(device: Device) -> None:
    device.us = {GOOD.name: 10.0, WRONG.name: 9.5, OTHER.name: 12.0}
    records = search.search(
        Bench(PROBLEM, H100, seed=1), [GOOD, SPILLS, WRONG, OTHER], {"cublas": device.peer}, Clock.COLD, 9
    )
    assert device.measured == [
        ([GOOD.name, WRONG.name, OTHER.name], Clock.COLD, search.SEARCH_ROUNDS, Pace.SUSTAINED),
        ([GOOD.name, OTHER.name, "cublas"], Clock.COLD, 9, Pace.SUSTAINED),
    ]
    assert [r.metrics["stage"] for r in records] == ["search"] + ["final"] * 4
    assert records[0].tried == {GOOD.name: 12.0, WRONG.name: 11.5, OTHER.name: 14.0}  # medians of five samples
    assert (records[0].us, records[0].check) == (None, None)
    assert [r.check and r.check.passed for r in records[1:]] == [False, True, True, True]
    assert records[-1].metrics["candidates"] == 3
    assert records[-1].metrics["spread"] == pytest.approx(12 / 11.5)
    entry = tuned.winner(records, PROBLEM)
    assert entry is not None
    assert (entry.kernel, entry.schedule) == ("gemv_vectorized", records[2].schedule)
    assert entry.run == records[-1].run != records[0].run


def test_what_is_slow_or_beyond_the_fifth_does_not_race_again() -> None:
    problem, kernel = Linear(4096, 4096, 4096), catalog.get("gemm_warp_specialized")
    entries = [Candidate(kernel, schedule) for schedule in list(kernel.module.candidates(problem, H100))[:8]]
    times = dict(zip(entries, (10, 12.6, 10.1, 10.2, 12.4, 11, 12, 12.3), strict=True))
    assert search.best(times) == [entries[i] for i in (0, 2, 3, 5, 6)]
    assert search.best({}) == []


def test_times_are_of_those_that_compile(device: Device) -> None:
    device.us = {GOOD.name: 10.0}
    assert Bench(PROBLEM, H100, seed=1).times([GOOD, SPILLS, WRONG], Clock.COLD, 1) == {GOOD: 10.0, WRONG: 12.0}
