"""Predicates, selections, register packing and exchanges between the lanes of a warp."""

import numpy as np

from sim.emulator import atomics, fpu, hazards, isa, memory
from sim.emulator import tables as t
from sim.emulator.alu import LANES, extend
from sim.linked_jit import jit

_ONE = np.uint32(1)
_ALL = np.uint32(0xFFFFFFFF)


@jit
def compare(code, x, y, unordered):
    """One of the six comparisons; codes 6 to 11 are also true of NaN."""
    if code >= isa.EQU:
        if unordered:
            return True
        code -= isa.EQU
    elif unordered:
        return code == isa.NE and False
    if code == isa.EQ:
        return x == y
    if code == isa.NE:
        return x != y
    if code == isa.LT:
        return x < y
    if code == isa.LE:
        return x <= y
    if code == isa.GT:
        return x > y
    return x >= y


@jit
def predicate(pred, w, operand):
    """The lanes in which a predicate operand (2 index + negation) holds."""
    value = pred[w, operand >> 1]
    return ~value if operand & 1 else value


@jit
def set_predicate(h, w, code, a, b, mask):
    """setp."""
    reg, pred, poison = t.u64_2(h, t.REG), t.u32_2(h, t.PRED), t.u32_2(h, t.PRED_POISON)
    comparison, kind, shift = code[isa.F0], code[isa.F1], code[isa.F2]
    result = np.uint32(0)
    if kind == isa.SIGNED:
        for i in range(LANES):
            if compare(comparison, extend(reg[a, i], shift, True), extend(reg[b, i], shift, True), False):
                result |= _ONE << np.uint32(i)
    elif kind == isa.UNSIGNED:
        for i in range(LANES):
            if compare(comparison, reg[a, i], reg[b, i], False):
                result |= _ONE << np.uint32(i)
    else:
        for i in range(LANES):
            x, y = fpu.load(reg[a, i], kind), fpu.load(reg[b, i], kind)
            unordered = x != x or y != y
            if comparison == isa.NUM or comparison == isa.NAN:
                holds = unordered == (comparison == isa.NAN)
            else:
                holds = compare(comparison, x, y, unordered)
            if holds:
                result |= _ONE << np.uint32(i)
    inverse = ~result
    stale = t.u32_1(h, t.POISON)[a] | t.u32_1(h, t.POISON)[b]
    if code[isa.F3]:
        other = predicate(pred, w, code[isa.C])
        stale |= poison[w, code[isa.C] >> 1]
        if code[isa.F3] == isa.AND_THEN:
            result, inverse = result & other, inverse & other
        elif code[isa.F3] == isa.OR_THEN:
            result, inverse = result | other, inverse | other
        else:
            result, inverse = result ^ other, inverse ^ other
    _put(pred, poison, w, code[isa.D] >> 1, result, stale, mask)
    _put(pred, poison, w, code[isa.POOL] >> 1, inverse, stale, mask)


@jit
def _put(pred, poison, w, index, value, stale, mask):
    if index > 0:
        pred[w, index] = (pred[w, index] & ~mask) | (value & mask)
        poison[w, index] = (poison[w, index] & ~mask) | (stale & mask)


@jit
def logic(h, w, code, mask):
    """and, or, xor, not and mov of predicates."""
    pred, poison = t.u32_2(h, t.PRED), t.u32_2(h, t.PRED_POISON)
    a, b = predicate(pred, w, code[isa.A]), predicate(pred, w, code[isa.B])
    pa, pb = poison[w, code[isa.A] >> 1], poison[w, code[isa.B] >> 1]
    if code[isa.F0] == isa.AND_THEN:
        value = a & b
        stale = (pa | pb) & ~((~a & ~pa) | (~b & ~pb))  # a known false decides
    elif code[isa.F0] == isa.OR_THEN:
        value = a | b
        stale = (pa | pb) & ~((a & ~pa) | (b & ~pb))
    else:
        value = a ^ b
        stale = pa | pb
    _put(pred, poison, w, code[isa.D] >> 1, value, stale, mask)


@jit
def select(h, w, code, d, a, b, mask):
    """selp."""
    reg, stale = t.u64_2(h, t.REG), t.u32_1(h, t.POISON)
    pred, poison = t.u32_2(h, t.PRED), t.u32_2(h, t.PRED_POISON)
    chosen = predicate(pred, w, code[isa.C])
    for i in range(LANES):
        bit = _ONE << np.uint32(i)
        if mask & bit:
            reg[d, i] = reg[a, i] if chosen & bit else reg[b, i]
    bad = (stale[a] & chosen) | (stale[b] & ~chosen) | poison[w, code[isa.C] >> 1]
    stale[d] = (stale[d] & ~mask) | (bad & mask)


