"""Schedules sought in their steps, and how fast a model speaks: on the simulated chip, with times that are given."""

import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cupy
import pytest

from experiments.running import speech_on_device, step_search
from experiments.running.jobs import SpeakJob, StepJob, problem_of
from experiments.running.steps_on_device import Arena
from lab import inference, tuned
from lab.gpu import bench, device, timing
from lab.inference import chip as chips
from lab.inference import generation
from lab.inference.layers import Forward
from lab.inference.step import Step, StepCache
from lab.inference.step_input import Chunk, Layout
from lab.inference.step_weights import random
from lab.problems import Linear, Model, Problem
from lab.record import Checked, Record
from sim.machine import H200, Machine
from tests.experiments.running.test_on_device import sent
from tests.lab.inference import tiny

MODEL = Model(4, 128, q_heads=2, kv_heads=1, head_dim=64, ffn=256, vocab=320, batch=1, context=64)
HEAD = Linear(1, MODEL.vocab, MODEL.d, prologue="norm")
REST_US, STEP_US = 40.0, 100.0  # of a step without a kind of matrix; of the fastest with it
BEST = 1  # of the contenders


def arena(model: Model, peers: bool) -> Arena:
    assert not peers
    chip = chips.simulated(H200)
    weights = random(replace(model, context=1), 128, chip)
    forward, layout = Forward(weights.config, weights.matrices, 3), Layout(1, 1, 1)
    step = Step(weights, StepCache(forward, chip), forward, layout, chip)
    step.input.fill([Chunk([3], 10, [1])])
    step.run()
    return Arena(model, H200, nullcontext(), step, [], Checked(True, None))


def timings(contestants: Sequence[timing.Contestant], clock: timing.Clock, rounds: int) -> dict[str, timing.Timing]:
    """The later contestants are slower, but for one that is the fastest, and the step that lacks something."""
    found = {}
    for number, contestant in enumerate(contestants):
        us = REST_US if not contestant.name else STEP_US + (0 if number == BEST else 1 + number)
        found[contestant.name] = timing.Timing(contestant.name, clock, timing.Pace.SUSTAINED, (us,) * rounds)
    return found


def solved() -> list[Problem]:
    return [call.problem for call in arena(MODEL, peers=False).step.calls]


@pytest.fixture
def _given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_search.Arena, "of", arena)
    monkeypatch.setattr(step_search, "MOST", 2)
    monkeypatch.setattr(timing, "measure", timings)
    monkeypatch.setattr(device, "machine", lambda: H200)
    monkeypatch.setattr(bench, "card", lambda: SimpleNamespace(name="NVIDIA H200", driver="1"))


@pytest.mark.usefixtures("_given")
def test_the_fastest_in_a_step_is_its_share_of_the_step_and_wins() -> None:
    job = StepJob(problem=MODEL.as_dict(), experiment="step_bars", facts={"bar": "decode"})
    longer = StepJob(problem=replace(MODEL, context=60).as_dict(), experiment="step_bars")
    found = list(step_search.search(sent([job, job, longer])))  # the later ones have nothing left to seek
    problems = {str(record.problem) for record in found}
    assert len(problems) == len(step_search._parts(solved())) > 1
    size = len(found) // step_search.PASSES
    sweeps = [found[at : at + size] for at in range(0, len(found), size)]  # from the second on finalists race again
    assert all([r.problem for r in sweep] == [r.problem for r in sweeps[0]] for sweep in sweeps)
    for sweep, problem in product(sweeps, problems):
        own = [record for record in sweep if str(record.problem) == problem]
        matrix = problem_of(own[0].problem or {})
        plans = step_search._contenders(matrix, H200)
        assert len(own) == min(step_search.FINALISTS, len([*plans, *step_search._twins(plans)]))
        assert all(r.clock == "chain" and r.overlapping and r.check and r.check.passed for r in own)
        winner = tuned.winner(own, matrix)
        assert winner is not None
        assert winner.us == pytest.approx((STEP_US - REST_US) / solved().count(matrix))
        assert winner.kernel == own[0].kernel


