"""Scalar instructions against NumPy and ml_dtypes, on drawn operands and on the corners of each type."""

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sim.emulator import EmulatorError
from tests.emulator.text import elementwise

_CORNERS = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0x123456789ABCDEF)


def words(rng: np.random.Generator, dtype: str, n: int = 32) -> NDArray[Any]:
    """Random bits with corner values mixed in."""
    width = 8 * np.dtype(dtype).itemsize
    values = [int(rng.integers(0, 2**63)) * 2 + int(rng.integers(0, 2)) for _ in range(n)]
    for i in range(n // 2):
        values[i] = int(rng.choice(_CORNERS))
    rng.shuffle(values)
    return np.array([v % (1 << width) for v in values], f"uint{width}").view(dtype)


def python_integers(a: NDArray[Any]) -> list[int]:
    return [int(x) for x in a]


INTEGER: list[tuple[str, str, Callable[[int, int], int]]] = [
    ("add.s32", "int32", lambda a, b: a + b),
    ("sub.s64", "int64", lambda a, b: a - b),
    ("mul.lo.s32", "int32", lambda a, b: a * b),
    ("mul.hi.s32", "int32", lambda a, b: (a * b) >> 32),
    ("mul.hi.u32", "uint32", lambda a, b: (a * b) >> 32),
    ("mul.hi.s64", "int64", lambda a, b: (a * b) >> 64),
    ("mul.hi.u64", "uint64", lambda a, b: (a * b) >> 64),
    ("min.s32", "int32", min),
    ("max.u64", "uint64", max),
    ("and.b32", "uint32", lambda a, b: a & b),
    ("xor.b64", "uint64", lambda a, b: a ^ b),
    ("div.s32", "int32", lambda a, b: int(np.sign(a) * np.sign(b)) * (abs(a) // abs(b)) if b else -1),
    ("rem.u32", "uint32", lambda a, b: a % b if b else a),
    ("div.u64", "uint64", lambda a, b: a // b if b else -1),
]


@pytest.mark.parametrize(("opcode", "dtype", "expected"), INTEGER, ids=[row[0] for row in INTEGER])
def test_integer_arithmetic(opcode: str, dtype: str, expected: Callable[[int, int], int]) -> None:
    rng = np.random.default_rng(1)
    a, b = words(rng, dtype), words(rng, dtype)
    out = elementwise(f"{opcode} %out, %a, %b;", (a, b), dtype)
    width = 8 * np.dtype(dtype).itemsize
    wanted = [expected(x, y) % (1 << width) for x, y in zip(python_integers(a), python_integers(b), strict=True)]
    assert python_integers(out.view(f"uint{width}")) == wanted


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 255), st.integers(0, 2**32 - 1))
def test_lop3_is_its_truth_table(table: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b, c = (words(rng, "uint32") for _ in range(3))
    out = elementwise(f"lop3.b32 %out, %a, %b, %c, {table};", (a, b, c), "uint32")
    wanted = np.zeros(32, np.uint32)
    for k in range(8):
        if table >> k & 1:
            wanted |= (a if k & 4 else ~a) & (b if k & 2 else ~b) & (c if k & 1 else ~c)
    assert (out == wanted).all()


def test_shifts_clamp() -> None:
    a = np.full(32, 0x80000001, np.uint32)
    by = np.arange(20, 52, dtype=np.uint32)
    left = elementwise("shl.b32 %out, %a, %b;", (a, by), "uint32")
    right = elementwise("shr.s32 %out, %a, %b;", (a, by), "uint32")
    assert python_integers(left) == [(0x80000001 << int(n)) % 2**32 if n < 32 else 0 for n in by]
    assert python_integers(right) == [(-0x7FFFFFFF >> min(int(n), 31)) % 2**32 for n in by]


@pytest.mark.parametrize("signed", [False, True])
def test_bit_fields(signed: bool) -> None:
    rng = np.random.default_rng(2)
    a, start, length = (
        words(rng, "uint32"),
        rng.integers(0, 40, 32).astype("uint32"),
        rng.integers(0, 40, 32).astype("uint32"),
    )
    kind = "s32" if signed else "u32"
    out = elementwise(f"bfe.{kind} %out, %a, %b, %c;", (a, start, length), "uint32")
    for x, p, n, got in zip(
        python_integers(a), python_integers(start), python_integers(length), python_integers(out), strict=True
    ):
        value = x - 2**32 if signed and x >> 31 else x
        sign = value < 0 if p + n - 1 > 31 else bool(value >> (p + n - 1) & 1) if n else False
        wanted = (value >> p if p < 32 else (-1 if value < 0 else 0)) & ((1 << n) - 1)
        if signed and n and sign:
            wanted -= 1 << n
        assert got == (wanted if n else 0) % 2**32, (x, p, n)


def test_prmt_selects_bytes_and_signs() -> None:
    a, b = np.full(32, 0x83020100, np.uint32), np.full(32, 0x07060584, np.uint32)
    selectors = np.array([0x7654, 0x3210, 0x000B, 0x0C08] * 8, np.uint32)
    out = elementwise("prmt.b32 %out, %a, %b, %c;", (a, b, selectors), "uint32")
    assert python_integers(out[:4]) == [0x07060584, 0x83020100, 0x000000FF, 0x00FF0000]


FLOAT: list[tuple[str, Callable[..., Any]]] = [
    ("add.f32", lambda a, b: a + b),
    ("mul.rn.f32", lambda a, b: a * b),
    ("div.rn.f32", lambda a, b: a / b),
    ("min.f32", np.fmin),
    ("max.NaN.f32", np.maximum),
]


@pytest.mark.parametrize(("opcode", "expected"), FLOAT, ids=[row[0] for row in FLOAT])
def test_float_arithmetic(opcode: str, expected: Callable[..., Any]) -> None:
    rng = np.random.default_rng(3)
    a, b = (rng.standard_normal(64).astype(np.float32) for _ in range(2))
    a[:6] = (np.inf, -0.0, np.nan, 1e-42, 3e38, 1)
    b[:6] = (1, 0.5, 2, 0.5, 3e38, np.nan)
    out = elementwise(f"{opcode} %out, %a, %b;", (a, b), "float32")
    with np.errstate(all="ignore"):
        wanted = expected(a, b).astype(np.float32)
    assert ((out == wanted) | (np.isnan(out) & np.isnan(wanted))).all()


def test_fma_rounds_once() -> None:
    a = np.full(32, 1 + 2.0**-12, np.float32)
    c = np.full(32, -(1 + 2.0**-11), np.float32)
    out = elementwise("fma.rn.f32 %out, %a, %b, %c;", (a, a, c), "float32")
    assert (out == np.float32(2.0**-24)).all()
    assert (a * a + c == 0).all()  # two roundings lose it


@pytest.mark.parametrize(
    ("opcode", "exact", "bound"),
    [
        ("ex2.approx.ftz.f32", np.exp2, 2.0**-22),
        ("rcp.approx.f32", lambda x: 1 / x, 2.0**-22),
        ("rsqrt.approx.f32", lambda x: 1 / np.sqrt(x), 2.0**-22),
        ("lg2.approx.f32", np.log2, 2.0**-22),
        ("tanh.approx.f32", np.tanh, 2.0**-10),
    ],
)
def test_approximations_keep_their_documented_error(opcode: str, exact: Callable[..., Any], bound: float) -> None:
    x = np.random.default_rng(4).uniform(2, 20, 256).astype(np.float32)
    out = elementwise(f"{opcode} %out, %a;", (x,), "float32")
    wanted = exact(x.astype(np.float64))
    assert (np.abs(out - wanted) <= bound * np.abs(wanted)).all()


@pytest.mark.parametrize("name", ["bfloat16", "float16"])
def test_conversions_to_16_bits(name: str) -> None:
    kind = {"bfloat16": "bf16", "float16": "f16"}[name]
    dtype = np.dtype(getattr(ml_dtypes, name, None) or np.float16)
    x = words(np.random.default_rng(5), "uint32", 256).view(np.float32)
    out = elementwise(f"cvt.rn.{kind}.f32 %out, %a;", (x,), "uint16").view(dtype)
    with np.errstate(all="ignore"):
        wanted = x.astype(dtype)
    same = (out == wanted) | (np.isnan(out.astype(np.float32)) & np.isnan(wanted.astype(np.float32)))
    assert same.all()
    back = elementwise(f"cvt.f32.{kind} %out, %a;", (out.view(np.uint16),), "float32")
    assert ((back == out.astype(np.float32)) | np.isnan(back)).all()


@pytest.mark.parametrize(
    ("kind", "dtype", "top"), [("e4m3", ml_dtypes.float8_e4m3fn, 448), ("e5m2", ml_dtypes.float8_e5m2, 57344)]
)
def test_fp8_pairs_saturate(kind: str, dtype: Any, top: int) -> None:
    rng = np.random.default_rng(6)
    high, low = ((rng.standard_normal(64) * 10.0 ** rng.integers(-4, 6, 64)).astype(np.float32) for _ in range(2))
    body = f"cvt.rn.satfinite.{kind}x2.f32 %out, %a, %b;"
    pair = elementwise(body, (high, low), "uint16")
    for values, bits in ((low, pair & 0xFF), (high, pair >> 8)):
        wanted = np.clip(values, -top, top).astype(dtype)
        assert (bits.astype(np.uint8).view(dtype) == wanted).all()
    halves = elementwise(f"cvt.rn.f16x2.{kind}x2 %out, %a;", (pair,), "uint32")
    assert (
        (halves & 0xFFFF).astype(np.uint16).view(np.float16)
        == (pair & 0xFF).astype(np.uint8).view(dtype).astype(np.float16)
    ).all()


@pytest.mark.parametrize(
    ("opcode", "rounded"), [("rzi", np.trunc), ("rni", np.rint), ("rmi", np.floor), ("rpi", np.ceil)]
)
def test_float_to_integer_rounds_and_clamps(opcode: str, rounded: Callable[..., Any]) -> None:
    x = np.array([0.5, 1.5, -0.5, -2.5, 3e9, -3e9, np.nan, np.inf] * 4, np.float32)
    out = elementwise(f"cvt.{opcode}.s32.f32 %out, %a;", (x,), "int32")
    wanted = np.clip(np.nan_to_num(rounded(x.astype(np.float64)), posinf=2.0**40), -(2**31), 2**31 - 1)
    assert (out == wanted.astype(np.int64)).all()


def test_packed_bf16_fma() -> None:
    rng = np.random.default_rng(7)
    bits = [rng.standard_normal(64).astype(ml_dtypes.bfloat16) for _ in range(3)]
    a, b, c = (x.view(np.uint32) for x in bits)
    out = elementwise("fma.rn.bf16x2 %out, %a, %b, %c;", (a, b, c), "uint32").view(ml_dtypes.bfloat16)
    exact = bits[0].astype(np.float64) * bits[1].astype(np.float64) + bits[2].astype(np.float64)
    assert (out == exact.astype(ml_dtypes.bfloat16)).all()


def test_setp_orders_nan() -> None:
    a, b = np.array([1, np.nan] * 16, np.float32), np.array([2] * 32, np.float32)
    for comparison, wanted in (
        ("lt", [1, 0]),
        ("ltu", [1, 1]),
        ("num", [1, 0]),
        ("nan", [0, 1]),
        ("neu", [1, 1]),
        ("ne", [1, 0]),
    ):
        body = f"setp.{comparison}.f32 %p1, %a, %b; selp.u32 %out, 1, 0, %p1;"
        assert python_integers(elementwise(body, (a, b), "uint32")[:2]) == wanted, comparison


def test_an_unknown_instruction_is_named_with_its_line() -> None:
    with pytest.raises(EmulatorError, match=r"tensormap\.replace"):
        elementwise(
            "tensormap.replace.tile.rank.global.b1024.b32 [%at0], 1; mov.b32 %out, %a;",
            (np.zeros(32, np.uint32),),
            "uint32",
        )
    with pytest.raises(EmulatorError, match=r"\.rz"):
        elementwise("ex2.rz.f32 %out, %a;", (np.zeros(32, np.float32),), "float32")