@jit
def pack(h, code, base, d, mask):
    """mov from a vector of narrower registers."""
    reg, pool, stale = t.u64_2(h, t.REG), t.i64_1(h, t.POOL), t.u32_1(h, t.POISON)
    width = code[isa.F0]
    keep = np.uint64(0xFFFFFFFFFFFFFFFF) >> np.uint64(64 - width)
    bad = np.uint32(0)
    for i in range(LANES):
        if (mask >> np.uint32(i)) & _ONE:
            value = np.uint64(0)
            for k in range(code[isa.COUNT]):
                s = pool[code[isa.POOL] + k]
                value |= (reg[base + s if s >= 0 else ~s, i] & keep) << np.uint64(k * width)
            reg[d, i] = value
    for k in range(code[isa.COUNT]):
        s = pool[code[isa.POOL] + k]
        bad |= stale[base + s if s >= 0 else ~s]
    stale[d] = (stale[d] & ~mask) | (bad & mask)


@jit
def unpack(h, code, base, a, mask, fences):
    """mov to a vector of narrower registers."""
    reg, pool, stale = t.u64_2(h, t.REG), t.i64_1(h, t.POOL), t.u32_1(h, t.POISON)
    width = code[isa.F0]
    keep = np.uint64(0xFFFFFFFFFFFFFFFF) >> np.uint64(64 - width)
    for k in range(code[isa.COUNT]):
        d = base + pool[code[isa.POOL] + k]
        for i in range(LANES):
            if (mask >> np.uint32(i)) & _ONE:
                reg[d, i] = (reg[a, i] >> np.uint64(k * width)) & keep
        stale[d] = (stale[d] & ~mask) | (stale[a] & mask)
        t.i64_1(h, t.WRITTEN_AT)[d] = fences


@jit
def shuffle(h, w, code, base, d, a, b, c, mask, pc):
    """shfl.sync; PTX ISA 9.7.9.6 defines the segment arithmetic."""
    reg, pred, stale = t.u64_2(h, t.REG), t.u32_2(h, t.PRED), t.u32_1(h, t.POISON)
    scratch, warps = t.i64_2(h, t.SCRATCH), t.i64_2(h, t.WARP)
    mode = code[isa.F0]
    p = np.uint32(0)
    bad = np.uint32(0)
    members = base + code[isa.F1] if code[isa.F1] >= 0 else ~code[isa.F1]
    for i in range(LANES):
        if not (mask >> np.uint32(i)) & _ONE:
            continue
        by, clamp = np.int64(reg[b, i] & np.uint64(31)), np.int64(reg[c, i] & np.uint64(0x1F1F))
        segment, limit = clamp >> 8, clamp & 31
        top = (i & segment) | (limit & ~segment & 31)
        low = i & segment
        if mode == 0:
            j, ok = i - by, i - by >= top
        elif mode == 1:
            j, ok = i + by, i + by <= top
        elif mode == 2:
            j, ok = i ^ by, (i ^ by) <= top
        else:
            j = low | (by & ~segment & 31)
            ok = j <= top
        if not ok:
            j = np.int64(i)
        else:
            p |= _ONE << np.uint32(i)
        if not ((mask & np.uint32(reg[members, i])) >> np.uint32(j)) & _ONE:
            hazards.report(h, hazards.SHUFFLE_INACTIVE, pc, warps[w, t.AGENT], i, 0, j, 0, warps[w, t.CTA_SLOT])
        scratch[memory.FLAT, i] = np.int64(reg[a, j])
        if (stale[a] >> np.uint32(j)) & _ONE:
            bad |= _ONE << np.uint32(i)
    for i in range(LANES):
        if (mask >> np.uint32(i)) & _ONE:
            reg[d, i] = np.uint64(scratch[memory.FLAT, i])
    stale[d] = (stale[d] & ~mask) | bad
    _put(pred, t.u32_2(h, t.PRED_POISON), w, code[isa.F2] >> 1, p, np.uint32(0), mask)


