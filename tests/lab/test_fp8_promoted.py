"""gemm_fp8_promoted: what sets it apart from gemm_cluster."""

import re
from dataclasses import astuple, replace

import pytest

from lab.compile import compile_launch
from lab.kernels.gemm import gemm_cluster, gemm_fp8_promoted
from lab.problems import Linear
from sim.errors import ScheduleError
from sim.machine import H100

PROBLEM = Linear(1024, 1024, 1024, "fp8", "fp8", accumulate="float32")


def test_every_step_starts_a_new_sum_which_is_added_to_every_accumulator() -> None:
    schedule = gemm_fp8_promoted.Schedule(256, 64, 4, 1, 1, 1)
    (launch,) = gemm_fp8_promoted.launch(PROBLEM, schedule, H100)
    ptx = compile_launch(launch, H100, "ptx").path.read_text()
    sums = 2 * 64 // 2  # of a thread: two tiles of 64 x 64 in a consumer
    assert len(re.findall(r"\badd(?:\.rn)?\.f32\b", ptx)) == sums
    starts = re.findall(r"wgmma\.mma_async[^;]*;", ptx)
    assert len(starts) == 2 * 4  # of 32 products each, in a k-step of 128

    (fast,) = gemm_cluster.launch(replace(PROBLEM, accumulate="fast"), gemm_cluster.Schedule(*astuple(schedule)), H100)
    ptx = compile_launch(fast, H100, "ptx").path.read_text()
    assert not re.findall(r"\badd(?:\.rn)?\.f32\b", ptx)


def test_partial_sums_need_room() -> None:
    gemm_fp8_promoted.Schedule(256, 128, 4, 1, 2, 1)
    with pytest.raises(
        ScheduleError, match="128 x 224 outputs are 112 sums and 112 partial sums a thread; a consumer has room for 192"
    ):
        gemm_fp8_promoted.Schedule(128, 224, 4, 1, 2, 1)


def test_there_are_candidates_enough_to_choose_from() -> None:
    found = list(gemm_fp8_promoted.candidates(replace(PROBLEM, m=4096, n=4096, k=4096), H100))
    assert len(set(found)) == len(found) >= 24
