"""gemm_transposed: rows of w as rows of mma, tokens as their columns."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab import catalog
from lab.kernels.common.raster import tiles_of
from lab.kernels.gemm.gemm_transposed import Schedule
from lab.problems import Linear
from lab.ptx_executor import Emulator
from sim.errors import ScheduleError
from sim.machine import H100, H200
from tests.emulator.cases import CHIP
from tests.strategies import compare_y

KERNEL = catalog.get("gemm_transposed")
LINE = 128  # bytes


@pytest.mark.parametrize(
    ("block_n", "cluster", "y_boxes"), [(192, 2, 2), (128, 4, 3)], ids=["three consumers", "four CTAs"]
)
def test_clusters_take_turns_to_load_the_tokens_they_share(block_n: int, cluster: int, y_boxes: int) -> None:
    problem = Linear(60, 264, 136)  # tokens, rows of w and k left over; a CTA or two of the last cluster lie outside y
    arrays, y = problem.draw(np.random.default_rng(0)), np.zeros((60, 264), np.uint16)
    execute = Emulator(CHIP)
    execute(KERNEL.launches(problem, Schedule(48, block_n, 3, 16, cluster, 1, y_boxes), CHIP), {**arrays, "y": y})
    assert execute.hazards == ()
    assert compare_y(problem, arrays, y).passed


@given(m=st.integers(1, 600), n=st.integers(1, 300).map(lambda n: 8 * n), cluster=st.sampled_from([1, 2, 4]))
def test_every_cta_gets_all_tokens_of_its_row_of_tiles_and_its_own_rows_of_w(m: int, n: int, cluster: int) -> None:
    schedule = Schedule(96, 192, 3, 32, cluster, 1)
    counts = KERNEL.module.theory(Linear(m, n, 128), schedule, H100)
    tiles_m, tiles_n = tiles_of(m, 96), cluster * tiles_of(n, cluster * 192)
    assert counts.tma_load_bytes == tiles_m * tiles_n * 2 * (96 + 192) * LINE
    assert counts.l2_to_sm_bytes == 2 * LINE * (tiles_n * m + tiles_m * n)
    assert counts.mma_flops == 2 * tiles_m * 96 * tiles_n * 192 * 128


@pytest.mark.parametrize(
    ("change", "sides"),
    [
        ({"stages": 1}, "a ring has 2 stages or more; stages = 1"),
        ({"block_n": 320}, "block_n must be one of 128, 192, 256; block_n = 320"),
        ({"y_rows": 48}, "160 tokens are not boxes of 48"),
        ({"block_m": 208}, "104 accumulators a thread; each of 3 consumers has room for 96"),
        ({"block_m": 208, "block_n": 256}, "208 accumulators a thread; each of 2 consumers has room for 200"),
        ({"y_boxes": 11}, "a consumer's tile is 10 boxes of y, .* all at most; y_boxes = 11"),
        ({"stages": 5}, r"5 stages and 2 boxes need [\d,]+ B of shared memory; a block .* has 232,448 B"),
    ],
)
def test_what_a_cta_cannot_hold_is_refused_with_both_sides(change: dict[str, Any], sides: str) -> None:
    fields = {"block_m": 160, "block_n": 192, "stages": 4, "y_rows": 16, "group_m": 5, "cluster": 2} | change
    with pytest.raises(ScheduleError, match=sides):
        Schedule(**fields).fits(Linear(777, 14344, 4104), H100)


def test_where_rows_cross_lines_clusters_wait_less_for_what_they_load() -> None:
    problem = Linear(777, 14344, 4104)  # 5 x 75 tiles of 160 x 192 are 2.84 waves of 132 SMs
    alone, two = (KERNEL.bills(problem, Schedule(160, 192, 4, 32, c, 5), H200, "cold") for c in (1, 2))
    loaded = (160 / 2 + 192) / (160 + 192)
    assert two.parts["L2"] / alone.parts["L2"] == pytest.approx(loaded, rel=0.1)
    assert two.us < alone.us
