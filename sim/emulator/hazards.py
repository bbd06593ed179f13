"""Happens-before: vector clocks of every agent, and the hazards that are noted.

Agents of a CTA: its warps; for each warpgroup its tensor core's reads; for each warp the reads and the writes of its
bulk stores and its cp.async copies; each mbarrier, whose phases stand for the copies that complete on it. An access is
recorded as (agent, epoch, instruction); it precedes another where the other's clock has reached that epoch.

A warp's clock has sections (tables.py): what it comes after, and what of that is also visible to the asynchronous proxy
(TMA, wgmma), which `fence.proxy.async` updates; where warps meet through atomics, two more a scope that fences update.
The lanes of a warp share its clock; among themselves they are ordered by what lane_order.py remembers.
"""

import numpy as np

from sim.emulator import tables as t
from sim.linked_jit import jit

# Kinds of hazards; names in report.py.
(
    RACE, PROXY_FENCE, TMA_EARLY, TMA_OVERWRITES, OPERAND_OVERWRITTEN, SOURCE_OVERWRITTEN,
    UNINITIALISED_ADDRESS, UNINITIALISED_BRANCH, UNINITIALISED_OUTPUT, OUT_OF_BOUNDS, MISALIGNED,
    WGMMA_REGISTERS, WGMMA_FENCE, MBAR_OVERFLOW, MBAR_BYTES, MBAR_INVALID, BARRIER_MISMATCH,
    BARRIER_DIVERGENT, DEADLOCK, EXIT_IN_FLIGHT, CLUSTER_EXITED, INPUT_WRITTEN, TRAP, SHUFFLE_INACTIVE,
    MBAR_UNPUBLISHED, LIVELOCK, REGISTER_CHANGE, EARLY_COPY, LANE_RACE, SCOPE_RACE, EQUAL_WRITES, READER_FENCE,
    NULL_POINTER, NO_MAP, MAP_RANK, ILLEGAL_MASK, ASSERTION, STACK_OVERFLOW, UNTOLD,
) = range(39)  # fmt: skip

MAX_CODE = 1 << 17  # instructions, so that a record holds a position
PC_BITS, _STRONG_SHIFT, _EPOCH_SHIFT, AGENT_SHIFT = MAX_CODE - 1, 17, 19, 41
_EPOCH_MASK = (1 << 22) - 1
STRENGTH = 3 << _STRONG_SHIFT  # 0 for a weak access, else its scope
WEAK, CTA, CLUSTER, GPU = range(4)
BOTH_WRITE, READS, WRITES = range(3)  # EXTRA of a race: what the one that meets it does

CLEAN, UNSET, POISONED = 1, 0, 2  # SHARED_STATE, GLOBAL_STATE


@jit
def record_of(agent, epoch, pc, strength):
    return (agent << AGENT_SHIFT) | (epoch << _EPOCH_SHIFT) | (strength << _STRONG_SHIFT) | pc


@jit
def agent_of(record):
    return record >> AGENT_SHIFT


@jit
def epoch_of(record):
    return (record >> _EPOCH_SHIFT) & _EPOCH_MASK


@jit
def report(h, kind, pc, agent, lane, other, address, extra, cta):
    """Note a hazard: the first of each pair of instructions, and how often the two meet."""
    found, cfg = t.i64_2(h, t.HAZARDS), t.i64_1(h, t.CFG)
    other_pc = other & PC_BITS if other > 0 else other
    row = (kind * 7919 + pc * 104729 + other_pc * 1299709) % t.MAX_HAZARDS
    while found[row, t.Z_COUNT]:
        seen = found[row, t.Z_OTHER]
        seen_pc = seen & PC_BITS if seen > 0 else seen
        if found[row, t.Z_KIND] == kind and found[row, t.Z_PC] == pc and seen_pc == other_pc:
            found[row, t.Z_COUNT] += 1
            return
        row = (row + 1) % t.MAX_HAZARDS
    if cfg[t.HAZARD_COUNT] >= t.MAX_HAZARDS // 2:
        cfg[t.LOST_HAZARDS] += 1
        return
    found[row, t.Z_KIND], found[row, t.Z_PC], found[row, t.Z_AGENT], found[row, t.Z_LANE] = kind, pc, agent, lane
    found[row, t.Z_OTHER], found[row, t.Z_ADDRESS], found[row, t.Z_EXTRA] = other, address, extra
    found[row, t.Z_CTA], found[row, t.Z_COUNT], found[row, t.Z_ORDER] = cta, 1, cfg[t.HAZARD_COUNT]
    cfg[t.HAZARD_COUNT] += 1


