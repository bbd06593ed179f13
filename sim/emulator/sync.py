"""CTA and cluster barriers, fences, and waking the warps that wait."""

import numpy as np

from sim.emulator import hazards, isa, lane_order, places
from sim.emulator import tables as t
from sim.emulator.alu import LANES
from sim.linked_jit import jit

_ONE = np.uint32(1)
_ASYNC, _MBARRIER, _SCOPE = isa.FENCE_ASYNC, isa.FENCE_MBARRIER, isa.FENCE_SCOPE


@jit
def clear_barrier(h, at):
    """A named barrier that nobody has arrived at."""
    bars = t.i64_2(h, t.BAR)
    t.fill_rows(bars, at, at + 1, 0)
    bars[at, t.B_AND] = -1


@jit
def wake(h, w):
    """Make a waiting warp runnable."""
    warps, cfg, ready = t.i64_2(h, t.WARP), t.i64_1(h, t.CFG), t.i64_1(h, t.READY)
    if warps[w, t.STATE] != t.W_READY:
        if cfg[t.TRACE]:
            event(
                h,
                warps[w, t.AGENT],
                warps[w, t.WAIT_PC],
                warps[w, t.SINCE],
                cfg[t.STEPS],
                warps[w, t.STATE],
                warps[w, t.WAIT_A],
            )
        warps[w, t.STATE] = t.W_READY
        ready[cfg[t.READY_COUNT]] = w
        cfg[t.READY_COUNT] += 1


@jit
def unready(h, w):
    """Take a warp off the list of runnable ones."""
    ready, cfg = t.i64_1(h, t.READY), t.i64_1(h, t.CFG)
    for i in range(cfg[t.READY_COUNT]):
        if ready[i] == w:
            cfg[t.READY_COUNT] -= 1
            ready[i] = ready[cfg[t.READY_COUNT]]
            return


@jit
def event(h, agent, pc, begin, end, what, argument):
    """Note a span of an agent for the trace."""
    events, cfg = t.i64_2(h, t.EVENTS), t.i64_1(h, t.CFG)
    n = cfg[t.EVENT_COUNT]
    if n < events.shape[0]:
        events[n, t.E_AGENT], events[n, t.E_PC], events[n, t.E_BEGIN] = agent, pc, begin
        events[n, t.E_END], events[n, t.E_WHAT], events[n, t.E_ARGUMENT] = end, what, argument
        cfg[t.EVENT_COUNT] = n + 1


@jit
def barrier_clock(h, cta, number):
    cfg = t.i64_1(h, t.CFG)
    return cfg[t.SLOTS] * cfg[t.CLUSTER_SIZE] * cfg[t.WARPS] + cta * t.BARRIERS + number


@jit
def cluster_clock(h, slot):
    cfg = t.i64_1(h, t.CFG)
    return cfg[t.SLOTS] * cfg[t.CLUSTER_SIZE] * (cfg[t.WARPS] + t.BARRIERS) + slot


@jit
def barrier_complete(h, cta, number):
    """Release everyone who waits at a CTA barrier that is full."""
    bars, warps, cfg = t.i64_2(h, t.BAR), t.i64_2(h, t.WARP), t.i64_1(h, t.CFG)
    ctas = t.i64_2(h, t.CTA)
    at = cta * t.BARRIERS + number
    expected = bars[at, t.B_EXPECTED]
    if expected == 0:
        expected = LANES * ctas[cta, t.C_ALIVE]
    if bars[at, t.B_ARRIVED] == 0 or bars[at, t.B_ARRIVED] < expected:
        return
    row = barrier_clock(h, cta, number)
    first = cta * cfg[t.WARPS]
    for w in range(first, first + cfg[t.WARPS]):
        if warps[w, t.STATE] == t.W_BAR and warps[w, t.WAIT_A] == number:
            if cfg[t.CHECK]:
                hazards.join(h, w, row)
                lane_order.all_met(h, w, lane_order.epoch_of_warp(h, w))
            _give_result(h, w, at)
            warps[w, t.PC] += 1
            wake(h, w)
    t.i64_1(h, t.STAT)[t.PROGRESS] += 1
    clear_barrier(h, at)


