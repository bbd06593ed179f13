"""gemm_split_k: shares of k, what the CTAs of a cluster send each other, and the estimate that orders its schedules."""

from itertools import pairwise, product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab import catalog
from lab.check_ptx import check_ptx
from lab.kernels.common.clusters import at_once
from lab.kernels.gemm import gemm_split_k
from lab.kernels.gemm.gemm_split_k import Schedule, bills
from lab.problems import Linear
from sim.errors import ScheduleError
from sim.machine import H100
from tests.emulator.cases import CHIP, results

KERNEL = catalog.get("gemm_split_k")
SHAPES = [(m, n, k) for m in (64, 128, 256, 512, 1024) for n, k in ((4096, 4096), (14336, 4096), (4096, 14336))]


@given(steps=st.integers(1, 2**25), split_k=st.sampled_from([1, 2, 4, 8]))
def test_every_k_step_is_taken_once_and_shares_differ_by_one_at_most(steps: int, split_k: int) -> None:
    bounds = [rank * steps // split_k for rank in range(split_k + 1)]
    shares = [end - first for first, end in pairwise(bounds)]
    assert (bounds[0], bounds[-1]) == (0, steps)
    assert max(shares) - min(shares) <= 1
    assert split_k * steps < 2**31  # the device computes the bounds in int32


HARD = (
    (Linear(165, 104, 600), Schedule(128, 64, 2, 4, 1)),  # two consumers, narrow boxes
    (Linear(70, 200, 1000), Schedule(64, 128, 2, 8, 1)),  # seven inboxes
    (Linear(80, 264, 520), Schedule(64, 224, 3, 2, 1)),  # boxes of 16 columns
    (Linear(130, 136, 584), Schedule(128, 96, 2, 1, 1)),  # no split
    (Linear(70, 232, 392), Schedule(64, 112, 3, 1, 2)),  # a width of an odd number of boxes
    (Linear(13, 104, 600), Schedule(64, 64, 3, 4, 1)),  # boxes of as many rows as x has
    (Linear(67, 48, 264), Schedule(128, 32, 4, 2, 1)),  # of which one warpgroup's are the first
)


@pytest.mark.parametrize(("problem", "schedule"), HARD, ids=str)
def test_the_ptx_is_right_however_the_cluster_runs(problem: Linear, schedule: Schedule) -> None:
    found = check_ptx(KERNEL, problem, schedule, CHIP, seeds=3)
    assert found.hazards == ()
    assert all(v.check.passed and v.disagreements == {} for v in found.verifications)


def test_the_order_of_the_sum_is_fixed() -> None:
    problem, schedule = HARD[0]
    assert len(results(KERNEL, problem, schedule, seeds=4)) == 1


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_candidates_are_many_legal_and_ordered_by_predicted_time(shape: tuple[int, int, int]) -> None:
    problem = Linear(*shape)
    schedules = list(gemm_split_k.candidates(problem, H100))
    assert 30 <= len(set(schedules)) == len(schedules) <= 48
    for schedule in schedules:
        schedule.fits(problem, H100)
    times = [bills(problem, schedule, H100, "graph").us for schedule in schedules]
    assert times == sorted(times)
    assert times[0] >= 1e6 * max(problem.bytes["total"] / H100.hbm_bandwidth, problem.flops / H100.peak("bf16"))


def test_what_ctas_send_each_other_is_neither_loaded_nor_stored() -> None:
    problem = Linear(128, 512, 1024)
    whole, *split = (KERNEL.module.theory(problem, Schedule(64, 256, 2, split_k, 1), H100) for split_k in (1, 2, 4, 8))
    assert all(counts == whole for counts in split)


@pytest.mark.parametrize(("split_k", "clusters"), [(1, 132), (2, 66), (4, 31), (8, 15)])
def test_clusters_lie_in_one_gpc(split_k: int, clusters: int) -> None:
    assert at_once(split_k, 1, H100) == clusters


def test_deeper_rings_more_bytes_and_more_waves_move_the_estimate_their_way() -> None:
    problem = Linear(256, 4096, 14336)
    shallow, deep = (bills(problem, Schedule(128, 128, stages, 4, 1), H100, "graph").us for stages in (2, 5))
    assert shallow > deep
    for m, split_k in product((64, 128), (1, 2)):
        schedule = Schedule(64, 128, 4, split_k, 1)
        times = [bills(Linear(m, 4096, k), schedule, H100, "graph").us for k in (1024, 4096, 16384)]
        assert times == sorted(times)


def test_rows_beyond_an_edge_and_rows_that_cross_lines_cost_time() -> None:
    def us(m: int, n: int, k: int) -> float:
        return bills(Linear(m, n, k), Schedule(256, 128, 4, 1, 1), H100, "graph").us

    assert us(1000, 4096, 4096) > us(1024, 4096, 4096)
    assert us(1024, 4088, 4096) > us(1024, 4096, 4096)
    assert us(1024, 4096, 4104) > us(1024, 4096, 4160)  # as many steps


def test_illegal_splits_are_refused_with_both_sides() -> None:
    with pytest.raises(ScheduleError, match=r"boxes of 16 columns; block_n = 96 is no multiple of 128"):
        Schedule(64, 96, 2, 8, 1)
    with pytest.raises(ScheduleError, match=r"each of 4 CTAs takes a k-step or more; k = 136 has 3"):
        Schedule(64, 64, 2, 4, 1).fits(Linear(64, 64, 136), H100)
    with pytest.raises(ScheduleError, match=r"2 CTAs need [\d,]+ B of shared memory; an SM .* has 233,472 B"):
        Schedule(128, 128, 4, 1, 2).fits(Linear(64, 64, 4096), H100)
    with pytest.raises(ScheduleError, match=r"20 warps of 112 registers a thread need 71,680; an SM .* has 65,536"):
        Schedule(256, 160, 3, 1, 1).fits(Linear(256, 320, 4096), H100)
