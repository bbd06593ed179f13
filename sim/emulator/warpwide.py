"""Instructions for which lanes of a warp wait for each other: whose lanes they name, who is missing, who never comes.

Lanes that arrive early wait where they are and the others run on. That all come is the kernel's promise: lanes that
reach where the paths join again without having been there break it, and so does a warp whose lanes wait elsewhere.
"""

import numpy as np

from sim.emulator import divergence, hazards, isa, lane_order
from sim.emulator import tables as t
from sim.emulator.alu import LANES
from sim.linked_jit import jit

_ONE = np.uint32(1)
_FULL = 0xFFFFFFFF
_PATIENCE = 32  # reads of one flag in a row


@jit
def named(h, w, row, active, pc):
    """The lanes that the member masks of the active lanes name; a mask without its own lane is a hazard."""
    reg, warps = t.u64_2(h, t.REG), t.i64_2(h, t.WARP)
    needed = np.uint32(0)
    for i in range(LANES):
        if (active >> np.uint32(i)) & _ONE:
            members = np.uint32(reg[row, i])
            needed |= members
            if not (members >> np.uint32(i)) & _ONE:
                hazards.report(
                    h, hazards.ILLEGAL_MASK, pc, warps[w, t.AGENT], i, 0, 0, np.int64(members), warps[w, t.CTA_SLOT]
                )
    return needed


@jit
def gather(h, w, mask, active, needed, pc):
    """Whether the lanes that are needed are here; if not, those that are here wait and the warp runs other lanes."""
    warps, code = t.i64_2(h, t.WARP), t.i64_2(h, t.CODE)
    live, waiting = np.uint32(warps[w, t.LIVE]), np.uint32(warps[w, t.WAITERS])
    missing = needed & live & ~active
    if not missing:
        _leave(h, w, active, pc)
        return True
    if not live & ~active & ~waiting:  # nobody is left who could come
        hazards.report(
            h, hazards.BARRIER_DIVERGENT, pc, warps[w, t.AGENT], -1, 0, -1, np.int64(active), warps[w, t.CTA_SLOT]
        )
        _leave(h, w, active, pc)
        return True
    divergence.put_lanes(h, w, active, pc)
    divergence.put_lanes(h, w, mask & ~active, pc + 1)
    warps[w, t.PARKED] |= np.int64(active)
    warps[w, t.WAITERS] |= np.int64(active)
    warps[w, t.JOIN], warps[w, t.JOIN_FOR] = code[pc, isa.JOIN], pc
    warps[w, t.JOIN_NEEDS] = np.int64(missing)
    divergence.reselect(h, w)
    return False


@jit
def _leave(h, w, active, pc):
    warps = t.i64_2(h, t.WARP)
    warps[w, t.WAITERS] &= np.int64(~active) & _FULL
    warps[w, t.SYNCED] &= np.int64(~active) & _FULL
    if warps[w, t.JOIN_FOR] == pc or not warps[w, t.WAITERS]:
        warps[w, t.JOIN] = 0


@jit
def sync(h, w, row, mask, active, pc):
    """bar.warp.sync, which lanes may execute at different positions; returns whether the active lanes go on at once."""
    warps, reg, where = t.i64_2(h, t.WARP), t.u64_2(h, t.REG), t.i64_2(h, t.LANE_PC)
    needed = named(h, w, row, active, pc)
    live, there = np.uint32(warps[w, t.LIVE]), np.uint32(warps[w, t.SYNCED])
    if needed & live & ~(active | there):
        warps[w, t.SYNCED] |= np.int64(active)
        return gather(h, w, mask, active, needed, pc)
    released = there & needed & ~active
    if t.i64_1(h, t.CFG)[t.CHECK]:
        left = active
        for i in range(LANES):
            if (left >> np.uint32(i)) & _ONE:
                group = np.uint32(reg[row, i]) & (active | released)
                lane_order.met(h, w, group | (_ONE << np.uint32(i)))
                left &= ~group
    if not released:
        _leave(h, w, active, pc)
        return True
    for i in range(LANES):
        if (released >> np.uint32(i)) & _ONE:
            where[w, i] += 1
    warps[w, t.PARKED] &= np.int64(~released) & _FULL
    _leave(h, w, active | released, pc)
    divergence.put_lanes(h, w, mask, pc + 1)
    divergence.reselect(h, w)
    return False


@jit
def polls(h, w, mask, pc):
    """Lanes of a divergent warp read a flag once more; now and then the others go first, as one may have to set it."""
    warps = t.i64_2(h, t.WARP)
    if warps[w, t.POLL_PC] != pc:
        warps[w, t.POLL_PC], warps[w, t.POLLED] = pc, 0
    warps[w, t.POLLED] += 1
    if warps[w, t.POLLED] < _PATIENCE:
        return False
    warps[w, t.POLLED] = 0
    divergence.put_lanes(h, w, mask, pc + 1)
    warps[w, t.PARKED] |= np.int64(mask)
    divergence.reselect(h, w)
    return True
