"""Every kernel of the catalog in the emulator: right results, the counts of theory and tile simulator, no hazard.

LAB_SEEDS=50 tries fifty interleavings instead of three.
"""

import os
from dataclasses import fields

import pytest

from lab import catalog
from lab.check_ptx import check_ptx, trace_ptx
from lab.mutants import Verdict, judge_mutants
from lab.verify import simulator, verify
from sim.counts import disagreements
from tests.emulator.cases import LAPS, Case, cases, hardest, step_of

SEEDS = int(os.environ.get("LAB_SEEDS", "3"))
HARDEST = [  # one of each kernel: its other cases share all that a mutant can break
    pytest.param(case, id=str(case)) for case in map(hardest, catalog.kernels())
]
CASES = [pytest.param(case, id=str(case)) for kernel in catalog.kernels() for case in cases(kernel)]


@pytest.mark.parametrize("case", CASES)
def test_the_ptx_is_right_and_counts_what_theory_and_the_tile_simulator_count(case: Case) -> None:
    found = check_ptx(case.kernel, case.problem, case.schedule, case.machine, SEEDS)
    assert found.hazards == ()
    assert all(v.check.passed for v in found.verifications)
    assert all(v.disagreements == {} for v in found.verifications)
    counted = verify(
        case.kernel, case.problem, case.schedule, case.machine, simulator(case.kernel, case.machine)
    ).counted
    assert disagreements(counted, found.counts) == {}


@pytest.mark.parametrize("case", HARDEST)
def test_no_mutant_is_missed_and_few_are_harmless(case: Case) -> None:
    judged = list(judge_mutants(case.kernel, case.problem, case.schedule, case.machine, seeds=2))
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


@pytest.mark.parametrize("case", HARDEST)
def test_the_hardest_case_of_a_kernel_with_clusters_or_splits_has_them(case: Case) -> None:
    for field in fields(case.schedule):
        if field.name == "cluster" or field.name.startswith("split"):
            assert getattr(case.schedule, field.name) > 1


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
