"""Instructions that are several operations, or whose operands are several registers, beside NumPy and whole numbers."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lab
from tests.emulator.text import elementwise
from tests.strategies import require_header

WORDS = st.lists(st.integers(0, 2**64 - 1), min_size=32, max_size=32)


@settings(max_examples=10)
@given(WORDS, WORDS)
def test_a_sum_and_a_difference_with_carries(x: list[int], y: list[int]) -> None:
    a, b = np.array(x, np.uint64), np.array(y, np.uint64)
    body = """.reg .b32 al, ah, bl, bh, l, h; mov.b64 {al, ah}, %a; mov.b64 {bl, bh}, %b;
        OP.cc.u32 l, al, bl; OPc.u32 h, ah, bh; mov.b64 %out, {l, h};"""
    np.testing.assert_array_equal(elementwise(body.replace("OP", "add"), (a, b), "uint64"), a + b)
    np.testing.assert_array_equal(elementwise(body.replace("OP", "sub"), (a, b), "uint64"), a - b)


@settings(max_examples=10)
@given(WORDS, WORDS)
def test_the_upper_half_of_a_sum_of_products(x: list[int], y: list[int]) -> None:
    a, b = np.array(x, np.uint64), np.array(y, np.uint64)
    body = ".reg .b64 low; mad.lo.cc.u64 low, %a, %b, %b; madc.hi.u64 %out, %a, %b, %a;"
    found = elementwise(body, (a, b), "uint64")
    assert found.tolist() == [(u * v + v + (u << 64) >> 64) % (1 << 64) for u, v in zip(x, y, strict=True)]


@pytest.mark.parametrize("signs", ["s32.s32", "u32.u32", "s32.u32"])
def test_dot_products_of_bytes(signs: str) -> None:
    rng = np.random.default_rng(0)
    a, b = (rng.integers(0, 2**32, 32).astype(np.uint32) for _ in range(2))
    kinds = [np.int8 if kind[0] == "s" else np.uint8 for kind in signs.split(".")]
    x, y = (v.view(kind).reshape(32, 4).astype(int) for v, kind in zip((a, b), kinds, strict=True))
    found = elementwise(f"dp4a.{signs} %out, %a, %b, 5;", (a, b), "int32")
    np.testing.assert_array_equal(found, (x * y).sum(axis=1) + 5)


def test_a_compare_and_swap_of_128_bits_swaps_both_halves_or_none() -> None:
    source = """__global__ void k(unsigned long long* p, unsigned long long* y) {
        unsigned long long low, high;
        asm volatile("{.reg .b128 e, n, o; mov.b128 e, {%2, %3}; mov.b128 n, {%4, %4}; atom.global.cas.b128 o, [%5], e, n;"
                     "mov.b128 {%0, %1}, o;}" : "=l"(low), "=l"(high) : "l"(1ull), "l"(2ull), "l"(7ull), "l"(p + 2 * threadIdx.x) : "memory");
        y[2 * threadIdx.x] = low; y[2 * threadIdx.x + 1] = high;
    }"""
    p = np.array([1, 2, 1, 3, 4, 2], np.uint64)
    launch = lab.Launch(1, 3, [lab.InOut("p", p), lab.Out("y", 6, "uint64")])
    check = lab.emulate(source, "k", launch, seeds=2)
    assert check.passed, check.hazards
    assert check.outputs["p"].tolist() == [7, 7, 1, 3, 4, 2]
    assert check.outputs["y"].tolist() == p.tolist()


def test_an_integer_matrix_product() -> None:
    source = """__global__ void k(const int* a, const int* b, int* y) {
        int l = threadIdx.x, r = l / 4, c = l % 4, d[4];
        asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%10,%10,%10,%10};"
            : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
            : "r"(a[8*r+c]), "r"(a[8*(r+8)+c]), "r"(a[8*r+c+4]), "r"(a[8*(r+8)+c+4]), "r"(b[8*r+c]), "r"(b[8*r+c+4]), "r"(5));
        for (int i = 0; i < 4; ++i) y[8 * (r + 8 * (i / 2)) + 2 * c + i % 2] = d[i];
    }"""
    rng = np.random.default_rng(0)
    a, b = rng.integers(-128, 128, (16, 32)).astype(np.int8), rng.integers(-128, 128, (8, 32)).astype(np.int8)
    arrays = lab.In("a", a.view(np.int32)), lab.In("b", b.view(np.int32)), lab.Out("y", (16, 8), "int32")
    check = lab.emulate(source, "k", lab.Launch(1, 32, arrays), seeds=1)
    np.testing.assert_array_equal(check.outputs["y"], a.astype(int) @ b.astype(int).T + 5)


@pytest.mark.parametrize(("a_layout", "b_layout"), [("row", "col"), ("col", "row")])
def test_matrices_through_wmma(a_layout: str, b_layout: str) -> None:
    require_header("mma.h")
    source = f"""
        #include <mma.h>
        using namespace nvcuda::wmma;
        __global__ void k(const __half* a, const __half* b, float* y) {{
            fragment<matrix_a, 16, 16, 16, __half, {a_layout}_major> fa; fragment<matrix_b, 16, 16, 16, __half, {b_layout}_major> fb;
            fragment<accumulator, 16, 16, 16, float> fc; fill_fragment(fc, 0.5f);
            load_matrix_sync(fa, a, 16); load_matrix_sync(fb, b, 16); mma_sync(fc, fa, fb, fc);
            store_matrix_sync(y, fc, 16, mem_row_major);
        }}"""
    rng = np.random.default_rng(0)
    a, b = (rng.integers(-8, 8, (16, 16)).astype(np.float16) for _ in range(2))
    x, y = (m if layout == "row" else m.T for m, layout in ((a, a_layout), (b, b_layout)))
    launch = lab.Launch(1, 32, [lab.In("a", a), lab.In("b", b), lab.Out("y", (16, 16), "float32")])
    check = lab.emulate(source, "k", launch, seeds=1)
    assert check.passed, check.hazards
    np.testing.assert_array_equal(check.outputs["y"], x.astype(float) @ y.astype(float) + 0.5)
