"""mma.sync and wmma.mma: one warp multiplies matrices that lie in its registers, as fragments.

Products of floats are summed in float32 with fused multiply-adds in the order of k, those of integers and of float64
exactly or in float64. The layout of mma.sync is PTX ISA's. That of wmma is nobody's business by contract: here slot
number s, counted through registers lane by lane, holds element s of the matrix in row-major order, again and again.
A sparse A of mma.sp lies as a dense one of half the columns; its metadata says which row of B each column multiplies.
"""

from typing import Any

import numpy as np

from sim.emulator import fpu, isa
from sim.emulator import tables as t
from sim.emulator.alu import LANES
from sim.linked_jit import jit

_ONE = np.uint32(1)
_A, _B, _C = 0, 80, 160  # first columns of MATRICES that hold A [m, k], B [k, n], C [m, n]
_PLACES = 88  # first column of those that hold the rows of B which a sparse A [m, k / 2] multiplies: B is 8 wide there
_WORD = 32  # bits of a register of a fragment
OPAQUE, SATURATE, SPARSE, ORDERED = 1, 2, 4, 8  # flags of a product
SELECTOR = 16  # its place among the flags


@jit
def _bits_of(fmt):
    """Bits of an element in a register."""
    if fmt == isa.S4 or fmt == isa.U4:
        return 4
    if fmt == isa.S8 or fmt == isa.U8 or fmt == isa.E4M3 or fmt == isa.E5M2:
        return 8
    if fmt == isa.F16 or fmt == isa.BF16:
        return 16
    return 64 if fmt == isa.F64 else 32


@jit
def _element(register, e, fmt):
    """Element number e of a register."""
    bits = _bits_of(fmt)
    if fmt == isa.F64:
        return np.uint64(register).view(np.float64)
    raw = (register >> np.uint64(bits * e)) & ((np.uint64(1) << np.uint64(bits)) - np.uint64(1))
    if fmt == isa.TF32:
        raw &= np.uint64(0xFFFFE000)
    if fmt <= isa.TF32:
        return fpu.load(raw, fmt)
    value = np.int64(raw)
    if fmt != isa.U8 and fmt != isa.U4 and value >> (bits - 1):
        value -= 1 << bits
    return np.float64(value)


@jit
def _put(register, e, fmt, value, saturate):
    """A register with element e replaced by a sum."""
    if fmt == isa.F64:
        return np.float64(value).view(np.uint64)
    if fmt == isa.S32:
        whole: Any = np.int64(value)
        if saturate:
            whole = min(max(whole, -(1 << 31)), (1 << 31) - 1)
        return np.uint64(whole) & np.uint64(0xFFFFFFFF)
    bits = np.uint64(_bits_of(fmt))
    keep = ((np.uint64(1) << bits) - np.uint64(1)) << (bits * np.uint64(e))
    return (register & ~keep) | (fpu.store(value, fmt, isa.RN, False) << (bits * np.uint64(e)))


@jit
def _place(which, i, lane, e, per, count, columns, opaque):
    """(row, column) of element e of register i of a lane; which: 0 for A, 1 for B, 2 for C."""
    if opaque:
        slot = (lane * count + i) * per + e
        return slot // columns, slot % columns
    if which == 0:
        return lane // 4 + 8 * (i % 2), (lane % 4 + 4 * (i // 2)) * per + e
    if which == 1:
        return (lane % 4 + 4 * i) * per + e, lane // 4
    if per == 2:  # two halves a register
        return lane // 4 + 8 * i, lane % 4 * 2 + e
    return lane // 4 + 8 * (i // 2), lane % 4 * 2 + i % 2


