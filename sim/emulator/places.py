"""Meeting through memory: strong accesses to a location and the fences around them, each at its scope."""

import numpy as np

from sim.emulator import hazards, isa, lane_order
from sim.emulator import tables as t
from sim.linked_jit import jit

_LEVELS = 3  # of scopes: CTA, cluster, GPU, numbered from 1


@jit
def strength(semantics):
    """The scope of an access with those semantics; 0 where it is weak."""
    if not semantics & isa.STRONG:
        return hazards.WEAK
    if semantics & isa.SCOPE_CTA:
        return hazards.CTA
    return hazards.CLUSTER if semantics & isa.SCOPE_CLUSTER else hazards.GPU


@jit
def shared_key(h, cta, offset):
    """A number for a location of a CTA slot's shared memory; one of global memory is its address."""
    return (1 << 62) + (t.i64_2(h, t.CTA)[cta, t.C_LINEAR] << 32) + offset


@jit
def _slot(h, key):
    """The row of PLACES of a location; where all are taken, locations share one."""
    places = t.i64_2(h, t.PLACES)
    slot = (key * 40503 >> 4) % t.MAX_PLACES
    for _ in range(t.MAX_PLACES):
        if places[slot, t.P_KEY] == key or places[slot, t.P_KEY] == 0:
            break
        slot = (slot + 1) % t.MAX_PLACES
    places[slot, t.P_KEY] = key
    return slot


@jit
def _row(h, w, key, level):
    """The clock row of a location for what is released at a scope: one for each CTA or cluster that the scope means."""
    cfg = t.i64_1(h, t.CFG)
    if level < hazards.GPU:
        cta = t.i64_2(h, t.CTA)[t.i64_2(h, t.WARP)[w, t.CTA_SLOT], t.C_LINEAR]
        group = cta if level == hazards.CTA else cta // cfg[t.CLUSTER_SIZE]
        key = (key ^ ((group + 1) << 20)) * 4 + level
    return cfg[t.PLACE_CLOCK] + _slot(h, key)


@jit
def _observed_column(h, slot):
    cfg = t.i64_1(h, t.CFG)
    return cfg[t.CLOCK_SECTIONS] * cfg[t.CLOCK_WIDTH] + slot % t.OBSERVED


@jit
def _join_observed(h, to, source):
    cfg, clock = t.i64_1(h, t.CFG), t.i32_2(h, t.CLOCK)
    first = cfg[t.CLOCK_SECTIONS] * cfg[t.CLOCK_WIDTH]
    for i in range(first, first + t.OBSERVED):
        if clock[source, i] > clock[to, i]:
            clock[to, i] = clock[source, i]


@jit
def observed(h, w, key):
    """Whether warp w comes after a read of the last strong write to a location."""
    if t.i64_1(h, t.CFG)[t.CLOCK_SECTIONS] <= 2:
        return False
    slot = _slot(h, key)
    version = t.i64_2(h, t.PLACES)[slot, t.P_VERSION]
    return version > 0 and t.i32_2(h, t.CLOCK)[w, _observed_column(h, slot)] >= version


@jit
def _sections(level):
    """(PUBLISHED, ACQUIRABLE) of a scope."""
    offset = 2 * (hazards.GPU - level)
    return t.PUBLISHED + offset, t.ACQUIRABLE + offset


@jit
def meet(h, w, lane, key, reads, writes, semantics):
    """A strong access of a lane of warp w to a location: it releases and acquires, itself or by fences around it."""
    cfg, places, clock = t.i64_1(h, t.CFG), t.i64_2(h, t.PLACES), t.i32_2(h, t.CLOCK)
    if cfg[t.CLOCK_SECTIONS] <= 2:
        return
    slot = _slot(h, key)
    base, column, bit = cfg[t.PLACE_CLOCK] + slot, _observed_column(h, slot), 1 << lane
    widest = strength(semantics)
    first = hazards.CTA if cfg[t.SCOPED] else hazards.GPU
    if reads:
        clock[w, column] = max(clock[w, column], np.int32(places[slot, t.P_VERSION]))
        _join_observed(h, w, base)
        others = places[slot, t.P_LANES] & ~bit
        if places[slot, t.P_WARP] == w + 1 and others:
            lane_order.follows(h, w, lane, np.uint32(others))
    for level in range(first, widest + 1):
        row = _row(h, w, key, level)
        published, acquirable = _sections(level)
        if reads:
            hazards.join_section(h, w, acquirable, row, t.BEFORE)
            if semantics & isa.ACQUIRE:
                hazards.join_section(h, w, t.BEFORE, row, t.BEFORE)
        if writes:
            hazards.join_section(h, row, t.BEFORE, w, published)
            if semantics & isa.RELEASE:
                hazards.join_section(h, row, t.BEFORE, w, t.BEFORE)
    if writes:
        lane_order.releases(h, w, lane)
        places[slot, t.P_VERSION] += 1
        clock[w, column] = places[slot, t.P_VERSION]
        _join_observed(h, base, w)
        if places[slot, t.P_WARP] != w + 1:
            places[slot, t.P_WARP], places[slot, t.P_LANES] = w + 1, 0
        places[slot, t.P_LANES] |= bit
        if semantics & isa.RELEASE:
            hazards.tick(h, w)


@jit
def fence(h, w, scope):
    """A fence of warp w at a scope: what strong reads saw is acquired, what came before is published."""
    cfg = t.i64_1(h, t.CFG)
    if cfg[t.CLOCK_SECTIONS] <= 2:
        return
    first = hazards.CTA if cfg[t.SCOPED] else hazards.GPU
    for level in range(first, scope + 1):
        published, acquirable = _sections(level)
        hazards.join_section(h, w, t.BEFORE, w, acquirable)
    for level in range(first, scope + 1):
        published, acquirable = _sections(level)
        hazards.join_section(h, w, published, w, t.BEFORE)
    hazards.tick(h, w)
