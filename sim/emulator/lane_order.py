"""The order of accesses between lanes of one warp, which share the warp's clock.

Only bar.warp.sync, barriers and what lanes tell each other through memory order them: running in lock step is no
promise of the architecture since Volta, nor are shuffles and votes. A warp remembers at which of its epochs all lanes
met, and for each pair of lanes at which epoch one came after the other.
"""

import numpy as np

from sim.emulator import hazards
from sim.emulator import tables as t
from sim.emulator.alu import LANES
from sim.linked_jit import jit

_ONE = np.uint32(1)


@jit
def epoch_of_warp(h, w):
    warps = t.i64_2(h, t.WARP)
    return np.int64(t.i32_2(h, t.CLOCK)[w, hazards.column_of(h, warps[w, t.CTA_SLOT], warps[w, t.INDEX])])


@jit
def ordered(h, w, lane, others, epoch):
    """Whether `lane` of warp w comes after what the lanes of the mask `others` did in that epoch."""
    if epoch < t.i64_2(h, t.WARP)[w, t.LANES_SYNCED]:
        return True
    pairs = t.i32_2(h, t.LANE_PAIRS)
    for i in range(LANES):
        if (others >> np.uint32(i)) & _ONE and epoch >= pairs[w, LANES * lane + i]:
            return False
    return True


@jit
def all_met(h, w, epoch):
    """All lanes of warp w come after what any did before that epoch, and after the copies that any has waited for."""
    warps, cfg = t.i64_2(h, t.WARP), t.i64_1(h, t.CFG)
    warps[w, t.LANES_SYNCED] = max(warps[w, t.LANES_SYNCED], epoch)
    if cfg[t.CP_ASYNC_AGENT] < cfg[t.MBAR_AGENT]:
        column = hazards.column_of(h, warps[w, t.CTA_SLOT], cfg[t.CP_ASYNC_AGENT] + warps[w, t.INDEX])
        warps[w, t.CP_SYNCED] = t.i32_2(h, t.CLOCK)[w, column]


@jit
def met(h, w, mask):
    """The lanes of a mask met at bar.warp.sync."""
    warps = t.i64_2(h, t.WARP)
    hazards.tick(h, w)
    epoch = epoch_of_warp(h, w)
    if mask & np.uint32(warps[w, t.LIVE]) == np.uint32(warps[w, t.LIVE]):
        all_met(h, w, epoch)
        return
    pairs = t.i32_2(h, t.LANE_PAIRS)
    for k in range(LANES):
        latest = np.int32(0)
        for i in range(LANES):
            if (mask >> np.uint32(i)) & _ONE:
                latest = max(latest, np.int32(epoch) if i == k else pairs[w, LANES * i + k])
        for i in range(LANES):
            if (mask >> np.uint32(i)) & _ONE:
                pairs[w, LANES * i + k] = latest


@jit
def follows(h, w, lane, others):
    """`lane` has read through memory what the lanes of the mask `others` released."""
    pairs, after = t.i32_2(h, t.LANE_PAIRS), np.int32(epoch_of_warp(h, w) + 1)
    for i in range(LANES):
        if (others >> np.uint32(i)) & _ONE:
            pairs[w, LANES * lane + i] = after


@jit
def arrives(h, w, lane, barrier, phase):
    """A lane is about to arrive on an mbarrier of its CTA: what it did before is released."""
    releases, column = t.i64_2(h, t.RELEASES), t.RELEASE_COLUMNS * barrier
    if releases[w, column + 2] != phase + 1:
        releases[w, column], releases[w, column + 2] = 0, phase + 1
    releases[w, column] |= 1 << lane
    releases[w, column + 1] = epoch_of_warp(h, w) + 1


@jit
def waited(h, w, mask, barrier):
    """Lanes have waited for a phase of an mbarrier on which lanes of their own warp arrived."""
    releases, column = t.i64_2(h, t.RELEASES), t.RELEASE_COLUMNS * barrier
    others, epoch = np.uint32(releases[w, column]), releases[w, column + 1]
    live = np.uint32(t.i64_2(h, t.WARP)[w, t.LIVE])
    if others & live == live and mask == live:
        all_met(h, w, epoch)
        return
    pairs = t.i32_2(h, t.LANE_PAIRS)
    for i in range(LANES):
        if (others >> np.uint32(i)) & _ONE:
            for lane in range(LANES):
                if (mask >> np.uint32(lane)) & _ONE:
                    pairs[w, LANES * lane + i] = max(pairs[w, LANES * lane + i], np.int32(epoch))
