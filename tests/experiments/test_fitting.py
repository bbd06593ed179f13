"""The fit of models of time: it finds what made the times, holds shapes out, keeps what stands where it is better."""

from collections.abc import Sequence
from dataclasses import replace
from math import exp
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments import fitting
from experiments.launched import Launched, Off, launched, summary
from lab import catalog
from lab.cards import fits
from lab.choice import candidate_name
from lab.kernel import schedule_fields
from lab.problems import Linear
from lab.record import Archive, Record
from sim.machine import H100, H200

KERNEL = catalog.get("gemv_mma")
SHAPES = ((4096, 4096), (8192, 8192), (14336, 4096), (4096, 14336), (13824, 5120))
PROBLEMS = [Linear(m, n, k) for n, k in SHAPES for m in (1, 4, 8, 16)]
PROVENANCE = {"run": "r", "commit": "c" * 40, "dirty": False, "command": "a test", "versions": {}}


def record(problem: Linear, time_us: float, **changed: object) -> Record:
    schedule = KERNEL.best_guess(problem, H200)
    known = {"time": "2026-01-01T00:00:00+00:00", "on": "gpu", "machine": "h200", "kernel": KERNEL.name}
    known |= {"problem": problem.as_dict(), "schedule": schedule_fields(schedule), "clock": "graph", "us": time_us}
    return Record(**{**PROVENANCE, **known, **changed})  # type: ignore[arg-type]


def times(factors: dict[str, float], noise: Sequence[float] = ()) -> list[Launched]:
    """Launches that take what the model says with some coefficients changed, and a noise for each of the first."""
    line = fits.nearest("gemv_mma", H200, "graph")
    numbers = {name: value * factors.get(name, 1.0) for name, value in line.coefficients.items()}
    found = [Launched(record(problem, 1.0)) for problem in PROBLEMS]
    with fits.trial(msgspec.structs.replace(line, coefficients=numbers)):
        predicted = [launch.predicted_us() for launch in found]
    every = [*noise, *[0.0] * (len(found) - len(noise))]
    return [
        Launched(msgspec.structs.replace(launch.record, us=us * exp(off)))
        for launch, us, off in zip(found, predicted, every, strict=True)
    ]


@settings(max_examples=5, deadline=None)
@given(share=st.floats(0.7, 1.1), start=st.floats(0.6, 1.8))
def test_a_fit_predicts_shapes_that_were_held_out(share: float, start: float) -> None:
    """Times that the model itself made with other numbers: off shapes it has not seen by far less than before."""
    launches = times({"hbm_share": share, "start_us": start})
    before = summary([Off(launch.predicted_us() / launch.us - 1, launch) for launch in launches])
    general, own = fitting.fitted(launches, lambda _: None)
    assert (general.machine, own.machine, own.clock) == (None, "h200", "graph")
    assert own.errors["gemv_mma"].launches == len(PROBLEMS)
    assert own.errors["gemv_mma"].shapes == len(SHAPES)
    assert own.errors["gemv_mma"].mean <= max(before.mean / 2, 0.005)


def test_one_wild_time_does_not_pull_the_fit() -> None:
    own = fitting.fitted(times({"hbm_share": 0.8}, noise=[2.0]), lambda _: None)[-1]
    with fits.trial(own):
        off = [abs(launch.predicted_us() / launch.us - 1) for launch in times({"hbm_share": 0.8})]
    assert np.median(off) < 0.02


