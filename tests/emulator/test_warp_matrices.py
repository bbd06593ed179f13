"""mma.sync, ldmatrix and cp.async against NumPy, with the fragment layouts of PTX ISA 9.0, 9.7.14.5."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lab import catalog
from lab.problems import Linear
from lab.ptx_executor import Emulator
from lab.verify import verify
from sim.formats import encode
from sim.machine import H100
from tests.emulator.text import elementwise, execute

LANES = np.arange(32, dtype=np.uint32)
GROUP, NUMBER = LANES // 4, LANES % 4  # of a lane: its group of four, its place there
PTX_NAME = {"bf16": "bf16", "fp16": "f16"}
MMA = """
    .reg .b32 %x<4>, %w<2>; .reg .f32 %sum<4>;
    mov.b64 {{%x0, %x1}}, %a; mov.b64 {{%x2, %x3}}, %b; mov.b64 {{%w0, %w1}}, %c;
    cvt.rn.f32.u32 %sum0, %thread; add.f32 %sum1, %sum0, 0f42000000;
    add.f32 %sum2, %sum1, 0f42000000; add.f32 %sum3, %sum2, 0f42000000;
    mma.sync.aligned.m16n8k{k}.row.col.f32.{form}.{form}.f32
        {{%sum0, %sum1, %sum2, %sum3}}, {a}, {b}, {{%sum0, %sum1, %sum2, %sum3}};
    mov.b64 %out, {{{results}}};
"""


def pairs(matrix: NDArray, rows: NDArray, columns: NDArray) -> NDArray[np.uint32]:
    """A fragment's register: elements (row, column) and (row, column + 1) of each lane, the first in the low half."""
    low, high = matrix[rows, columns].astype(np.uint32), matrix[rows, columns + 1].astype(np.uint32)
    register: NDArray[np.uint32] = low | high << np.uint32(16)
    return register


def both(low: NDArray[np.uint32], high: NDArray[np.uint32]) -> NDArray[np.uint64]:
    return low.astype(np.uint64) | high.astype(np.uint64) << np.uint64(32)


def mma(a: NDArray, b: NDArray, form: str) -> NDArray[np.float32]:
    """What mma.sync.m16n8kK makes of a [16, k] and b [8, k] when accumulator i of lane l starts as l + 32 i."""
    k = a.shape[1]
    x, w = encode(a, form), encode(b, form)
    late = min(8, k - 8)
    operands = (
        both(pairs(x, GROUP, 2 * NUMBER), pairs(x, GROUP + 8, 2 * NUMBER)),
        both(pairs(x, GROUP, 2 * NUMBER + late), pairs(x, GROUP + 8, 2 * NUMBER + late)),
        both(pairs(w, GROUP, 2 * NUMBER), pairs(w, GROUP, 2 * NUMBER + late)),
    )
    d = np.zeros((16, 8), np.float32)
    for half in range(2):
        text = MMA.format(
            k=k,
            form=PTX_NAME[form],
            a="{%x0, %x1, %x2, %x3}" if k == 16 else "{%x0, %x1}",
            b="{%w0, %w1}" if k == 16 else "{%w0}",
            results=f"%sum{2 * half}, %sum{2 * half + 1}",
        )
        result = elementwise(text, operands, "uint64").view(np.float32).reshape(32, 2)
        for i in range(2):
            d[GROUP + 8 * half, 2 * NUMBER + i] = result[:, i]
    return d


