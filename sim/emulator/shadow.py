"""Shadow memory: who touched each granule of shared and global memory last, and whether that was ordered."""

import numpy as np

from sim.emulator import lane_order, places
from sim.emulator import tables as t
from sim.emulator.hazards import (
    BOTH_WRITE,
    CLUSTER_EXITED,
    EARLY_COPY,
    EQUAL_WRITES,
    EXIT_IN_FLIGHT,
    INPUT_WRITTEN,
    LANE_RACE,
    OPERAND_OVERWRITTEN,
    PC_BITS,
    PROXY_FENCE,
    RACE,
    READER_FENCE,
    READS,
    SCOPE_RACE,
    SOURCE_OVERWRITTEN,
    STRENGTH,
    TMA_EARLY,
    TMA_OVERWRITES,
    UNTOLD,
    WGMMA_REGISTERS,
    WRITES,
    agent_number,
    agent_of,
    column_of,
    compatible,
    epoch_of,
    first_agent,
    join,
    ordered,
    report,
)
from sim.linked_jit import jit

CLEAN, UNSET, POISONED = 1, 0, 2  # X_STATE
_ALL = np.uint32(0xFFFFFFFF)
_NO_LANE, _ALL_LANES = lane_order.NONE, lane_order.ALL
_HALF = np.uint64(32)
_LOW = np.uint64(0xFFFFFFFF)


@jit
def _name_race(h, w, first, record, me, mine_writes, other_wrote):
    """Which hazard two unordered accesses are, by the kinds of their agents and by what would order them."""
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
    if record & STRENGTH and me & STRENGTH:
        return SCOPE_RACE
    for section in range(t.ACQUIRABLE, cfg[t.CLOCK_SECTIONS], 2):  # of each scope in use
        if ordered(record, t.i32_2(h, t.CLOCK), w, first, cfg[t.CLOCK_WIDTH], section):
            return READER_FENCE
    return RACE


@jit
def _note_author(h, last, index):
    """Note whose write, the record `last` or 0 for nobody's, a read of the CTA's agent number `index` finds.

    The two are parts of a CTA, all mbarriers being one. Which pairs there are is the same for every interleaving of a
    kernel whose accesses are all ordered, whichever CTA takes which tile and whichever stage of a ring holds what. A
    write counts where it is read; where a read lies does not, as what another one finds there shows in results.
    """
    cfg = t.i64_1(h, t.CFG)
    agents, barriers = cfg[t.AGENTS], cfg[t.MBAR_AGENT]
    author = 0 if last == 0 else 1 + min(agent_of(last) % agents, barriers)
    t.u8_2(h, t.AUTHORS)[index, author] = 1


@jit
def _column(record):
    """Where FINE holds a record, if it does: one that a warp comes after, with nothing left to ask."""
    return (record ^ (record >> 19) ^ (record >> 41)) & (t.FINE_RECORDS - 1)


@jit
def _meet_lanes(h, w, seen, me, lane, others, equal, what, address, cta):
    """Check an access against what other lanes of the warp did in the record `seen`."""
    strong = seen & me & STRENGTH != 0 and compatible(h, seen, me)
    if not strong and not lane_order.ordered(h, w, lane, others, epoch_of(seen)):
        kind = EQUAL_WRITES if equal else LANE_RACE
        report(h, kind, me & PC_BITS, agent_of(me), lane, seen, address, what, cta)


