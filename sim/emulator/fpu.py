"""Floating-point arithmetic of one warp instruction.

add, sub, mul, fma, div, sqrt and rcp.rn round once, to nearest even. The approximations (ex2, lg2, rcp, rsqrt, sin, cos
and tanh) are computed in float64 and rounded, so their error is below what PTX allows; the hardware's own last bits are
not reproduced. fp16 and bf16 arithmetic is done in float64 and rounded once.
"""

import math

import numpy as np
from numba.extending import intrinsic

from sim.emulator import isa
from sim.emulator.alu import LANES
from sim.linked_jit import jit

_ABS32, _SIGN32 = np.uint32(0x7FFFFFFF), np.uint32(0x80000000)


@intrinsic
def fma(typingctx, a, b, c):
    """Fused multiply-add of the operands' type."""
    del b, c, typingctx

    def generate(context, builder, signature, args):
        del context, signature
        return builder.fma(*args)

    return a(a, a, a), generate


@jit
def f32(x):
    return np.uint32(x).view(np.float32)


@jit
def bits32(x):
    return np.uint64(np.float32(x).view(np.uint32))


@jit
def flushed(x):
    """Subnormals to zero of the same sign."""
    bits = np.float32(x).view(np.uint32)
    return np.uint32(bits & _SIGN32).view(np.float32) if (bits & np.uint32(0x7F800000)) == 0 else x


@jit
def small_to_f64(bits, fmt):
    """The value of an 8-bit or 16-bit float."""
    bits = np.int64(bits)
    if fmt == isa.BF16:
        return np.float64(np.uint32(bits << 16).view(np.float32))
    if fmt == isa.F16:
        exponent_bits, mantissa_bits, bias = 5, 10, 15
    elif fmt == isa.E4M3:
        exponent_bits, mantissa_bits, bias = 4, 3, 7
    else:
        exponent_bits, mantissa_bits, bias = 5, 2, 15
    mantissa = bits & ((1 << mantissa_bits) - 1)
    exponent = (bits >> mantissa_bits) & ((1 << exponent_bits) - 1)
    sign = -1.0 if (bits >> (mantissa_bits + exponent_bits)) & 1 else 1.0
    if fmt == isa.E4M3:
        if exponent == 15 and mantissa == 7:
            return np.nan
    elif exponent == (1 << exponent_bits) - 1:
        return sign * np.inf if mantissa == 0 else np.nan
    if exponent == 0:
        return sign * math.ldexp(float(mantissa), 1 - bias - mantissa_bits)
    return sign * math.ldexp(float(mantissa + (1 << mantissa_bits)), exponent - bias - mantissa_bits)


@jit
def round_whole(x, rounding):
    """A float64 to an integral float64."""
    if rounding == isa.RZ:
        return np.trunc(x)
    if rounding == isa.RM:
        return np.floor(x)
    if rounding == isa.RP:
        return np.ceil(x)
    if rounding == isa.RNA:
        return np.trunc(x + math.copysign(0.5, x)) if abs(x) < 4503599627370496.0 else x
    return np.rint(x)


@jit
def f64_to_small(x, fmt, rounding, saturate):
    """Round a value to the bits of an 8-bit or 16-bit float; `saturate` clamps to the largest finite value."""
    if fmt == isa.F16:
        exponent_bits, mantissa_bits, bias, top = 5, 10, 15, 65504.0
    elif fmt == isa.BF16:
        exponent_bits, mantissa_bits, bias, top = 8, 7, 127, 3.3895313892515355e38
    elif fmt == isa.E4M3:
        exponent_bits, mantissa_bits, bias, top = 4, 3, 7, 448.0
    else:
        exponent_bits, mantissa_bits, bias, top = 5, 2, 15, 57344.0
    sign = 1 << (mantissa_bits + exponent_bits) if math.copysign(1.0, x) < 0 else 0
    if np.isnan(x):
        if fmt == isa.F16 or fmt == isa.BF16:
            return 0x7FFF
        return 0x7F
    size = abs(x)
    if not np.isinf(size):
        exponent = math.frexp(size)[1] - 1 if size > 0 else 1 - bias
        exponent = max(exponent, 1 - bias)
        step = exponent - mantissa_bits
        size = math.ldexp(round_whole(math.ldexp(size, -step), rounding), step)
    if size > top:
        if saturate:
            size = top
        elif fmt == isa.E4M3:
            return sign | 0x7F
        else:
            return sign | (((1 << exponent_bits) - 1) << mantissa_bits)
    if size == 0:
        return sign
    exponent = max(math.frexp(size)[1] - 1, 1 - bias)
    mantissa = np.int64(math.ldexp(size, mantissa_bits - exponent))
    if mantissa >> mantissa_bits == 0:
        return sign | mantissa
    return sign | ((exponent + bias) << mantissa_bits) | (mantissa & ((1 << mantissa_bits) - 1))


