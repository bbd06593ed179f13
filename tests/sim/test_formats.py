"""Formats: rounding, saturation, special values, packing."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from sim.errors import InputError
from sim.formats import FORMATS, decode, encode, format_named

FLOAT_FORMATS = ("fp32", "fp16", "bf16", "fp8")
SMALL = ("fp16", "bf16", "fp8")
MAX = {"fp16": 65504.0, "bf16": float(ml_dtypes.finfo(ml_dtypes.bfloat16).max), "fp8": 448.0}
MIN_NORMAL = {"fp16": 2.0**-14, "bf16": 2.0**-126, "fp8": 2.0**-6}


@pytest.mark.parametrize("name", SMALL)
def test_every_bit_pattern_survives_decode_and_encode(name: str) -> None:
    storage = FORMATS[name].storage
    bits = np.arange(2 ** FORMATS[name].bits).astype(storage)
    values = decode(bits, name)
    kept = ~np.isnan(values)
    assert np.array_equal(encode(values[kept], name), bits[kept])
    assert np.isnan(decode(encode(values[~kept], name), name)).all()


@pytest.mark.parametrize("name", SMALL)
@given(values=arrays(np.float32, 16, elements=st.floats(-400, 400, width=32)))
def test_rounding_is_within_the_unit_roundoff(name: str, values: np.ndarray) -> None:
    rounded = decode(encode(values, name), name).astype(np.float64)
    tiny = MIN_NORMAL[name]  # below it the spacing is constant
    allowed = FORMATS[name].unit_roundoff * np.maximum(np.abs(values.astype(np.float64)), tiny)
    assert (np.abs(rounded - values) <= allowed).all()


@pytest.mark.parametrize("name", SMALL)
def test_rounding_goes_to_nearest_even(name: str) -> None:
    bits = np.array([0x38, 0x39] if name == "fp8" else [0x3C00, 0x3C01], FORMATS[name].storage)
    low, high = decode(bits, name).astype(np.float64)
    assert encode(np.float32([(low + high) / 2]), name)[0] == bits[0]


@pytest.mark.parametrize("name", FLOAT_FORMATS)
def test_special_values(name: str) -> None:
    zeros = decode(encode(np.float32([0.0, -0.0]), name), name)
    assert np.array_equal(np.signbit(zeros), [False, True])
    assert np.isnan(decode(encode(np.float32([np.nan]), name), name))[0]


def test_fp8_saturates_as_satfinite_does_and_the_others_overflow_to_infinity() -> None:
    huge = np.float32([3.0e38, -np.inf])
    assert decode(encode(huge, "fp8"), "fp8").tolist() == [448.0, -448.0]
    assert decode(encode(huge, "fp16"), "fp16").tolist() == [np.inf, -np.inf]
    for name in SMALL:
        assert decode(encode(np.float32([MAX[name]]), name), name)[0] == MAX[name]


def test_sizes_include_scale_and_offset_of_every_group() -> None:
    assert FORMATS["bf16"].nbytes(3, 5) == 30
    assert FORMATS["fp8"].nbytes(3, 5) == 15
    assert FORMATS["int4_g128"].nbytes(2, 256) == 2 * (128 + 2 * 4)
    assert FORMATS["int4_g128"].nbytes(1, 129) == 65 + 2 * 4


def test_an_unknown_format_lists_the_known_ones() -> None:
    with pytest.raises(InputError, match="unknown format 'int3'; known formats: fp32, fp16, bf16, fp8, int4_g32"):
        format_named("int3")
