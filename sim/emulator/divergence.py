"""Lanes of a warp at different positions: the lowest run first, until they meet again."""

import numpy as np

from sim.emulator import hazards, sync
from sim.emulator import tables as t
from sim.emulator.alu import LANES
from sim.linked_jit import jit

_ONE = np.uint32(1)
_FAR = 1 << 40


@jit
def reselect(h, w):
    """Let the lanes at the lowest position run; returns False where the warp has none left."""
    warps, where = t.i64_2(h, t.WARP), t.i64_2(h, t.LANE_PC)
    live = np.uint32(warps[w, t.LIVE])
    eligible = live & ~np.uint32(warps[w, t.PARKED])
    if not eligible:
        warps[w, t.PARKED] = 0
        eligible = live & ~np.uint32(warps[w, t.WAITERS])
        if not eligible:
            eligible = live
    if not live:
        return False
    lowest = _FAR
    for i in range(LANES):
        if (eligible >> np.uint32(i)) & _ONE:
            lowest = min(lowest, where[w, i])
    mask, limit = np.uint32(0), _FAR
    for i in range(LANES):
        if (live >> np.uint32(i)) & _ONE:
            if where[w, i] == lowest:
                mask |= _ONE << np.uint32(i)
            elif (eligible >> np.uint32(i)) & _ONE:
                limit = min(limit, where[w, i])
    # parked lanes ahead are picked up when the others reach them
    for i in range(LANES):
        if (live >> np.uint32(i)) & _ONE and where[w, i] > lowest:
            limit = min(limit, where[w, i])
    join = warps[w, t.JOIN]
    if join == lowest and mask & np.uint32(warps[w, t.JOIN_NEEDS]):  # they were needed before, and have not been there
        hazards.report(
            h, hazards.BARRIER_DIVERGENT, warps[w, t.JOIN_FOR], warps[w, t.AGENT], -1, 0, -1, np.int64(mask),
            warps[w, t.CTA_SLOT],
        )  # fmt: skip
        warps[w, t.JOIN] = 0
    elif join > lowest:
        limit = min(limit, join)
    warps[w, t.PARKED] &= np.int64(~mask) & 0xFFFFFFFF
    warps[w, t.PC], warps[w, t.MASK], warps[w, t.LIMIT] = lowest, np.int64(mask), limit
    return True


@jit
def put_lanes(h, w, mask, pc):
    where = t.i64_2(h, t.LANE_PC)
    for i in range(LANES):
        if (mask >> np.uint32(i)) & _ONE:
            where[w, i] = pc


@jit
def unstick(h):
    """Where nothing can run: let the other lanes of divergent warps go first; returns True where one could."""
    warps = t.i64_2(h, t.WARP)
    moved = False
    for w in range(warps.shape[0]):
        state = warps[w, t.STATE]
        waits = state == t.W_MBAR or state == t.W_BULK or state == t.W_WARP_SYNC
        if waits and warps[w, t.MASK] != warps[w, t.LIVE] and warps[w, t.SPINS] < 64:
            mask = np.uint32(warps[w, t.MASK])
            put_lanes(h, w, mask, warps[w, t.PC])
            parked = np.uint32(warps[w, t.PARKED]) | mask
            if not np.uint32(warps[w, t.LIVE]) & ~parked:
                parked = mask
                warps[w, t.SPINS] += 1
            warps[w, t.PARKED] = np.int64(parked)
            reselect(h, w)
            sync.wake(h, w)
            moved = True
    return moved
