"""gemv_mma: what its formats and folds do, what it counts, and the estimate that orders its schedules."""

from dataclasses import replace

import numpy as np
import pytest

from lab import catalog
from lab.check_ptx import check_ptx
from lab.compile import compile_launch
from lab.kernels.gemv import gemv_mma_counts
from lab.kernels.gemv.gemv_mma import Schedule, bills, held
from lab.problems import Linear
from lab.ptx_executor import Emulator
from sim.errors import ScheduleError
from sim.formats import encode
from sim.machine import H100, H200
from tests.emulator.cases import CHIP, results

KERNEL = catalog.get("gemv_mma")
SHAPES = [(4096, 4096), (8192, 8192), (13824, 5120), (14336, 4096), (4096, 14336)]
FORMATS = ("bf16", "fp8", "int4_g128", "int4_g32")

HARD = (
    (Linear(19, 136, 520, "fp16"), Schedule(16, 2, 2, 2, 2, 1, 1)),  # tokens and columns left over
    (Linear(13, 104, 1000), Schedule(8, 1, 4, 2, 1, 2, 1)),  # four rows a request, two blocks of tokens
    (Linear(5, 48, 1304), Schedule(8, 2, 1, 4, 4, 4, 1)),  # two rows a request
    (Linear(1, 8, 8), Schedule(8, 1, 1, 4, 2, 1, 1)),  # less than an mma, warps without work
    (Linear(5, 208, 144, "fp8", scales="row"), Schedule(8, 4, 1, 2, 1, 2, 1)),  # rows and scales left over
    (Linear(33, 40, 272, "fp8", scales="tensor"), Schedule(32, 1, 2, 2, 1, 1, 1)),  # a token alone in its block
    (Linear(9, 200, 808, "int4_g64", offset="zero"), Schedule(8, 4, 2, 2, 1, 1, 1, 1)),  # late
    (Linear(4, 72, 1160, "int4_g32"), Schedule(8, 2, 1, 2, 2, 1, 1)),  # a group of eight columns
)


@pytest.mark.parametrize(("problem", "schedule"), HARD, ids=str)
def test_the_ptx_is_right_however_the_warps_run(problem: Linear, schedule: Schedule) -> None:
    found = check_ptx(KERNEL, problem, schedule, CHIP, seeds=3)
    assert found.hazards == ()
    assert all(v.check.passed and v.disagreements == {} for v in found.verifications)


def test_the_order_of_the_sum_is_fixed() -> None:
    problem, schedule = HARD[1]
    assert len(results(KERNEL, problem, schedule, seeds=4)) == 1


def test_every_fp8_weight_becomes_its_bf16() -> None:
    """A row of w for every finite pattern, its value at one column; subnormals, both zeros and 448 among them."""
    problem = Linear(1, 256, 16, "fp8")
    w = np.zeros((256, 16), np.uint8)
    w[np.arange(256), np.arange(256) % 16] = np.where(np.arange(256) % 128 == 127, 0, np.arange(256))
    inputs = {"x": encode(np.ones((1, 16), np.float32), "bf16"), "w": w}
    y = np.zeros((1, 256), np.uint16)
    Emulator(CHIP)(KERNEL.launches(problem, Schedule(8, 1, 2, 1, 1, 1, 1), CHIP), {**inputs, "y": y})
    expected, _ = problem.reference(inputs)["y"]
    assert np.array_equal(y, encode(expected, "bf16"))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("m", [1, 16])
@pytest.mark.parametrize("weights", FORMATS)
def test_guesses_are_distinct_ordered_and_above_the_floor(weights: str, m: int, shape: tuple[int, int]) -> None:
    problem = Linear(m, *shape, weights)
    schedules = list(KERNEL.module.candidates(problem, H100))
    assert 6 <= len(set(schedules)) == len(schedules) <= KERNEL.module.TRIED
    times = [bills(problem, schedule, H100, "graph").us for schedule in schedules]
    assert times == sorted(times)
    assert times[0] >= 1e6 * problem.bytes["total"] / H100.hbm_bandwidth


def test_a_fold_changes_requests_and_products_but_no_sector_of_w() -> None:
    """Rows of whole 128-byte lines: a request of longer stretches has the same sectors; mma take each part of k."""
    problem = Linear(1, 512, 4096)
    one, two = (KERNEL.module.theory(problem, Schedule(8, fold, 2, 4, 1, fold, 1), H100) for fold in (1, 2))
    assert one.global_load_sectors == two.global_load_sectors
    assert two.mma_flops == 2 * one.mma_flops


