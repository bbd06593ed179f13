"""Elements of arrays in compiled code: the integer code of a format, and its bits to and from float32."""

import numpy as np

from sim.jit import njit

FP32, BF16, FP16, FP8 = range(4)
ELEMENT = {"fp32": FP32, "bf16": BF16, "fp16": FP16, "fp8": FP8}  # by the names of sim.formats

_SIGNIFICAND = 23  # explicit bits of a float32's significand; 127 is its exponent's bias


@njit(cache=True, inline="always")
def float_of_bf16(bits):
    """The float32 that a bf16 bit pattern stands for."""
    return np.uint32(np.uint32(bits) << np.uint32(16)).view(np.float32)


@njit(cache=True, inline="always")
def float_of_fp16(bits):
    """The float32 that an fp16 bit pattern stands for; a multiplication, which is exact, changes the exponent bias."""
    bits = np.uint32(bits)
    special = np.uint32(0x7F800000) if (bits & np.uint32(0x7C00)) == np.uint32(0x7C00) else np.uint32(0)
    size = np.uint32((bits & np.uint32(0x7FFF)) << np.uint32(13)).view(np.float32) * np.float32(2.0**112)
    sign = (bits & np.uint32(0x8000)) << np.uint32(16)
    return np.uint32(np.float32(size).view(np.uint32) | special | sign).view(np.float32)


@njit(cache=True, inline="always")
def float_of_fp8(bits):
    """The float32 that an e4m3 bit pattern stands for: no infinity, and NaN where all bits but the sign are set."""
    bits = np.uint32(bits)
    special = np.uint32(0x7FC00000) if (bits & np.uint32(0x7F)) == np.uint32(0x7F) else np.uint32(0)
    size = np.uint32((bits & np.uint32(0x7F)) << np.uint32(20)).view(np.float32) * np.float32(2.0**120)
    sign = (bits & np.uint32(0x80)) << np.uint32(24)
    return np.uint32(np.float32(size).view(np.uint32) | special | sign).view(np.float32)


@njit(cache=True, inline="always")
def bf16_of_float(value):
    """The bf16 bits of a float32, rounded to nearest even; NaN becomes the NaN that `cvt.rn.bf16.f32` makes."""
    bits = np.float32(value).view(np.uint32)
    if value != value:
        return np.uint16(0x7FFF)
    odd = (bits >> np.uint32(16)) & np.uint32(1)
    return np.uint16((np.uint64(bits) + np.uint64(odd) + np.uint64(0x7FFF)) >> np.uint64(16))


@njit(cache=True, inline="always")
def fp16_of_float(value):
    """The fp16 bits of a float32 as `cvt.rn.f16.f32` makes them: to nearest even, infinity above 65504, one NaN."""
    bits = np.int64(np.float32(value).view(np.uint32))
    size, sign = bits & 0x7FFFFFFF, (bits >> 16) & 0x8000
    if value != value:
        return np.uint16(0x7FFF)
    return np.uint16(sign | min(_narrow(size, 10, 15), 0x7C00))


@njit(cache=True, inline="always")
def fp8_of_float(value):
    """The e4m3 bits of a float32 as `cvt.rn.satfinite.e4m3x2.f32` makes them: to nearest even, at most 448, one NaN."""
    bits = np.int64(np.float32(value).view(np.uint32))
    size, sign = bits & 0x7FFFFFFF, (bits >> 24) & 0x80
    if value != value:
        return np.uint8(0x7F)
    return np.uint8(sign | min(_narrow(size, 3, 7), 0x7E))


@njit(cache=True, inline="always")
def _narrow(size, significand, bias):
    """Bits of a positive float rounded to a shorter significand and another bias; what is too large stays too large.

    Where the result is subnormal its spacing is constant: adding the power of two whose float32 neighbours are as far
    apart lets the addition round.
    """
    if size < (128 - bias) << _SIGNIFICAND:
        spaced = np.int64(128 - bias - significand + _SIGNIFICAND) << _SIGNIFICAND
        total = np.uint32(size).view(np.float32) + np.uint32(spaced).view(np.float32)
        return np.int64(np.float32(total).view(np.uint32)) - spaced
    dropped = _SIGNIFICAND - significand
    rounded = (size + (1 << (dropped - 1)) - 1 + ((size >> dropped) & 1)) >> dropped
    return rounded - ((127 - bias) << significand)