@pytest.mark.parametrize("source", ["by hand", f"{fitting.FITTED}these launches"])
def test_what_stands_is_kept_where_it_predicts_as_well_unless_it_was_fitted_to_the_same_card(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fit has seen its launches, so that its errors on them are none on held-out shapes."""
    standing = msgspec.structs.replace(fits.nearest("gemv_mma", H200, "graph"), source=source, errors={})
    path = tmp_path / "fits.jsonl"
    path.write_bytes(fits.TABLE.read_bytes())
    monkeypatch.setattr(fits, "TABLE", path)
    fits.put([standing])
    launches = times({})
    own = fitting.fitted(launches, lambda _: None)[-1]
    assert own.source.startswith(f"{source}{fitting.JUDGED}" if source == "by hand" else fitting.FITTED)
    if source == "by hand":
        assert (own.coefficients, own.errors["gemv_mma"].worst) == (standing.coefficients, 0)
    fits.put([own])
    assert fitting.fitted(launches, lambda _: None)[-1].source == own.source, "however often it is judged"


def test_folds_share_no_shape_and_hold_every_launch() -> None:
    launches = times({})
    folds = fitting._folds(launches)
    assert sorted(map(id, launches)) == sorted(id(launch) for fold in folds for launch in fold)
    shapes = [{launch.shape for launch in fold} for fold in folds]
    assert sum(map(len, shapes)) == len(set.union(*shapes)) == len(SHAPES)


def test_too_few_launches_or_shapes_make_no_line() -> None:
    assert fitting.fitted(times({})[: fitting.LEAST - 1], lambda _: None) == []
    one = [launch for launch in times({}) * 3 if launch.shape == (4096, 4096)]
    assert len(one) >= fitting.LEAST
    assert fitting.fitted(one, lambda _: None) == []


def test_a_model_is_fitted_to_the_kernels_that_ask_for_it() -> None:
    def launch(name: str) -> Launched:
        kernel = catalog.get(name)
        problem = Linear(256, 4096, 4096)
        schedule = schedule_fields(kernel.best_guess(problem, H100))
        return Launched(record(problem, 1.0, kernel=name, machine="h100", schedule=schedule))

    names = ("gemm_split_k", "gemm_pingpong", "gemm_cluster")
    found = fitting._by_model([launch(name) for name in names])
    assert {model: [one.asked.kernel.name for one in those] for model, those in found.items()} == {
        "wgmma": ["gemm_pingpong", "gemm_cluster"],
        "gemm_split_k": ["gemm_split_k"],
    }
    assert list(found) == ["wgmma", "gemm_split_k"], "a namesake leans on what is shared"


def test_the_newest_time_of_each_launch_counts_and_what_cannot_run_does_not() -> None:
    problem = PROBLEMS[0]
    old, new = record(problem, 20.0), record(problem, 10.0, time="2026-02-01T00:00:00+00:00")
    odd = [
        record(problem, 90.0, metrics={"pace": "burst"}),
        record(problem, 90.0, metrics={"layers": 4}),
        record(problem, 90.0, kernel="peer:cublas"),
        record(problem, 90.0, on="sim"),
        record(PROBLEMS[1], 6.0, clock="chain"),  # below the floor
        record(problem, 90.0, schedule={"block_m": 8}),
        record(replace(problem, m=2), 90.0, check={"passed": False, "error": 2.0}),
    ]
    odd[-1] = msgspec.convert(msgspec.to_builtins(odd[-1]), Record)
    found = launched(Archive((old, *odd, new)))
    assert [(one.us, one.asked.problem, one.shape) for one in found] == [(10.0, problem, (4096, 4096))]
    assert found[0].floor_us == pytest.approx(1e6 * problem.bytes["total"] / H200.hbm_bandwidth)


def test_a_searchs_last_race_stands_for_its_short_one() -> None:
    """The short one keeps schedules as text and leaves open whether launches overlapped; the card is hot at last."""
    problem = PROBLEMS[0]
    final = record(problem, 12.0, overlapping=True, metrics={"stage": "final"})
    name = candidate_name(KERNEL.name, final.schedule or {})
    short = record(problem, 10.0, kernel=None, schedule=None, us=None, tried={name: 10.0}, metrics={"stage": "search"})
    other = record(problem, 11.0, overlapping=False, metrics={"stage": "final"})
    assert [one.us for one in launched(Archive((short, final)))] == [12.0]
    assert sorted(one.us for one in launched(Archive((short, other)))) == [10.0, 11.0]


def test_what_nobody_would_choose_counts_less(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside each launch one of another schedule, far slower and known to be: predictions of the others move less."""
    launches = times({"hbm_share": 0.8})
    slow = []
    for launch in launches:
        problem = launch.asked.problem
        schedules = list(KERNEL.module.candidates(problem, H200))
        worst = max(schedules, key=lambda s, p=problem: KERNEL.predicted_us(p, s, H200, "graph"))  # type: ignore[misc]
        if KERNEL.predicted_us(problem, worst, H200, "graph") > 2 * launch.us:
            changed = {"schedule": schedule_fields(worst), "us": 50 * launch.us}
            slow.append(Launched(msgspec.structs.replace(launch.record, **changed)))  # type: ignore[arg-type]
    assert slow
    beside = fitting.fitted([*launches, *slow], lambda _: None)[-1]
    monkeypatch.setattr(fitting, "FAR", 1.0)
    alike = fitting.fitted([*launches, *slow], lambda _: None)[-1]
    off = []
    for line in (beside, alike):
        with fits.trial(line):
            off.append(max(abs(launch.predicted_us() / launch.us - 1) for launch in launches))
    assert off[0] < off[1] / 2
    assert beside.errors["gemv_mma"].launches == len(launches) + len(slow)
    assert beside.errors["gemv_mma"].worst > 0.5, "it is judged"


def test_one_cards_lines_alone() -> None:
    (own,) = fitting.fitted(times({}), lambda _: None, machine_name="h200")
    assert own.machine == "h200"
    assert fitting.fitted(times({}), lambda _: None, machine_name="h100") == []
    assert fitting.fitted(times({}), lambda _: None, kernels=["gemm_wgmma"]) == []
