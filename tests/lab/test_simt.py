"""Facts of the fp32 ladder that hold for no other kernel."""

import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab import catalog
from lab.compile import compile_launch
from lab.kernels.gemm.simt_tile import ROW, WarpRequest, patch_sectors, vectors
from lab.problems import Linear
from lab.ptx_executor import Emulator
from lab.verify import verify
from sim.counts import SECTOR
from sim.errors import ScheduleError
from sim.machine import H100
from sim.tiles import fma_tile
from sim.tiles.chip import FIELDS, FLOPS
from tests.strategies import some

LADDER = (
    "gemm_naive",
    "gemm_coalesced",
    "gemm_shared_tile",
    "gemm_register_tile_1d",
    "gemm_register_tile_2d",
    "gemm_vectorized",
    "gemm_warp_tile",
)
BIG = Linear(4096, 4096, 4096, "fp32")


@given(
    rows=st.integers(1, 70),
    columns=st.integers(1, 90),
    request=st.sampled_from([ROW, vectors(8), vectors(16), vectors(32), WarpRequest(4, 8), WarpRequest(2, 16)]),
)
def test_patches_touch_the_sectors_that_enumeration_finds(rows: int, columns: int, request: WarpRequest) -> None:
    expected = 0
    for top in range(0, rows, request.rows):
        for left in range(0, columns, request.columns):
            patch = {
                (4 * (r * columns + c)) // SECTOR
                for r in range(top, min(top + request.rows, rows))
                for c in range(left, min(left + request.columns, columns))
            }
            expected += len(patch)
    assert patch_sectors(rows, columns, request) == expected


@given(
    m=st.sampled_from([4, 8]),
    n=st.integers(1, 9),
    k=st.sampled_from([4, 12]),
    reach=st.tuples(*[st.integers(-2, 14)] * 3),
    numerics=st.booleans(),
)
def test_a_tile_of_multiply_adds_counts_what_lies_inside(
    m: int, n: int, k: int, reach: tuple[int, int, int], numerics: bool
) -> None:
    rng = np.random.default_rng(m * n * k)
    a, b = (rng.integers(-8, 9, shape).astype(np.float32) for shape in ((m, k), (k, n)))
    total, count = np.ones((m, n), np.float32), np.zeros(len(FIELDS), np.int64)
    fma_tile(count, total, a, b, *reach, numerics)
    inside = [max(0, min(extent, far)) for extent, far in zip((m, n, k), reach, strict=True)]
    assert count[FLOPS] == count.sum() == 2 * np.prod(inside)
    assert np.array_equal(total, 1 + a @ b if numerics else np.ones((m, n)))  # small integers: exact


def test_each_rung_stands_on_the_one_below() -> None:
    below = dict(zip(LADDER[1:], LADDER, strict=False))
    assert {name: catalog.get(name).solves.after for name in below} == below
    assert all("fp32" in catalog.get(name).solves.formats for name in LADDER)


def test_each_rung_asks_l2_for_no_more_and_is_predicted_to_be_faster_than_the_one_below() -> None:
    moved, predicted = [], []
    for name in LADDER:
        kernel = catalog.get(name)
        schedule = kernel.best_guess(BIG, H100)
        moved.append(kernel.module.theory(BIG, schedule, H100).l2_to_sm_bytes)
        predicted.append(kernel.predicted_us(BIG, schedule, H100, "graph"))
    assert moved == sorted(moved, reverse=True)
    assert len(set(moved)) == len(LADDER) - 1, "all but the vectors move fewer bytes"
    assert predicted == sorted(set(predicted), reverse=True)
    assert predicted[-1] > BIG.flops / H100.peak("fp32") * 1e6


def test_tiles_move_each_operand_once_for_each_tile_across() -> None:
    for name in LADDER[2:]:
        kernel = catalog.get(name)
        s = kernel.best_guess(BIG, H100)
        m = n = k = 4096
        counts = kernel.module.theory(BIG, s, H100)
        assert counts.l2_to_sm_bytes == 4 * (m * k * (n // s.block_n) + n * k * (m // s.block_m))
        assert counts.sm_to_l2_bytes == 4 * m * n


@pytest.mark.parametrize("name", LADDER[2:])
def test_a_perturbed_tile_changes_what_is_counted(name: str) -> None:
    kernel, problem = catalog.get(name), Linear(256, 256, 128, "fp32")
    schedule = kernel.best_guess(BIG, H100)
    (launch,) = kernel.launches(problem, schedule, H100)
    counts = kernel.module.simulate(launch, {}, H100)
    wrong = replace(schedule, block_m=schedule.block_m // 2)
    assert kernel.module.simulate(replace(launch, schedule=wrong), None, H100) != counts


@pytest.mark.parametrize("name", LADDER[2:])
def test_shared_memory_meets_no_bank_conflict(name: str, every: bool) -> None:
    kernel, problem = catalog.get(name), Linear(128, 128, 64, "fp32")
    candidates = kernel.module.candidates(problem, H100)
    told_apart = [s for s in candidates if s.group_m in (1, 8)]  # the raster changes nothing in shared memory
    for schedule in some(told_apart, every):
        execute = Emulator(H100, check=False)
        assert verify(kernel, problem, schedule, H100, execute).passed
        (found,) = execute.emulations
        assert found.statistics.shared_wavefronts == found.statistics.shared_ideal_wavefronts > 0, schedule


def test_the_warp_tile_loop_is_all_but_multiply_adds() -> None:
    kernel = catalog.get("gemm_warp_tile")
    schedule = kernel.best_guess(BIG, H100)
    (launch,) = kernel.launches(BIG, schedule, H100)
    ptx = compile_launch(launch, H100, "ptx").path.read_text()
    fma = len(re.findall(r"\bfma\.rn\.f32", ptx))
    loads = len(re.findall(r"\bld\.shared\.v4\.(?:f32|u32|b32)", ptx))
    assert fma == schedule.block_k * schedule.thread_m * schedule.thread_n
    assert loads == (schedule.block_k + 1) * (schedule.thread_m + schedule.thread_n) / 4, "one k ahead"
    assert not re.search(r"\bld\.shared\.(?:f32|u32|b32)|\.local\b", ptx)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stages": 1}, "2 stages or more; stages = 1"),
        ({"stages": 32}, r"32 stages need [\d,]+ B of shared memory; a block .* has 232,448 B"),
        ({"ctas_per_sm": 4}, r"4 CTAs need [\d,]+ B of shared memory; an SM .* has 233,472 B"),
        ({"block_n": 64, "thread_m": 8, "thread_n": 16}, "block_n is a multiple of a warp's 128; block_n = 64"),
        ({"thread_n": 16}, "16 x 16 outputs are 256 registers; of a thread's 255, 128 can be sums"),
        ({"thread_m": 4, "thread_n": 4}, "2048 threads load 256 rows at once; block_n = 128 is no multiple of it"),
    ],
)
def test_an_illegal_warp_tile_is_refused_with_both_sides(change: dict[str, int], message: str) -> None:
    schedule = catalog.get("gemm_warp_tile").best_guess(BIG, H100)
    with pytest.raises(ScheduleError, match=message):
        replace(schedule, **change).fits(BIG, H100)
