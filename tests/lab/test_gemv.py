"""The GEMV ladder: its order, shares of k, the ring and what the CTAs of a cluster send each other."""

from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab import catalog
from lab.check_ptx import check_ptx
from lab.kernel import Kernel
from lab.kernels.gemv import gemv_split_k, gemv_streamed, gemv_vectorized
from lab.kernels.gemv.bulk_ring import LINE, segments
from lab.problems import Linear
from sim.errors import ScheduleError
from sim.machine import H100
from tests.emulator.cases import CHIP, results

LADDER = ("gemv_naive", "gemv_coalesced", "gemv_vectorized", "gemv_streamed", "gemv_split_k")
SHAPES = [(4096, 4096), (8192, 8192), (13824, 5120), (14336, 4096), (4096, 14336), (1024, 1024)]
STREAMED, SPLIT, VECTORIZED = map(catalog.get, ("gemv_streamed", "gemv_split_k", "gemv_vectorized"))


def test_each_rung_stands_on_the_one_below() -> None:
    below = dict(zip(LADDER[1:], LADDER, strict=False)) | {"gemv_streamed": "gemv_coalesced"}  # beside gemv_vectorized
    assert {name: catalog.get(name).solves.after for name in below} == below


def test_the_rungs_ask_l2_for_ever_fewer_bytes() -> None:
    problem = Linear(1, 4096, 4096)
    moved = [
        kernel.module.theory(problem, kernel.best_guess(problem, H100), H100).l2_to_sm_bytes or 0
        for kernel in map(catalog.get, LADDER)
    ]
    assert moved[:-1] == sorted(moved[:-1], reverse=True)
    assert max(moved[-2:]) < 1.2 * problem.bytes["weights"]  # a split of k changes next to nothing


