"""Integer arithmetic of one warp instruction: 32 lanes from register rows a, b, c into a result row."""

from typing import Any

import numpy as np

from sim.emulator import isa
from sim.linked_jit import jit

LANES = 32
_ALL = np.uint64(0xFFFFFFFFFFFFFFFF)
_WORD = np.uint64(0xFFFFFFFF)


@jit
def extend(x, shift, signed):
    """The low 64 - shift bits of x as an int64, with or without sign."""
    if signed:
        return np.int64(x << np.uint64(shift)) >> shift
    return np.int64((x << np.uint64(shift)) >> np.uint64(shift))


@jit
def low_mask(shift):
    """Ones in the low 64 - shift bits."""
    return _ALL >> np.uint64(shift)


@jit
def high64(x, y, signed):
    """The upper 64 bits of a 64 x 64 product."""
    ux, uy = np.uint64(x), np.uint64(y)
    half = np.uint64(32)
    xl, xh, yl, yh = ux & _WORD, ux >> half, uy & _WORD, uy >> half
    low = xl * yl
    middle = xh * yl + (low >> half)
    cross = xl * yh + (middle & _WORD)
    high = xh * yh + (middle >> half) + (cross >> half)
    if signed:
        if x < 0:
            high -= uy
        if y < 0:
            high -= ux
    return high


@jit
def count_bits(x):
    n = 0
    while x:
        x &= x - np.uint64(1)
        n += 1
    return n


@jit
def leading_zeros(x, width):
    n = 0
    for i in range(width - 1, -1, -1):
        if (x >> np.uint64(i)) & np.uint64(1):
            return n
        n += 1
    return n


@jit
def permute_bytes(a, b, selector, mode):
    """prmt; modes other than the default one (0) make their selector of the lowest two bits."""
    if mode:
        n: Any = np.int64(selector & np.uint64(3))
        made: Any = 0
        for i in range(4):
            if mode == 1:
                pick = n + i
            elif mode == 2:
                pick = (n - i) & 7
            elif mode == 3:
                pick = n
            elif mode == 4:
                pick = max(i, n)
            elif mode == 5:
                pick = min(i, n)
            else:
                pick = 2 * (n & 1) + i % 2
            made |= pick << (4 * i)
        selector = np.uint64(made)
    both = (a & _WORD) | (b << np.uint64(32))
    out = np.uint64(0)
    for i in range(4):
        s = (selector >> np.uint64(4 * i)) & np.uint64(15)
        byte = (both >> ((s & np.uint64(7)) * np.uint64(8))) & np.uint64(255)
        if s & np.uint64(8):
            byte = np.uint64(255) if byte & np.uint64(128) else np.uint64(0)
        out |= byte << np.uint64(8 * i)
    return out


@jit
def dot(a, b, flags):
    """dp4a, or dp2a (4) of the low or high (8) half of b; a is signed (1), b is signed (2)."""
    total = 0
    for i in range(2 if flags & 4 else 4):
        wide = 48 if flags & 4 else 56
        x = extend(a >> np.uint64((64 - wide) * i), wide, flags & 1)
        y = extend(b >> np.uint64(8 * i + 2 * (flags & 8)), 56, flags & 2)
        total += x * y
    return np.uint64(total)


@jit
def common(op, R, T, a, b, c, f0, f1, f2, f3):
    """The operations that make up most of a kernel; False where `op` is another."""
    mask = low_mask(f2)
    if op == isa.MOV:
        for i in range(LANES):
            T[i] = R[a, i] & mask
    elif op == isa.ADD:
        for i in range(LANES):
            T[i] = (R[a, i] + R[b, i]) & mask
    elif op == isa.SUB:
        for i in range(LANES):
            T[i] = (R[a, i] - R[b, i]) & mask
    elif op == isa.MUL:
        for i in range(LANES):
            T[i] = np.uint64(extend(R[a, i], f0, f1) * extend(R[b, i], f0, f1)) & mask
    elif op == isa.MAD:
        for i in range(LANES):
            T[i] = (np.uint64(extend(R[a, i], f0, f1) * extend(R[b, i], f0, f1)) + R[c, i]) & mask
    elif op == isa.AND:
        for i in range(LANES):
            T[i] = R[a, i] & R[b, i]
    elif op == isa.OR:
        for i in range(LANES):
            T[i] = R[a, i] | R[b, i]
    elif op == isa.XOR:
        for i in range(LANES):
            T[i] = R[a, i] ^ R[b, i]
    elif op == isa.NOT:
        for i in range(LANES):
            T[i] = ~R[a, i] & mask
    elif op == isa.SHL:
        for i in range(LANES):
            n = R[b, i] & _WORD
            T[i] = (R[a, i] << n) & mask if n < np.uint64(64) else np.uint64(0)
    elif op == isa.SHR:
        for i in range(LANES):
            n = min(R[b, i] & _WORD, np.uint64(63))
            if f1:
                T[i] = np.uint64(extend(R[a, i], f0, True) >> np.int64(n)) & mask
            else:
                T[i] = R[a, i] >> n if (R[b, i] & _WORD) < np.uint64(64) else np.uint64(0)
    elif op == isa.CVT_INT:
        for i in range(LANES):
            T[i] = convert(extend(R[a, i], f0, f1), f2, f3)
    else:
        return False
    return True


