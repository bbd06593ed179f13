"""gemm_fp8_promoted: what sets it apart from gemm_cluster."""

import re
from dataclasses import replace

import pytest

from lab.compile import compile_launch
from lab.kernels.gemm import gemm_cluster, gemm_fp8_promoted
from lab.problems import Linear
from sim.errors import ScheduleError
from sim.machine import H100

PROBLEM = Linear(1024, 1024, 1024, "fp8", "fp8", accumulate="float32")


CUT = {  # block_m, block_n, hand_over: columns of a part
    (128, 128, 0): 128,
    (128, 192, 0): 96,
    (128, 192, 2): 192,
    (256, 96, 0): 96,
    (256, 128, 2): 128,
    (128, 256, 1): 128,
}


def additions(ptx: str) -> int:
    return len(re.findall(r"\badd(?:\.rn)?\.f32\b", ptx))


def test_every_step_starts_a_new_sum_which_is_added_to_every_accumulator() -> None:
    schedule = gemm_fp8_promoted.Schedule(256, 64, 4, 1, 1, 1, 2)
    (launch,) = gemm_fp8_promoted.launch(PROBLEM, schedule, H100)
    ptx = compile_launch(launch, H100, "ptx").path.read_text()
    sums = 2 * 64 // 2  # of a thread: two parts of 64 x 64 in a consumer
    assert additions(ptx) == sums
    starts = re.findall(r"wgmma\.mma_async[^;]*;", ptx)
    assert len(starts) == 2 * 4  # of 32 products each, in a k-step of 128

    (fast,) = gemm_cluster.launch(replace(PROBLEM, accumulate="fast"), gemm_cluster.Schedule(256, 64, 4, 1, 1, 1), H100)
    assert not additions(compile_launch(fast, H100, "ptx").path.read_text())


@pytest.mark.parametrize("schedule", [(128, 128, 6, 2, 1, 1, 0), (128, 192, 4, 2, 1, 1, 0), (256, 96, 4, 2, 2, 1, 0)])
def test_two_partial_sums_are_never_both_waited_for_before_the_last_step(schedule: tuple[int, ...]) -> None:
    (launch,) = gemm_fp8_promoted.launch(PROBLEM, gemm_fp8_promoted.Schedule(*schedule), H100)
    order = re.findall(
        r"wgmma\.(commit_group|wait_group)\S*\s*(\d?)", compile_launch(launch, H100, "ptx").path.read_text()
    )
    started = [i for i, (name, _) in enumerate(order) if name == "commit_group"]
    assert [pending for i in started[1:] for name, pending in order[i + 1 : i + 2]] == ["1"] * (len(started) - 1)


def test_a_part_has_one_scale_of_w_and_room_for_those_of_two_steps() -> None:
    blocks = replace(PROBLEM, scales="block")
    gemm_fp8_promoted.Schedule(128, 128, 6, 2, 1, 1, 0).fits(blocks, H100)
    with pytest.raises(ScheduleError, match="its columns divide 128; those of 128 x 192 tiles have 96"):
        gemm_fp8_promoted.Schedule(128, 192, 4, 2, 1, 1, 0).fits(blocks, H100)
    with pytest.raises(ScheduleError, match="256 x 128 outputs are 192 sums and 10 scales of blocks a thread"):
        gemm_fp8_promoted.Schedule(256, 128, 4, 1, 1, 1, 2).fits(blocks, H100)


def test_partial_sums_need_room() -> None:
    gemm_fp8_promoted.Schedule(256, 128, 4, 1, 2, 1, 2)
    with pytest.raises(
        ScheduleError,
        match="256 x 128 outputs are 128 sums and 2 x 64 partial sums a thread; a consumer has room for 192",
    ):
        gemm_fp8_promoted.Schedule(256, 128, 4, 1, 2, 1, 0)


def test_a_tile_is_cut_into_parts_where_that_makes_room() -> None:
    columns = {(m, n, turns): gemm_fp8_promoted.Schedule(m, n, 4, 1, 1, 1, turns).part_columns for m, n, turns in CUT}
    assert columns == CUT


def test_promotion_is_not_free() -> None:
    problem = replace(PROBLEM, accumulate="fast")
    schedule = gemm_fp8_promoted.Schedule(128, 128, 6, 2, 1, 1, 2)
    promoted, plain = (of.bills(problem, schedule, H100, "graph") for of in (gemm_fp8_promoted, gemm_cluster))
    assert promoted.us == plain.us + promoted.parts["promotion"] > plain.us


def test_there_are_candidates_enough_to_choose_from() -> None:
    found = list(gemm_fp8_promoted.candidates(replace(PROBLEM, m=4096, n=4096, k=4096), H100))
    assert len(set(found)) == len(found) >= 24