@pytest.mark.parametrize("form", ["bf16", "fp16"])
@pytest.mark.parametrize("k", [8, 16])
@settings(max_examples=10)
@given(seed=st.integers(0, 2**32 - 1))
def test_mma_sync_multiplies_and_adds(form: str, k: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.integers(-16, 17, (16, k)), rng.integers(-16, 17, (8, k))  # every product and sum is exact
    c = np.zeros((16, 8))
    for i in range(4):
        c[GROUP + 8 * (i // 2), 2 * NUMBER + i % 2] = LANES + 32 * i
    assert np.array_equal(mma(a, b, form), a @ b.T + c)


@pytest.mark.parametrize("form", ["bf16", "fp16"])
def test_mma_sync_takes_the_values_of_its_format(form: str) -> None:
    a, b = np.zeros((16, 16)), np.zeros((8, 16))
    a[3, 5], b[6, 5] = 1.5 * 2.0**-14, -(2.0**13)
    a[4, 0], b[7, 0] = np.inf, 1
    d = mma(a, b, form)
    still = mma(np.zeros_like(a), np.zeros_like(b), form)
    assert d[3, 6] - still[3, 6] == -0.75
    assert d[4, 7] == np.inf


POISONED = """
    .reg .f32 %sum<4>; .reg .b32 %x<4>, %w<2>; .reg .b64 %to; .reg .b32 %at; .reg .pred %mine;
    mov.f32 %sum0, 0f00000000; mov.f32 %sum1, %sum0; mov.f32 %sum2, %sum0; mov.f32 %sum3, %sum0;
    mov.b32 %x1, %a; mov.b32 %x2, %a; mov.b32 %x3, %a; mov.b32 %w0, %a; mov.b32 %w1, %a;
    mov.u32 %at, buffer; mad.lo.u32 %at, %thread, 4, %at;
    setp.ne.u32 %mine, %thread, 9; @%mine st.shared.b32 [%at], %a;
    ld.shared.b32 %x0, [%at];
    mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32
        {%sum0, %sum1, %sum2, %sum3}, {%x0, %x1, %x2, %x3}, {%w0, %w1}, {%sum0, %sum1, %sum2, %sum3};
    mov.b32 %out, RESULT;
"""


def test_what_was_never_written_spoils_only_its_row_of_the_result() -> None:
    zeros = np.zeros(32, np.uint32)
    upper = execute(POISONED.replace("RESULT", "%sum0"), (zeros,), np.zeros(32, np.uint32), shared=128)
    assert {h.kind for h in upper.hazards} == {"uninitialised output"}
    lower = execute(POISONED.replace("RESULT", "%sum2"), (zeros,), np.zeros(32, np.uint32), shared=128)
    assert lower.hazards == ()


LDMATRIX = """
    .reg .b32 %at, %from; .reg .b32 %m<4>;
    mov.u32 %at, buffer; mad.lo.u32 %from, %c, 16, %at; mad.lo.u32 %at, %thread, 16, %at;
    st.shared.v2.b64 [%at], {{%a, %b}}; bar.warp.sync -1;
    mov.b32 %m0, 0; mov.b32 %m1, 0; mov.b32 %m2, 0; mov.b32 %m3, 0;
    ldmatrix.sync.aligned.m8n8.x{count}{trans}.shared.b16 {{{registers}}}, [%from];
    mov.b64 %out, {{{results}}};
"""


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("count", [1, 2, 4])
@settings(max_examples=5)
@given(order=st.permutations(range(32)), seed=st.integers(0, 99))
def test_ldmatrix_hands_out_matrices_whose_rows_lie_anywhere(
    count: int, transposed: bool, order: list[int], seed: int
) -> None:
    chunks = np.random.default_rng(seed).integers(0, 2**16, (32, 8)).astype(np.uint16)  # of 16 bytes
    halves = chunks.view(np.uint64)
    rows = np.array(order, np.uint32)
    found = []
    for pair in range(2):
        text = LDMATRIX.format(
            count=count,
            trans=".trans" if transposed else "",
            registers=", ".join(f"%m{i}" for i in range(count)),
            results=f"%m{2 * pair}, %m{2 * pair + 1}",
        )
        out = np.zeros(32, np.uint64)
        emulation = execute(text, (halves[:, 0].copy(), halves[:, 1].copy(), rows), out, shared=512)
        assert not emulation.hazards, emulation.hazards
        found += list(out.view(np.uint32).reshape(32, 2).T)
    for m in range(count):
        matrix = chunks[rows[8 * m : 8 * m + 8]]
        expected = matrix.T.copy() if transposed else matrix
        assert np.array_equal(found[m], pairs(expected, GROUP, 2 * NUMBER))


CP_ASYNC = """
    .reg .b32 %at; .reg .b64 %from;
    mov.u32 %at, buffer; mad.lo.u32 %at, %thread, {width}, %at;
    ld.param.u64 %from, [text_param_0]; mad.wide.u32 %from, %thread, {width}, %from;
    cp.async.{cache}.shared.global [%at], [%from], {width}{size};
    cp.async.commit_group; {wait} bar.warp.sync -1;
    mov.u32 %at, buffer; mad.lo.u32 %at, %thread, 4, %at; ld.shared.b32 %out, [%at];
"""


@pytest.mark.parametrize("width", [4, 8, 16])
@settings(max_examples=10)
@given(seed=st.integers(0, 99))
def test_cp_async_fills_the_rest_with_zeros_and_reads_nothing_of_it(width: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    data = rng.integers(1, 2**32, 32, dtype=np.uint32)
    sizes = rng.integers(0, width + 1, 32).astype(np.uint32)
    inside = 128 // width  # lanes whose source lies in the array: the others read nothing
    sizes[inside:] = 0
    out = np.zeros(32, np.uint32)
    text = CP_ASYNC.format(width=width, cache="cg" if width == 16 else "ca", size=", %b", wait="cp.async.wait_group 0;")
    emulation = execute(text, (data, sizes), out, shared=32 * width)
    assert not emulation.hazards, emulation.hazards
    expected = data.view(np.uint8).reshape(inside, width).copy()
    for lane in range(inside):
        expected[lane, sizes[lane] :] = 0
    assert np.array_equal(out, expected.reshape(-1).view(np.uint32))
    own = 4 + 4  # sectors of the operands that each thread loads
    copied = {lane * width // 32 for lane in range(inside) if sizes[lane]}
    assert emulation.counts.global_load_sectors == own + len(copied)
    assert emulation.counts.l2_to_sm_bytes == 32 * (own + len(copied))


@pytest.mark.parametrize("wait", ["", "cp.async.wait_group 1;"])
def test_cp_async_that_is_not_awaited_is_reported(wait: str) -> None:
    data = np.arange(128, dtype=np.uint32)[:32]
    text = CP_ASYNC.format(width=4, cache="ca", size="", wait=wait)
    found = {h.kind for h in execute(text, (data,), np.zeros(32, np.uint32), shared=128).hazards}
    assert "access before cp.async arrival" in found


REUSED = """
    .reg .b32 %at, %other; .reg .b64 %from;
    mov.u32 %at, buffer; xor.b32 %other, %thread, 32; mad.lo.u32 %other, %other, 4, %at;
    mad.lo.u32 %at, %thread, 4, %at; st.shared.b32 [%at], %a; bar.sync 0;
    ld.shared.b32 %out, [%other]; BETWEEN
    ld.param.u64 %from, [text_param_0]; mad.wide.u32 %from, %thread, 4, %from;
    cp.async.ca.shared.global [%at], [%from], 4; cp.async.wait_all; bar.sync 0;
"""


@pytest.mark.parametrize("between", ["", "bar.sync 0;"])
def test_cp_async_into_what_another_warp_still_reads_is_reported(between: str) -> None:
    data = np.arange(64, dtype=np.uint32)
    emulation = execute(REUSED.replace("BETWEEN", between), (data,), np.zeros(64, np.uint32), shared=256)
    found = {h.kind for h in emulation.hazards}  # without the barrier the read may come before the copy or after it
    assert found <= {"race on shared memory", "access before cp.async arrival"}
    assert bool(found) == (between == "")


@pytest.mark.parametrize("shape", [(64, 128, 64, 2, 2), (128, 64, 32, 2, 2), (64, 128, 64, 2, 4)])
def test_the_swizzle_of_gemm_mma_sync_meets_no_bank_conflict(shape: tuple[int, ...]) -> None:
    kernel = catalog.get("gemm_mma_sync")
    schedule = kernel.module.Schedule(*shape, stages=3, ctas_per_sm=1, group_m=8)
    execute = Emulator(H100)
    problem = Linear(schedule.block_m + 37, schedule.block_n - 24, 2 * schedule.block_k + 24)
    assert verify(kernel, problem, schedule, H100, execute).passed
    (emulation,) = execute.emulations
    assert emulation.statistics.bank_conflicts == 0
    assert emulation.statistics.shared_wavefronts > 0
