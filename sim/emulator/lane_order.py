"""The order of accesses between lanes of one warp, which share the warp's clock, and what each lane tells other warps.

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
NONE, THESE, ALL = range(3)


@jit
def epoch_of_warp(h, w):
    warps = t.i64_2(h, t.WARP)
    return np.int64(t.i32_2(h, t.CLOCK)[w, hazards.column_of(h, warps[w, t.CTA_SLOT], warps[w, t.INDEX])])


@jit
def ordered(h, w, lane, others, epoch):
    """Whether `lane` of warp w comes after what the lanes of the mask `others` did in that epoch."""
    if epoch < t.i64_2(h, t.WARP)[w, t.LANES_SYNCED]:
        return True
    t.i64_2(h, t.WARP)[w, t.PARTIAL] = 1
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
    warps[w, t.PARTIAL] = 1
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
    t.i64_2(h, t.WARP)[w, t.PARTIAL] = 1
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
    t.i64_2(h, t.WARP)[w, t.PARTIAL] = 1
    pairs = t.i32_2(h, t.LANE_PAIRS)
    for i in range(LANES):
        if (others >> np.uint32(i)) & _ONE:
            for lane in range(LANES):
                if (mask >> np.uint32(lane)) & _ONE:
                    pairs[w, LANES * lane + i] = max(pairs[w, LANES * lane + i], np.int32(epoch))


@jit
def releases_all(h, w):
    """All lanes of warp w tell other warps what they did up to now."""
    t.i64_2(h, t.WARP)[w, t.ALL_RELEASED] = epoch_of_warp(h, w)


@jit
def releases(h, w, lane):
    """One lane tells other warps what it did up to now, and what of other lanes it comes after."""
    warps, released, pairs = t.i64_2(h, t.WARP), t.i32_2(h, t.LANE_RELEASED), t.i32_2(h, t.LANE_PAIRS)
    warps[w, t.ALL_RELEASED] = max(warps[w, t.ALL_RELEASED], warps[w, t.LANES_SYNCED] - 1)
    warps[w, t.READS_RELEASED] = max(warps[w, t.READS_RELEASED], warps[w, t.CONVERGED])
    released[w, lane] = np.int32(epoch_of_warp(h, w))
    if warps[w, t.PARTIAL]:
        for i in range(LANES):
            if i != lane:
                released[w, i] = max(released[w, i], pairs[w, LANES * lane + i] - 1)


@jit
def told(h, w, record, others, is_read):
    """Whether all lanes (ALL) or those of the mask `others` (THESE) told anyone what they did in another warp's record.

    A warp's clock goes with what any of its lanes releases, which need not come after what the others did. Reads are
    over, in practice, once all lanes have executed a warp-wide instruction together, which waits for what it takes.
    """
    cfg, ctas, warps = t.i64_1(h, t.CFG), t.i64_2(h, t.CTA), t.i64_2(h, t.WARP)
    slot = warps[w, t.CTA_SLOT]
    linear = ctas[slot, t.C_LINEAR]
    index = hazards.agent_of(record) - linear * cfg[t.AGENTS]
    if not 0 <= index < cfg[t.AGENTS]:  # of another CTA
        cta = hazards.agent_of(record) // cfg[t.AGENTS]
        index = hazards.agent_of(record) % cfg[t.AGENTS]
        if cta // cfg[t.CLUSTER_SIZE] == linear // cfg[t.CLUSTER_SIZE]:
            slot += cta - linear
        elif cfg[t.SLOTS] < cfg[t.CLUSTERS]:
            return ALL  # its slot may be another CTA's by now
        else:
            slot = cta
    if index >= cfg[t.WARPS]:
        return ALL
    other, epoch = slot * cfg[t.WARPS] + index, hazards.epoch_of(record)
    if other == w:
        return THESE  # a copy that the warp itself issued
    if epoch <= warps[other, t.ALL_RELEASED] or (is_read and epoch <= warps[other, t.READS_RELEASED]):
        return ALL
    released = t.i32_2(h, t.LANE_RELEASED)
    for i in range(LANES):
        if (others >> np.uint32(i)) & _ONE and epoch > released[other, i]:
            return NONE
    return THESE
