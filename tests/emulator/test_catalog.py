"""Every kernel of the catalog in the emulator: right results, the counts of theory and tile simulator, no hazard."""

from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import numpy as np
import pytest

from lab import catalog
from lab.check_ptx import check_ptx, trace_ptx
from lab.mutants import Verdict, judge_mutants
from lab.ptx_executor import Emulator
from lab.verify import simulator, verify, workspaces
from sim.counts import disagreements
from tests.emulator.cases import LAPS, Case, cases, hardest, step_of
from tests.strategies import some


def parameters() -> Iterator[Any]:
    """The hardest case of each kernel and a drawn one; the others for `make deep`."""
    for kernel in catalog.kernels():
        others = [case for case in cases(kernel) if case != hardest(kernel)]
        taken = some([hardest(kernel), *others], every=False, drawn=1)
        for case in [hardest(kernel), *others]:
            yield pytest.param(case, id=str(case), marks=() if case in taken else pytest.mark.deep)


CASES = list(parameters())
HARDEST = [hardest(kernel) for kernel in catalog.kernels()]  # a kernel's other cases share all that a mutant can break
# In `make test` one kernel, with a ring that TMA and mbarriers fill and drain.
QUICK = "gemm_warp_specialized"
SHARES = {"attention_mla": 6}  # of a kernel's mutants, where all of them together run for long
MUTATED = [
    pytest.param(
        case,
        (i, shares),
        id=f"{case}-{i}" if shares > 1 else str(case),
        marks=() if case.kernel.name == QUICK else pytest.mark.deep,
    )
    for case in HARDEST
    for shares in [SHARES.get(case.kernel.name, 1)]
    for i in range(shares)
]


@pytest.mark.parametrize("case", CASES)
def test_the_ptx_is_right_and_counts_what_theory_and_the_tile_simulator_count(case: Case, seeds: int) -> None:
    whole = case in HARDEST or seeds > 3  # other cases are of the same code: their interleavings are for `make deep`
    found = check_ptx(case.kernel, case.problem, case.schedule, case.machine, seeds if whole else 1)
    assert found.hazards == ()
    assert all(v.check.passed for v in found.verifications)
    assert all(v.disagreements == {} for v in found.verifications)
    counted = verify(
        case.kernel, case.problem, case.schedule, case.machine, simulator(case.kernel, case.machine)
    ).counted
    assert disagreements(counted, found.counts) == {}


@pytest.mark.parametrize(("case", "share"), MUTATED)
def test_no_mutant_is_missed_and_few_are_harmless(case: Case, share: tuple[int, int]) -> None:
    judged = list(judge_mutants(case.kernel, case.problem, case.schedule, case.machine, seeds=2, share=share))
    assert [j for j in judged if j.verdict is Verdict.MISSED] == []
    harmless = [j for j in judged if j.verdict is Verdict.HARMLESS]
    assert 2 * len(harmless) <= len(judged), harmless  # a statement counts once, however often it was unrolled
    assert any(j.verdict is Verdict.CAUGHT for j in judged)
    assert all(j.why for j in judged)


@pytest.mark.parametrize("case", CASES)
def test_the_cases_are_hard(case: Case) -> None:
    (launch, *_) = case.kernel.launches(case.problem, case.schedule, case.machine)
    if hasattr(case.schedule, "stages") and hasattr(case.problem, "k"):
        step = step_of(case.schedule, case.problem)
        assert case.problem.k > LAPS * case.schedule.stages * step
        assert case.problem.k % step
    assert launch.ctas >= 2 * launch.cluster[0]


@pytest.mark.parametrize("case", HARDEST, ids=str)
def test_the_hardest_case_of_a_kernel_with_clusters_or_splits_has_them(case: Case) -> None:
    known = list(case.kernel.module.candidates(case.problem, case.machine))
    for field in fields(case.schedule):
        if field.name == "cluster" or field.name.startswith("split"):
            most = max(getattr(schedule, field.name) for schedule in known)
            assert getattr(case.schedule, field.name) > 1 or most == 1


@pytest.mark.parametrize("case", HARDEST, ids=str)
def test_the_hardest_case_of_a_kernel_with_partial_results_has_some(case: Case) -> None:
    launches = case.kernel.launches(case.problem, case.schedule, case.machine)
    outputs = {name: np.zeros(o.shape, o.storage) for name, o in case.problem.outputs.items()}
    partial = {name: a for name, a in workspaces(launches).items() if a.dtype == np.float32 and name not in outputs}
    if partial:
        arrays = {**case.problem.draw(np.random.default_rng(0)), **outputs, **workspaces(launches), **partial}
        Emulator(case.machine, check=False)(launches, arrays)
    assert all(array.any() for array in partial.values())


def test_a_trace_shows_who_waited_for_what() -> None:
    case = next(case for (case,) in (parameter.values for parameter in CASES) if hasattr(case.schedule, "stages"))
    trace = trace_ptx(case.kernel, case.problem, case.schedule, case.machine)
    agents = {(e["pid"], e["tid"]): e["args"]["name"] for e in trace["traceEvents"] if e["ph"] == "M"}
    spans = [event for event in trace["traceEvents"] if event["ph"] == "X"]
    waits = [event for event in spans if event["name"].startswith("waits for an mbarrier")]
    copies = [event for event in spans if event["name"].startswith("TMA load of")]
    assert waits
    assert copies
    assert all(event["dur"] > 0 for event in spans)
    assert {agents[e["pid"], e["tid"]].partition(" warp ")[0] for e in waits} >= {"CTA 0", "CTA 1"}
    assert all(f"{case.kernel.name}.cu" in event["args"]["line"] for event in waits)
