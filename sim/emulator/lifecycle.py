"""The life of a CTA: a cluster starts in a free slot, its warps begin, end, and leave nothing in flight."""

import numpy as np

from sim.emulator import flight, hazards, isa, shadow, sync
from sim.emulator import tables as t
from sim.emulator.alu import LANES
from sim.linked_jit import jit

_FULL = np.uint32(0xFFFFFFFF)
_FAR = 1 << 40


@jit
def finish(h, w, pc):
    """A warp has ended: barriers count it no more."""
    warps, ctas, clusters, cfg = t.i64_2(h, t.WARP), t.i64_2(h, t.CTA), t.i64_2(h, t.CLUSTER), t.i64_1(h, t.CFG)
    warps[w, t.STATE] = t.W_DONE
    sync.unready(h, w)
    cta = warps[w, t.CTA_SLOT]
    if warps[w, t.OPEN_WGMMA]:
        hazards.report(h, hazards.EXIT_IN_FLIGHT, pc, warps[w, t.AGENT], -1, 0, 0, 2, cta)
    if cfg[t.CHECK] and warps[w, t.BULK_LAST]:  # nobody else can wait for the stores of this warp
        column = hazards.column_of(h, cta, cfg[t.BULK_READ_AGENT] + warps[w, t.INDEX])
        if t.i32_2(h, t.CLOCK)[w, column] < warps[w, t.BULK_LAST]:
            hazards.report(h, hazards.EXIT_IN_FLIGHT, warps[w, t.BULK_PC], warps[w, t.AGENT], -1, 0, 0, 1, cta)
    t.i64_1(h, t.STAT)[t.PROGRESS] += 1
    ctas[cta, t.C_ALIVE] -= 1
    slot = ctas[cta, t.C_CLUSTER_SLOT]
    clusters[slot, t.K_ALIVE_WARPS] -= 1
    if ctas[cta, t.C_ALIVE] == 0:
        _drain(h, cta)
    else:
        for number in range(t.BARRIERS):
            sync.barrier_complete(h, cta, number)
        first = w - warps[w, t.INDEX] % 4
        for other in range(first, min(first + 4, w - warps[w, t.INDEX] + cfg[t.WARPS])):
            if warps[other, t.STATE] == t.W_WGMMA:
                sync.wake(h, other)
    if clusters[slot, t.K_ALIVE_WARPS] == 0:
        clusters[slot, t.K_ACTIVE] = 0
        cfg[t.FREE_SLOTS] += 1
    else:
        sync.cluster_complete(h, slot)


@jit
def _drain(h, cta):
    """Copies that a CTA left in flight when it ended."""
    ops, cfg, bars, ctas = t.i64_2(h, t.OPS), t.i64_1(h, t.CFG), t.i64_2(h, t.MBAR), t.i64_2(h, t.CTA)
    warps = t.i64_2(h, t.WARP)
    op = 0
    while op < cfg[t.OPS_COUNT]:
        if ops[op, t.O_CTA] == cta or (ops[op, t.O_KIND] != t.OP_TMA_STORE and ops[op, t.O_TARGET] == cta):
            agent = ctas[cta, t.C_LINEAR] * cfg[t.AGENTS]
            hazards.report(h, hazards.EXIT_IN_FLIGHT, ops[op, t.O_PC], agent, -1, 0, ops[op, t.O_SHARED],
                           1 if ops[op, t.O_GROUP] or ops[op, t.O_KIND] == t.OP_TMA_STORE else 0, cta)  # fmt: skip
            flight.land(h, op)
        else:
            op += 1
    if cfg[t.CHECK] and (cfg[t.CLUSTER_SIZE] > 1 or ctas[cta, t.C_MBARS] > 0):
        shadow.check_exit(h, cta)
    first = cta * cfg[t.WARPS]
    for w in range(first, first + cfg[t.WARPS]):
        other = w - (w - first) % 4
        if warps[w, t.REGISTER_CHANGES] != warps[other, t.REGISTER_CHANGES]:
            changed = w if warps[w, t.REGISTER_CHANGES] else other
            hazards.report(
                h, hazards.REGISTER_CHANGE, warps[changed, t.REGISTERS_PC], warps[changed, t.AGENT], -1, 0, 0, 0, cta
            )
    for k in range(ctas[cta, t.C_MBARS]):
        bars[cta * t.MBARRIERS + k, t.M_VALID] = 0


