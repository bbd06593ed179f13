"""Groups of asynchronous copies: committing them and waiting for them."""

import numpy as np

from sim.emulator import flight, hazards, isa, lane_order, mbarrier
from sim.emulator import tables as t
from sim.emulator.alu import LANES
from sim.linked_jit import jit

_ONE = np.uint32(1)


@jit
def commit(h, w, mask):
    """cp.async.bulk.commit_group by the lanes of `mask`."""
    ops, cfg, warps = t.i64_2(h, t.OPS), t.i64_1(h, t.CFG), t.i64_2(h, t.WARP)
    warps[w, t.BULK_GROUPS] += 1
    for op in range(cfg[t.OPS_COUNT]):
        if ops[op, t.O_WARP] == w and ops[op, t.O_GROUP] == 0 and (mask >> np.uint32(ops[op, t.O_LANE])) & _ONE:
            kind = ops[op, t.O_KIND]
            ops[op, t.O_GROUP] = warps[w, t.BULK_GROUPS] if kind in (t.OP_TMA_STORE, t.OP_BULK_STORE) else 0


@jit
def wait_bulk(h, w, pending, read_only, mask):
    """cp.async.bulk.wait_group; returns False where the warp is to wait."""
    ops, cfg, warps = t.i64_2(h, t.OPS), t.i64_1(h, t.CFG), t.i64_2(h, t.WARP)
    done = warps[w, t.BULK_GROUPS] - pending
    for op in range(cfg[t.OPS_COUNT]):
        if ops[op, t.O_WARP] == w and 0 < ops[op, t.O_GROUP] <= done and (mask >> np.uint32(ops[op, t.O_LANE])) & _ONE:
            kind = ops[op, t.O_KIND]
            if kind == t.OP_TMA_STORE or kind == t.OP_BULK_STORE:
                warps[w, t.WAIT_A] = pending
                return False
    if cfg[t.CHECK] and done > 0 and not np.uint32(warps[w, t.BULK_LANES]) & ~mask:
        hazards.know(h, w, cfg[t.BULK_READ_AGENT] + warps[w, t.INDEX], done)
        if not read_only:
            hazards.know(h, w, cfg[t.BULK_WRITE_AGENT] + warps[w, t.INDEX], done)
    return True


@jit
def commit_small(h, w):
    """cp.async.commit_group."""
    ops, cfg, warps = t.i64_2(h, t.OPS), t.i64_1(h, t.CFG), t.i64_2(h, t.WARP)
    warps[w, t.CP_GROUPS] += 1
    for op in range(cfg[t.OPS_COUNT]):
        if ops[op, t.O_WARP] == w and ops[op, t.O_GROUP] == 0 and ops[op, t.O_KIND] == t.OP_CP_ASYNC:
            ops[op, t.O_GROUP] = warps[w, t.CP_GROUPS]


@jit
def wait_small(h, w, pending, everything):
    """cp.async.wait_group and wait_all: lands what is waited for."""
    ops, cfg, warps = t.i64_2(h, t.OPS), t.i64_1(h, t.CFG), t.i64_2(h, t.WARP)
    if everything:
        commit_small(h, w)
    done = warps[w, t.CP_GROUPS] - pending
    op = 0
    while op < cfg[t.OPS_COUNT]:
        if ops[op, t.O_WARP] == w and ops[op, t.O_KIND] == t.OP_CP_ASYNC and 0 < ops[op, t.O_GROUP] <= done:
            flight.land(h, op)
        else:
            op += 1
    if cfg[t.CHECK] and done > 0:
        hazards.know(h, w, cfg[t.CP_ASYNC_AGENT] + warps[w, t.INDEX], done)


@jit
def arrive_small(h, w, code, base, mask, pc):
    """cp.async.mbarrier.arrive: an arrival once this thread's earlier cp.async copies are done, which they are now."""
    reg, warps, bars = t.u64_2(h, t.REG), t.i64_2(h, t.WARP), t.i64_2(h, t.MBAR)
    commit_small(h, w)
    groups = warps[w, t.CP_GROUPS]
    wait_small(h, w, 0, False)
    for lane in range(LANES):
        if (mask >> np.uint32(lane)) & _ONE:
            address = (flight.value(reg, base, code[isa.A], lane) + code[isa.F0]) & 0xFFFFFFFF
            barrier = mbarrier.find(h, w, warps[w, t.CTA_SLOT], address, pc)
            if barrier >= 0:
                if not code[isa.F1]:
                    bars[barrier, t.M_PENDING] += 1
                if t.i64_1(h, t.CFG)[t.CHECK]:
                    lane_order.releases(h, w, lane)
                mbarrier.arrive(h, w, barrier, 1, 0, 0, pc)
    warps[w, t.CP_GROUPS] = groups
