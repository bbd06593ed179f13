"""Rounding that is not to nearest: the result to nearest, and on which side of it the exact one lies.

What is left of a sum, a product or a quotient is exact in float64 (Knuth's two-sum; fused multiply-adds), so its sign
says whether the result is to be moved to its neighbour. An exact zero has the sign that rounding to nearest gives it.
"""

import math

import numpy as np

from sim.emulator import fpu, isa
from sim.emulator.alu import LANES
from sim.linked_jit import jit


@jit
def _left_of_sum(x, y, s):
    """x + y - s, where s is x + y to nearest."""
    b = s - x
    return (x - (s - b)) + (y - b)


@jit
def _result(op, x, y, z, single):
    """(the result in float64, the sign of what is left); `single` where the operands are float32 values."""
    if op == isa.FADD or op == isa.FSUB:
        y = -y if op == isa.FSUB else y
        s = x + y
        return s, _left_of_sum(x, y, s)
    if op == isa.FMUL:
        s = x * y
        return s, 0.0 if single else fpu.fma(x, y, -s)
    if op == isa.FFMA:
        p = x * y
        if single:
            s = p + z
            return s, _left_of_sum(p, z, s)
        s = fpu.fma(x, y, z)
        t = p + z
        return s, (t - s) + (_left_of_sum(p, z, t) + fpu.fma(x, y, -p))
    if op == isa.FSQRT:
        s = math.sqrt(x) if x >= 0 else np.nan
        return s, fpu.fma(-s, s, x)
    if op == isa.FRCP:
        x, y = 1.0, x
    s = x / y
    left = fpu.fma(-s, y, x)
    return s, left if y > 0 else -left


@jit
def arithmetic(op, R, T, a, b, c, fmt, ftz, saturate, rounding):
    """add, sub, mul, fma, div, rcp and sqrt of float32 or float64, rounded as `rounding` says."""
    single = fmt == isa.F32
    for i in range(LANES):
        x, y, z = fpu.load(R[a, i], fmt), fpu.load(R[b, i], fmt), fpu.load(R[c, i], fmt)
        if ftz and single:
            x, y, z = (
                np.float64(fpu.flushed(np.float32(x))),
                np.float64(fpu.flushed(np.float32(y))),
                np.float64(fpu.flushed(np.float32(z))),
            )
        s, left = _result(op, x, y, z, single)
        bits = fpu.store(s, fmt, isa.RN, False)
        near = fpu.load(bits, fmt)
        finite = not (math.isinf(x) or math.isinf(y) or math.isinf(z))
        if s == s and finite and not (math.isinf(s) and op in (isa.FDIV, isa.FRCP) and y == 0):
            sign = np.uint64(1) << np.uint64(31 if single else 63)
            above = s > near or (s == near and left > 0)
            below = s < near or (s == near and left < 0)
            if math.isinf(near):  # the exact result is finite
                above, below = near < 0, near > 0
            bits = fpu.moved(bits, above, below, s < 0 or (s == 0 and left < 0), rounding, sign)
        if ftz and single:
            bits = fpu.bits32(fpu.flushed(fpu.f32(bits)))
        if saturate:
            v = fpu.load(bits, fmt)
            bits = fpu.store(min(max(v, 0.0), 1.0), fmt, isa.RN, False) if v == v else np.uint64(0)
        T[i] = bits
