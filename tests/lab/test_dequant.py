"""gemm_dequant: every format on hard tiles in the emulator, exact widening, what the formats make of a schedule."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from lab import catalog
from lab.check_ptx import check_ptx
from lab.compile import compile_launch
from lab.kernels.gemm import gemm_dequant
from lab.kernels.gemm.gemm_dequant import Schedule, bills, layout
from lab.problems import Linear
from lab.ptx_executor import Emulator
from sim import int4
from sim.errors import ScheduleError
from sim.formats import decode, encode
from sim.machine import H100
from tests.emulator.cases import CHIP

KERNEL = catalog.get("gemm_dequant")
FORMATS = ("fp8", "int4_g128", "int4_g64", "int4_g32")

HARD = (
    (Linear(165, 168, 1104, "fp8", scales="row"), Schedule(64, 128, 2, 4, 1, 2)),  # two consumers, inboxes
    (Linear(300, 72, 400, "fp8", scales="tensor"), Schedule(256, 64, 2, 1, 1, 1)),  # the tallest tile
    (Linear(201, 200, 528, "fp8"), Schedule(192, 192, 2, 1, 1, 2)),  # units of two steps
    (Linear(1, 264, 1040, "fp8"), Schedule(32, 256, 3, 4, 1, 1)),  # a token, eight tokens a CTA
    (Linear(130, 136, 904, "int4_g128"), Schedule(128, 128, 2, 1, 1, 2)),  # half a group at the end
    (Linear(70, 200, 1096, "int4_g64", offset="zero"), Schedule(64, 192, 2, 8, 1, 1)),  # seven inboxes, part of a tile
    (Linear(100, 264, 520, "int4_g32"), Schedule(96, 128, 2, 2, 1, 3)),  # tokens for one of three warps more
    (Linear(40, 320, 776, "int4_g128", offset="zero"), Schedule(32, 256, 2, 2, 1, 8)),  # four consumers
    (Linear(70, 264, 776, "int4_g128"), Schedule(64, 256, 2, 2, 1, 2)),  # units of one step
    (Linear(13, 200, 1096, "int4_g128"), Schedule(16, 128, 2, 2, 1, 1)),  # eight tokens a CTA
)


@pytest.mark.parametrize(("problem", "schedule"), HARD, ids=str)
def test_the_ptx_is_right_however_warps_and_clusters_run(problem: Linear, schedule: Schedule) -> None:
    found = check_ptx(KERNEL, problem, schedule, CHIP, seeds=2)
    assert found.hazards == ()
    assert all(v.check.passed and v.disagreements == {} for v in found.verifications)


def run(problem: Linear, schedule: Schedule, arrays: dict[str, np.ndarray]) -> np.ndarray:
    y = np.zeros((problem.m, problem.n), np.uint16)
    Emulator(CHIP)(KERNEL.launches(problem, schedule, CHIP), {**arrays, "y": y})
    return decode(y, "bf16")


def test_every_fp8_is_widened_exactly() -> None:
    """One token for each place along k finds the weight there; subnormals, signed zeros and 448 among them."""
    problem, schedule = Linear(256, 8, 256, "fp8"), Schedule(256, 64, 2, 1, 1, 1)
    bits = np.arange(256, dtype=np.uint8)
    bits[[0x7F, 0xFF]] = 0  # NaN is not kept
    y = run(problem, schedule, {"x": encode(np.eye(256), "bf16"), "w": np.tile(bits, (8, 1))})
    assert np.array_equal(y, np.tile(decode(bits, "fp8"), (8, 1)).T)


@pytest.mark.parametrize(("group", "zero_points"), list(product((32, 64, 128), (False, True))))
def test_every_int4_is_widened_exactly(group: int, zero_points: bool) -> None:
    """With powers of two as scales and whole offsets all weights are bf16, and a token of one one finds them."""
    n, k = 72, 200
    rng = np.random.default_rng(0)
    shape = (n, -(-k // group))
    scale = np.exp2(rng.integers(-3, 4, shape)).astype(np.float16)
    offset = (rng.integers(0, 16, shape) * (1 if zero_points else scale)).astype(np.float16)
    groups = int4.Groups(rng.integers(0, 16, (n, k), np.uint8), scale, offset, group, zero_points)
    w, w_scale = int4.pack(groups)
    problem = Linear(k, n, k, f"int4_g{group}", offset="zero" if zero_points else "min")
    y = run(problem, Schedule(64, 128, 2, 1, 1, 1), {"x": encode(np.eye(k), "bf16"), "w": w, "w_scale": w_scale})
    assert np.array_equal(y, groups.values.T)


def test_weights_of_zero_make_zeros() -> None:
    problem = Linear(33, 64, 256, "int4_g64")
    arrays = problem.draw(np.random.default_rng(0))
    arrays |= {name: np.zeros_like(arrays[name]) for name in ("w", "w_scale")}
    assert not run(problem, Schedule(32, 64, 2, 2, 1, 1), arrays).any()


@pytest.mark.parametrize(("weights", "m"), list(product(FORMATS, (17, 64, 512, 8192))))
def test_candidates_are_few_legal_and_ordered_by_predicted_time(weights: str, m: int) -> None:
    for n, k in ((8192, 8192), (4096, 14336), (576, 576)):
        problem = Linear(m, n, k, weights)
        schedules = list(gemm_dequant.candidates(problem, H100))
        assert 4 <= len(set(schedules)) == len(schedules) <= 16
        times = [bills(problem, schedule, H100, "graph").us for schedule in schedules]
        assert times == sorted(times)
        assert times[0] >= 1e6 * max(problem.bytes["total"] / H100.hbm_bandwidth, problem.flops / H100.peak("bf16"))


@pytest.mark.parametrize("weights", FORMATS)
def test_large_tiles_compile_without_spills(weights: str) -> None:
    problem = Linear(8192, 8192, 8192, weights)
    for schedule in list(gemm_dequant.candidates(problem, H100))[:2]:
        (launch,) = KERNEL.launches(problem, schedule, H100)
        assert compile_launch(launch, H100).resources["gemm_dequant"].spill_bytes == 0


def test_a_layout_knows_its_format() -> None:
    schedule = Schedule(64, 128, 4, 2, 1, 1)
    fp8, int4_g32 = (layout(Linear(64, 128, 1024, weights), schedule, H100) for weights in ("fp8", "int4_g32"))
    assert (fp8.w_bytes, int4_g32.w_bytes) == (128 * 128, 128 * (64 + 4 * 4))
    assert (fp8.unit_steps, int4_g32.unit_steps) == (4, 2)
    assert replace(fp8, group=32, summed=True) == int4_g32


def test_illegal_schedules_are_refused_with_both_sides() -> None:
    with pytest.raises(ScheduleError, match=r"whole matrices of 8 tokens; block_m = 32 is no multiple of 64"):
        Schedule(32, 64, 2, 8, 1, 1)
    with pytest.raises(ScheduleError, match=r"each of 4 CTAs takes a k-step or more; k = 264 has 3"):
        Schedule(64, 64, 2, 4, 1, 1).fits(Linear(64, 64, 264, "fp8"), H100)
    with pytest.raises(ScheduleError, match=r"192 tokens are 192 accumulators a thread; 128 is the most"):
        Schedule(192, 64, 2, 1, 1, 1).fits(Linear(64, 64, 512, "int4_g64"), H100)
    with pytest.raises(ScheduleError, match=r"64 accumulators and 8 fragments need 112 registers a .* has 104"):
        Schedule(64, 256, 2, 1, 1, 1).fits(Linear(64, 64, 512, "int4_g64"), H100)
