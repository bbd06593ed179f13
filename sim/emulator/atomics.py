"""atom and red, and the arithmetic of every reduction."""

import numpy as np

from sim.cache import WRITTEN
from sim.counts import SECTOR
from sim.emulator import fpu, hazards, isa, memory, places
from sim.emulator import tables as t
from sim.emulator.alu import LANES, extend, low_mask
from sim.emulator.memory import FLAT, IN_GLOBAL, KIND
from sim.linked_jit import jit

_WRITTEN = WRITTEN


@jit
def combine(op, number, width, old, new, other):
    """The value that an atomic operation leaves."""
    if op == isa.A_EXCH:
        return new
    if op == isa.A_CAS:
        return other if old == new else old
    if op == isa.A_AND:
        return old & new
    if op == isa.A_OR:
        return old | new
    if op == isa.A_XOR:
        return old ^ new
    if op == isa.A_INC:
        return np.uint64(0) if old >= new else old + np.uint64(1)
    if op == isa.A_DEC:
        return new if old == 0 or old > new else old - np.uint64(1)
    if number >= 0:
        x, y = fpu.load(old, number), fpu.load(new, number)
        value = x + y if op == isa.A_ADD else min(x, y) if op == isa.A_MIN else max(x, y)
        return fpu.store(value, number, isa.RN, False)
    shift = 64 - 8 * width
    if op == isa.A_ADD:
        return (old + new) & low_mask(shift)
    signed = number == isa.SIGNED
    a, b = extend(old, shift, signed), extend(new, shift, signed)
    smaller = a < b if signed else old < new
    return old if (op == isa.A_MIN) == smaller else new


@jit
def atomic(h, w, code, base, mask, pc):
    """atom and red: lane after lane, in lane order."""
    pool, reg, cfg, stat = t.i64_1(h, t.POOL), t.u64_2(h, t.REG), t.i64_1(h, t.CFG), t.i64_1(h, t.STAT)
    found, poison, warps = t.i64_2(h, t.SCRATCH), t.u32_1(h, t.POISON), t.i64_2(h, t.WARP)
    row = base + code[isa.A] if code[isa.A] >= 0 else ~code[isa.A]
    width, vector, first = code[isa.F2], code[isa.COUNT], code[isa.POOL]
    op, number, packed = code[isa.F3], code[isa.B], code[isa.D] & 1
    good = memory.locate(h, w, row, code[isa.F0], code[isa.F1], mask, width * vector, pc)
    check = cfg[t.CHECK]
    record = hazards.warp_record(h, w, pc, places.strength(code[isa.C])) if check else 0
    if check and poison[row] & mask:
        hazards.report(h, hazards.UNINITIALISED_ADDRESS, pc, warps[w, t.AGENT], -1, 0, row, 0, warps[w, t.CTA_SLOT])
    any_global, dirty = False, np.uint32(0)
    for lane in range(LANES):
        bit = np.uint32(1) << np.uint32(lane)
        if not good & bit:
            continue
        kind, flat = found[KIND, lane], found[FLAT, lane]
        any_global |= kind == IN_GLOBAL
        stale = False
        if check:
            for i in range(vector * (2 if op == isa.A_CAS else 1)):
                source = base + pool[first + vector + i] if pool[first + vector + i] >= 0 else ~pool[first + vector + i]
                stale |= (poison[source] & bit) != 0
            if memory.unset(h, lane, width * vector):
                dirty |= bit
            memory.touch_lane(h, w, lane, width * vector, record, True, False, stale or (dirty & bit) != 0)
            places.meet(h, w, lane, memory.place(h, lane), code[isa.D] & 2 != 0, True, code[isa.C])
        differ = False  # of a compare-and-swap of two halves, which swaps both or none
        for i in range(vector if code[isa.D] & 4 and op == isa.A_CAS else 0):
            s = pool[first + vector + i]
            wanted = reg[base + s if s >= 0 else ~s, lane]
            differ |= memory.read_element(h, kind, flat + i * width, width) != wanted
        for i in range(vector):
            old = memory.read_element(h, kind, flat + i * width, width)
            s = pool[first + vector + i]
            new = reg[base + s if s >= 0 else ~s, lane]
            s = pool[first + 2 * vector + i] if op == isa.A_CAS else s
            other = reg[base + s if s >= 0 else ~s, lane]
            if packed:
                half, low = np.uint64(16), np.uint64(0xFFFF)
                value = combine(op, number, 2, old & low, new & low, other)
                value |= combine(op, number, 2, old >> half, new >> half, other) << half
            else:
                value = combine(op, number, width, old, new, other)
            if differ:
                value = old
            memory.write_element(h, kind, flat + i * width, width, value)
            if value != old:
                stat[t.PROGRESS] += 1
            reg[base + pool[first + i], lane] = old
    stat[t.SPUN] += 1
    if any_global:
        stat[t.ATOMIC_REQUESTS] += 1
        stat[t.SM_TO_L2] += SECTOR * memory.sectors_of(h, good, width * vector, _WRITTEN)
    if check:
        for i in range(vector):
            to = base + pool[first + i]
            poison[to] = (poison[to] & ~mask) | dirty
            t.i64_1(h, t.WRITTEN_AT)[to] = warps[w, t.FENCES]