@jit
def vote(h, w, code, d, members, mask):
    """vote.sync, of the lanes that each lane's member mask names."""
    pred, reg = t.u32_2(h, t.PRED), t.u64_2(h, t.REG)
    held = predicate(pred, w, code[isa.A])
    stale = t.u32_2(h, t.PRED_POISON)[w, code[isa.A] >> 1]
    result, bad = np.uint32(0), np.uint32(0)
    for i in range(LANES):
        bit = _ONE << np.uint32(i)
        if not mask & bit:
            continue
        among = np.uint32(reg[members, i]) & mask
        yes = held & among
        if stale & among:
            bad |= bit
        if code[isa.F0] == 3:
            reg[d, i] = np.uint64(yes)
        elif code[isa.F0] == 0:
            result |= bit if yes == among else np.uint32(0)
        elif code[isa.F0] == 1:
            result |= bit if yes else np.uint32(0)
        else:
            result |= bit if yes == among or not yes else np.uint32(0)
    if code[isa.F0] == 3:
        row = t.u32_1(h, t.POISON)
        row[d] = (row[d] & ~mask) | bad
    else:
        _put(pred, t.u32_2(h, t.PRED_POISON), w, code[isa.D] >> 1, result, bad, mask)


@jit
def reduce(h, code, d, a, members, mask):
    """redux.sync, of the lanes that each lane's member mask names."""
    reg, stale, scratch = t.u64_2(h, t.REG), t.u32_1(h, t.POISON), t.i64_2(h, t.SCRATCH)
    kind = isa.SIGNED if code[isa.F1] else isa.UNSIGNED
    bad, last, total = np.uint32(0), np.uint32(0), np.uint64(0)
    for i in range(LANES):
        if not (mask >> np.uint32(i)) & _ONE:
            continue
        among = np.uint32(reg[members, i]) & mask
        if among != last:
            last, started = among, False
            for j in range(LANES):
                if (among >> np.uint32(j)) & _ONE:
                    value = reg[a, j]
                    total = atomics.combine(code[isa.F0], kind, 4, total, value, value) if started else value
                    started = True
        scratch[memory.FLAT, i] = np.int64(total)
        if stale[a] & among:
            bad |= _ONE << np.uint32(i)
    for i in range(LANES):
        if (mask >> np.uint32(i)) & _ONE:
            reg[d, i] = np.uint64(scratch[memory.FLAT, i])
    stale[d] = (stale[d] & ~mask) | bad


@jit
def match(h, w, code, d, a, members, mask):
    """match.any.sync, and match.all.sync with its predicate."""
    reg, stale, scratch = t.u64_2(h, t.REG), t.u32_1(h, t.POISON), t.i64_2(h, t.SCRATCH)
    alike, bad = np.uint32(0), np.uint32(0)
    for i in range(LANES):
        if not (mask >> np.uint32(i)) & _ONE:
            continue
        among, same = np.uint32(reg[members, i]) & mask, np.uint32(0)
        for j in range(LANES):
            if (among >> np.uint32(j)) & _ONE and reg[a, j] == reg[a, i]:
                same |= _ONE << np.uint32(j)
        if same == among:
            alike |= _ONE << np.uint32(i)
        elif code[isa.F0]:
            same = np.uint32(0)
        scratch[memory.FLAT, i] = np.int64(same)
        if stale[a] & among:
            bad |= _ONE << np.uint32(i)
    for i in range(LANES):
        if (mask >> np.uint32(i)) & _ONE:
            reg[d, i] = np.uint64(scratch[memory.FLAT, i])
    stale[d] = (stale[d] & ~mask) | bad
    _put(t.u32_2(h, t.PRED), t.u32_2(h, t.PRED_POISON), w, code[isa.F2] >> 1, alike, bad, mask)


@jit
def elect(h, w, code, d, members, mask):
    """elect.sync: the lowest lane that the member mask names."""
    reg, pred, stale = t.u64_2(h, t.REG), t.u32_2(h, t.PRED), t.u32_1(h, t.POISON)
    chosen = np.uint32(0)
    for i in range(LANES):
        if (mask >> np.uint32(i)) & _ONE:
            among, leader = np.uint32(reg[members, i]) & mask, 0
            while leader < LANES - 1 and not (among >> np.uint32(leader)) & _ONE:
                leader += 1
            reg[d, i] = np.uint64(leader)
            chosen |= _ONE << np.uint32(leader)
    stale[d] &= ~mask
    _put(pred, t.u32_2(h, t.PRED_POISON), w, code[isa.A] >> 1, chosen, np.uint32(0), mask)