@pytest.mark.usefixtures("_given")
def test_what_a_step_hides_is_timed_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "REST_US", STEP_US)  # so long without any part, too
    job = StepJob(problem=MODEL.as_dict(), experiment="step_bars")
    found = list(step_search.search(sent([job])))
    assert len(found) == step_search.PASSES * len(step_search._parts(solved()))  # of each part the fastest alone
    assert all(record.metrics["alone"] and record.us and record.us > 0 for record in found)
    head = next(record for record in found if problem_of(record.problem or {}) == HEAD)
    assert head.us == STEP_US + 1  # the one launch's own time, not a difference


@pytest.mark.usefixtures("_given")
def test_no_search_begins_when_the_seconds_are_over(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([0.0, *[59.0] * 3])
    monkeypatch.setattr(step_search, "time", SimpleNamespace(monotonic=lambda: next(times, 61.0)))
    job = StepJob(problem=MODEL.as_dict(), experiment="step_bars")
    found = list(step_search.search({**sent([job]), "seconds": 60.0}))
    assert len({str(record.problem) for record in found}) == 3


@pytest.mark.usefixtures("_given")
def test_all_matrices_but_tiny_ones_are_sought_the_largest_first(monkeypatch: pytest.MonkeyPatch) -> None:
    found = step_search._parts(solved())
    kinds = [problem.kind for problem in found]  # what each layer has
    assert kinds[:2] == ["rope_append", "attention"]
    assert set(kinds[2:]) == {"linear"}
    assert found[2] == Linear(1, 2 * MODEL.ffn, MODEL.d, epilogue="swiglu", prologue="norm")
    output = Linear(1, MODEL.d, MODEL.q_heads * MODEL.head_dim, epilogue="norm")
    assert output in found
    monkeypatch.setattr(step_search, "LEAST", 0.2)
    assert output not in step_search._parts(solved())


def test_what_other_matrices_took_races_along(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = Linear(1, 512, 256)
    alone = {(plan.kernel.name, plan.schedule) for plan in step_search._contenders(matrix, H200)}
    fields = {"rows": 2, "split_k": 1, "teams": 4, "unroll": 8, "block_m": 1, "ctas_per_sm": 1}
    entries = [("gemv_vectorized", fields), ("gone", fields), ("gemv_vectorized", {**fields, "rows": 3})]
    monkeypatch.setattr(tuned, "incumbents", lambda *_, **__: entries)
    more = {(plan.kernel.name, plan.schedule) for plan in step_search._contenders(matrix, H200)} - alone
    assert {(name, schedule.unroll) for name, schedule in more} == {("gemv_vectorized", 8)}
    assert {schedule.most for _, schedule in more} == {0, 1}  # and held to its share of 64 CTAs


@pytest.mark.usefixtures("_given")
def test_a_model_speaks_and_says_what_it_took(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tiny.write(tmp_path / "tiny.gguf")

    def load(_path: Any, _on: str, machine: Machine) -> inference.LanguageModel:
        return inference.load(path, machine=machine)

    monkeypatch.setattr(generation, "load", load)
    monkeypatch.setattr(cupy, "get_default_memory_pool", lambda: SimpleNamespace(total_bytes=lambda: 7))
    monkeypatch.setattr(speech_on_device, "HOST_STEPS", 3)
    how: dict[str, Any] = {"prompt": "in", "tokens": 4, "rounds": 2, "experiment": "step_bars"}
    jobs = [SpeakJob(settings=settings, **how) for settings in ((0.0, 0, 1.0), (0.8, 40, 0.95))]
    found: list[Record] = list(speech_on_device.speak(sent(jobs)))
    assert [record.metrics["settings"] for record in found] == ["", "temperature 0.8, top_k 40, top_p 0.95"]
    for record in found:
        assert len(record.samples_us) == 2
        assert record.us
        assert record.metrics["tokens_per_s"] == pytest.approx(1e6 / record.us)
        assert record.metrics["allocated_bytes"] == 0
        assert float(record.metrics["host_us"] or 0) > 0
