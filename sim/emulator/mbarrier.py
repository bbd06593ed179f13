"""mbarriers: initialisation, arrivals, expected bytes, phases, and waiting for them."""

import numpy as np

from sim.emulator import hazards, isa, lane_order, shadow, sync
from sim.emulator import tables as t
from sim.emulator.alu import LANES
from sim.linked_jit import jit

_ONE = np.uint32(1)
_EXPECT, _DROP, _RELAXED = isa.ARRIVE_EXPECT, isa.ARRIVE_DROP, isa.ARRIVE_RELAXED


@jit
def pending_clock(h, barrier):
    """Clock row of what arrived in an mbarrier's current phase; the row of its completed phases follows."""
    cfg = t.i64_1(h, t.CFG)
    first = cfg[t.SLOTS] * cfg[t.CLUSTER_SIZE] * (cfg[t.WARPS] + t.BARRIERS) + cfg[t.SLOTS]
    return first + 2 * barrier


@jit
def find(h, w, cta, address, pc):
    """The mbarrier at a shared address of a CTA slot, or -1 and a report; its initialisation must have come before."""
    cfg, at, bars, warps = t.i64_1(h, t.CFG), t.i32_2(h, t.MBAR_AT), t.i64_2(h, t.MBAR), t.i64_2(h, t.WARP)
    own = warps[w, t.CTA_SLOT]
    offset = address & ((1 << isa.RANK_SHIFT) - 1)
    agent = warps[w, t.AGENT]
    if cta < 0 or offset + 8 > cfg[t.SHARED_BYTES]:
        hazards.report(h, hazards.OUT_OF_BOUNDS, pc, agent, -1, 0, address, 8, own)
        return -1
    if offset % 8:
        hazards.report(h, hazards.MISALIGNED, pc, agent, -1, 0, address, 8, own)
        return -1
    barrier = np.int64(at[cta, offset >> 3]) - 1
    if barrier < 0 or not bars[barrier, t.M_VALID]:
        hazards.report(h, hazards.MBAR_INVALID, pc, agent, -1, 0, offset, 0, own)
        return -1
    if cfg[t.CHECK]:
        record = bars[barrier, t.M_INIT_RECORD]
        first, width = hazards.first_agent(h, own), cfg[t.CLOCK_WIDTH]
        # A fence of initialisations, then the cluster's barrier: no other write comes with a relaxed arrival.
        passed = warps[w, t.CLUSTER_PHASE] + 1 - warps[w, t.CLUSTER_ARRIVED]
        shown = cta != own and 0 < bars[barrier, t.M_SHOWN] <= passed
        if not shown and not hazards.ordered(record, t.i32_2(h, t.CLOCK), w, first, width, t.BEFORE):
            hazards.report(h, hazards.MBAR_INVALID, pc, agent, -1, record, offset, 1, own)
        if t.i64_2(h, t.CTA)[cta, t.C_ALIVE] == 0:
            hazards.report(h, hazards.CLUSTER_EXITED, pc, agent, -1, 0, offset, 0, own)
        shift = cfg[t.SHARED_SHIFT]
        base = cta * cfg[t.SHARED_STRIDE] >> shift
        if t.u8_1(h, t.SHARED_STATE)[base + (offset >> shift)] == shadow.CLEAN:
            last = t.i64_1(h, t.SHARED_SHADOW)[base + (offset >> shift)]
            if last != record and shift <= 3:
                hazards.report(h, hazards.MBAR_INVALID, pc, agent, -1, last, offset, 2, own)
    return barrier


@jit
def initialise(h, w, lane, address, count, pc):
    """mbarrier.init."""
    cfg, at, bars = t.i64_1(h, t.CFG), t.i32_2(h, t.MBAR_AT), t.i64_2(h, t.MBAR)
    ctas, warps = t.i64_2(h, t.CTA), t.i64_2(h, t.WARP)
    cta, agent = warps[w, t.CTA_SLOT], warps[w, t.AGENT]
    offset = address & ((1 << isa.RANK_SHIFT) - 1)
    if offset % 8 or offset + 8 > cfg[t.SHARED_BYTES]:
        hazards.report(
            h, hazards.MISALIGNED if offset % 8 else hazards.OUT_OF_BOUNDS, pc, agent, -1, 0, address, 8, cta
        )
        return
    barrier = np.int64(at[cta, offset >> 3]) - 1
    if barrier < 0:
        if ctas[cta, t.C_MBARS] >= t.MBARRIERS:
            cfg[t.STOPPED] = 2
            return
        barrier = cta * t.MBARRIERS + ctas[cta, t.C_MBARS]
        ctas[cta, t.C_MBARS] += 1
        at[cta, offset >> 3] = barrier + 1
        t.fill_rows(bars, barrier, barrier + 1, 0)
        if cfg[t.CHECK]:
            row = pending_clock(h, barrier)
            t.fill_rows(t.i32_2(h, t.CLOCK), row, row + 2, 0)
    bars[barrier, t.M_ADDRESS] = offset
    bars[barrier, t.M_COUNT] = count
    bars[barrier, t.M_PENDING] = count
    bars[barrier, t.M_TX] = 0
    bars[barrier, t.M_BASE] = bars[barrier, t.M_PHASE]
    bars[barrier, t.M_VALID] = 1
    bars[barrier, t.M_PUBLISHED] = bars[barrier, t.M_SHOWN] = 0
    if cfg[t.CHECK]:
        record = hazards.warp_record(h, w, pc, hazards.WEAK)
        shadow.touch_shared(h, w, cta, offset, 8, record, lane, True, False, False, False)
        bars[barrier, t.M_INIT_RECORD] = record