@jit(forceinline=True)
def _meet_write(h, w, first, base, last, me, lane, lanes, others, is_write, is_async, equal, address, key, cta):
    """Check an access against the last write of a granule by another agent, made by its `lanes`; `others` are not mine.

    Returns whether another granule with the same last write needs no look.
    """
    clock, cfg = t.i32_2(h, t.CLOCK), t.i64_1(h, t.CFG)
    width, agents = cfg[t.CLOCK_WIDTH], cfg[t.AGENTS]
    mine = agent_of(me)
    if agent_of(last) == mine and (last == me or (epoch_of(last) == epoch_of(me) and is_async)):
        # two copies of one phase or group, in flight together; or the same instruction again
        if is_write and is_async and not last & STRENGTH:
            report(h, _name_race(h, w, first, last, me, True, True), me & PC_BITS, mine, -1, last, address, 0, cta)
        return False
    if last & me & STRENGTH and compatible(h, last, me):
        return False
    if not ordered(last, clock, w, first, width, t.BEFORE):
        if not (last & STRENGTH and places.observed(h, w, key)):
            kind = EQUAL_WRITES if equal and not last & STRENGTH else _name_race(h, w, first, last, me, is_write, True)
            report(h, kind, me & PC_BITS, mine, -1, last, address, BOTH_WRITE if is_write else READS, cta)
        return False
    index = agent_of(last) - base
    if not 0 <= index < agents:  # of another CTA
        index = agent_of(last) % agents
    told = lane_order.told(h, w, last, lanes, False) if lanes and index < cfg[t.TENSOR_AGENT] else _ALL_LANES
    if told == _NO_LANE:
        report(h, UNTOLD, me & PC_BITS, mine, lane, last, address, BOTH_WRITE if is_write else READS, cta)
    if told != _ALL_LANES:
        return False
    if not is_async and cfg[t.CP_ASYNC_AGENT] == cfg[t.MBAR_AGENT]:
        return True
    copied = cfg[t.CP_ASYNC_AGENT] <= index < cfg[t.MBAR_AGENT]
    if is_async:
        generic = copied or index < cfg[t.TENSOR_AGENT]
        if generic and not ordered(last, clock, w, first, width, t.VISIBLE_ASYNC):
            report(h, PROXY_FENCE, me & PC_BITS, mine, -1, last, address, 0, cta)
            return False
        return True
    own_copy = copied and others and index - cfg[t.CP_ASYNC_AGENT] == mine - (agent_of(last) - index)
    if own_copy and epoch_of(last) > t.i64_2(h, t.WARP)[w, t.CP_SYNCED]:  # its own lane has waited for it, not this one
        report(h, EARLY_COPY, me & PC_BITS, mine, lane, last, address, READS, cta)
        return False
    return True


@jit
def _meet_reads(h, w, first, base, reads, read_lanes, g, me, lane, is_warp, bit, address, cta):
    """Check a write against the readers of a granule; whether another one with the same readers needs no look."""
    clock, cfg = t.i32_2(h, t.CLOCK), t.i64_1(h, t.CFG)
    fines = t.i64_2(h, t.FINE)
    width, agents, tensors, mine, fine = cfg[t.CLOCK_WIDTH], cfg[t.AGENTS], cfg[t.TENSOR_AGENT], agent_of(me), True
    for k in range(t.READERS):
        seen = reads[g, k]
        if not seen or fines[w, _column(seen)] == seen:
            continue
        if agent_of(seen) == mine and is_warp:
            fine = False  # by which lanes differs
            others = read_lanes[g, k] & ~bit
            if others:
                _meet_lanes(h, w, seen, me, lane, others, False, WRITES, address, cta)
        elif seen & me & STRENGTH and compatible(h, seen, me):
            pass
        elif not ordered(seen, clock, w, first, width, t.BEFORE):
            fine = False
            kind = _name_race(h, w, first, seen, me, True, False)
            report(h, kind, me & PC_BITS, mine, -1, seen, address, WRITES, cta)
        else:
            index = agent_of(seen) - base
            if tensors <= index < agents:
                continue  # no warp
            told = lane_order.told(h, w, seen, read_lanes[g, k], True)
            if told == _NO_LANE:
                report(h, UNTOLD, me & PC_BITS, mine, lane, seen, address, WRITES, cta)
            if told == _ALL_LANES:
                fines[w, _column(seen)] = seen
            else:
                fine = False
    return fine