@jit
def _read(h, base, first, count, which, fmt, rows, columns, at, opaque):
    """A fragment into MATRICES; returns (poisoned rows, poisoned columns)."""
    pool, reg, stale, out = t.i64_1(h, t.POOL), t.u64_2(h, t.REG), t.u32_1(h, t.POISON), t.f64_2(h, t.MATRICES)
    per = max(_WORD // _bits_of(fmt), 1)
    bad_rows, bad_columns = np.int64(0), np.int64(0)
    for i in range(count):
        s = pool[first + i]
        source = base + s if s >= 0 else ~s
        for lane in range(LANES):
            for e in range(per):
                row, column = _place(which, i, lane, e, per, count, columns, opaque)
                if row < rows:
                    out[row, at + column] = _element(reg[source, lane], e, fmt)
                    if (stale[source] >> np.uint32(lane)) & _ONE:
                        bad_rows |= 1 << row
                        bad_columns |= 1 << column
    return bad_rows, bad_columns


@jit
def _place_nonzeros(h, source, fmt, k, flags):
    """The rows of B that a sparse A multiplies, from its metadata; returns the rows whose metadata is not defined.

    A nibble tells of four columns, or of two of tf32, as two positions in fourths of them. Of elements of a byte a
    lane holds the nibbles of one row, of wider ones four of a row and four of the row eight further on.
    """
    reg, stale, out = t.u64_2(h, t.REG), t.u32_1(h, t.POISON), t.f64_2(h, t.MATRICES)
    nonzeros = 1 if fmt == isa.TF32 else 2
    nibbles, two_rows = k // (2 * nonzeros), _bits_of(fmt) > 8
    first = nibbles // 4 * (flags // SELECTOR)  # of a group of four, the first lane that holds metadata
    bad_rows = np.int64(0)
    for row in range(16):
        upper = row // 8
        for nibble in range(nibbles):
            word = nibble // 4 if two_rows else 2 * (nibble // 8) + upper
            shift = 4 * (nibble % 4) + 16 * upper if two_rows else 4 * (nibble % 8)
            lane = row % 8 * 4 + first + word
            bits = np.int64(reg[source, lane] >> np.uint64(shift)) & 15
            low, high = bits & 3, bits >> 2
            if nonzeros == 1:
                defined = bits == 0b0100 or bits == 0b1110
                out[row, _PLACES + nibble] = 2 * nibble + low // 2
            else:
                defined = low < high or (low > high and not flags & ORDERED)
                out[row, _PLACES + 2 * nibble] = 4 * nibble + low
                out[row, _PLACES + 2 * nibble + 1] = 4 * nibble + high
            if not defined or (stale[source] >> np.uint32(lane)) & _ONE:
                bad_rows |= 1 << row
    return bad_rows


@jit
def mma(h, w, code, base):
    """D = A B + C; F0 = k, F1 and F3 = formats of A and B, F2 = 256 m + n, and in the pool counts, formats and rows.

    Where A is sparse, the row of its metadata is the last.
    """
    pool, reg, stat, out = t.i64_1(h, t.POOL), t.u64_2(h, t.REG), t.i64_1(h, t.STAT), t.f64_2(h, t.MATRICES)
    stale, warps = t.u32_1(h, t.POISON), t.i64_2(h, t.WARP)
    k, m, n, first = code[isa.F0], code[isa.F2] >> 8, code[isa.F2] & 255, code[isa.POOL]
    d_count, a_count, b_count, c_count = pool[first], pool[first + 1], pool[first + 2], pool[first + 3]
    d_fmt, c_fmt, flags = pool[first + 4], pool[first + 5], pool[first + 6]
    opaque, saturate, sparse = flags & OPAQUE, flags & SATURATE, flags & SPARSE
    terms = k // 2 if sparse else k  # of each sum
    d = first + 7
    a = d + d_count
    b = a + a_count
    c = b + b_count
    bad_rows, _ = _read(h, base, a, a_count, 0, code[isa.F1], m, terms, _A, opaque)
    if sparse:
        s = pool[c + c_count]
        bad_rows |= _place_nonzeros(h, base + s if s >= 0 else ~s, code[isa.F1], k, flags)
    _, bad_columns = _read(h, base, b, b_count, 1, code[isa.F3], k, n, _B, opaque)
    _read(h, base, c, c_count, 2, c_fmt, m, n, _C, opaque)
    exact = d_fmt == isa.F64 or d_fmt == isa.S32
    for r in range(m):
        for j in range(terms):
            i = np.int64(out[r, _PLACES + j]) if sparse else j
            for q in range(n):
                if exact:
                    out[r, _C + q] += out[r, _A + j] * out[i, _B + q]
                else:
                    x, y, z = np.float32(out[r, _A + j]), np.float32(out[i, _B + q]), np.float32(out[r, _C + q])
                    out[r, _C + q] = np.float64(fpu.fma(x, y, z))
    per = max(_WORD // _bits_of(d_fmt), 1)
    for i in range(d_count):
        to = base + pool[d + i]
        s = pool[c + min(i, c_count - 1)]
        sums = stale[base + s if s >= 0 else ~s]
        for lane in range(LANES):
            value, bad = np.uint64(0), (sums >> np.uint32(lane)) & _ONE
            for e in range(per):
                row, column = _place(2, i, lane, e, per, d_count, n, opaque)
                if row < m:
                    value = _put(value, e, d_fmt, out[row, _C + column], saturate)
                    bad |= np.uint32((bad_rows >> row | bad_columns >> column) & 1)
            reg[to, lane] = value
            stale[to] = (stale[to] & ~(_ONE << np.uint32(lane))) | (bad << np.uint32(lane))
        t.i64_1(h, t.WRITTEN_AT)[to] = warps[w, t.FENCES]
    stat[t.MMA_FLOPS] += 2 * m * n * terms
