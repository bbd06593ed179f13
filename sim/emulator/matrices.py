"""ldmatrix and stmatrix."""

import numpy as np

from sim.emulator import hazards, isa, memory, shadow
from sim.emulator import tables as t
from sim.emulator.alu import LANES
from sim.emulator.memory import FLAT
from sim.linked_jit import jit


@jit
def matrix(h, w, code, base, mask, pc, is_store):
    """ldmatrix and stmatrix of 8x8 matrices of 16-bit elements."""
    pool, reg, cfg, stat = t.i64_1(h, t.POOL), t.u64_2(h, t.REG), t.i64_1(h, t.CFG), t.i64_1(h, t.STAT)
    found, poison, warps = t.i64_2(h, t.SCRATCH), t.u32_1(h, t.POISON), t.i64_2(h, t.WARP)
    shared = t.u16_1(h, t.S16)
    row = base + code[isa.A] if code[isa.A] >= 0 else ~code[isa.A]
    count, first, transposed = code[isa.COUNT], code[isa.POOL], code[isa.F2]
    addressed = np.uint32((1 << (8 * count)) - 1)
    good = memory.locate(h, w, row, code[isa.F0], isa.SHARED, mask & addressed, 16, pc)
    check = cfg[t.CHECK]
    record = hazards.warp_record(h, w, pc, hazards.WEAK) if check else 0
    if check and poison[row] & addressed:
        hazards.report(h, hazards.UNINITIALISED_ADDRESS, pc, warps[w, t.AGENT], -1, 0, row, 0, warps[w, t.CTA_SLOT])
    if good != addressed:
        return
    stat[t.SHARED_REQUESTS] += 1
    for m in range(count):
        stat[t.SHARED_WAVEFRONTS] += _matrix_wavefronts(found, 8 * m)
        stat[t.SHARED_IDEAL] += 1
        s = pool[first + m]
        register = base + s if s >= 0 else ~s
        bad = np.uint32(0)
        if check:
            shadow.touch_register(h, w, register, not is_store, pc)
            for r in range(8):
                dirty = False
                if is_store:
                    for lane in range(LANES):
                        in_row = lane % 4 * 2 == r & 6 if transposed else lane // 4 == r
                        dirty |= in_row and (poison[register] >> np.uint32(lane)) & np.uint32(1) != 0
                if memory.touch_lane(h, w, 8 * m + r, 16, record, is_store, False, dirty):
                    for lane in range(LANES):
                        if (lane % 4 * 2 == r & 6) if transposed else (lane // 4 == r):
                            bad |= np.uint32(1) << np.uint32(lane)
        for lane in range(LANES):
            value = np.uint64(0)
            for half in range(2):
                r, c = lane // 4, lane % 4 * 2 + half
                if transposed:
                    r, c = c, r
                at = (found[FLAT, 8 * m + r] >> 1) + c
                shift = np.uint64(16 * half)
                if is_store:
                    shared[at] = (reg[register, lane] >> shift) & np.uint64(0xFFFF)
                else:
                    value |= np.uint64(shared[at]) << shift
            if not is_store:
                reg[register, lane] = value
        if check and not is_store:
            poison[register] = bad
            t.i64_1(h, t.WRITTEN_AT)[register] = warps[w, t.FENCES]


@jit
def _matrix_wavefronts(found, start):
    """Wavefronts of eight 16-byte rows: the most rows that share a group of four banks."""
    worst = 1
    for i in range(8):
        same = 0
        for j in range(8):
            mine, other = found[FLAT, start + i] >> 4, found[FLAT, start + j] >> 4
            if mine & 7 == other & 7 and (mine != other or i == j):
                same += 1
        worst = max(worst, same)
    return worst
