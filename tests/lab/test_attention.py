"""Prefill attention: what its schedules promise beyond the contract of every kernel."""

from dataclasses import replace

import numpy as np
import pytest

from lab import catalog
from lab.choice import ancestors, choose
from lab.kernel import Kernel
from lab.problems import Attention
from lab.verify import compare, guarded_outputs, simulator, verify, workspaces
from sim.errors import InputError, ScheduleError
from sim.machine import H100

NAIVE, PINGPONG = catalog.get("attention_naive"), catalog.get("attention_pingpong")
STEPS = [catalog.get(f"attention_{name}") for name in ("mma_sync", "wgmma", "warp_specialized")]
LADDER = [NAIVE, *STEPS, PINGPONG]
KERNELS = pytest.mark.parametrize("kernel", LADDER, ids=lambda kernel: kernel.name)
BOTH = Attention(3, 4, 2, 128, 70, 200)


@KERNELS
def test_launches_of_an_envelope_solve_every_length_within_it(kernel: Kernel) -> None:
    schedule = kernel.best_guess(BOTH, H100)
    launches = kernel.launches(BOTH, schedule, H100)
    for seed, lens in enumerate((((70, 3, 0), (200, 0, 9)), ((1, 70, 33), (1, 17, 150)))):
        problem = replace(BOTH, q_lens=lens[0], kv_lens=lens[1])
        assert kernel.launches(problem, schedule, H100) == launches
        inputs = problem.draw(np.random.default_rng(seed))
        outputs = {name: inside for name, (_, inside) in guarded_outputs(launches).items()}
        simulator(kernel, H100)(launches, {**inputs, **workspaces(launches), **outputs})
        found = compare(problem, problem.reference(inputs), outputs)
        assert found.passed, found


@pytest.mark.parametrize(("head_dim", "splits"), [(128, 2), (64, 5), (256, 3)])
def test_splits_multiply_the_same_pairs_and_their_merge_is_right(head_dim: int, splits: int) -> None:
    lens = {"q_lens": (70, 3, 0, 33), "kv_lens": (700, 0, 9, 5)}
    problem = Attention(4, 6, 2, head_dim, 70, 700, window=300, lse=True, **lens)
    whole = replace(PINGPONG.best_guess(problem, H100), block_n=64, splits=1)
    split = replace(whole, splits=splits)
    theory = [PINGPONG.module.theory(problem, schedule, H100) for schedule in (whole, split)]
    assert theory[0].mma_flops == theory[1].mma_flops
    found = verify(PINGPONG, problem, split, H100, simulator(PINGPONG, H100))
    assert found.check.passed
    assert found.disagreements == {}


@pytest.mark.parametrize("cluster", [1, 2])
def test_only_tiles_beyond_whole_rounds_of_the_sms_are_split(cluster: int) -> None:
    """Of eight tiles two, where three CTAs run at once, or three clusters of two."""
    machine = replace(H100, sms=3 * cluster, gpcs=(3 * cluster,))
    problem = Attention(1, 4, 2, 128, 250, 500, lse=True, kv_lens=(450,))
    schedule = replace(PINGPONG.best_guess(problem, machine), block_n=64, q_registers=0, splits=3, cluster=cluster)
    schedule.fits(problem, machine)
    (launch,) = PINGPONG.launches(problem, schedule, machine)
    rows = {array.name: array.shape[0] for array in launch.arrays}["part_log_sums"]
    assert rows == 2 * schedule.splits * schedule.block_m
    found = verify(PINGPONG, problem, schedule, machine, simulator(PINGPONG, machine))
    assert found.check.passed
    assert found.disagreements == {}


def test_few_tiles_of_many_keys_are_split_so_that_no_sm_idles() -> None:
    long = Attention(1, 8, 1, 128, 512, 65536)
    schedule = PINGPONG.best_guess(long, H100)
    (launch,) = PINGPONG.launches(long, schedule, H100)
    assert schedule.splits > 1
    assert launch.ctas <= H100.sms < 2 * launch.ctas


def test_pages_that_are_no_box_are_copied_row_by_row() -> None:
    chosen = {page: choose(replace(BOTH, page=page), H100)[0].name for page in (0, 1, 16)}
    assert chosen == {0: PINGPONG.name, 1: "attention_mma_sync", 16: PINGPONG.name}


def test_each_step_of_the_ladder_improves_on_the_one_before() -> None:
    assert ancestors(PINGPONG) == [kernel.name for kernel in reversed(LADDER[:-1])]


def test_a_cluster_loads_keys_for_the_tiles_that_see_fewest_too() -> None:
    problem = Attention(1, 1, 1, 128, 256, 256)
    one = replace(PINGPONG.best_guess(problem, H100), block_n=128, q_registers=0, splits=1)
    counts = [PINGPONG.module.theory(problem, replace(one, cluster=cluster), H100) for cluster in (1, 2)]
    visited = [(found.mma_flops or 0) // (4 * 128 * 128 * 128) for found in counts]
    assert visited == [1 + 2, 2 + 2]


def test_only_the_naive_kernel_moves_bytes_that_grow_with_the_square_of_the_length() -> None:
    def moved(kernel: Kernel, length: int) -> int:
        problem = Attention(1, 1, 1, 128, length, length)
        return kernel.count(problem, kernel.best_guess(problem, H100), H100).hbm_read_bytes or 0

    assert moved(NAIVE, 2048) - 2 * moved(NAIVE, 1024) > 2 * 1024 * 1024  # a row twice as long, read as scores
    assert moved(PINGPONG, 2048) <= 2 * moved(PINGPONG, 1024)


def test_a_window_visits_the_blocks_that_it_reaches_alone() -> None:
    whole = Attention(1, 1, 1, 128, 1024, 1024)
    schedule = PINGPONG.best_guess(whole, H100)

    def visited(window: int) -> int:
        counts = PINGPONG.module.theory(replace(whole, window=window), schedule, H100)
        return (counts.mma_flops or 0) // (4 * schedule.block_m * schedule.block_n * 128)

    assert visited(0) == 8 * 9 // 2
    assert visited(1) == 8
    assert visited(129) == visited(2) == 8 + 7
    assert visited(130) == 8 + 7 + 6


def test_what_is_no_whole_box_is_refused() -> None:
    schedule = PINGPONG.best_guess(BOTH, H100)
    wide = replace(schedule, block_n=160, q_registers=0)
    with pytest.raises(ScheduleError, match="160 keys and a page of 64 are no whole boxes of 64 keys"):
        wide.fits(replace(BOTH, page=64), H100)
    with pytest.raises(ScheduleError, match="128 rows has no room for the 129 query heads"):
        schedule.fits(Attention(1, 129, 1, 128, 1, 1), H100)
    with pytest.raises(InputError, match=r"takes window 0 or 1 or .*, not 1073741824"):
        PINGPONG.require(replace(BOTH, window=2**30))
