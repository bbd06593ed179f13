"""The sum of two ranks: both find the same bits, epochs keep sums apart, a rank's launch is half of both ranks'."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import lab
from lab import catalog
from lab.problems.all_reduce import AllReduce
from lab.verify import simulator, verify
from sim.formats import decode, encode
from sim.machine import H100, H200

SUM, PAIR = catalog.get("all_reduce_one_shot"), Path(__file__).with_name("one_shot_pair.cu")
ROOT = Path(lab.__file__).parents[1]
UNITS, TIMES = 40, 3  # more than a warp's, so that threads come round


def sums(rng: np.random.Generator) -> lab.Launch:
    """Several sums of small integers, which are exact, so that every one doubles."""
    x = encode(rng.integers(-8, 8, (2, 8 * UNITS)).astype(np.float32), "bf16")
    inboxes = (lab.InOut(f"inbox{rank}", np.zeros((2, 2, UNITS, 4), np.uint32)) for rank in range(2))
    args = (lab.InOut("x", x), lab.Out("y", x.shape, "uint16"), *inboxes, UNITS, TIMES)
    return lab.Launch(grid=2, block=32, args=args)


def total(arrays: dict[str, np.ndarray]) -> dict[str, tuple[np.ndarray, float]]:
    summed = decode(arrays["x"], "bf16").sum(axis=0) * 2 ** (TIMES - 1)
    return {"y": (np.stack([encode(summed, "bf16")] * 2).astype(np.float64), 0.0)}


def test_epochs_keep_one_sum_apart_from_the_next(seeds: int) -> None:
    found = lab.emulate(PAIR, "sums", sums, [ROOT], seeds=seeds, reference=total, machine=H100)
    assert found.passed, found.hazards


@pytest.mark.usefixtures("impatient")
def test_an_inbox_of_one_slot_is_overwritten_before_it_was_read() -> None:
    """A rank waits for ever for an epoch that the next one took the place of."""
    found = lab.emulate(PAIR, "sums", sums, [ROOT], {"SLOTS": 1}, seeds=3, reference=total, machine=H100)
    assert {hazard.kind for hazard in found.hazards} == {"livelock"}


def test_both_ranks_find_the_same_bits() -> None:
    problem = AllReduce(3, 264)
    arrays = problem.draw(np.random.default_rng(0))
    (launch,) = SUM.launches(problem, SUM.best_guess(problem, H100), H100)
    outputs = {"y": np.zeros((2, 3, 264), np.uint16)}
    SUM.simulate((launch,), {**arrays, **outputs}, H100)
    np.testing.assert_array_equal(outputs["y"][0], outputs["y"][1])


def test_a_word_crosses_the_link_once_with_its_epoch() -> None:
    problem = AllReduce(2, 512)
    counted = verify(SUM, problem, SUM.best_guess(problem, H100), H100, simulator(SUM, H100)).counted
    assert counted.peer_write_bytes == 2 * 2 * problem.rank_bytes  # of both ranks, words and epochs
    assert counted.peer_read_bytes == 0


@pytest.mark.parametrize("name", ["all_reduce_one_shot", "all_reduce_flagged"])
def test_a_rank_on_its_own_gpu_has_the_other_inbox_there(name: str) -> None:
    kernel, problem = catalog.get(name), AllReduce(1, 4096)
    schedule = kernel.best_guess(problem, H200)
    (both,) = kernel.launches(problem, schedule, H200)
    for rank in range(2):
        own = kernel.module.rank_launch(problem, schedule, rank)
        remote = {a.name for a in own.arrays if a.peer}
        assert remote == {a.name for a in both.arrays if a.name in (f"inbox{1 - rank}", f"flags{1 - rank}")}
        assert (own.grid, own.arguments[-1].value) == ((both.grid[0], 1, 1), rank)
        assert own.block == both.block


def test_small_sums_are_latency_and_large_ones_the_link() -> None:
    small, large = (
        SUM.bills(p, SUM.best_guess(p, H200), H200, "chain") for p in (AllReduce(1, 4096), AllReduce(2048, 4096))
    )
    assert small.binds == "latency"
    assert large.binds == "link"
    one = replace(H200, name="slow", peer_bandwidth=H200.peer_bandwidth / 2)
    assert (
        SUM.bills(AllReduce(2048, 4096), SUM.best_guess(AllReduce(2048, 4096), one), one, "chain").us > 1.8 * large.us
    )


def test_large_sums_are_predicted_to_take_a_flag_and_small_ones_epochs() -> None:
    flagged = catalog.get("all_reduce_flagged")

    def faster(problem: AllReduce) -> bool:
        us = [k.predicted_us(problem, k.best_guess(problem, H200), H200, "chain") for k in (SUM, flagged)]
        return us[1] < us[0]

    assert not faster(AllReduce(4, 4096))
    assert faster(AllReduce(2048, 4096))