@jit(forceinline=True)
def touch(h, shadow, first_granule, last_granule, w, me, lane, is_write, is_async, equal, poison, address, key, cta):
    """Check one access to the granules [first_granule, last_granule] against the shadow, and record it.

    `shadow` is its first table, `w` the clock row, `me` the record, `lane` who of the warp or -1, `equal` whether it
    writes what is there. Returns True where a read found memory that was never written or holds poison.
    """
    cfg = t.i64_1(h, t.CFG)
    writes, strongs, reads = t.i64_1(h, shadow), t.i64_1(h, shadow + t.X_STRONG), t.i64_2(h, shadow + t.X_READ)
    write_lanes, read_lanes = t.u64_1(h, shadow + t.X_WRITE_LANES), t.u32_2(h, shadow + t.X_READ_LANES)
    state, clock, width = t.u8_1(h, shadow + t.X_STATE), t.i32_2(h, t.CLOCK), cfg[t.CLOCK_WIDTH]
    fines = t.i64_2(h, t.FINE)
    agents, tensors = cfg[t.AGENTS], cfg[t.TENSOR_AGENT]
    first = first_agent(h, cta)
    mine, weak = agent_of(me), not me & STRENGTH
    base = mine - mine % agents  # of the CTA's agents
    is_warp = mine - base < tensors
    bit = np.uint32(1) << np.uint32(lane) if lane >= 0 else _ALL
    has_strong = cfg[t.CLOCK_SECTIONS] > 2 or cfg[t.BULK_READ_AGENT] < cfg[t.BULK_WRITE_AGENT]
    dirty = False
    fine, noted = 0, -1  # a write that was found ordered, and one whose author was noted
    fine_reads, p0, p1, p2, p3 = False, 0, 0, 0, 0  # readers that were
    for g in range(first_granule, last_granule + 1):
        last, strong = writes[g], strongs[g] if has_strong else 0
        if last and is_warp and agent_of(last) == mine:
            others = np.uint32(write_lanes[g] & _LOW) & ~bit
            if others:
                _meet_lanes(h, w, last, me, lane, others, equal, BOTH_WRITE if is_write else READS, address, cta)
        elif last and last != fine and (is_async or fines[w, _column(last)] != last):
            made = np.uint32(write_lanes[g] & _LOW)
            if _meet_write(
                h, w, first, base, last, me, lane, made, made & ~bit, is_write, is_async, equal, address, key, cta
            ):
                fine = last
                if not is_async:
                    fines[w, _column(last)] = last
        if strong and is_warp and agent_of(strong) == mine:
            others = np.uint32(write_lanes[g] >> _HALF) & ~bit
            if others:
                _meet_lanes(h, w, strong, me, lane, others, False, BOTH_WRITE if is_write else READS, address, cta)
        elif strong:
            _meet_write(
                h,
                w,
                first,
                base,
                strong,
                me,
                lane,
                np.uint32(0),
                np.uint32(0),
                is_write,
                is_async,
                False,
                address,
                key,
                cta,
            )
        if is_write:
            r0, r1, r2, r3 = reads[g, 0], reads[g, 1], reads[g, 2], reads[g, 3]
            read = r0 != 0 or r1 != 0 or r2 != 0 or r3 != 0
            if read and not (fine_reads and r0 == p0 and r1 == p1 and r2 == p2 and r3 == p3):
                p0, p1, p2, p3 = r0, r1, r2, r3
                fine_reads = _meet_reads(h, w, first, base, reads, read_lanes, g, me, lane, is_warp, bit, address, cta)
            if weak and read:
                reads[g, 0] = reads[g, 1] = reads[g, 2] = reads[g, 3] = 0
            old = write_lanes[g]
            if weak:
                same = agent_of(last) == mine and epoch_of(last) == epoch_of(me)
                write_lanes[g] = np.uint64(bit) | (old & _LOW if same else np.uint64(0))
                writes[g] = me
                if strong:
                    strongs[g] = 0
            else:
                same = agent_of(strong) == mine and epoch_of(strong) == epoch_of(me)
                write_lanes[g] = (old if same else old & _LOW) | (np.uint64(bit) << _HALF)
                strongs[g] = me
            state[g] = POISONED if poison else CLEAN
            continue
        if weak:
            author = last if strong == 0 else 0
            if author != noted:
                noted = author
                _note_author(h, author, mine - base)
        if state[g] != CLEAN:
            dirty = True
        place = -1
        for k in range(t.READERS):
            seen = reads[g, k]
            if seen == 0 or (agent_of(seen) == mine and (not seen & STRENGTH) == weak):
                place = k
                break
        if place < 0:
            for k in range(t.READERS):
                if ordered(reads[g, k], clock, w, first, width, t.BEFORE):
                    place = k
                    break
        if place < 0:
            place = me % t.READERS
        seen = reads[g, place]
        joined = agent_of(seen) == mine and epoch_of(seen) == epoch_of(me)
        read_lanes[g, place] = bit | (read_lanes[g, place] if joined else np.uint32(0))
        reads[g, place] = me
    return dirty