@jit
def bf16_of(x):
    """A float32 rounded to bf16 bits, to nearest even."""
    bits = np.float32(x).view(np.uint32)
    if (bits & _ABS32) > np.uint32(0x7F800000):
        return np.uint64(0x7FFF)
    return np.uint64(
        (np.uint64(bits) + np.uint64(0x7FFF) + ((np.uint64(bits) >> np.uint64(16)) & np.uint64(1))) >> np.uint64(16)
    )


@jit
def load(bits, fmt):
    """The float64 value of a register in any format."""
    if fmt == isa.F32 or fmt == isa.TF32:
        return np.float64(f32(bits))
    if fmt == isa.F64:
        return np.uint64(bits).view(np.float64)
    return small_to_f64(bits, fmt)


@jit
def store(x, fmt, rounding, saturate):
    """The register bits of a float64 rounded to any format."""
    if fmt == isa.F32:
        return round_f32(x, rounding)
    if fmt == isa.TF32:
        kept = round_f32(x, isa.RZ)
        step = np.uint64(0x1FFF)
        if rounding == isa.RZ:
            return kept & ~step
        half = (
            np.uint64(0x1000) if rounding == isa.RNA else np.uint64(0x0FFF) + ((kept >> np.uint64(13)) & np.uint64(1))
        )
        return (kept + half) & ~step
    if fmt == isa.F64:
        return np.float64(x).view(np.uint64)
    return np.uint64(f64_to_small(x, fmt, rounding, saturate))


@jit
def round_f32(x, rounding):
    """The bits of a float64 rounded to float32."""
    near = np.float32(x)
    if np.isnan(x):
        return np.uint64(0x7FFFFFFF)
    if rounding != isa.RN and np.float64(near) != x:
        up = np.float64(near) > x
        toward_zero = abs(np.float64(near)) > abs(x)
        wrong = (rounding == isa.RZ and toward_zero) or (rounding == isa.RM and up) or (rounding == isa.RP and not up)
        if wrong:
            bits = np.int64(np.float32(near).view(np.uint32))
            magnitude = bits & 0x7FFFFFFF
            magnitude += -1 if toward_zero else 1
            return np.uint64((bits & 0x80000000) | magnitude)
    return bits32(near)


@jit
def single(op, R, T, a, b, c, saturate):
    """The common float32 operations; False where `op` is another."""
    if op == isa.FFMA:
        for i in range(LANES):
            T[i] = bits32(fma(f32(R[a, i]), f32(R[b, i]), f32(R[c, i])))
    elif op == isa.FADD:
        for i in range(LANES):
            T[i] = bits32(f32(R[a, i]) + f32(R[b, i]))
    elif op == isa.FSUB:
        for i in range(LANES):
            T[i] = bits32(f32(R[a, i]) - f32(R[b, i]))
    elif op == isa.FMUL:
        for i in range(LANES):
            T[i] = bits32(f32(R[a, i]) * f32(R[b, i]))
    else:
        return False
    if saturate:
        for i in range(LANES):
            x = f32(T[i])
            T[i] = bits32(min(max(x, np.float32(0)), np.float32(1))) if x == x else np.uint64(0)
    return True


