"""Happens-before: vector clocks of every agent, and shadow memory that remembers who touched what last.

Agents of a CTA: its warps; for each warpgroup its tensor core's reads; for each warp the reads and the writes of its
bulk stores and its cp.async copies; each mbarrier, whose phases stand for the copies that complete on it. An access is
recorded as (agent, epoch, instruction); it precedes another where the other's clock has reached that epoch.

A warp's clock has sections (tables.py): what it comes after, and what of that is also visible to the asynchronous proxy
(TMA, wgmma), which `fence.proxy.async` updates; where warps meet through atomics, two more that fences update.
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
    MBAR_UNPUBLISHED, LIVELOCK, REGISTER_CHANGE, EARLY_COPY,
) = range(28)  # fmt: skip

_PC_BITS, _EPOCH_SHIFT, _AGENT_SHIFT = (1 << 18) - 1, 19, 41
_EPOCH_MASK = (1 << 22) - 1
ATOMIC = 1 << 18

CLEAN, UNSET, POISONED = 1, 0, 2  # SHARED_STATE, GLOBAL_STATE


@jit
def record_of(agent, epoch, pc, atomic):
    return (agent << _AGENT_SHIFT) | (epoch << _EPOCH_SHIFT) | (ATOMIC if atomic else 0) | pc


@jit
def agent_of(record):
    return record >> _AGENT_SHIFT


@jit
def epoch_of(record):
    return (record >> _EPOCH_SHIFT) & _EPOCH_MASK


@jit
def report(h, kind, pc, agent, lane, other, address, extra, cta):
    """Note a hazard once for each pair of instructions."""
    found, cfg = t.i64_2(h, t.HAZARDS), t.i64_1(h, t.CFG)
    n = cfg[t.HAZARD_COUNT]
    other_pc = other & _PC_BITS if other > 0 else other
    for i in range(n):
        if found[i, t.Z_KIND] == kind and found[i, t.Z_PC] == pc:
            seen = found[i, t.Z_OTHER]
            if (seen & _PC_BITS if seen > 0 else seen) == other_pc:
                return
    if n < t.MAX_HAZARDS:
        found[n, t.Z_KIND] = kind
        found[n, t.Z_PC] = pc
        found[n, t.Z_AGENT] = agent
        found[n, t.Z_LANE] = lane
        found[n, t.Z_OTHER] = other
        found[n, t.Z_ADDRESS] = address
        found[n, t.Z_EXTRA] = extra
        found[n, t.Z_CTA] = cta
        cfg[t.HAZARD_COUNT] = n + 1


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
def warp_record(h, w, pc, atomic):
    """What an access of warp w is recorded as."""
    warps = t.i64_2(h, t.WARP)
    epoch = t.i32_2(h, t.CLOCK)[w, column_of(h, warps[w, t.CTA_SLOT], warps[w, t.INDEX])]
    return record_of(warps[w, t.AGENT], np.int64(epoch), pc, atomic)


@jit
def ordered(record, clock, w, first, width, section):
    """Whether the owner of clock row w comes after a recorded access, by one section of its clock."""
    column = agent_of(record) - first
    return 0 <= column < width and epoch_of(record) <= clock[w, section * width + column]


@jit
def _name_race(h, record, me, mine_writes, other_wrote):
    """Which hazard two unordered accesses are, by the kinds of their agents."""
    cfg = t.i64_1(h, t.CFG)
    other, mine = agent_of(record) % cfg[t.AGENTS], agent_of(me) % cfg[t.AGENTS]
    if mine >= cfg[t.MBAR_AGENT] and mine_writes:
        return TMA_OVERWRITES
    if other >= cfg[t.MBAR_AGENT] and other_wrote:
        return TMA_EARLY
    if other >= cfg[t.CP_ASYNC_AGENT] and other_wrote:
        return EARLY_COPY
    if not other_wrote and mine_writes:
        if cfg[t.TENSOR_AGENT] <= other < cfg[t.BULK_READ_AGENT]:
            return OPERAND_OVERWRITTEN
        if cfg[t.BULK_READ_AGENT] <= other < cfg[t.BULK_WRITE_AGENT]:
            return SOURCE_OVERWRITTEN
    return RACE


@jit
def _note_authors(h, writes, first_granule, last_granule, mine):
    """Note whose writes a read of agent `mine` finds: which parts of a CTA the two are, all mbarriers being one.

    That is the same for every interleaving of a kernel whose accesses are all ordered, whichever CTA takes which tile
    and whichever stage of a ring holds what. A write counts where it is read; where a read lies does not, as what
    another one finds there shows in results.
    """
    cfg, found = t.i64_1(h, t.CFG), t.u8_2(h, t.AUTHORS)
    agents, barriers = cfg[t.AGENTS], cfg[t.MBAR_AGENT]
    for g in range(first_granule, last_granule + 1):
        last = writes[g]
        author = 0 if last == 0 or last & ATOMIC else 1 + min(agent_of(last) % agents, barriers)
        found[mine % agents, author] = 1


@jit
def touch(h, writes, reads, state, first_granule, last_granule, w, first, me, is_write, is_async, poison, address, cta):
    """Check one access to the granules [first_granule, last_granule] against the shadow, and record it.

    `w` is the clock row, `first` the agent of its first column, `me` the record. Returns True where a read found memory
    that was never written or holds poison.
    """
    clock, cfg = t.i32_2(h, t.CLOCK), t.i64_1(h, t.CFG)
    width = cfg[t.CLOCK_WIDTH]
    agents, tensors, copies, barriers = cfg[t.AGENTS], cfg[t.TENSOR_AGENT], cfg[t.CP_ASYNC_AGENT], cfg[t.MBAR_AGENT]
    mine = agent_of(me)
    dirty = False
    if not (is_write or me & ATOMIC):
        _note_authors(h, writes, first_granule, last_granule, mine)
    for g in range(first_granule, last_granule + 1):
        last = writes[g]
        if last == me and is_write and is_async and not last & ATOMIC:
            # the same instruction again in the same phase or group
            report(h, _name_race(h, last, me, True, True), me & _PC_BITS, mine, -1, last, address, 0, cta)
        elif last and last != me:
            other = agent_of(last)
            index = other % agents
            generic = index < tensors or copies <= index < barriers
            if other == mine and index < tensors:
                pass
            elif other == mine and epoch_of(last) == epoch_of(me) and is_async:
                # two copies of one phase or group: in flight together
                if is_write and (last & ATOMIC) == 0:
                    report(h, _name_race(h, last, me, is_write, True), me & _PC_BITS, mine, -1, last, address, 0, cta)
            elif not (last & me & ATOMIC):
                if not ordered(last, clock, w, first, width, t.BEFORE):
                    report(h, _name_race(h, last, me, is_write, True), me & _PC_BITS, mine, -1, last, address, 0, cta)
                elif is_async and generic and not ordered(last, clock, w, first, width, t.VISIBLE_ASYNC):
                    report(h, PROXY_FENCE, me & _PC_BITS, mine, -1, last, address, 0, cta)
        if is_write:
            for k in range(t.READERS):
                seen = reads[g, k]
                if seen:
                    own = agent_of(seen) == mine and mine % agents < tensors
                    if not (own or seen & me & ATOMIC or ordered(seen, clock, w, first, width, t.BEFORE)):
                        report(h, _name_race(h, seen, me, True, False), me & _PC_BITS, mine, -1, seen, address, 1, cta)
                    reads[g, k] = 0
            writes[g] = me
            state[g] = POISONED if poison else CLEAN
        else:
            if state[g] != CLEAN:
                dirty = True
            place = -1
            for k in range(t.READERS):
                seen = reads[g, k]
                if seen == 0 or agent_of(seen) == mine:
                    place = k
                    break
            if place < 0:
                for k in range(t.READERS):
                    if ordered(reads[g, k], clock, w, first, width, t.BEFORE):
                        place = k
                        break
            if place < 0:
                place = me % t.READERS
            reads[g, place] = me
    return dirty


@jit
def touch_shared(h, w, target, start, nbytes, me, is_write, is_async, poison):
    """Check and record an access to bytes [start, start + nbytes) of the shared memory of CTA slot `target`."""
    cfg = t.i64_1(h, t.CFG)
    warps = t.i64_2(h, t.WARP)
    shift = cfg[t.SHARED_SHIFT]
    base = (target * cfg[t.SHARED_STRIDE]) >> shift
    cta = warps[w, t.CTA_SLOT]
    return touch(
        h, t.i64_1(h, t.SHARED_WRITE), t.i64_2(h, t.SHARED_READ), t.u8_1(h, t.SHARED_STATE), base + (start >> shift),
        base + ((start + nbytes - 1) >> shift), w, first_agent(h, cta), me, is_write, is_async, poison, start, cta,
    )  # fmt: skip


@jit
def touch_global(h, w, array, start, nbytes, me, is_write, is_async, poison):
    """The same for bytes [start, start + nbytes) of an array; one that the kernel only reads is not tracked."""
    cfg, arrays = t.i64_1(h, t.CFG), t.i64_2(h, t.ARRAYS)
    warps = t.i64_2(h, t.WARP)
    cta = warps[w, t.CTA_SLOT]
    if not arrays[array, t.A_TRACKED]:
        if is_write:
            report(h, INPUT_WRITTEN, me & _PC_BITS, agent_of(me), -1, 0, start, array, cta)
        return False
    shift, base = cfg[t.GLOBAL_SHIFT], arrays[array, t.A_GRANULE]
    return touch(
        h, t.i64_1(h, t.GLOBAL_WRITE), t.i64_2(h, t.GLOBAL_READ), t.u8_1(h, t.GLOBAL_STATE), base + (start >> shift),
        base + ((start + nbytes - 1) >> shift), w, first_agent(h, cta), me, is_write, is_async, poison,
        ((array + 1) << 40) + start, cta,
    )  # fmt: skip


@jit
def check_exit(h, cta):
    """A CTA has ended: loads into it must have been waited for, and what its cluster did to its memory must precede."""
    cfg, clock, ctas, bars = t.i64_1(h, t.CFG), t.i32_2(h, t.CLOCK), t.i64_2(h, t.CTA), t.i64_2(h, t.MBAR)
    first, row = first_agent(h, cta), cta * cfg[t.WARPS]
    for w in range(row + 1, row + cfg[t.WARPS]):
        join(h, row, w)
    for k in range(ctas[cta, t.C_MBARS]):
        bar = cta * t.MBARRIERS + k
        if bars[bar, t.M_LAST_EPOCH] > clock[row, column_of(h, cta, cfg[t.MBAR_AGENT] + k)]:
            agent = agent_number(h, cta, cfg[t.MBAR_AGENT] + k)
            report(h, EXIT_IN_FLIGHT, bars[bar, t.M_LAST_PC], agent, -1, 0, bars[bar, t.M_ADDRESS], 0, cta)
        _check_late(h, bars[bar, t.M_REMOTE], row, first, bars[bar, t.M_ADDRESS], cta)
    if cfg[t.CLUSTER_SIZE] > 1:
        writes, reads = t.i64_1(h, t.SHARED_WRITE), t.i64_2(h, t.SHARED_READ)
        granules = cfg[t.SHARED_STRIDE] >> cfg[t.SHARED_SHIFT]
        for g in range(cta * granules, (cta + 1) * granules):
            address = (g - cta * granules) << cfg[t.SHARED_SHIFT]
            _check_late(h, writes[g], row, first, address, cta)
            for k in range(t.READERS):
                _check_late(h, reads[g, k], row, first, address, cta)


@jit
def _check_late(h, seen, row, first, address, cta):
    """An access of another CTA that the owner of clock row `row` does not come after."""
    cfg, ctas, clock = t.i64_1(h, t.CFG), t.i64_2(h, t.CTA), t.i32_2(h, t.CLOCK)
    foreign = seen != 0 and agent_of(seen) // cfg[t.AGENTS] != ctas[cta, t.C_LINEAR]
    if foreign and not ordered(seen, clock, row, first, cfg[t.CLOCK_WIDTH], t.BEFORE):
        report(h, CLUSTER_EXITED, seen & _PC_BITS, agent_of(seen), -1, 0, address, 0, cta)


@jit
def touch_register(h, w, row, is_write, pc):
    """A register of a wgmma that is still in flight must not be read (accumulators) or written."""
    warps = t.i64_2(h, t.WARP)
    fly = t.i64_1(h, t.FLIGHT)[row]
    if fly and (fly >> 1) > warps[w, t.GROUPS_DONE] and (is_write or not fly & 1):
        report(h, WGMMA_REGISTERS, pc, warps[w, t.AGENT], -1, 0, row, fly >> 1, warps[w, t.CTA_SLOT])
