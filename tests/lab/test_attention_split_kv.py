"""Decode attention: how sequences are divided, every layout of the cache, several tokens, windows, an fp8 cache."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab import catalog
from lab.check_ptx import check_ptx
from lab.choice import predicted_best, undecided
from lab.kernels.attention.decode_plan import divide, parts_of
from lab.problems import Attention, _attention_reference
from lab.ptx_executor import Emulator
from lab.verify import Execute, compare, simulator, verify, workspaces
from sim.errors import InputError, ScheduleError
from sim.formats import encode
from sim.machine import B200, H100, H200
from tests.emulator.cases import CHIP
from tests.strategies import examples

KERNEL = catalog.get("attention_split_kv")
MOST_TOKENS = KERNEL.solves.at_most["q_len"]


def split(problem: Attention, **changed: int) -> Any:
    """The best guess, which divides sequences however short they are."""
    return replace(KERNEL.best_guess(problem, CHIP), **{"least_units": 1, **changed})


@st.composite
def lengths(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Queries and keys of each sequence, more sequences than a warp has lanes among them."""
    batch = draw(st.sampled_from([1, 2, 3, 31, 33, 70]))
    seed = draw(st.integers(0, 999))
    rng = np.random.default_rng(seed)
    most = draw(st.sampled_from([1, 40, 3000]))
    return rng.integers(0, 3, batch), rng.integers(0, most, batch, endpoint=True)


