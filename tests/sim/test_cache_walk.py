"""The walk over L2: what fits is read once, more capacity never reads more, a set is a naive LRU."""

from collections import OrderedDict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab import catalog
from lab.kernel import parse_schedule
from lab.kernels.gemm.wgmma_mainloop import requested
from lab.problems import Linear
from sim.cache.walk import L2, LINE, SAMPLED, Requests, l2_of, reread
from sim.machine import H100, H200


@st.composite
def asked(draw: st.DrawFn) -> Requests:
    lines = draw(st.lists(st.integers(1, 4), min_size=1, max_size=12))
    steps = draw(st.lists(st.tuples(st.integers(0, len(lines) - 1), st.booleans(), st.booleans()), max_size=60))
    box, half, writes = (
        np.array([step[at] for step in steps], kind) for at, kind in enumerate((np.int32, np.int8, bool))
    )
    return Requests(box, half, writes, np.array(lines, np.int32))


def naive(requests: Requests, ways: int) -> int:
    """The same of a lone set, line by line."""
    first = np.cumsum(requests.lines) - requests.lines
    held: OrderedDict[int, None] = OrderedDict()
    met, again = set(), 0
    for box, _, writes in zip(requests.box, requests.half, requests.writes, strict=True):
        for line in range(first[box], first[box] + requests.lines[box]):
            again += line not in held and line in met and not writes
            held[line] = None
            held.move_to_end(line)
            if len(held) > ways:
                held.popitem(last=False)
            met.add(line)
    return again * LINE


@given(asked(), st.integers(1, 8))
def test_one_set_is_a_naive_lru(requests: Requests, ways: int) -> None:
    assert reread(requests, L2(1, ways, halves=1, sampled=1)) == naive(requests, ways)


@given(asked(), st.integers(1, 3), st.integers(1, 2))
def test_more_ways_never_read_more(requests: Requests, sets: int, halves: int) -> None:
    found = [reread(requests, L2(sets, ways, halves, sampled=1)) for ways in range(1, 10)]
    assert found == sorted(found, reverse=True)


@given(asked(), st.integers(1, 2))
def test_what_fits_is_read_once(requests: Requests, halves: int) -> None:
    assert reread(requests, L2(1, int(requests.lines.sum()), halves, sampled=1)) == 0


def test_lines_that_both_halves_read_are_held_twice() -> None:
    """A cyclic read by turns of as much as fits once: with copies it does not fit, without them it does."""
    boxes, rounds = 32, 8
    box = np.tile(np.arange(boxes, dtype=np.int32), rounds)
    shared = np.repeat(np.arange(rounds), boxes) % 2  # each round from the other half
    lines = np.full(boxes, 2, np.int32)
    stores = np.zeros(len(box), bool)
    room = L2(1, 3 * boxes // 2, halves=2, sampled=1)  # 48 lines a half: for its 32 of 64, not for all
    own = Requests(box, np.zeros(len(box), np.int8), stores, lines)
    both = Requests(box, shared.astype(np.int8), stores, lines)
    assert reread(both, room) > 0
    assert reread(own, L2(1, boxes * 2, halves=2, sampled=1)) == 0


def test_a_sample_of_sets_stands_for_all() -> None:
    """The share of lines that miss, within five standard deviations of a draw of the walked lines."""
    rng = np.random.default_rng(1)
    boxes = 4096
    box = rng.integers(0, boxes, 100_000).astype(np.int32)
    requests = Requests(box, (box % 2).astype(np.int8), np.zeros(len(box), bool), np.full(boxes, 8, np.int32))
    whole, part = (reread(requests, L2(1024, 16, 2, sampled)) for sampled in (1, SAMPLED))
    share = whole / (len(box) * 8 * LINE)
    drawn = (
        boxes * 8 / SAMPLED
    )  # lines, each asked for some times: its misses are not independent, so lines are counted
    assert abs(part / whole - 1) < 5 * ((1 - share) / (share * drawn)) ** 0.5


@pytest.mark.parametrize(("name", "words"), [("gemm_wgmma", "group_m=4"), ("gemm_cluster", "cluster=2,group_m=2")])
def test_every_tile_of_a_gemm_is_asked_for(name: str, words: str) -> None:
    """A launch's requests are as many lines as the tile simulator counts on their way to the SMs, clusters' w once."""
    kernel, problem = catalog.get(name), Linear(1000, 768, 512)
    schedule = parse_schedule(kernel, words, problem, H100)
    (launch,) = kernel.launches(problem, schedule, H100)
    box, _, writes, lines = requested(launch, H100)
    cluster = launch.cluster[0]
    tall, wide = schedule.block_m * cluster, schedule.block_n
    x, w = problem.m * problem.k * 2, problem.n * problem.k * 2
    loads = x * -(-problem.n // wide) + w * -(-problem.m // tall)
    assert lines[box[~writes]].sum() * LINE == loads
    assert lines[box[writes]].sum() * LINE == problem.m * problem.n * 2


def test_a_launch_that_fits_reads_each_input_once() -> None:
    kernel, problem = catalog.get("gemm_pingpong"), Linear(1024, 2048, 2048)
    (launch,) = kernel.launches(problem, kernel.best_guess(problem, H200), H200)
    assert reread(requested(launch, H200), l2_of(H200)) == 0
