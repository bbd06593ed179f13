"""gemm_shifted: whole lines of w, whose rows begin anywhere in one."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab import catalog
from lab.kernels.gemm import gemm_shifted
from lab.kernels.gemm.gemm_shifted import Schedule
from lab.problems import Linear
from lab.ptx_executor import Emulator
from lab.verify import workspaces
from sim.errors import ScheduleError
from sim.formats import decode, encode
from sim.machine import H100
from tests.emulator.cases import CHIP
from tests.strategies import compare_y

KERNEL = catalog.get("gemm_shifted")
LINE = 128  # bytes


@given(k=st.integers(1, 2000).map(lambda chunks: 8 * chunks))
def test_every_row_lies_in_its_lines_and_some_row_needs_them_all(k: int) -> None:
    lines, row_bytes = gemm_shifted.lines_of(k), 2 * k
    ends = []
    for row in range(8):
        first = gemm_shifted.first_line(row, k)
        assert LINE * first <= row * row_bytes < LINE * (first + 1)
        ends.append(-(-(row + 1) * row_bytes // LINE) - first)
    assert max(ends) == lines
    assert -(-row_bytes // LINE) <= lines <= -(-row_bytes // LINE) + 1


@pytest.mark.parametrize("k", [4104, 4040, 2536, 4096])
def test_a_row_of_tiles_asks_for_every_line_of_w_and_for_no_more_than_a_row_can_lie_in(k: int) -> None:
    problem, schedule = Linear(112, 14344, k), Schedule(112, 128, 6, 56, 1)
    counts = KERNEL.module.theory(problem, schedule, H100)
    x = 4 * 32 * 112 * -(-2 * k // LINE) * -(-problem.n // 128)
    copied = (counts.global_load_sectors or 0) * 32
    of_w = (counts.l2_to_sm_bytes or 0) - x - copied
    lines = problem.n * 2 * k // LINE
    assert LINE * lines <= of_w <= LINE * problem.n * gemm_shifted.lines_of(k)
    assert (of_w == LINE * lines) == (k % 64 == 0)
    assert (copied > 0) == (k % 64 > 0)


def test_what_the_next_row_of_w_holds_is_not_multiplied() -> None:
    problem = Linear(20, 136, 136)
    arrays = problem.draw(np.random.default_rng(0))
    expected = decode(arrays["x"], "bf16").astype(np.float64) @ decode(arrays["w"], "bf16").astype(np.float64).T
    odd = np.arange(1, problem.n, 2)
    arrays["w"][odd] = encode(np.full((len(odd), problem.k), np.nan, np.float32), "bf16")
    launches = KERNEL.launches(problem, Schedule(32, 128, 3, 32, 1, 2), CHIP)
    y = np.zeros((problem.m, problem.n), np.uint16)
    execute = Emulator(CHIP)
    execute(launches, {**arrays, **workspaces(launches), "y": y})
    assert execute.hazards == ()
    even, small = np.arange(0, problem.n, 2), Linear(20, 68, 136)
    found = decode(y, "bf16")
    assert np.isnan(found[:, odd]).all()
    assert compare_y(small, {"x": arrays["x"], "w": arrays["w"][even]}, y[:, even].copy()).passed
    assert np.allclose(found[:, even], expected[:, even], rtol=2.0**-7, atol=1e-3)


@pytest.mark.parametrize(
    ("change", "sides"),
    [
        ({"stages": 2}, "lies in two stages, so a ring has 3 or more; stages = 2"),
        ({"y_rows": 48}, "112 tokens are not boxes of 48"),
        ({"block_m": 256, "block_n": 256, "y_rows": 64}, "256 accumulators a thread; a consumer has room for 192"),
        ({"stages": 8}, r"8 stages and 2 boxes need [\d,]+ B of shared memory; a block .* has 232,448 B"),
    ],
)
def test_what_a_cta_cannot_hold_is_refused_with_both_sides(change: dict[str, Any], sides: str) -> None:
    fields = {"block_m": 112, "block_n": 128, "stages": 6, "y_rows": 56, "group_m": 1} | change
    with pytest.raises(ScheduleError, match=sides):
        Schedule(**fields).fits(Linear(777, 14344, 4104), H100)


def test_rows_that_begin_alike_in_a_line_meet_in_banks() -> None:
    schedule = Schedule(128, 128, 6, 64, 8)
    odd, even, whole = (KERNEL.bills(Linear(1024, 14336, k), schedule, H100, "graph") for k in (4104, 4112, 4096))
    assert odd.parts["bank conflicts"] == even.parts["bank conflicts"] == 0
    clocks = 128 * 8 + 2 * 128 - 512  # eight rows of w one after the other, twice those of x, less the tensor cores'
    steps = 7 * 64  # of 896 tiles on 132 SMs
    assert whole.parts["bank conflicts"] == pytest.approx(1e6 * steps * clocks / H100.clock_hz, rel=0.2)
    assert "copies" not in whole.parts


def test_tiles_are_as_high_as_the_tokens_ask() -> None:
    problem = Linear(777, 14344, 4104)  # 7 x 113 tiles of 112 x 128 are 5.99 waves of 132 SMs
    assert (KERNEL.best_guess(problem, H100).block_m, KERNEL.best_guess(problem, H100).block_n) == (112, 128)
