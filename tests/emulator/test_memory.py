"""Loads, stores, atomics and lane exchanges: values, sectors a request, bank conflicts, divergence."""

from math import gcd

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.emulator.text import elementwise, execute

LANES = np.arange(32, dtype=np.uint32)
_RELOAD = "ld.param.u64 %d1, [text_param_0]; mad.lo.u64 %d2, %d3, 4, %d1; ld.global.u32 %out, [%d2];"


@settings(max_examples=20)
@given(st.integers(0, 9), st.integers(1, 4))
def test_sectors_of_a_strided_load(stride: int, warps: int) -> None:
    data = np.arange(32 * warps * max(stride, 1), dtype=np.uint32)[: 32 * warps]
    threads = np.arange(32 * warps, dtype=np.uint32)
    at = (threads * stride) % threads.size
    body = "cvt.u64.u32 %d3, %b;" + _RELOAD
    out = np.zeros(threads.size, np.uint32)
    emulation = execute(body, (data, at.astype(np.uint32)), out)
    assert not emulation.hazards
    assert (out == data[at]).all()
    own = 2 * 4 * warps  # each thread's two operands: 128 contiguous bytes a warp
    strided = sum(len(set(at[32 * w : 32 * w + 32] // 8)) for w in range(warps))
    assert emulation.counts.global_load_sectors == own + strided
    assert emulation.counts.global_store_sectors == 4 * warps
    assert emulation.statistics.load_requests == 3 * warps


@settings(max_examples=20)
@given(st.integers(1, 40))
def test_bank_conflicts_of_a_strided_store(stride: int) -> None:
    body = f"mul.lo.u32 %r1, %thread, {4 * stride}; mov.u32 %r2, buffer; add.u32 %r1, %r1, %r2;"
    body += "st.shared.b32 [%r1], %a; mov.b32 %out, %a;"
    out = np.zeros(32, np.uint32)
    emulation = execute(body, (LANES,), out, shared=8192)
    assert not emulation.hazards
    assert emulation.statistics.shared_wavefronts == (gcd(stride, 32) if stride else 1)
    assert emulation.statistics.shared_ideal_wavefronts == 1


def test_wide_shared_accesses_take_a_wavefront_for_each_128_bytes() -> None:
    body = "shl.b32 %r1, %thread, 4; mov.u32 %r2, buffer; add.u32 %r1, %r1, %r2;"
    body += "st.shared.v4.b32 [%r1], {%a, %a, %a, %a}; mov.b32 %out, %a;"
    emulation = execute(body, (LANES,), np.zeros(32, np.uint32), shared=8192)
    assert emulation.statistics.shared_wavefronts == 4
    assert emulation.statistics.bank_conflicts == 0


def test_shuffles_move_values_between_lanes() -> None:
    for mode, by, source in (
        ("bfly", 5, LANES ^ 5),
        ("down", 3, np.where(LANES + 3 < 32, LANES + 3, LANES)),
        ("idx", 7, LANES * 0 + 7),
    ):
        out = elementwise(f"shfl.sync.{mode}.b32 %out, %a, {by}, 31, -1;", (LANES * 10,), "uint32")
        assert (out == source * 10).all(), mode
    up = elementwise("shfl.sync.up.b32 %out, %a, 2, 0, -1;", (LANES,), "uint32")
    assert (up == np.where(LANES >= 2, LANES - 2, LANES)).all()


def test_votes_and_reductions_over_the_warp() -> None:
    ballot = elementwise("setp.lt.u32 %p1, %a, 5; vote.sync.ballot.b32 %out, %p1, -1;", (LANES,), "uint32")
    assert (ballot == 31).all()
    total = elementwise("redux.sync.add.u32 %out, %a, -1;", (LANES,), "uint32")
    assert (total == LANES.sum()).all()
    elected = elementwise("elect.sync _|%p1, -1; selp.u32 %out, 1, 0, %p1;", (LANES,), "uint32")
    assert elected.sum() == 1


def test_atomics_on_shared_memory_serialise() -> None:
    body = "mov.u32 %r1, buffer; setp.eq.u32 %p1, %thread, 0; @%p1 st.shared.u32 [%r1], 0; bar.sync 0;"
    body += "atom.shared.add.u32 %out, [%r1], 1;"
    threads = np.arange(96, dtype=np.uint32)
    for seed in range(3):
        out = np.zeros(96, np.uint32)
        assert not execute(body, (threads,), out, seed=seed, shared=16).hazards
        assert sorted(out) == list(range(96))


def test_divergent_lanes_meet_again() -> None:
    body = """mov.u32 %out, 0; mov.u32 %r1, 0;
        loop: setp.ge.u32 %p1, %r1, %a; @%p1 bra done; add.u32 %out, %out, %r1; add.u32 %r1, %r1, 1; bra loop;
        done: shfl.sync.bfly.b32 %r2, %out, 1, 31, -1; add.u32 %out, %out, %r2;"""
    out = elementwise(body, (LANES,), "uint32")
    sums = LANES.astype(int) * (LANES.astype(int) - 1) // 2
    assert (out == sums + sums[LANES ^ 1]).all()


def test_an_array_ends_where_it_ends() -> None:
    body = "ld.param.u64 %d1, [text_param_0]; ld.global.u32 %out, [%d1+128];"
    hazards = execute(body, (LANES,), np.zeros(32, np.uint32)).hazards
    assert [h.kind for h in hazards] == ["out of bounds"]