@jit
def first_agent(h, cta):
    """Number of the first agent whose clock component stands in column 0 of this CTA's clocks."""
    cfg = t.i64_1(h, t.CFG)
    if cfg[t.WIDE]:
        return 0
    ctas, clusters = t.i64_2(h, t.CTA), t.i64_2(h, t.CLUSTER)
    return clusters[ctas[cta, t.C_CLUSTER_SLOT], t.K_INDEX] * cfg[t.CLUSTER_SIZE] * cfg[t.AGENTS]


@jit
def column_of(h, cta, index):
    """The clock column of agent `index` of a CTA slot."""
    cfg, ctas = t.i64_1(h, t.CFG), t.i64_2(h, t.CTA)
    if cfg[t.WIDE]:
        return ctas[cta, t.C_LINEAR] * cfg[t.AGENTS] + index
    return ctas[cta, t.C_RANK] * cfg[t.AGENTS] + index


@jit
def agent_number(h, cta, index):
    cfg, ctas = t.i64_1(h, t.CFG), t.i64_2(h, t.CTA)
    return ctas[cta, t.C_LINEAR] * cfg[t.AGENTS] + index


@jit
def join(h, to, source):
    """The owner of clock row `to` now also comes after what row `source` comes after, in every section."""
    clock = t.i32_2(h, t.CLOCK)
    for i in range(clock.shape[1]):
        if clock[source, i] > clock[to, i]:
            clock[to, i] = clock[source, i]


@jit
def join_section(h, to, to_section, source, source_section):
    """The same for one section of each row."""
    clock, width = t.i32_2(h, t.CLOCK), t.i64_1(h, t.CFG)[t.CLOCK_WIDTH]
    a, b = to_section * width, source_section * width
    for i in range(width):
        if clock[source, b + i] > clock[to, a + i]:
            clock[to, a + i] = clock[source, b + i]


@jit
def tick(h, w):
    """A warp released: later accesses get a new epoch."""
    warps = t.i64_2(h, t.WARP)
    cta = warps[w, t.CTA_SLOT]
    t.i32_2(h, t.CLOCK)[w, column_of(h, cta, warps[w, t.INDEX])] += 1


@jit
def know(h, w, index, epoch):
    """Warp w now comes after `epoch` of agent `index` of its own CTA."""
    warps = t.i64_2(h, t.WARP)
    column = column_of(h, warps[w, t.CTA_SLOT], index)
    clock = t.i32_2(h, t.CLOCK)
    if clock[w, column] < epoch:
        clock[w, column] = epoch


@jit
def warp_record(h, w, pc, strength):
    """What an access of warp w is recorded as."""
    warps = t.i64_2(h, t.WARP)
    epoch = t.i32_2(h, t.CLOCK)[w, column_of(h, warps[w, t.CTA_SLOT], warps[w, t.INDEX])]
    return record_of(warps[w, t.AGENT], np.int64(epoch), pc, strength)


@jit
def ordered(record, clock, w, first, width, section):
    """Whether the owner of clock row w comes after a recorded access, by one section of its clock."""
    column = agent_of(record) - first
    return 0 <= column < width and epoch_of(record) <= clock[w, section * width + column]


@jit
def compatible(h, a, b):
    """Whether two strong accesses are strong towards each other: each one's scope holds the other's agent."""
    cfg = t.i64_1(h, t.CFG)
    scope = min(a & STRENGTH, b & STRENGTH) >> _STRONG_SHIFT
    if scope == GPU:
        return True
    x, y = agent_of(a) // cfg[t.AGENTS], agent_of(b) // cfg[t.AGENTS]
    return x == y if scope == CTA else x // cfg[t.CLUSTER_SIZE] == y // cfg[t.CLUSTER_SIZE]
