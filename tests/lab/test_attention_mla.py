"""Decode of latent attention: how segments are divided, what several workers share, every layout of the cache."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab import catalog
from lab.check_ptx import check_ptx
from lab.kernels.attention.mla_plan import BLOCK_N, divide
from lab.problems import Attention
from lab.verify import simulator, verify
from sim.errors import InputError, ScheduleError
from sim.machine import H100
from tests.emulator.cases import CHIP
from tests.strategies import examples

KERNEL = catalog.get("attention_mla")
MOST_TOKENS = KERNEL.solves.at_most["q_len"]
PAGES = (0, *KERNEL.solves.options["page"])


def latent(batch: int, heads: int, q_len: int, kv_len: int, **more: Any) -> Attention:
    return Attention(batch, heads, 1, 576, q_len, kv_len, latent=512, **more)


def split(problem: Attention, **changed: int) -> Any:
    """The best guess, which divides segments however short they are."""
    return replace(KERNEL.best_guess(problem, CHIP), **{"overhead": 1, "least": 1, **changed})


@examples(100)
@given(
    batch=st.sampled_from([1, 2, 3, 31, 33, 70]),
    heads=st.sampled_from([1, 16, 100, 128]),
    most=st.sampled_from([1, 64, 300, 9000]),
    cluster=st.sampled_from([1, 2]),
    workers=st.sampled_from([1, 2, 5, 66, 132]),
    overhead=st.sampled_from([1, 5, 50]),
    least=st.sampled_from([1, 4]),
    seed=st.integers(0, 999),
)
def test_every_block_lies_in_one_part_and_partial_results_in_slots_of_their_own(
    batch: int, heads: int, most: int, cluster: int, workers: int, overhead: int, least: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    problem = latent(batch, heads, MOST_TOKENS, most)
    schedule = split(problem, cluster=cluster, overhead=overhead, least=least)
    q_lens = rng.integers(0, MOST_TOKENS, batch, endpoint=True)
    kv_lens = rng.integers(0, most, batch, endpoint=True)
    plan = divide(problem, schedule, np.concatenate(([0], np.cumsum(q_lens))), kv_lens, workers)
    parts = [part for worker in range(workers) for part in plan.stretch(worker).parts]
    slots = [part.slot for part in parts if part.slot >= 0]
    assert len(set(slots)) == len(slots)
    assert all(slot < 2 * workers for slot in slots)
    found: dict[tuple[int, int], list[Any]] = {}
    for part in parts:
        found.setdefault((part.sequence, part.first // plan.rows), []).append(part)
    expected = {(b, tile) for b in range(batch) for tile in range(-(-q_lens[b] * heads // plan.rows))}
    assert set(found) == expected
    for (b, tile), own in found.items():
        blocks = [block for part in own for block in range(part.lo, part.hi)]
        assert blocks == list(range(max(1, -(-kv_lens[b] // BLOCK_N))))
        partials = plan.partials(b, tile)
        shared = [partials.slot(i) for i in range(partials.workers)] if partials else [-1]
        assert [part.slot for part in own] == shared


@pytest.mark.parametrize(
    ("lengths", "pieces"),
    [((4096,) * 64, 2), ((4096,) * 128, 1), ((8192,) * 33, 4), ((64,) * 33, 1), ((100, 9000), 0), ((4096,) * 100, 0)],
)
def test_segments_are_cut_into_equal_pieces_where_that_is_as_even(lengths: tuple[int, ...], pieces: int) -> None:
    """On 132 workers; no worker then has parts of two segments, unless it has several whole ones."""
    problem = latent(len(lengths), 16, 1, max(lengths))
    starts = np.arange(len(lengths) + 1)
    plan = divide(problem, split(problem, least=4), starts, np.array(lengths), 132)
    assert plan.pieces == pieces
    if pieces > 0:
        assert all(len(plan.stretch(worker).parts) <= 1 for worker in range(132))


@st.composite
def problems(draw: st.DrawFn) -> Attention:
    batch, q_len = draw(st.sampled_from([1, 3, 35])), draw(st.integers(1, MOST_TOKENS))
    kv_len = draw(st.sampled_from([1, 63, 64, 65, 300]))
    rng, uniform = np.random.default_rng(draw(st.integers(0, 999))), draw(st.booleans())
    return latent(
        batch,
        draw(st.sampled_from([1, 5, 16, 40])),
        q_len,
        kv_len,
        causal=draw(st.booleans()),
        kv=draw(st.sampled_from(["bf16", "fp16"])),
        page=draw(st.sampled_from(PAGES)),
        q_lens=() if uniform else tuple(int(n) for n in rng.integers(0, q_len, batch, endpoint=True)),
        kv_lens=() if uniform else tuple(int(n) for n in rng.integers(0, kv_len, batch, endpoint=True)),
        uniform=uniform,
        lse=draw(st.booleans()),
    )


@examples(20)
@given(problem=problems(), cluster=st.sampled_from([1, 2]), seed=st.integers(0, 99))
def test_segments_that_workers_share_are_right(problem: Attention, cluster: int, seed: int) -> None:
    schedule = split(problem, cluster=cluster)
    found = verify(KERNEL, problem, schedule, CHIP, simulator(KERNEL, CHIP), seed)
    assert found.check.passed, found.check
    assert found.disagreements == {}


SHARED = [
    # Two workers share the second sequence, the other two have nothing.
    (latent(3, 6, 4, 290, q_lens=(4, 2, 4), kv_lens=(130, 290, 17), page=8, lse=True), {"least": 6}),
    (latent(3, 6, 2, 200, page=16, uniform=True, lse=True), {"least": 6}),
    (latent(2, 16, 1, 520, kv_lens=(520, 450)), {}),  # two workers for each sequence: equal pieces
    (latent(1, 128, 1, 600, lse=True), {}),  # a worker of a cluster, and its rows of two CTAs
    (latent(2, 64, 1, 130, page=64, lse=True), {}),  # all rows of a CTA
    (latent(35, 3, 1, 130, page=16, kv_lens=tuple(37 * i % 131 for i in range(35))), {"early": 2}),
    (latent(5, 3, 3, 300, q_lens=(0, 3, 1, 2, 3), kv_lens=(300, 0, 99, 200, 0), causal=False, kv="fp16"), {"early": 1}),
]
PARAMETERS = [pytest.param(*case, marks=pytest.mark.deep if i else (), id=str(i)) for i, case in enumerate(SHARED)]


@pytest.mark.parametrize(("problem", "changed"), PARAMETERS)
def test_the_ptx_does_what_the_simulation_does(problem: Attention, changed: dict[str, int], seeds: int) -> None:
    schedule = split(problem, **changed)
    found = check_ptx(KERNEL, problem, schedule, CHIP, min(seeds, 5))
    assert found.passed, found
    counted = verify(KERNEL, problem, schedule, CHIP, simulator(KERNEL, CHIP)).counted
    assert counted.as_dict() | {"flops": None} == found.counts.as_dict() | {"flops": None}


@pytest.mark.parametrize("heads", [16, 64, 128])
def test_all_heads_of_a_model_or_its_share_of_one_gpu_are_right(heads: int) -> None:
    problem = latent(3, heads, 1, 200, page=64, lse=True)
    schedule = KERNEL.best_guess(problem, H100)
    assert schedule.cluster == (2 if heads > 64 else 1)  # CTAs of 64 rows each
    found = verify(KERNEL, problem, schedule, H100, simulator(KERNEL, H100), 0)
    assert found.check.passed, found.check
    assert found.disagreements == {}


def test_the_launch_is_the_same_for_all_lengths_within_the_envelope() -> None:
    whole = latent(3, 128, MOST_TOKENS, 1000, page=16)
    part = replace(whole, q_lens=(1, 0, 4), kv_lens=(7, 1000, 0))
    schedule = KERNEL.best_guess(whole, H100)
    assert KERNEL.launches(whole, schedule, H100) == KERNEL.launches(part, schedule, H100)


def test_what_it_refuses() -> None:
    with pytest.raises(InputError, match="takes q_len up to 4; q_len = 5"):
        KERNEL.require(latent(1, 16, 5, 64))
    with pytest.raises(InputError, match="takes latent 512"):
        KERNEL.require(Attention(1, 16, 1, 576, 1, 64))
    with pytest.raises(ScheduleError, match="stages must be one of 3; stages = 2"):
        replace(KERNEL.best_guess(latent(1, 16, 1, 64), H100), stages=2)