@jit
def _one(op, x, y, z, nan_wins):
    """One operation in float64; the caller rounds."""
    if op == isa.FADD:
        return x + y
    if op == isa.FSUB:
        return x - y
    if op == isa.FMUL:
        return x * y
    if op == isa.FFMA:
        return fma(x, y, z)
    if op == isa.FDIV:
        return x / y
    if op == isa.FMIN or op == isa.FMAX:
        if x != x or y != y:
            if nan_wins or (x != x and y != y):
                return np.nan
            return y if x != x else x
        if x == 0 and y == 0:
            negative = math.copysign(1.0, x) < 0
            if op == isa.FMAX:
                return y if negative else x
            return x if negative else y
        return min(x, y) if op == isa.FMIN else max(x, y)
    if op == isa.FSQRT:
        return np.sqrt(x)
    if op == isa.FRCP:
        return 1.0 / x
    if op == isa.FRSQRT:
        return 1.0 / np.sqrt(x)
    if op == isa.FEX2:
        return np.exp2(x)
    if op == isa.FLG2:
        return np.log2(x)
    if op == isa.FSIN:
        return np.sin(x)
    if op == isa.FCOS:
        return np.cos(x)
    return np.tanh(x)


@jit
def general(op, R, T, a, b, c, fmt, ftz, saturate, f3):
    """Every float operation in any format; F3 = 1 for packed pairs, 2 where NaN wins in min and max."""
    packed = f3 & 1
    width = np.uint64(16)
    for i in range(LANES):
        out = np.uint64(0)
        for half in range(1 + packed):
            shift = np.uint64(half) * width
            keep = np.uint64(0xFFFF) if fmt == isa.F16 or fmt == isa.BF16 else np.uint64(0xFFFFFFFFFFFFFFFF)
            x, y, z = (R[a, i] >> shift) & keep, (R[b, i] >> shift) & keep, (R[c, i] >> shift) & keep
            if op == isa.FNEG or op == isa.FABS or op == isa.FCOPYSIGN:
                sign = np.uint64(1) << np.uint64(8 * (8 if fmt == isa.F64 else 4 if fmt == isa.F32 else 2) - 1)
                if op == isa.FNEG:
                    r = x ^ sign
                elif op == isa.FABS:
                    r = x & ~sign
                else:
                    r = (y & ~sign) | (x & sign)
            else:
                r = store(
                    _arithmetic(op, load(x, fmt), load(y, fmt), load(z, fmt), fmt, ftz, f3 & 2), fmt, isa.RN, False
                )
            if f3 & 32 and load(r, fmt) < 0:  # relu
                r = np.uint64(0)
            if f3 & 64:  # xorsign: of absolute values, with the product's sign
                sign = np.uint64(1) << np.uint64(31 if fmt == isa.F32 else 15)
                p, q = load(x & ~sign, fmt), load(y & ~sign, fmt)
                r = store(_arithmetic(op, p, q, 0.0, fmt, ftz, f3 & 2), fmt, isa.RN, False) | ((x ^ y) & sign)
            if ftz and fmt == isa.F32:
                r = bits32(flushed(f32(r)))
            if saturate:
                v = load(r, fmt)
                r = store(min(max(v, 0.0), 1.0), fmt, isa.RN, False) if v == v else np.uint64(0)
            out |= r << shift
        T[i] = out


@jit
def _arithmetic(op, x, y, z, fmt, ftz, nan_wins):
    if ftz and fmt == isa.F32:
        x, y, z = (
            np.float64(flushed(np.float32(x))),
            np.float64(flushed(np.float32(y))),
            np.float64(flushed(np.float32(z))),
        )
    if fmt == isa.F32 and op == isa.FFMA:
        return np.float64(fma(np.float32(x), np.float32(y), np.float32(z)))
    return _one(op, x, y, z, nan_wins)


@jit
def neighbour(bits, up, sign):
    """The next float of the same width towards plus or minus infinity; `sign` is the bit of the sign."""
    magnitude = bits & (sign - np.uint64(1))
    if magnitude == 0:
        return np.uint64(1) if up else sign | np.uint64(1)
    return bits + np.uint64(1) if (bits & sign == 0) == up else bits - np.uint64(1)


@jit
def moved(bits, above, below, negative, rounding, sign):
    """The bits of the result to nearest, moved where the exact one lies above or below and the rounding asks for it."""
    up = rounding == isa.RP or (rounding == isa.RZ and negative)
    if above and up:
        return neighbour(bits, True, sign)
    return neighbour(bits, False, sign) if below and not up else bits


