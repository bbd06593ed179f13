"""Races at a shape's first call: who wins is chosen from then on, and nothing is raced where it must not be."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from lab import tuned
from lab.choice import choose, undecided
from lab.gpu import driver, tuning
from lab.gpu.bench import Candidate
from lab.ops import autotuning
from lab.problems import Linear
from sim.errors import EnvironmentFailure
from sim.machine import H100
from tests.lab.gpu.fake_bench import Device, install

PROBLEM = Linear(70, 256, 256)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Device:
    monkeypatch.setattr(tuned, "TABLE", tmp_path / "committed.jsonl")
    monkeypatch.setenv("LAB_CONFIG_DIR", str(tmp_path))
    monkeypatch.setattr(driver, "current", lambda _: nullcontext())
    return install(monkeypatch)


def test_the_winner_is_chosen_from_then_on(device: Device) -> None:
    found = undecided(PROBLEM, H100)
    picked = choose(PROBLEM, H100)[:2]
    assert found[0] == picked
    other = found[-1]
    device.us = {Candidate(*other).name: 3.0}
    tuning.settle(PROBLEM, H100, 0)
    assert choose(PROBLEM, H100)[:2] == other != picked
    assert [entry.problem_class["m"] for entry in tuned.load(tuned.user_table())] == [128]
    raced = len(device.measured)
    tuning.settle(PROBLEM, H100, 0)  # the table has it
    assert len(device.measured) == raced


def test_what_is_decided_is_not_raced(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "undecided", lambda *_: undecided(PROBLEM, H100)[:1])
    tuning.settle(PROBLEM, H100, 0)
    assert device.measured == []
    assert not tuned.user_table().exists()


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    found: list[Any] = []
    monkeypatch.setattr(autotuning, "machine", lambda _: H100)
    monkeypatch.setattr(tuning, "settle", lambda *asked: found.append(asked))
    monkeypatch.setattr(driver, "is_capturing", lambda stream: stream == 7)
    monkeypatch.setattr(autotuning, "_on", False)
    return found


def test_nothing_is_raced_unless_asked_for_and_never_during_capture(settled: list[Any]) -> None:
    autotuning.settle_first(PROBLEM, 0, 1)
    assert settled == []
    autotuning.autotune()
    autotuning.settle_first(PROBLEM, 0, 7)
    assert settled == []
    autotuning.settle_first(PROBLEM, 2, 1)
    assert settled == [(PROBLEM, H100, 2)]
    autotuning.autotune(on=False)
    autotuning.settle_first(PROBLEM, 0, 1)
    assert len(settled) == 1


@pytest.mark.usefixtures("settled")
def test_a_race_that_fails_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise EnvironmentFailure("no room")

    monkeypatch.setattr(tuning, "settle", fail)
    autotuning.autotune()
    with pytest.warns(UserWarning, match="not tuned, the prediction stands: no room"):
        autotuning.settle_first(PROBLEM, 0, 1)