@jit
def _give_result(h, w, at):
    """The result of bar.red for one warp."""
    warps, bars = t.i64_2(h, t.WARP), t.i64_2(h, t.BAR)
    code = t.i64_2(h, t.CODE)[warps[w, t.PC]]
    if code[isa.OP] != isa.BAR_RED:
        return
    mask = np.uint32(warps[w, t.MASK])
    if code[isa.F0] == 0:
        reg = t.u64_2(h, t.REG)
        d = warps[w, t.BASE] + code[isa.D]
        for lane in range(LANES):
            if (mask >> np.uint32(lane)) & _ONE:
                reg[d, lane] = np.uint64(bars[at, t.B_COUNT])
        t.u32_1(h, t.POISON)[d] &= ~mask
        return
    holds = bars[at, t.B_AND] != 0 if code[isa.F0] == 1 else bars[at, t.B_OR] != 0
    pred, index = t.u32_2(h, t.PRED), code[isa.D] >> 1
    pred[w, index] = (pred[w, index] & ~mask) | (mask if holds else np.uint32(0))
    t.u32_2(h, t.PRED_POISON)[w, index] &= ~mask


@jit
def barrier_arrive(h, w, code, base, mask, pc, waits):
    """bar.sync, bar.red and bar.arrive; returns True where the warp may go on at once."""
    bars, warps, cfg, ctas = t.i64_2(h, t.BAR), t.i64_2(h, t.WARP), t.i64_1(h, t.CFG), t.i64_2(h, t.CTA)
    reg, stale = t.u64_2(h, t.REG), t.u32_1(h, t.POISON)
    a = base + code[isa.A] if code[isa.A] >= 0 else ~code[isa.A]
    b = base + code[isa.B] if code[isa.B] >= 0 else ~code[isa.B]
    cta, agent = warps[w, t.CTA_SLOT], warps[w, t.AGENT]
    lane = 0
    while not (mask >> np.uint32(lane)) & _ONE:
        lane += 1
    number, expected = np.int64(reg[a, lane]), np.int64(reg[b, lane])
    if cfg[t.CHECK] and (stale[a] | stale[b]) & mask:
        hazards.report(h, hazards.UNINITIALISED_ADDRESS, pc, agent, -1, 0, a, 0, cta)
    if not 0 <= number < t.BARRIERS or expected % LANES or expected > LANES * cfg[t.WARPS]:
        hazards.report(h, hazards.BARRIER_MISMATCH, pc, agent, lane, 0, number, expected, cta)
        cfg[t.STOPPED] = 1
        return True
    at = cta * t.BARRIERS + number
    if bars[at, t.B_ARRIVED] and bars[at, t.B_EXPECTED] != expected:
        hazards.report(h, hazards.BARRIER_MISMATCH, pc, agent, lane, bars[at, t.B_PC], number, expected, cta)
    bars[at, t.B_EXPECTED] = expected
    bars[at, t.B_ARRIVED] += LANES
    bars[at, t.B_PC] = pc
    if code[isa.OP] == isa.BAR_RED:
        pred, c = t.u32_2(h, t.PRED), code[isa.C]
        held = (~pred[w, c >> 1] if c & 1 else pred[w, c >> 1]) & mask
        for k in range(LANES):
            bars[at, t.B_COUNT] += np.int64((held >> np.uint32(k)) & _ONE)
        bars[at, t.B_AND] &= held == mask
        bars[at, t.B_OR] |= held != 0
    if cfg[t.CHECK]:
        lane_order.releases_all(h, w)
        hazards.join(h, barrier_clock(h, cta, number), w)
        hazards.tick(h, w)
    total = expected if expected else LANES * ctas[cta, t.C_ALIVE]
    if bars[at, t.B_ARRIVED] > total:
        hazards.report(h, hazards.BARRIER_MISMATCH, pc, agent, lane, 0, number, expected, cta)
    if waits:
        warps[w, t.PC], warps[w, t.MASK] = pc, np.int64(mask)
        warps[w, t.STATE], warps[w, t.WAIT_A] = t.W_BAR, number
        unready(h, w)
    barrier_complete(h, cta, number)
    return not waits


@jit
def cluster_complete(h, slot):
    """Release the cluster barrier when every live warp of the cluster has arrived."""
    clusters, warps, cfg = t.i64_2(h, t.CLUSTER), t.i64_2(h, t.WARP), t.i64_1(h, t.CFG)
    if clusters[slot, t.K_ARRIVED] == 0 or clusters[slot, t.K_ARRIVED] < clusters[slot, t.K_ALIVE_WARPS]:
        return
    clusters[slot, t.K_ARRIVED] = 0
    clusters[slot, t.K_PHASE] += 1
    row = cluster_clock(h, slot)
    first = clusters[slot, t.K_FIRST_CTA] * cfg[t.WARPS]
    for w in range(first, first + cfg[t.WARPS] * cfg[t.CLUSTER_SIZE]):
        if warps[w, t.STATE] == t.W_CLUSTER:
            if cfg[t.CHECK]:
                hazards.join(h, w, row)
                lane_order.all_met(h, w, warps[w, t.CLUSTER_RELEASED])
            warps[w, t.CLUSTER_ARRIVED] = 0
            warps[w, t.PC] += 1
            wake(h, w)