@jit
def report_bytes(h, barrier, extra):
    """Copies bring more bytes to an mbarrier than its phase expects."""
    cfg, bars = t.i64_1(h, t.CFG), t.i64_2(h, t.MBAR)
    cta = barrier // t.MBARRIERS
    agent = hazards.agent_number(h, cta, cfg[t.MBAR_AGENT] + barrier % t.MBARRIERS)
    hazards.report(h, hazards.MBAR_BYTES, -1, agent, -1, 0, bars[barrier, t.M_ADDRESS], extra, cta)


@jit
def try_complete(h, barrier):
    """Complete the phase of an mbarrier if nothing is pending, and wake those that wait for it."""
    bars, cfg, warps = t.i64_2(h, t.MBAR), t.i64_1(h, t.CFG), t.i64_2(h, t.WARP)
    if bars[barrier, t.M_PENDING] != 0 or bars[barrier, t.M_TX] != 0 or not bars[barrier, t.M_VALID]:
        return
    cta = barrier // t.MBARRIERS
    if bars[barrier, t.M_FLYING] > 0:
        report_bytes(h, barrier, bars[barrier, t.M_FLYING])
    bars[barrier, t.M_PHASE] += 1
    t.i64_1(h, t.STAT)[t.PROGRESS] += 1
    bars[barrier, t.M_COUNT] -= bars[barrier, t.M_DROPS]
    bars[barrier, t.M_DROPS] = 0
    bars[barrier, t.M_PENDING] = bars[barrier, t.M_COUNT]
    if cfg[t.CHECK]:
        row = pending_clock(h, barrier)
        hazards.join(h, row + 1, row)
        column = hazards.column_of(h, cta, cfg[t.MBAR_AGENT] + barrier % t.MBARRIERS)
        t.i32_2(h, t.CLOCK)[row + 1, column] = bars[barrier, t.M_PHASE]
    first = cta * cfg[t.WARPS]
    for w in range(first, first + cfg[t.WARPS]):
        if warps[w, t.STATE] == t.W_MBAR and warps[w, t.WAIT_A] == barrier:
            sync.wake(h, w)


@jit
def arrive(h, w, barrier, count, transactions, flags, pc):
    """`count` arrivals and `transactions` expected bytes; returns the phase they belong to."""
    bars, cfg, warps = t.i64_2(h, t.MBAR), t.i64_1(h, t.CFG), t.i64_2(h, t.WARP)
    phase = bars[barrier, t.M_PHASE] - bars[barrier, t.M_BASE]
    bars[barrier, t.M_TX] += transactions
    bars[barrier, t.M_PENDING] -= count
    if flags & _DROP:
        bars[barrier, t.M_DROPS] += count
    if bars[barrier, t.M_PENDING] < 0:
        hazards.report(h, hazards.MBAR_OVERFLOW, pc, warps[w, t.AGENT], -1, 0, bars[barrier, t.M_ADDRESS],
                       bars[barrier, t.M_COUNT], warps[w, t.CTA_SLOT])  # fmt: skip
        bars[barrier, t.M_PENDING] = 0
    if cfg[t.CHECK] and not flags & _RELAXED:
        if barrier // t.MBARRIERS != warps[w, t.CTA_SLOT]:
            bars[barrier, t.M_REMOTE] = hazards.warp_record(h, w, pc, hazards.WEAK)
        hazards.join(h, pending_clock(h, barrier), w)
        hazards.tick(h, w)
    try_complete(h, barrier)
    return phase


