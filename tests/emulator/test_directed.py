"""Rounding towards zero, minus and plus infinity: the float next to the exact result on that side, or it itself."""

from fractions import Fraction
from math import isqrt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.emulator.text import elementwise

NUMBERS = st.floats(-(2.0**40), 2.0**40, width=32).filter(lambda x: x == 0 or abs(x) > 2.0**-40)
OPERATIONS = {
    "add": lambda a, b, _c: a + b,
    "sub": lambda a, b, _c: a - b,
    "mul": lambda a, b, _c: a * b,
    "fma": lambda a, b, c: a * b + c,
}


def rounded(exact: Fraction, mode: str, kind: str) -> float:
    """The float of that type next to an exact number, on the side that the mode says."""
    dtype = np.dtype(kind).type
    near = dtype(float(exact))
    if Fraction(float(near)) == exact:
        return float(near)
    up = mode == "rp" or (mode == "rz" and exact < 0)
    above = near if Fraction(float(near)) > exact else np.nextafter(near, dtype(np.inf))
    return float(above if up else np.nextafter(above, dtype(-np.inf)))


@pytest.mark.parametrize("kind", ["float32", "float64"])
@pytest.mark.parametrize("mode", ["rz", "rm", "rp"])
@pytest.mark.parametrize("name", OPERATIONS)
@settings(max_examples=10)
@given(values=st.lists(st.tuples(NUMBERS, NUMBERS, NUMBERS), min_size=32, max_size=32))
def test_sums_and_products(name: str, mode: str, kind: str, values: list[tuple[float, float, float]]) -> None:
    a, b, c = (np.array(column, kind) for column in zip(*values, strict=True))
    operands = "%out, %a, %b, %c" if name == "fma" else "%out, %a, %b"
    found = elementwise(f"{name}.{mode}.f{np.dtype(kind).itemsize * 8} {operands};", (a, b, c), kind)
    exact = [OPERATIONS[name](*map(Fraction, map(float, row))) for row in zip(a, b, c, strict=True)]
    np.testing.assert_array_equal(found, [rounded(e, mode, kind) for e in exact])


@pytest.mark.parametrize("mode", ["rz", "rm", "rp"])
@settings(max_examples=10)
@given(values=st.lists(st.tuples(NUMBERS, NUMBERS.filter(bool)), min_size=32, max_size=32))
def test_quotients(mode: str, values: list[tuple[float, float]]) -> None:
    a, b = (np.array(column, np.float32) for column in zip(*values, strict=True))
    found = elementwise(f"div.{mode}.f32 %out, %a, %b;", (a, b), "float32")
    wanted = [rounded(Fraction(float(x)) / Fraction(float(y)), mode, "float32") for x, y in zip(a, b, strict=True)]
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("mode", ["rz", "rm", "rp"])
@settings(max_examples=10)
@given(values=st.lists(st.integers(1, 2**24 - 1), min_size=32, max_size=32))
def test_square_roots_of_whole_numbers(mode: str, values: list[int]) -> None:
    found = elementwise(f"sqrt.{mode}.f32 %out, %a;", (np.array(values, np.float32),), "float32")
    for value, root in zip(values, found, strict=True):
        wide = isqrt(value << 128)  # the root with 64 bits behind the point, cut off
        exact = Fraction(wide, 1 << 64) + (Fraction(1, 1 << 66) if wide * wide != value << 128 else 0)
        assert root == rounded(exact, mode, "float32")


@pytest.mark.parametrize("mode", ["rn", "rz", "rm", "rp"])
@settings(max_examples=10)
@given(values=st.lists(st.integers(-(2**63), 2**63 - 1), min_size=32, max_size=32))
def test_conversions_of_integers(mode: str, values: list[int]) -> None:
    found = elementwise(f"cvt.{mode}.f32.s64 %out, %a;", (np.array(values, np.int64),), "float32")
    for value, result in zip(values, found, strict=True):
        wanted = float(np.float32(value)) if mode == "rn" else rounded(Fraction(value), mode, "float32")
        assert float(result) == wanted