@jit
def start_cluster(h, slot):
    """Put the next cluster of the grid into a free slot."""
    cfg, clusters, ctas = t.i64_1(h, t.CFG), t.i64_2(h, t.CLUSTER), t.i64_2(h, t.CTA)
    at, ready = t.i32_2(h, t.MBAR_AT), t.i64_1(h, t.READY)
    index = cfg[t.NEXT_CLUSTER]
    cfg[t.NEXT_CLUSTER] += 1
    cfg[t.FREE_SLOTS] -= 1
    size = cfg[t.CLUSTER_SIZE]
    t.fill_rows(clusters, slot, slot + 1, 0)
    clusters[slot, t.K_ACTIVE], clusters[slot, t.K_INDEX] = 1, index
    clusters[slot, t.K_FIRST_CTA] = slot * size
    clusters[slot, t.K_ALIVE_WARPS] = size * cfg[t.WARPS]
    per_x, per_y = cfg[t.GRID_X] // cfg[t.CLUSTER_X], cfg[t.GRID_Y] // cfg[t.CLUSTER_Y]
    cx, cy, cz = index % per_x, index // per_x % per_y, index // (per_x * per_y)
    for rank in range(size):
        cta = slot * size + rank
        old_bars = ctas[cta, t.C_MBARS]
        for k in range(old_bars):
            at[cta, t.i64_2(h, t.MBAR)[cta * t.MBARRIERS + k, t.M_ADDRESS] >> 3] = 0
        t.fill_rows(ctas, cta, cta + 1, 0)
        ctas[cta, t.C_CLUSTER_SLOT], ctas[cta, t.C_RANK], ctas[cta, t.C_ALIVE] = slot, rank, cfg[t.WARPS]
        rx, ry = rank % cfg[t.CLUSTER_X], rank // cfg[t.CLUSTER_X] % cfg[t.CLUSTER_Y]
        rz = rank // (cfg[t.CLUSTER_X] * cfg[t.CLUSTER_Y])
        x, y, z = cx * cfg[t.CLUSTER_X] + rx, cy * cfg[t.CLUSTER_Y] + ry, cz * cfg[t.CLUSTER_Z] + rz
        ctas[cta, t.C_X], ctas[cta, t.C_Y], ctas[cta, t.C_Z] = x, y, z
        ctas[cta, t.C_LINEAR] = index * size + rank
        for bar in range(cta * t.BARRIERS, (cta + 1) * t.BARRIERS):
            sync.clear_barrier(h, bar)
        if cfg[t.CHECK]:
            _forget(h, cta, index < cfg[t.SLOTS])
        for i in range(cfg[t.WARPS]):
            w = cta * cfg[t.WARPS] + i
            _start_warp(h, w, cta, i, (cx, cy, cz), (rx, ry, rz))
            ready[cfg[t.READY_COUNT]] = w
            cfg[t.READY_COUNT] += 1
    if cfg[t.CHECK]:
        row = sync.cluster_clock(h, slot)
        t.fill_rows(t.i32_2(h, t.CLOCK), row, row + 1, 0)


@jit
def _forget(h, cta, fresh):
    """New shared memory is poison, and nobody has touched it; the tables of a slot that is `fresh` are still zero."""
    cfg = t.i64_1(h, t.CFG)
    t.fill(t.u8_1(h, t.S8), cta * cfg[t.SHARED_STRIDE], (cta + 1) * cfg[t.SHARED_STRIDE], 0xFF)
    if fresh:
        return
    first = cta * (cfg[t.SHARED_STRIDE] >> cfg[t.SHARED_SHIFT])
    end = first + (cfg[t.SHARED_STRIDE] >> cfg[t.SHARED_SHIFT])
    t.fill(t.i64_1(h, t.SHARED_SHADOW), first, end, 0)
    if cfg[t.CLOCK_SECTIONS] > 2:
        t.fill(t.i64_1(h, t.SHARED_SHADOW + t.X_STRONG), first, end, 0)
    t.fill_rows(t.i64_2(h, t.SHARED_SHADOW + t.X_READ), first, end, 0)
    t.fill(t.u8_1(h, t.SHARED_STATE), first, end, 0)
    for number in range(t.BARRIERS):
        row = sync.barrier_clock(h, cta, number)
        t.fill_rows(t.i32_2(h, t.CLOCK), row, row + 1, 0)


@jit
def _fill(reg, row, value):
    for i in range(LANES):
        reg[row, i] = np.uint64(value)