@jit
def _show_barriers(h, w):
    """The mbarriers that warp w initialised and fenced are seen by whoever waits for the cluster's barrier."""
    cta, warps, bars = t.i64_2(h, t.WARP)[w, t.CTA_SLOT], t.i64_2(h, t.WARP), t.i64_2(h, t.MBAR)
    for barrier in range(cta * t.MBARRIERS, cta * t.MBARRIERS + t.i64_2(h, t.CTA)[cta, t.C_MBARS]):
        own = hazards.agent_of(bars[barrier, t.M_INIT_RECORD]) == warps[w, t.AGENT]
        if own and bars[barrier, t.M_PUBLISHED] and not bars[barrier, t.M_SHOWN]:
            bars[barrier, t.M_SHOWN] = warps[w, t.CLUSTER_PHASE] + 1


@jit
def cluster_arrive(h, w, relaxed, pc):
    warps, clusters, cfg = t.i64_2(h, t.WARP), t.i64_2(h, t.CLUSTER), t.i64_1(h, t.CFG)
    slot = t.i64_2(h, t.CTA)[warps[w, t.CTA_SLOT], t.C_CLUSTER_SLOT]
    if warps[w, t.CLUSTER_ARRIVED]:
        hazards.report(h, hazards.BARRIER_MISMATCH, pc, warps[w, t.AGENT], -1, 0, -1, 0, warps[w, t.CTA_SLOT])
    warps[w, t.CLUSTER_ARRIVED] = 1
    warps[w, t.CLUSTER_PHASE] = clusters[slot, t.K_PHASE]
    clusters[slot, t.K_ARRIVED] += 1
    if cfg[t.CHECK] and relaxed:
        _show_barriers(h, w)
    if cfg[t.CHECK] and not relaxed:
        lane_order.releases_all(h, w)
        hazards.join(h, cluster_clock(h, slot), w)
        hazards.tick(h, w)
        warps[w, t.CLUSTER_RELEASED] = lane_order.epoch_of_warp(h, w)
    cluster_complete(h, slot)


@jit
def cluster_wait(h, w, mask, pc):
    """Returns True where the barrier has completed since this warp arrived."""
    warps, clusters, cfg = t.i64_2(h, t.WARP), t.i64_2(h, t.CLUSTER), t.i64_1(h, t.CFG)
    slot = t.i64_2(h, t.CTA)[warps[w, t.CTA_SLOT], t.C_CLUSTER_SLOT]
    if not warps[w, t.CLUSTER_ARRIVED]:
        hazards.report(h, hazards.BARRIER_MISMATCH, pc, warps[w, t.AGENT], -1, 0, -1, 1, warps[w, t.CTA_SLOT])
        return True
    if clusters[slot, t.K_PHASE] > warps[w, t.CLUSTER_PHASE]:
        warps[w, t.CLUSTER_ARRIVED] = 0
        if cfg[t.CHECK]:
            hazards.join(h, w, cluster_clock(h, slot))
            lane_order.all_met(h, w, warps[w, t.CLUSTER_RELEASED])
        return True
    warps[w, t.PC], warps[w, t.MASK] = pc, np.int64(mask)
    warps[w, t.STATE] = t.W_CLUSTER
    unready(h, w)
    return False


@jit
def fence(h, w, what, scope):
    """fence.proxy.async, fence.mbarrier_init, and fences at a scope, for warps that meet through atomics."""
    cfg, warps, bars = t.i64_1(h, t.CFG), t.i64_2(h, t.WARP), t.i64_2(h, t.MBAR)
    if not cfg[t.CHECK]:
        return
    if what & (_ASYNC | _MBARRIER):
        cta = warps[w, t.CTA_SLOT]
        for k in range(t.i64_2(h, t.CTA)[cta, t.C_MBARS]):
            bars[cta * t.MBARRIERS + k, t.M_PUBLISHED] = 1
    if what & _ASYNC:
        hazards.join_section(h, w, t.VISIBLE_ASYNC, w, t.BEFORE)
        hazards.tick(h, w)
    if what & _SCOPE:
        places.fence(h, w, scope)