@given(
    k=st.integers(1, 2**17),
    split_k=st.sampled_from([1, 2, 4, 8]),
    step_bytes=st.sampled_from([512, 1024, 2048, 4096, 8192]),
)
def test_every_column_is_taken_once_in_steps_from_a_line_on(k: int, split_k: int, step_bytes: int) -> None:
    taken = segments(k, split_k, step_bytes)
    assert [at for at, _ in taken] == [0, *accumulate(width for _, width in taken)][:-1]
    assert sum(width for _, width in taken) == k
    assert all(at % LINE == 0 and 0 < width <= step_bytes // 2 for at, width in taken)


HARD = (
    (STREAMED, Linear(2, 61, 1160), gemv_streamed.Schedule(13, 4, 512, 3)),  # a last group of one row
    (STREAMED, Linear(1, 3, 8), gemv_streamed.Schedule(1, 8, 2048, 2)),  # less than a lane each
    (STREAMED, Linear(1, 40, 4104, "fp16"), gemv_streamed.Schedule(20, 16, 1024, 2)),
    (SPLIT, Linear(2, 37, 600), gemv_split_k.Schedule(16, 4, 512, 2, 4)),  # a block whose last CTAs own nothing
    (SPLIT, Linear(1, 70, 1000), gemv_split_k.Schedule(64, 2, 512, 3, 8)),  # shares of two lines
    (SPLIT, Linear(1, 50, 72), gemv_split_k.Schedule(48, 8, 2048, 2, 2)),  # a share of eight elements
    (SPLIT, Linear(1, 150, 520, "fp16"), gemv_split_k.Schedule(100, 4, 512, 2, 1)),  # no split, nothing is sent
    (VECTORIZED, Linear(3, 5, 1288), gemv_vectorized.Schedule(4, 2, 2, 1, 4, 1)),  # a token and rows beyond the last
    (VECTORIZED, Linear(9, 3, 520, "fp16"), gemv_vectorized.Schedule(2, 1, 1, 2, 8, 1)),  # tokens share sectors of y
    (VECTORIZED, Linear(2, 7, 776, "fp8", scales="row"), gemv_vectorized.Schedule(2, 2, 4, 4, 2, 1, 1)),  # late
    (VECTORIZED, Linear(8, 6, 264, "fp8", scales="tensor"), gemv_vectorized.Schedule(4, 1, 2, 1, 8, 1)),
    (VECTORIZED, Linear(2, 14, 520, epilogue="swiglu"), gemv_vectorized.Schedule(4, 2, 2, 2)),  # half a team is left
    (
        VECTORIZED,
        Linear(1, 6, 264, "fp8", scales="row", epilogue="swiglu", prologue="norm"),
        gemv_vectorized.Schedule(2, 2, 4, 4),
    ),
    (VECTORIZED, Linear(2, 11, 520, "fp8", scales="row", epilogue="norm"), gemv_vectorized.Schedule(4, 2, 4, 2)),
    (
        VECTORIZED,
        Linear(1, 26, 264, "fp16", epilogue="norm", prologue="norm"),
        gemv_vectorized.Schedule(8, 4, 1, 1, late=1),
    ),
    (
        VECTORIZED,
        Linear(2, 3, 2056, "fp8", scales="tensor", prologue="norm"),
        gemv_vectorized.Schedule(1, 1, 1, 8),
    ),  # squares asked for late
)


@pytest.mark.parametrize(("kernel", "problem", "schedule"), HARD, ids=str)
def test_the_ptx_is_right_however_the_ring_turns(kernel: Kernel, problem: Linear, schedule: object) -> None:
    found = check_ptx(kernel, problem, schedule, CHIP, seeds=3)
    assert found.hazards == ()
    assert all(v.check.passed and v.disagreements == {} for v in found.verifications)


def test_a_pass_over_w_serves_up_to_eight_tokens() -> None:
    def loads(m: int) -> int:
        problem = Linear(m, 8192, 8192)
        schedule = next(s for s in VECTORIZED.module.candidates(problem, H100) if s.block_m >= m)
        counts = VECTORIZED.module.theory(problem, schedule, H100)
        x_teams = problem.n // schedule.rows
        return (counts.l2_to_sm_bytes or 0) - x_teams * schedule.block_m * 2 * problem.k

    assert loads(8) == loads(4) == loads(2) == loads(1) == 2 * 8192 * 8192


@pytest.mark.parametrize("weights", ["bf16", "fp8"])
@pytest.mark.parametrize("m", [1, 2, 3, 5, 8])
def test_the_best_guess_of_few_tokens_reads_w_once(weights: str, m: int) -> None:
    for shape in SHAPES:
        assert VECTORIZED.best_guess(Linear(m, *shape, weights), H100).block_m >= m


def test_illegal_teams_are_refused_with_both_sides() -> None:
    with pytest.raises(ScheduleError, match="rows x block_m is 64 sums of a team; a warp stores 32"):
        gemv_vectorized.Schedule(8, 1, 1, 1, 8, 1)
    with pytest.raises(ScheduleError, match=r"an SM .* holds 1 to 8 CTAs of 256 threads; ctas_per_sm = 9"):
        gemv_vectorized.Schedule(1, 4, 2, 4, 1, 9).fits(Linear(1, 64, 64), H100)


def test_the_order_of_the_sum_is_fixed() -> None:
    _, problem, schedule = HARD[3]
    assert len(results(SPLIT, problem, schedule, seeds=4)) == 1


@pytest.mark.parametrize("kernel", [STREAMED, SPLIT], ids=lambda k: k.name)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_candidates_are_one_wave_beside_which_a_dependent_launch_has_room(
    kernel: Kernel, shape: tuple[int, int]
) -> None:
    problem = Linear(1, *shape)
    schedules = list(kernel.module.candidates(problem, H100))
    assert len(set(schedules)) == len(schedules) >= 7
    for schedule in schedules:
        (launch,) = kernel.launches(problem, schedule, H100)
        resident = H100.shared_bytes_per_sm // (launch.shared_bytes + 1024)
        assert launch.ctas <= resident * H100.sms
        assert launch.shared_bytes <= H100.shared_bytes_per_sm // 2
        assert launch.ctas >= 0.85 * H100.sms


@pytest.mark.parametrize(("shape", "split_k"), list(zip(SHAPES, (4, 2, 1, 1, 4, 1), strict=True)), ids=str)
def test_k_is_split_where_rows_are_few(shape: tuple[int, int], split_k: int) -> None:
    assert SPLIT.best_guess(Linear(1, *shape), H100).split_k == split_k


def test_illegal_rings_and_splits_are_refused_with_both_sides() -> None:
    with pytest.raises(ScheduleError, match=r"a ring has 2 stages or more; stages = 1"):
        gemv_streamed.Schedule(16, 8, 2048, 1)
    with pytest.raises(ScheduleError, match=r"6 stages of 16 rows need [\d,]+ B of shared memory; .* has 232,448 B"):
        gemv_streamed.Schedule(16, 16, 4096, 6).fits(Linear(1, 64, 64), H100)
    with pytest.raises(ScheduleError, match="4 CTAs own as many rows each; block_n = 18 is no multiple of 4"):
        gemv_split_k.Schedule(18, 8, 2048, 3, 4)
    with pytest.raises(ScheduleError, match="a CTA owns 40 rows, one a thread; the 1 warps that multiply have 32"):
        gemv_split_k.Schedule(80, 1, 2048, 3, 2)
    with pytest.raises(ScheduleError, match="each of 4 CTAs takes 64 columns or more; k = 136 has 3 such parts"):
        gemv_split_k.Schedule(16, 8, 2048, 3, 4).fits(Linear(1, 64, 136), H100)
    with pytest.raises(ScheduleError, match=r"m = 65,536 rows of x are grid.y; a grid .* has at most 65,535"):
        gemv_streamed.Schedule(16, 8, 2048, 3).fits(Linear(65536, 8, 8), H100)