@examples(60)
@given(
    lens=lengths(),
    window=st.sampled_from([0, 1, 17, 500]),
    stretches=st.integers(1, 140),
    overhead=st.sampled_from([1, 4, 50]),
    least=st.sampled_from([1, 4]),
)
def test_every_key_that_is_seen_lies_in_one_part(
    lens: tuple[np.ndarray, np.ndarray], window: int, stretches: int, overhead: int, least: int
) -> None:
    q_lens, kv_lens = lens
    schedule = replace(
        KERNEL.best_guess(Attention(1, 4, 1, 128, 1, 64), H100), overhead_units=overhead, least_units=least
    )
    plan = divide(q_lens, kv_lens, window, schedule, stretches)
    parts = parts_of(plan)
    for b, (q_len, kv_len) in enumerate(zip(q_lens, kv_lens, strict=True)):
        own = parts.sequence == b
        units = np.concatenate([np.arange(lo, hi) for lo, hi in zip(parts.lo[own], parts.hi[own], strict=True)] or [[]])
        first = max(kv_len - q_len + 1 - window, 0) // 16 if window else 0
        expected = np.arange(first, -(-kv_len // 16)) if q_len else np.arange(0)
        np.testing.assert_array_equal(units, expected)
        assert own.sum() == 0 if q_len == 0 else own.sum() >= 1
        assert (parts.shared[own] == (own.sum() > 1)).all()
    work = np.bincount(parts.stretch, parts.hi - parts.lo, minlength=stretches)
    assert work.size == stretches
    assert work.max() <= plan.length


@st.composite
def problems(draw: st.DrawFn) -> Attention:
    batch, group = draw(st.sampled_from([1, 3, 40])), draw(st.sampled_from([1, 4, 5, 8]))
    q_len, kv_len = draw(st.integers(1, MOST_TOKENS)), draw(st.sampled_from([1, 15, 16, 17, 200]))
    causal = draw(st.booleans())
    kv = draw(st.sampled_from(["bf16", "fp16", "fp8"]))
    uniform = draw(st.booleans())
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    return Attention(
        batch,
        2 * group,
        2,
        draw(st.sampled_from([64, 128])),
        q_len,
        kv_len,
        causal=causal,
        kv=kv,
        page=draw(st.sampled_from([0, *KERNEL.solves.options["page"]])),
        q_lens=() if uniform else tuple(int(n) for n in rng.integers(0, q_len, batch, endpoint=True)),
        kv_lens=() if uniform else tuple(int(n) for n in rng.integers(0, kv_len, batch, endpoint=True)),
        uniform=uniform,
        window=draw(st.sampled_from([0, 1, 50])) if causal else 0,
        lse=draw(st.booleans()),
        activations=draw(st.sampled_from(["bf16", "fp16"])) if kv == "fp8" else "",
    )


@examples(60)
@given(problem=problems(), overhead=st.sampled_from([1, 4]), seed=st.integers(0, 99))
def test_sequences_that_stretches_share_are_right(problem: Attention, overhead: int, seed: int) -> None:
    found = verify(KERNEL, problem, split(problem, overhead_units=overhead), CHIP, simulator(KERNEL, CHIP), seed)
    assert found.check.passed, found.check
    assert found.disagreements == {}


WGMMA = {"row_groups": 4, "query_tiles": 2, "heads": 1}
TWO = {"row_groups": 2, "query_tiles": 2, "unit": 16}
CASES = [
    (Attention(2, 8, 2, 128, 2, 200, kv_lens=(77, 200), page=1, lse=True), {}),
    (Attention(2, 3, 1, 64, 6, 200, q_lens=(4, 6), kv_lens=(3, 200), page=16, window=50), TWO),
    (Attention(2, 8, 2, 128, 1, 300, kv_lens=(230, 300), kv="fp8", page=64, lse=True), {"overhead_units": 1}),
    (Attention(2, 8, 2, 128, 2, 300, kv_lens=(77, 300), page=16, settled=True), {"warps": 2}),
    (Attention(3, 8, 2, 64, 2, 130, uniform=True), {"warps": 2}),
    (Attention(2, 4, 2, 64, 1, 200, page=16, uniform=True, window=70), {"warps": 2}),
    (Attention(1, 8, 2, 128, 1, 300, lse=True), {"cluster": 4, "overhead_units": 0}),
    (Attention(1, 3, 1, 64, 6, 200, kv_lens=(150,)), {**TWO, "cluster": 2}),
    (Attention(1, 8, 2, 64, 6, 300, kv_lens=(250,)), {**TWO, "cluster": 0}),
    (Attention(1, 2, 2, 64, 1, 300, lse=True), {"cluster": 0}),  # fewer rows than who share them
    # Not all of the cluster have a part.
    (Attention(1, 4, 1, 64, 2, 300, kv_lens=(20,), page=16), {"cluster": 4, "overhead_units": 0}),
    # By wgmma: some of a warpgroup's 64 rows, pages shorter than a unit, units beyond the sequence.
    (Attention(1, 8, 2, 128, 16, 300, lse=True), {**WGMMA, "cluster": 4, "unit": 32, "stages": 3}),
    (Attention(1, 8, 2, 128, 5, 300, kv_lens=(277,), page=16), {**WGMMA, "cluster": 0, "unit": 32, "stages": 3}),
    (
        Attention(2, 6, 2, 64, 9, 300, q_lens=(9, 3), kv_lens=(277, 33), page=1, window=40, kv="fp16"),
        {**WGMMA, "warps": 8, "unit": 32, "stages": 4},
    ),
    (Attention(170, 1, 1, 64, 1, 20, kv_lens=tuple(i % 21 for i in range(170))), {"warps": 1}),  # more than are kept
    (Attention(40, 2, 2, 64, 1, 40, kv_lens=tuple(i % 41 for i in range(40)), causal=False), {"heads": 2}),
]


@pytest.mark.parametrize(("problem", "changed"), CASES, ids=lambda value: getattr(value, "kv", ""))
def test_the_ptx_does_what_the_simulation_does(problem: Attention, changed: dict[str, int]) -> None:
    schedule = split(problem, **{"warps": 4, "stages": 2, **changed})
    found = check_ptx(KERNEL, problem, schedule, CHIP)
    assert found.passed, found
    counted = verify(KERNEL, problem, schedule, CHIP, simulator(KERNEL, CHIP)).counted
    assert counted.as_dict() | {"flops": None} == found.counts.as_dict() | {"flops": None}


@examples(20)
@given(
    problem=problems().filter(lambda p: p.kv != "fp8" and p.q_len * p.group <= 64),
    slots=st.sampled_from([1, 2]),
    seed=st.integers(0, 99),
)
def test_units_that_a_warpgroup_multiplies_are_right(problem: Attention, slots: int, seed: int) -> None:
    schedule = split(problem, **WGMMA, warps=4 * slots, stages=3, unit=32)
    found = verify(KERNEL, problem, schedule, CHIP, simulator(KERNEL, CHIP), seed)
    assert found.check.passed, found.check
    assert found.disagreements == {}


@examples(20)
@given(
    group=st.sampled_from([1, 4, 5]),
    q_len=st.integers(0, 4),
    kv_len=st.integers(0, 500),
    cluster=st.sampled_from([0, 2, 3, 8]),
    page=st.sampled_from([0, 16]),
    overhead=st.sampled_from([0, 4]),
)
def test_rows_that_those_who_share_a_sequence_add_up_are_right(
    group: int, q_len: int, kv_len: int, cluster: int, page: int, overhead: int
) -> None:
    problem = Attention(1, 2 * group, 2, 64, 4, 500, page=page, q_lens=(q_len,), kv_lens=(kv_len,), lse=True)
    schedule = split(problem, cluster=cluster, overhead_units=overhead)
    found = verify(KERNEL, problem, schedule, CHIP, simulator(KERNEL, CHIP))
    assert found.check.passed, found.check
    assert found.disagreements == {}


# A sequence without queries, over whose keys others' stretches lie, has nobody to come.
SHARED = Attention(3, 2, 1, 64, 1, 300, q_lens=(1, 0, 1), kv_lens=(300, 300, 150))


@pytest.mark.parametrize(("problem", "cluster"), [(SHARED, 1), (Attention(1, 2, 1, 64, 3, 300), 0)])
def test_who_comes_last_leaves_the_counter_at_zero_for_the_next_launch(problem: Attention, cluster: int) -> None:
    launches = KERNEL.launches(problem, split(problem, warps=4, stages=2, cluster=cluster), CHIP)
    inputs = problem.draw(np.random.default_rng(0))
    kept, results = workspaces(launches), []
    for seed in range(2):
        y = np.zeros(problem.outputs["y"].shape, np.uint16)
        Emulator(CHIP, seed=seed)(launches, {**inputs, **kept, "y": y})
        assert not kept["arrivals"].any()
        results.append(y.tobytes())
    assert results[0] == results[1]


def run(execute: Execute, problem: Attention, inputs: dict[str, Any]) -> dict[str, np.ndarray]:
    launches = KERNEL.launches(problem, split(problem), CHIP)
    outputs = {name: np.full(o.shape, 0xFF, np.uint8).astype(o.storage) for name, o in problem.outputs.items()}
    execute(launches, {**inputs, **workspaces(launches), **outputs})
    return outputs


def test_small_queries_beside_an_fp8_cache_are_off_by_what_fp16_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = Attention(1, 4, 1, 64, 1, 64, kv="fp8", lse=True)
    inputs = problem.draw(np.random.default_rng(0))
    # A sixteenth of it lies just above the middle between two fp16 numbers; all errors have one sign.
    inputs["q"][:] = encode(np.float32(2.0**-21 * (1 + 2.0**-7)), "bf16")
    inputs["k"][:] = encode(np.float32(448), "fp8")
    outputs = run(simulator(KERNEL, CHIP), problem, inputs)
    found = compare(problem, problem.reference(inputs), outputs)
    assert found.passed, found
    monkeypatch.setattr(_attention_reference, "QUERY_SHIFT", -99)
    assert not compare(problem, problem.reference(inputs), outputs).passed


def test_the_launch_is_the_same_for_all_lengths_within_the_envelope() -> None:
    whole = Attention(3, 8, 2, 128, 4, 1000, page=16)
    part = replace(whole, q_lens=(1, 0, 4), kv_lens=(7, 1000, 0))
    schedule = KERNEL.best_guess(whole, H100)
    assert KERNEL.best_guess(part, H100) == schedule
    assert KERNEL.launches(part, schedule, H100) == KERNEL.launches(whole, schedule, H100)


@pytest.mark.parametrize("page", [0, 16])
@pytest.mark.parametrize(("batch", "kv_len", "q_len"), [(1, 8192, 1), (16, 8192, 1), (64, 2048, 1), (16, 8192, 16)])
def test_queries_of_a_few_tokens_are_its_own_to_solve(batch: int, kv_len: int, q_len: int, page: int) -> None:
    """Prefill's kernels read the cache too, in tiles that SMs cannot share evenly: their models know.

    Of 16 tokens of a large cache, which takes them 2% longer, a race decides.
    """
    problem = Attention(batch, 32, 8, 128, q_len, kv_len, page=page)
    close = {kernel.name for kernel, _ in undecided(problem, H200)}
    assert KERNEL.name in close
    if q_len == 1:
        assert predicted_best(problem, H200).kernel.name == KERNEL.name


def test_what_does_not_fit_says_both_sides() -> None:
    problem = Attention(1, 8, 2, 128, 4, 100)
    schedule = KERNEL.best_guess(problem, H100)
    with pytest.raises(ScheduleError, match="1 warps of 1 tiles hold 8 queries of a KV head; 4 tokens have 16"):
        replace(schedule, row_groups=1, query_tiles=1).fits(problem, H100)
    with pytest.raises(ScheduleError, match="heads must divide the 2 KV heads; heads = 4"):
        replace(schedule, heads=4, row_groups=2).fits(problem, H100)
    with pytest.raises(ScheduleError, match="up to 16 warps; warps = 6"):
        replace(schedule, warps=6, heads=4)
    with pytest.raises(ScheduleError, match="CTAs add up rows between them of one sequence; there are 3"):
        replace(schedule, cluster=2).fits(replace(problem, batch=3), H100)
    with pytest.raises(ScheduleError, match="a cluster has one KV head; heads = 2"):
        replace(schedule, cluster=2, heads=2).fits(replace(problem, batch=1), H100)
    with pytest.raises(ScheduleError, match="cluster is from 0 to 16; cluster = 17"):
        replace(schedule, cluster=17)
    with pytest.raises(ScheduleError, match="units of 32 tokens are for teams of 4 row_groups of 2 query_tiles"):
        replace(schedule, unit=32, row_groups=1)
    wide = replace(schedule, unit=32, stages=3, **WGMMA)
    with pytest.raises(ScheduleError, match="units of 32 tokens need 3 stages; stages = 2"):
        replace(wide, stages=2)
    with pytest.raises(ScheduleError, match="units of 32 tokens are for caches of 16-bit elements; this one is in fp8"):
        wide.fits(replace(problem, kv="fp8"), H100)
    with pytest.raises(ScheduleError, match="units of 32 tokens need wgmma, of sm_90a; this is sm_100a"):
        wide.fits(problem, B200)
    with pytest.raises(InputError, match="takes q_len up to 16; q_len = 17"):
        KERNEL.require(replace(problem, q_len=17))
    with pytest.raises(InputError, match="a cache in bf16 takes activations in bf16, not fp16"):
        replace(problem, activations="fp16")