@jit
def _start_warp(h, w, cta, index, cluster, inside):
    cfg, ctas, warps, reg = t.i64_1(h, t.CFG), t.i64_2(h, t.CTA), t.i64_2(h, t.WARP), t.u64_2(h, t.REG)
    t.fill_rows(warps, w, w + 1, 0)
    warps[w, t.CTA_SLOT], warps[w, t.INDEX], warps[w, t.CLUSTER_PHASE] = cta, index, -1
    base = cfg[t.FIRST_ROW] + w * cfg[t.REGISTERS]
    warps[w, t.BASE] = base
    threads = min(cfg[t.THREADS] - LANES * index, LANES)
    live = (1 << threads) - 1
    warps[w, t.MASK], warps[w, t.LIVE], warps[w, t.LIMIT] = live, live, _FAR
    warps[w, t.PC] = cfg[t.START]
    warps[w, t.AGENT] = ctas[cta, t.C_LINEAR] * cfg[t.AGENTS] + index
    for i in range(LANES):
        thread = LANES * index + i
        reg[base + isa.S_TID, i] = np.uint64(thread % cfg[t.BLOCK_X])
        reg[base + isa.S_TID + 1, i] = np.uint64(thread // cfg[t.BLOCK_X] % cfg[t.BLOCK_Y])
        reg[base + isa.S_TID + 2, i] = np.uint64(thread // (cfg[t.BLOCK_X] * cfg[t.BLOCK_Y]))
        reg[base + isa.S_LANE, i] = np.uint64(i)
        bit = 1 << i
        for k, mask in enumerate((bit, bit - 1, 2 * bit - 1, ~(2 * bit - 1) & 0xFFFFFFFF, ~(bit - 1) & 0xFFFFFFFF)):
            reg[base + isa.S_MASKS + k, i] = np.uint64(mask)
    blocks = (cfg[t.BLOCK_X], cfg[t.BLOCK_Y], cfg[t.BLOCK_Z])
    grids = (cfg[t.GRID_X], cfg[t.GRID_Y], cfg[t.GRID_Z])
    shapes = (cfg[t.CLUSTER_X], cfg[t.CLUSTER_Y], cfg[t.CLUSTER_Z])
    places = (ctas[cta, t.C_X], ctas[cta, t.C_Y], ctas[cta, t.C_Z])
    for k in range(3):
        _fill(reg, base + isa.S_NTID + k, blocks[k])
        _fill(reg, base + isa.S_CTAID + k, places[k])
        _fill(reg, base + isa.S_NCTAID + k, grids[k])
        _fill(reg, base + isa.S_CLUSTERID + k, cluster[k])
        _fill(reg, base + isa.S_NCLUSTER + k, grids[k] // shapes[k])
        _fill(reg, base + isa.S_IN_CLUSTER + k, inside[k])
        _fill(reg, base + isa.S_CLUSTER_SHAPE + k, shapes[k])
    _fill(reg, base + isa.S_WARP, index)
    _fill(reg, base + isa.S_NWARP, cfg[t.WARPS])
    _fill(reg, base + isa.S_RANK, ctas[cta, t.C_RANK])
    _fill(reg, base + isa.S_CLUSTER_SIZE, cfg[t.CLUSTER_SIZE])
    _fill(reg, base + isa.S_SM, ctas[cta, t.C_LINEAR] % cfg[t.SM_COUNT])
    _fill(reg, base + isa.S_NSM, cfg[t.SM_COUNT])
    _fill(reg, base + isa.S_GRID, 0)
    _fill(reg, base + isa.S_DYNAMIC, cfg[t.DYNAMIC_SHARED])
    _fill(reg, base + isa.S_TOTAL, cfg[t.SHARED_BYTES])
    _fill(reg, base + isa.S_EXPLICIT, cfg[t.CLUSTER_SIZE] > 1)
    _fill(reg, base + isa.FRAME_ROW, 0)
    _fill(reg, base + isa.S_WORKSPACE, cfg[t.GRID_WORKSPACE] >> 32)
    _fill(reg, base + isa.S_WORKSPACE + 1, cfg[t.GRID_WORKSPACE] & 0xFFFFFFFF)
    for k in range(40, 43):
        _fill(reg, base + k, cfg[t.STEPS])
    pred, pred_poison = t.u32_2(h, t.PRED), t.u32_2(h, t.PRED_POISON)
    t.fill_rows(pred, w, w + 1, 0)
    pred[w, 0] = _FULL
    if cfg[t.CHECK]:
        t.fill_rows(pred_poison, w, w + 1, _FULL)
        pred_poison[w, 0] = pred_poison[w, 1] = 0
        special, end = base + isa.RESERVED_ROWS, base + cfg[t.REGISTERS]
        t.fill(t.u32_1(h, t.POISON), base, special, 0)
        t.fill(t.u32_1(h, t.POISON), special, end, _FULL)
        t.fill(t.i64_1(h, t.FLIGHT), base, end, 0)
        t.fill(t.i64_1(h, t.WRITTEN_AT), base, end, 0)
        t.fill_rows(t.i32_2(h, t.LANE_PAIRS), w, w + 1, 0)
        t.fill_rows(t.i64_2(h, t.RELEASES), w, w + 1, 0)
        t.fill_rows(t.i64_2(h, t.FINE), w, w + 1, 0)
        t.fill_rows(t.i32_2(h, t.LANE_RELEASED), w, w + 1, 0)
        clock = t.i32_2(h, t.CLOCK)
        t.fill_rows(clock, w, w + 1, 0)
        clock[w, hazards.column_of(h, cta, index)] = 1