@jit
def convert(x, f2, f3):
    """An integer to a narrower or wider one: F3 = 1 to saturate, 2 to a signed one, the rest widens the register."""
    if f3 & 1:
        width = 64 - f2
        if f3 & 2:
            x = min(max(x, -(1 << (width - 1))), (1 << (width - 1)) - 1)
        else:
            x = max(x, 0) if width > 62 else min(max(x, 0), (1 << width) - 1)
    if f3 & 2:
        return np.uint64(extend(np.uint64(x), f2, True)) & low_mask(f3 >> 2)
    return np.uint64(x) & low_mask(f2)


@jit
def rare(op, R, T, a, b, c, e, f0, f1, f2, f3):
    """The other integer operations; `e` is a fourth operand row."""
    mask = low_mask(f2)
    width = 64 - f0
    for i in range(LANES):
        x, y = extend(R[a, i], f0, f1), extend(R[b, i], f0, f1)
        ux, uy, uz = R[a, i], R[b, i], R[c, i]
        r = np.uint64(0)
        if op == isa.MUL_HI or op == isa.MAD_HI:
            r = np.uint64((x * y) >> width) if f1 else np.uint64(x * y) >> np.uint64(width)
            if op == isa.MAD_HI:
                r += uz
        elif op == isa.MUL_HI64:
            r = high64(x, y, f1)
        elif op == isa.DIV or op == isa.REM:
            if uy == 0:
                r = _ALL if op == isa.DIV else ux
            elif f1:
                q = abs(x) // abs(y)
                q = -q if (x < 0) != (y < 0) else q
                r = np.uint64(q) if op == isa.DIV else np.uint64(x - q * y)
            else:
                r = ux // uy if op == isa.DIV else ux % uy
        elif op == isa.MIN:
            r = np.uint64(min(x, y)) if f1 else min(ux, uy)
        elif op == isa.MAX:
            r = np.uint64(max(x, y)) if f1 else max(ux, uy)
        elif op == isa.ABS:
            r = np.uint64(abs(x))
        elif op == isa.NEG:
            r = np.uint64(-x)
        elif op == isa.CNOT:
            r = np.uint64(ux == 0)
        elif op == isa.FUNNEL_L or op == isa.FUNNEL_R:
            n = uz & np.uint64(31) if f3 else min(uz & _WORD, np.uint64(32))
            both = (uy << np.uint64(32)) | (ux & _WORD)
            r = (both << n) >> np.uint64(32) if op == isa.FUNNEL_L else both >> n
            if op == isa.FUNNEL_L and n == 32:
                r = ux
            r &= _WORD
        elif op == isa.LOP3:
            for k in range(8):
                if (f3 >> k) & 1:
                    p = ux if k & 4 else ~ux
                    q2 = uy if k & 2 else ~uy
                    s = uz if k & 1 else ~uz
                    r |= p & q2 & s
            r &= _WORD
        elif op == isa.PRMT:
            r = permute_bytes(ux, uy, uz, f3)
        elif op == isa.BFE:
            start, length = np.int64(uy & np.uint64(255)), np.int64(uz & np.uint64(255))
            if length == 0:
                r = np.uint64(0)
            elif f1:
                top = min(start + length - 1, width - 1)
                shifted = x >> min(start, 63)
                if start >= width:
                    r = np.uint64(x >> 63)
                else:
                    keep = top - start + 1
                    r = np.uint64((np.int64(np.uint64(shifted) << np.uint64(64 - keep))) >> (64 - keep))
            elif start < width:
                r = (ux & low_mask(f0)) >> np.uint64(start)
                if length < 64:
                    r &= (np.uint64(1) << np.uint64(length)) - np.uint64(1)
        elif op == isa.BFI:
            start, length = np.int64(uz & np.uint64(255)), np.int64(R[e, i] & np.uint64(255))
            field = np.uint64(0)
            if start < width:
                field = _ALL if length >= 64 else (np.uint64(1) << np.uint64(length)) - np.uint64(1)
                field = (field << np.uint64(start)) & low_mask(f0)
                r = (uy & ~field) | ((ux << np.uint64(start)) & field)
            else:
                r = uy
        elif op == isa.POPC:
            r = np.uint64(count_bits(ux))
        elif op == isa.CLZ:
            r = np.uint64(leading_zeros(ux, width))
        elif op == isa.BREV:
            for k in range(width):
                r |= ((ux >> np.uint64(k)) & np.uint64(1)) << np.uint64(width - 1 - k)
        elif op == isa.BFIND:
            v = ux if not f1 or x >= 0 else np.uint64(~x)
            v &= low_mask(f0)
            n2 = leading_zeros(v, width)
            r = np.uint64(n2 if f3 else width - 1 - n2) if n2 < width else _WORD
        elif op == isa.DP4A:
            r = uz + dot(ux, uy, f3)
        elif op == isa.SAD:
            r = np.uint64(abs(x - y)) + uz
        T[i] = r & mask