@jit
def touch_shared(h, w, target, start, nbytes, me, lane, is_write, is_async, equal, poison):
    """Check and record an access to bytes [start, start + nbytes) of the shared memory of CTA slot `target`."""
    cfg, warps = t.i64_1(h, t.CFG), t.i64_2(h, t.WARP)
    shift = cfg[t.SHARED_SHIFT]
    base = (target * cfg[t.SHARED_STRIDE]) >> shift
    key = places.shared_key(h, target, start)
    return touch(
        h, t.SHARED_SHADOW, base + (start >> shift), base + ((start + nbytes - 1) >> shift), w, me, lane, is_write,
        is_async, equal, poison, start, key, warps[w, t.CTA_SLOT],
    )  # fmt: skip


@jit
def touch_global(h, w, array, start, nbytes, me, lane, is_write, is_async, equal, poison):
    """The same for bytes [start, start + nbytes) of an array; one that the kernel only reads is not tracked."""
    cfg, arrays, warps = t.i64_1(h, t.CFG), t.i64_2(h, t.ARRAYS), t.i64_2(h, t.WARP)
    cta = warps[w, t.CTA_SLOT]
    if is_write and arrays[array, t.A_INPUT]:
        report(h, INPUT_WRITTEN, me & PC_BITS, agent_of(me), lane, 0, start, array, cta)
    if not arrays[array, t.A_TRACKED]:
        return False
    shift, base = cfg[t.GLOBAL_SHIFT], arrays[array, t.A_GRANULE]
    address = ((array + 1) << 40) + start
    return touch(
        h, t.GLOBAL_SHADOW, base + (start >> shift), base + ((start + nbytes - 1) >> shift), w, me, lane, is_write,
        is_async, equal, poison, address, address, cta,
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
        writes, reads = t.i64_1(h, t.SHARED_SHADOW), t.i64_2(h, t.SHARED_SHADOW + t.X_READ)
        strongs = t.i64_1(h, t.SHARED_SHADOW + t.X_STRONG)
        granules = cfg[t.SHARED_STRIDE] >> cfg[t.SHARED_SHIFT]
        for g in range(cta * granules, (cta + 1) * granules):
            address = (g - cta * granules) << cfg[t.SHARED_SHIFT]
            _check_late(h, writes[g], row, first, address, cta)
            _check_late(h, strongs[g], row, first, address, cta)
            for k in range(t.READERS):
                _check_late(h, reads[g, k], row, first, address, cta)


@jit
def _check_late(h, seen, row, first, address, cta):
    """An access of another CTA that the owner of clock row `row` does not come after."""
    cfg, ctas, clock = t.i64_1(h, t.CFG), t.i64_2(h, t.CTA), t.i32_2(h, t.CLOCK)
    foreign = seen != 0 and agent_of(seen) // cfg[t.AGENTS] != ctas[cta, t.C_LINEAR]
    if foreign and not ordered(seen, clock, row, first, cfg[t.CLOCK_WIDTH], t.BEFORE):
        report(h, CLUSTER_EXITED, seen & PC_BITS, agent_of(seen), -1, 0, address, 0, cta)


@jit
def touch_register(h, w, row, is_write, pc):
    """A register of a wgmma that is still in flight must not be read (accumulators) or written."""
    warps = t.i64_2(h, t.WARP)
    fly = t.i64_1(h, t.FLIGHT)[row]
    if fly and (fly >> 1) > warps[w, t.GROUPS_DONE] and (is_write or not fly & 1):
        report(h, WGMMA_REGISTERS, pc, warps[w, t.AGENT], -1, 0, row, fly >> 1, warps[w, t.CTA_SLOT])
