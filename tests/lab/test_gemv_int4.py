"""gemv_int4: what its groups, its clusters and its share of k do, and the estimate that orders its schedules."""

from dataclasses import replace

import pytest

from lab import catalog
from lab.check_ptx import check_ptx
from lab.kernels.common import clusters
from lab.kernels.gemv import gemv_int4_counts
from lab.kernels.gemv.gemv_int4 import Schedule, bills, shared_bytes
from lab.problems import Linear
from sim.errors import ScheduleError
from sim.machine import H100
from tests.emulator.cases import CHIP, results

KERNEL = catalog.get("gemv_int4")
SHAPES = [(4096, 4096), (8192, 8192), (13824, 5120), (14336, 4096), (4096, 14336)]
FORMATS = ("int4_g128", "int4_g32")

HARD = (
    (Linear(13, 104, 1000, "int4_g128"), Schedule(16, 1, 4, 2, 7, 3, 1)),  # seven CTAs, of fewer steps than warps
    (Linear(1, 8, 8, "int4_g32"), Schedule(8, 1, 4, 2, 1, 2, 1, 1)),  # less than an mma; late
    (Linear(5, 200, 144, "int4_g128"), Schedule(8, 8, 1, 1, 1, 2, 1)),  # a step that k fills in part
    (Linear(19, 200, 808, "int4_g64", offset="zero"), Schedule(16, 4, 2, 2, 3, 2, 1)),  # a part that divides nothing
    (Linear(40, 72, 1160, "int4_g32"), Schedule(32, 2, 2, 2, 4, 2, 1, 1)),  # a group of eight columns; late
    (Linear(3, 72, 840, "int4_g64", order="given"), Schedule(8, 2, 2, 2, 3, 2, 1)),  # columns from all over x
    (Linear(3, 96, 520, "int4_g128", epilogue="swiglu", prologue="norm"), Schedule(8, 4, 2, 2, 1, 2, 1)),
    (Linear(1, 64, 200, "int4_g32", epilogue="swiglu"), Schedule(8, 2, 1, 4, 1, 3, 1, 1)),  # warps without a step
    (Linear(2, 160, 520, "int4_g64", epilogue="swiglu", prologue="norm"), Schedule(8, 2, 2, 2, 3, 2, 1)),  # halves sent
    (Linear(9, 72, 840, "int4_g64", epilogue="norm"), Schedule(8, 1, 1, 4, 2, 2, 1)),  # sums of two CTAs, two tokens
    (Linear(1, 104, 1160, "int4_g128", epilogue="norm", prologue="norm"), Schedule(8, 2, 2, 1, 1, 2, 1)),
    (Linear(2, 24, 264, "int4_g32", prologue="norm"), Schedule(8, 1, 2, 2, 2, 2, 1)),
)


@pytest.mark.parametrize(("problem", "schedule"), HARD, ids=str)
def test_the_ptx_is_right_however_the_warps_run(problem: Linear, schedule: Schedule) -> None:
    found = check_ptx(KERNEL, problem, schedule, CHIP, seeds=3)
    assert found.hazards == ()
    assert all(v.check.passed and v.disagreements == {} for v in found.verifications)


def test_the_order_of_the_sum_is_fixed() -> None:
    problem, schedule = HARD[0]
    assert len(results(KERNEL, problem, schedule, seeds=4)) == 1


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("m", [1, 16])
@pytest.mark.parametrize("weights", FORMATS)
def test_best_guesses_are_one_wave_with_enough_in_flight(weights: str, m: int, shape: tuple[int, int]) -> None:
    problem = Linear(m, *shape, weights)
    schedules = list(KERNEL.module.candidates(problem, H100))
    assert 6 <= len(set(schedules)) == len(schedules) <= KERNEL.module.TRIED
    times = [bills(problem, schedule, H100, "graph").us for schedule in schedules]
    assert times == sorted(times)
    assert times[0] >= 1e6 * problem.bytes["total"] / H100.hbm_bandwidth
    best = schedules[0]
    (launch,) = KERNEL.launches(problem, best, H100)
    waves = 1 if m == 1 else 2  # x of many tokens does not leave room for all
    assert launch.ctas // best.cluster <= waves * clusters.at_once(best.cluster, best.ctas_per_sm, H100)
    whole = problem.bytes["weights"] / H100.sms
    ring = best.warps * best.stages * best.rows * 1024
    assert min(whole, best.ctas_per_sm * ring) >= 48 * 1024


def test_x_is_read_once_by_every_block_of_rows_whatever_the_split() -> None:
    problem = Linear(5, 512, 4096, "int4_g64")
    for split_k, cluster in ((1, 1), (4, 1), (2, 4), (1, 7)):
        counts = KERNEL.module.theory(problem, Schedule(8, 2, 2, split_k, cluster, 2, 1), H100)
        assert counts.tma_load_bytes == 512 // 64 * 5 * 4096 * 2
        assert counts.global_load_sectors == 512 * (4096 // 2 + 4096 // 64 * 4) // 32


def test_a_perturbed_tile_changes_what_is_counted() -> None:
    problem, schedule = Linear(5, 200, 1000, "int4_g64"), Schedule(8, 2, 2, 2, 1, 2, 1)
    (launch,) = KERNEL.launches(problem, schedule, H100)
    counts = gemv_int4_counts.simulate(launch, {}, H100)
    wrong = replace(launch, schedule=replace(schedule, rows=4))  # the same grid, taller blocks
    assert gemv_int4_counts.simulate(wrong, {}, H100).tma_load_bytes != counts.tma_load_bytes


def test_illegal_schedules_are_refused_with_both_sides() -> None:
    with pytest.raises(ScheduleError, match=r"8 teams of 4 are 32 warps; a CTA has at most 16"):
        Schedule(8, 1, 8, 4, 1, 2, 1)
    with pytest.raises(ScheduleError, match=r"each of 4 CTAs takes a step along k or more; k = 384 has 3"):
        Schedule(8, 1, 2, 2, 4, 2, 1).fits(Linear(1, 64, 384, "int4_g32"), H100)
    with pytest.raises(ScheduleError, match=r"2 stages of 8 warps, and x need [\d,]+ B .*; a block .* has 232,448 B"):
        Schedule(16, 1, 4, 2, 1, 2, 1).fits(Linear(16, 64, 8192, "int4_g32"), H100)
    with pytest.raises(ScheduleError, match=r"131,072 blocks of 8 tokens are grid.y; a grid .* has at most 65,535"):
        Schedule(8, 1, 4, 2, 1, 2, 1).fits(Linear(2**20, 64, 64, "int4_g32"), H100)


def test_fewer_tokens_leave_more_shared_memory() -> None:
    schedule = Schedule(8, 1, 4, 2, 1, 2, 1)
    sizes = [shared_bytes(Linear(m, 64, 4096, "int4_g32"), schedule) for m in (1, 2, 8, 9, 100)]
    assert sizes[0] < sizes[1] < sizes[2] == sizes[3] == sizes[4]
