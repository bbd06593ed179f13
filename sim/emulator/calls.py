"""Calls that may come back to their caller, and the functions of CUDA's device runtime: printf, assert, malloc."""

import numpy as np

from sim.emulator import divergence, hazards, isa, memory
from sim.emulator import tables as t
from sim.emulator.alu import LANES
from sim.linked_jit import jit

_ONE = np.uint32(1)
_WORD = 8  # bytes
_HEAP_ALIGN = 16
_FUNCTION_WINDOW = isa.FUNCTION_WINDOW


@jit
def jump(h, w, code, base, a, mask, pc):
    """CALL, CALL_INDIRECT and RET: each lane of the mask gets the position it goes to."""
    reg, pool, cfg, warps = t.u64_2(h, t.REG), t.i64_1(h, t.POOL), t.i64_1(h, t.CFG), t.i64_2(h, t.WARP)
    op, link = code[isa.OP], base + isa.LINK_ROW
    for i in range(LANES):
        if not (mask >> np.uint32(i)) & _ONE:
            continue
        target = code[isa.F0]
        if op == isa.RET:
            target = np.int64(reg[a, i])
        elif op == isa.CALL_INDIRECT:
            which = np.int64(reg[a, i]) - _FUNCTION_WINDOW
            if not 0 <= which < cfg[t.FUNCTION_COUNT]:
                address = np.int64(reg[a, i])
                hazards.report(h, hazards.NULL_POINTER, pc, warps[w, t.AGENT], i, 0, address, 0, warps[w, t.CTA_SLOT])
                cfg[t.STOPPED] = 1
                return
            target = pool[cfg[t.FUNCTIONS] + which]
        if op != isa.RET:
            reg[link, i] = np.uint64(pc + 1)
        divergence.put_lanes(h, w, _ONE << np.uint32(i), target)


@jit
def keep(h, w, code, base, mask, pc):
    """SPILL and FILL: the registers and predicates of a function to and from its frame."""
    reg, pool, cfg, warps = t.u64_2(h, t.REG), t.i64_1(h, t.POOL), t.i64_1(h, t.CFG), t.i64_2(h, t.WARP)
    pred, local = t.u32_2(h, t.PRED), t.u8_1(h, t.LOCAL8)
    stale, pred_stale = t.u32_1(h, t.POISON), t.u32_2(h, t.PRED_POISON)
    rows, count, first = code[isa.F1], code[isa.COUNT], code[isa.POOL]
    for lane in range(LANES):
        bit = _ONE << np.uint32(lane)
        if not mask & bit:
            continue
        start = np.int64(reg[base + code[isa.A], lane]) + code[isa.F0]
        if start + _WORD * count > cfg[t.LOCAL_BYTES]:
            hazards.report(
                h,
                hazards.STACK_OVERFLOW,
                pc,
                warps[w, t.AGENT],
                lane,
                0,
                start,
                cfg[t.LOCAL_BYTES],
                warps[w, t.CTA_SLOT],
            )
            cfg[t.STOPPED] = 1
            return
        flat = (w * LANES + lane) * cfg[t.LOCAL_BYTES] + start
        for k in range(count):
            at, of = flat + _WORD * k, pool[first + k]
            if code[isa.OP] == isa.FILL:
                value = memory.read_element(h, memory.IN_LOCAL, at, _WORD)
                if k < rows:
                    reg[base + of, lane] = value
                    stale[base + of] &= ~bit
                else:
                    pred[w, of] = (pred[w, of] & ~bit) | (bit if value else np.uint32(0))
                    pred_stale[w, of] &= ~bit
                continue
            value = reg[base + of, lane] if k < rows else np.uint64((pred[w, of] >> np.uint32(lane)) & _ONE)
            for i in range(_WORD):
                local[at + i] = np.uint8((value >> np.uint64(8 * i)) & np.uint64(255))


@jit
def remember(h, w, a, b, mask):
    """printf: the format's address and the bytes of the arguments, for each lane."""
    reg, cfg = t.u64_2(h, t.REG), t.i64_1(h, t.CFG)
    prints, local = t.i64_2(h, t.PRINTS), t.u8_1(h, t.LOCAL8)
    for lane in range(LANES):
        if not (mask >> np.uint32(lane)) & _ONE:
            continue
        n = cfg[t.PRINT_COUNT]
        cfg[t.PRINT_COUNT] = n + 1
        if n >= t.MAX_PRINTS:
            continue
        prints[n, t.P_FORMAT] = np.int64(reg[a, lane])
        address = np.int64(reg[b, lane])
        if address >> 57 != 1:  # no arguments
            continue
        start = address & (isa.LOCAL_WINDOW - 1)
        for i in range(min(8 * t.PRINT_WORDS, cfg[t.LOCAL_BYTES] - start)):
            byte = np.int64(local[(w * LANES + lane) * cfg[t.LOCAL_BYTES] + start + i])
            prints[n, t.P_DATA + i // 8] |= byte << (8 * (i % 8))


@jit
def allocate(h, d, a, mask):
    """malloc: the next bytes of the heap, or 0 where it is full."""
    reg, cfg, stale = t.u64_2(h, t.REG), t.i64_1(h, t.CFG), t.u32_1(h, t.POISON)
    for lane in range(LANES):
        if not (mask >> np.uint32(lane)) & _ONE:
            continue
        nbytes = (np.int64(reg[a, lane]) + _HEAP_ALIGN - 1) // _HEAP_ALIGN * _HEAP_ALIGN
        at = cfg[t.HEAP_AT]
        if nbytes < 0 or at + nbytes > t.i64_2(h, t.ARRAYS)[cfg[t.HEAP_ARRAY], t.A_BYTES]:
            reg[d, lane] = np.uint64(0)
            continue
        cfg[t.HEAP_AT] = at + nbytes
        reg[d, lane] = np.uint64(((cfg[t.HEAP_ARRAY] + 1) << isa.ARRAY_SHIFT) + at)
    stale[d] &= ~mask


@jit
def fail(h, w, a, b, mask, pc):
    """assert: the first lane's message and line, and the end of the launch."""
    reg, cfg, warps = t.u64_2(h, t.REG), t.i64_1(h, t.CFG), t.i64_2(h, t.WARP)
    lane = 0
    while not (mask >> np.uint32(lane)) & _ONE:
        lane += 1
    hazards.report(
        h, hazards.ASSERTION, pc, warps[w, t.AGENT], lane, 0, np.int64(reg[a, lane]), np.int64(reg[b, lane]),
        warps[w, t.CTA_SLOT],
    )  # fmt: skip
    cfg[t.STOPPED] = 1
