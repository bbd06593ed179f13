"""Rotation, order and the records of a race; the device itself is replaced."""

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab import catalog
from lab.gpu import bench
from lab.gpu.bench import Entry, Expectation, floor_us, race
from lab.gpu.device import Conditions
from lab.gpu.timing import Clock, Pace, Timing, rotation, round_robin
from lab.problems import Linear
from lab.verify import Check
from sim.errors import EnvironmentFailure
from sim.formats import encode
from sim.machine import H100

KERNEL = catalog.get("gemv_vectorized")
PROBLEM = Linear(1, 64, 512)
GOOD, SPILLS, WRONG = list(KERNEL.module.candidates(PROBLEM, H100))[:3]
RIGHT = Check(0.5, 0, None, True, 1, 0.001)


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
    assert full.expected[0].shape == (70, 8)
    sampled = Expectation(full.inputs, slice(None, None, 9), problem.reference(full.inputs, slice(None, None, 9)))
    y = encode(full.expected[0], problem.output)
    assert full.check(problem, y).passed
    assert sampled.check(problem, y).passed
    y[63, 7] = encode(np.float32(1e6), problem.output)
    assert not full.check(problem, y).passed
    assert not sampled.check(problem, y).passed


class FakeArray:
    """An array on no device."""

    def view(self, _: Any) -> "FakeArray":
        return self

    def __setitem__(self, key: Any, value: Any) -> None:
        pass


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A device on which one schedule spills, one is wrong, and every time is `us`."""
    seen = SimpleNamespace(us=12.0, measured=[])

    class Prepared:
        def __init__(self, launches: Any, machine: Any) -> None:
            assert machine is H100
            if launches[0].schedule == SPILLS:
                raise EnvironmentFailure("it spills 8 B a thread")

        def bind(self, pointers: Any) -> Any:
            return lambda: pointers

    def measure(contestants: Any, clock: Clock, rounds: int, pace: Pace) -> dict[str, Timing]:
        seen.measured.append([c.name for c in contestants])
        conditions = Conditions(1700.0, 2619.0, 500.0, 50.0, ("power cap",))
        samples = tuple(seen.us + i for i in range(rounds))
        return {c.name: Timing(c.name, clock, pace, samples, conditions) for c in contestants}

    def check(problem: Linear, launches: Any, machine: Any, expectation: Expectation) -> Check:
        assert (problem, machine) == (PROBLEM, H100)
        assert expectation.expected[0].shape == (1, 64)
        return Check(9.0, 3, (0, 5), True, 1, 0.1) if launches[0].schedule == WRONG else RIGHT

    stream = SimpleNamespace(Stream=lambda **_: nullcontext(), get_current_stream=lambda: None)
    monkeypatch.setattr(bench, "cupy", SimpleNamespace(cuda=stream, uint8=np.uint8))
    monkeypatch.setattr(bench, "Prepared", Prepared)
    monkeypatch.setattr(bench, "measure", measure)
    monkeypatch.setattr(bench, "check_kernel", check)
    monkeypatch.setattr(bench, "_copies", lambda *_: [{"y": FakeArray()}] * 3)
    monkeypatch.setattr(bench, "device_workspaces", lambda _: {})
    monkeypatch.setattr(bench, "pointers_of", lambda *_: {})
    monkeypatch.setattr(bench, "_check_peer", lambda *_: RIGHT)
    monkeypatch.setattr(bench, "card", lambda: SimpleNamespace(name="NVIDIA H100 80GB HBM3", driver="580"))
    return seen


def test_a_race_records_who_was_right_who_was_wrong_and_who_could_not_start(device: Any) -> None:
    entries = [Entry(KERNEL, s) for s in (GOOD, SPILLS, WRONG)]
    records = race(PROBLEM, entries, H100, {"cublas": lambda *_: lambda: None}, rounds=3, experiment="x", seed=1)
    assert device.measured == [[entries[0].name, "cublas"]] * 2
    assert len({r.run for r in records}) == 1
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
    spilled, wrong = (r for r in records if r.us is None)
    assert (spilled.check, spilled.metrics["failure"]) == (None, "it spills 8 B a thread")
    assert wrong.check is not None
    assert not wrong.check.passed
    assert not wrong.samples_us
    assert "first at (0, 5)" in str(wrong.metrics["failure"])


def test_a_time_below_the_floor_is_flagged(device: Any) -> None:
    device.us = floor_us(PROBLEM, H100) / 2
    (row,) = race(PROBLEM, [Entry(KERNEL, GOOD)], H100, {}, clocks=(Clock.COLD,), rounds=1)
    assert row.metrics["impossible"] is True