@jit
def directed_integer(x, signed, fmt, rounding):
    """The bits of an integer, in the 64 bits of x, as float32 or float64, not rounded to nearest."""
    negative = signed and x < 0
    size = np.uint64(-x) if negative else np.uint64(x)
    value = np.float64(np.float32(size)) if fmt == isa.F32 else np.float64(size)
    bits = store(value, fmt, isa.RN, False)
    above = value < 18446744073709551616.0 and np.uint64(value) < size
    below = value >= 18446744073709551616.0 or np.uint64(value) > size
    sign = np.uint64(1) << np.uint64(31 if fmt == isa.F32 else 63)
    if negative and rounding != isa.RZ:
        rounding = isa.RM if rounding == isa.RP else isa.RP
    bits = moved(bits, above, below, False, rounding, sign)
    return bits | sign if negative else bits


@jit
def convert(op, R, T, a, b, f0, f1, f2, f3):
    """cvt where a float is involved; flags in F3: 1 ftz, 2 sat, 4 satfinite, 8 relu, 16 to an integral value."""
    for i in range(LANES):
        if op == isa.CVT_PACK:
            high, low = load(R[a, i], f0), load(R[b, i], f0)
            if f3 & 8:
                high, low = (max(high, 0.0) if high == high else high), (max(low, 0.0) if low == low else low)
            size = np.uint64(16 if f1 == isa.F16 or f1 == isa.BF16 else 8)
            T[i] = (store(high, f1, f2, f3 & 4) << size) | store(low, f1, f2, f3 & 4)
        elif op == isa.CVT_UNPACK8:
            low = store(small_to_f64(R[a, i] & np.uint64(255), f0), isa.F16, isa.RN, False)
            high = store(small_to_f64((R[a, i] >> np.uint64(8)) & np.uint64(255), f0), isa.F16, isa.RN, False)
            T[i] = low | (high << np.uint64(16))
        elif op == isa.CVT_F2F:
            x = load(R[a, i], f0)
            if f3 & 16:
                x = round_whole(x, f2)
            if f3 & 8:
                x = max(x, 0.0) if x == x else x
            if f3 & 2:
                x = min(max(x, 0.0), 1.0) if x == x else 0.0
            T[i] = store(x, f1, isa.RN if f3 & 16 else f2, f3 & 4)
        elif op == isa.CVT_F2I:
            x = round_whole(load(R[a, i], f0), f2)
            width, signed = f1 >> 1, f1 & 1
            T[i] = _integer_of(x, width, signed)
        else:
            width = f0 >> 1
            shift = np.uint64(64 - width)
            x = np.int64(R[a, i] << shift) >> np.int64(shift) if f0 & 1 else np.int64((R[a, i] << shift) >> shift)
            if f2 != isa.RN and (f1 == isa.F32 or f1 == isa.F64):
                T[i] = directed_integer(x, f0 & 1, f1, f2)
            else:
                T[i] = _float_of(x, f0 & 1, f1, f2)


@jit
def _integer_of(x, width, signed):
    mask = np.uint64(0xFFFFFFFFFFFFFFFF) >> np.uint64(64 - width)
    if x != x:
        return np.uint64(0)
    if signed:
        top = math.ldexp(1.0, width - 1)
        if x >= top:
            return mask >> np.uint64(1)
        if x < -top:
            return (mask >> np.uint64(1)) + np.uint64(1)
        return np.uint64(np.int64(x)) & mask
    if x <= 0:
        return np.uint64(0)
    if x >= math.ldexp(1.0, width):
        return mask
    if x >= 9223372036854775808.0:
        return np.uint64(np.int64(x - 9223372036854775808.0)) + (np.uint64(1) << np.uint64(63))
    return np.uint64(np.int64(x))


@jit
def _float_of(x, signed, fmt, rounding):
    if fmt == isa.F32:
        return bits32(np.float32(x) if signed or x >= 0 else np.float32(np.uint64(x)))
    value = np.float64(x) if signed or x >= 0 else np.float64(np.uint64(x))
    return store(value, fmt, rounding, False)