def test_x_is_requested_by_every_team_and_w_by_every_block_of_tokens() -> None:
    problem = Linear(16, 512, 4096)
    w, x = 512 * 4096 * 2 // 32, 16 * 4096 * 2 // 32
    for block_m, rows, teams in ((16, 1, 2), (16, 2, 1), (8, 4, 4)):
        counts = KERNEL.module.theory(problem, Schedule(block_m, rows, teams, 2, 1, 1, 1), H100)
        assert counts.global_load_sectors == 16 // block_m * w + 512 // (16 * rows) * x


def test_a_perturbed_tile_changes_what_is_counted() -> None:
    problem, schedule = Linear(5, 200, 1000), Schedule(8, 2, 2, 2, 1, 1, 1)
    (launch,) = KERNEL.launches(problem, schedule, H100)
    counts = gemv_mma_counts.simulate(launch, {}, H100)
    wrong = replace(launch, schedule=replace(schedule, rows=4))
    assert gemv_mma_counts.simulate(wrong, {}, H100).global_load_sectors != counts.global_load_sectors


def test_illegal_schedules_are_refused_with_both_sides() -> None:
    with pytest.raises(ScheduleError, match=r"8 teams of 4 are 32 warps; a CTA has at most 16"):
        Schedule(8, 1, 8, 4, 1, 1, 1)
    with pytest.raises(ScheduleError, match=r"the sums of a CTA take 69,632 B; static shared memory is 49,152 B"):
        Schedule(16, 4, 1, 16, 1, 1, 1).fits(Linear(16, 64, 64), H100)
    with pytest.raises(ScheduleError, match=r"an SM .* holds 1 to 4 CTAs of 512 threads; ctas_per_sm = 5"):
        Schedule(8, 1, 1, 16, 1, 1, 5).fits(Linear(1, 64, 64), H100)
    with pytest.raises(ScheduleError, match=r"packed weights take fold = 1 and block_m = 8; fold = 2, block_m = 8"):
        Schedule(8, 1, 1, 4, 1, 2, 1).fits(Linear(1, 64, 128, "int4_g32"), H100)
    with pytest.raises(ScheduleError, match=r"32 warps of \d+ registers a thread need [\d,]+; an SM .* has 65,536"):
        Schedule(8, 4, 1, 16, 4, 1, 2).fits(Linear(1, 64, 4096), H100)
    with pytest.raises(ScheduleError, match=r"131,072 blocks of 8 tokens are grid.y; a grid .* has at most 65,535"):
        Schedule(8, 1, 4, 2, 1, 1, 1).fits(Linear(2**20, 64, 64), H100)


@pytest.mark.parametrize(
    ("problem", "schedule"),
    [
        (Linear(8, 4096, 4096, "fp8"), Schedule(8, 1, 1, 16, 2, 1, 1)),
        (Linear(8, 4096, 4096), Schedule(8, 1, 1, 8, 2, 2, 3)),
        (Linear(8, 4096, 4096, "int4_g128"), Schedule(8, 2, 1, 4, 1, 1, 4)),
        (Linear(32, 4096, 4096), Schedule(32, 1, 1, 2, 2, 1, 8)),
    ],
    ids=str,
)
def test_an_sm_holds_as_many_as_the_registers_that_ptxas_took_leave_room_for(
    problem: Linear, schedule: Schedule
) -> None:
    """`ctas_per_sm` is a least that ptxas leaves registers for; it often takes fewer. One more or less is not told."""
    (launch,) = KERNEL.launches(problem, schedule, H100)
    taken = 8 * -(-compile_launch(launch, H100).resources["gemv_mma"].registers // 8)
    room = H100.registers_per_sm // (taken * schedule.threads)
    assert room > schedule.ctas_per_sm
    assert abs(held(problem, schedule, H100) - min(room, H100.threads_per_sm // schedule.threads)) <= 1


def test_rows_that_begin_amid_a_sector_take_more_of_hbm_the_less_where_parts_are_neighbours() -> None:
    """k of fp8 is a multiple of 16 bytes, a sector has 32; scales of rows are no part of a row."""

    def per_byte(k: int, schedule: Schedule) -> float:
        problem = Linear(4, 8192, k, "fp8", scales="row")
        return bills(problem, schedule, H200, "graph").parts["HBM"] / problem.read_bytes

    one, two = Schedule(8, 2, 1, 8, 1, 1, 3), Schedule(8, 1, 1, 8, 2, 1, 3)
    for schedule in (one, two):
        assert per_byte(8192, schedule) == pytest.approx(per_byte(8192 + 32, schedule), rel=0.001)
    extra = [per_byte(8192 + 16, schedule) / per_byte(8192, schedule) - 1 for schedule in (one, two)]
    assert extra[0] == pytest.approx(2 * extra[1], rel=0.05)
    assert 0 < extra[0] <= 0.5, "a sector for every two at most"