@jit
def execute(h, w, code, base, mask, pc):
    """init, inval, arrive, expect_tx and complete_tx, lane after lane."""
    reg, bars, warps, cfg = t.u64_2(h, t.REG), t.i64_2(h, t.MBAR), t.i64_2(h, t.WARP), t.i64_1(h, t.CFG)
    stale = t.u32_1(h, t.POISON)
    a = base + code[isa.A] if code[isa.A] >= 0 else ~code[isa.A]
    b = base + code[isa.B] if code[isa.B] >= 0 else ~code[isa.B]
    c = base + code[isa.C] if code[isa.C] >= 0 else ~code[isa.C]
    op = code[isa.OP]
    if cfg[t.CHECK] and (stale[a] | stale[b] | stale[c]) & mask:
        hazards.report(h, hazards.UNINITIALISED_ADDRESS, pc, warps[w, t.AGENT], -1, 0, a, 0, warps[w, t.CTA_SLOT])
    for lane in range(LANES):
        if not (mask >> np.uint32(lane)) & _ONE:
            continue
        address = (np.int64(reg[a, lane]) + code[isa.F0]) & 0xFFFFFFFF
        if op == isa.MBAR_INIT:
            initialise(h, w, lane, address, np.int64(reg[b, lane]), pc)
            continue
        rank = address >> isa.RANK_SHIFT
        own = warps[w, t.CTA_SLOT]
        cta = own if rank == 0 else own - t.i64_2(h, t.CTA)[own, t.C_RANK] + rank - 1
        if rank > cfg[t.CLUSTER_SIZE]:
            cta = -1
        barrier = find(h, w, cta, address, pc)
        if barrier < 0:
            continue
        if op == isa.MBAR_INVAL:
            bars[barrier, t.M_VALID] = 0
        elif op == isa.MBAR_EXPECT:
            bars[barrier, t.M_TX] += np.int64(reg[c, lane])
        elif op == isa.MBAR_COMPLETE:
            bars[barrier, t.M_TX] -= np.int64(reg[c, lane])
            try_complete(h, barrier)
        else:
            expected = np.int64(reg[c, lane]) if code[isa.F1] & _EXPECT else 0
            if cfg[t.CHECK] and not code[isa.F1] & _RELAXED:
                lane_order.releases(h, w, lane)
            if cfg[t.CHECK] and cta == own and not code[isa.F1] & _RELAXED:
                lane_order.arrives(h, w, lane, barrier % t.MBARRIERS, bars[barrier, t.M_PHASE])
            phase = arrive(h, w, barrier, np.int64(reg[b, lane]), expected, code[isa.F1], pc)
            if code[isa.D] >= 0:
                reg[base + code[isa.D], lane] = np.uint64(phase)
                stale[base + code[isa.D]] &= ~(_ONE << np.uint32(lane))


@jit
def wait(h, w, code, base, mask, pc):
    """test_wait and try_wait; returns False where the warp blocks and is to execute the instruction again."""
    reg, bars, warps, cfg = t.u64_2(h, t.REG), t.i64_2(h, t.MBAR), t.i64_2(h, t.WARP), t.i64_1(h, t.CFG)
    pred, stale, poison = t.u32_2(h, t.PRED), t.u32_1(h, t.POISON), t.u32_2(h, t.PRED_POISON)
    a = base + code[isa.A] if code[isa.A] >= 0 else ~code[isa.A]
    b = base + code[isa.B] if code[isa.B] >= 0 else ~code[isa.B]
    own = warps[w, t.CTA_SLOT]
    if cfg[t.CHECK] and (stale[a] | stale[b]) & mask:
        hazards.report(h, hazards.UNINITIALISED_ADDRESS, pc, warps[w, t.AGENT], -1, 0, a, 0, own)
    done = np.uint32(0)
    blocking = -1
    joined = -1
    for lane in range(LANES):
        if not (mask >> np.uint32(lane)) & _ONE:
            continue
        address = (np.int64(reg[a, lane]) + code[isa.F0]) & 0xFFFFFFFF
        barrier = joined
        if joined < 0 or bars[joined, t.M_ADDRESS] != address:
            rank = address >> isa.RANK_SHIFT
            target = own
            if rank > 0:
                target = own - t.i64_2(h, t.CTA)[own, t.C_RANK] + rank - 1
            barrier = find(h, w, target, address, pc)
            if barrier < 0:
                cfg[t.STOPPED] = 1
                return True
        phase = bars[barrier, t.M_PHASE] - bars[barrier, t.M_BASE]
        wanted = np.int64(reg[b, lane])
        if (phase & 1) != (wanted & 1) if code[isa.F1] & 1 else phase > wanted:
            done |= _ONE << np.uint32(lane)
            if cfg[t.CHECK] and barrier != joined and not code[isa.F2]:
                hazards.join(h, w, pending_clock(h, barrier) + 1)
                joined = barrier
                if barrier // t.MBARRIERS == own:
                    lane_order.waited(h, w, mask, barrier % t.MBARRIERS)
        elif blocking < 0:
            blocking = barrier
            warps[w, t.WAIT_B] = wanted
    if blocking >= 0 and done == 0:
        # try_wait may also give up after a while; a kernel that does not ask again is wrong
        if code[isa.F1] & 2 and t.random(h, 8) > 0:
            warps[w, t.WAIT_A] = blocking
            return False
        warps[w, t.SPINS] += 1
        t.i64_1(h, t.STAT)[t.SPUN] += 1
    index = code[isa.D] >> 1
    pred[w, index] = (pred[w, index] & ~mask) | (done & mask)
    poison[w, index] &= ~mask
    return True
