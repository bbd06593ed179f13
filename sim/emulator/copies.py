"""Issuing asynchronous copies: TMA tiles, bulk copies, cp.async, their groups; checked and counted at once."""

import numpy as np

from sim.cache import READ, WRITTEN
from sim.counts import SECTOR
from sim.emulator import flight, hazards, isa, mbarrier, memory, shadow
from sim.emulator import tables as t
from sim.emulator.alu import LANES
from sim.linked_jit import jit

_READ, _WRITTEN = READ, WRITTEN
_ONE = np.uint32(1)
_CHUNK = 16  # bytes: the unit of the swizzle


@jit
def map_at(h, address):
    """The tensor map at a parameter address, or -1."""
    cfg, maps = t.i64_1(h, t.CFG), t.i64_2(h, t.MAPS)
    offset = address & (isa.PARAM_WINDOW - 1)
    for m in range(cfg[t.MAP_COUNT]):
        if maps[m, t.T_OFFSET] == offset:
            return m
    return -1


@jit
def survey(h, op, w, record, deliveries):
    """Count the sectors of a tensor operation's box, mark them, and check both its ends for hazards."""
    maps, ops, arrays = t.i64_2(h, t.MAPS), t.i64_2(h, t.OPS), t.i64_2(h, t.ARRAYS)
    stat, marks, cfg = t.i64_1(h, t.STAT), t.u8_1(h, t.MARKS), t.i64_1(h, t.CFG)
    warps = t.i64_2(h, t.WARP)
    m = ops[op, t.O_MAP]
    array = maps[m, t.T_ARRAY]
    width = maps[m, t.T_BOX] * maps[m, t.T_ELEMENT]
    is_store = ops[op, t.O_KIND] == t.OP_TMA_STORE
    target, base, swizzle = ops[op, t.O_TARGET], ops[op, t.O_SHARED], maps[m, t.T_SWIZZLE]
    total = 0
    for row in range(flight.rows_of(h, m)):
        offset, first, end = flight.box_row(h, op, row)
        if end > first:
            start = offset + first
            low, high = start // SECTOR, (offset + end - 1) // SECTOR
            total += high - low + 1
            for sector in range(arrays[array, t.A_MARK] + low, arrays[array, t.A_MARK] + high + 1):
                marks[sector] |= _WRITTEN if is_store else _READ
        if not cfg[t.CHECK]:
            continue
        if is_store:
            dirty = False
            for byte in range(first // _CHUNK * _CHUNK, end, _CHUNK):
                at = flight.swizzled(base + row * width + byte, swizzle)
                dirty |= shadow.touch_shared(h, w, target, at, _CHUNK, record, -1, False, True, False, False)
            if end > first:
                if dirty:
                    cta, agent = warps[w, t.CTA_SLOT], warps[w, t.AGENT]
                    hazards.report(h, hazards.UNINITIALISED_OUTPUT, ops[op, t.O_PC], agent, -1, 0, start, array, cta)
                writer = hazards.record_of(
                    hazards.agent_number(h, warps[w, t.CTA_SLOT], cfg[t.BULK_WRITE_AGENT] + warps[w, t.INDEX]),
                    hazards.epoch_of(record), ops[op, t.O_PC], hazards.GPU if ops[op, t.O_DATA] else hazards.WEAK,
                )  # fmt: skip
                shadow.touch_global(h, w, array, start, end - first, writer, -1, True, True, False, dirty)
        else:
            if end > first and arrays[array, t.A_TRACKED]:
                dirty = shadow.touch_global(h, w, array, start, end - first, record, -1, False, True, False, False)
                if dirty:
                    ops[op, t.O_DATA] = 1
    if is_store:
        stat[t.SM_TO_L2] += SECTOR * total
    else:
        stat[t.L2_TO_SM] += SECTOR * total * deliveries


@jit
def _poisoned(h, w, code, base, mask, pc):
    """Report poison in an address, coordinate or size of a copy."""
    stale, pool, warps = t.u32_1(h, t.POISON), t.i64_1(h, t.POOL), t.i64_2(h, t.WARP)
    bad = np.uint32(0)
    for r in (code[isa.A], code[isa.B], code[isa.C]):
        bad |= stale[base + r if r >= 0 else ~r]
    for i in range(code[isa.COUNT]):
        r = pool[code[isa.POOL] + i]
        bad |= stale[base + r if r >= 0 else ~r]
    if bad & mask:
        hazards.report(h, hazards.UNINITIALISED_ADDRESS, pc, warps[w, t.AGENT], -1, 0, 0, 0, warps[w, t.CTA_SLOT])


@jit
def _signed32(x):
    return (x << 32) >> 32


@jit
def _shared_ok(h, w, target, start, nbytes, alignment, pc):
    """Whether a copy's shared-memory end is in bounds and aligned."""
    cfg, warps = t.i64_1(h, t.CFG), t.i64_2(h, t.WARP)
    if target < 0 or start + nbytes > cfg[t.SHARED_BYTES]:
        hazards.report(h, hazards.OUT_OF_BOUNDS, pc, warps[w, t.AGENT], -1, 0, start, nbytes, warps[w, t.CTA_SLOT])
        return False
    if start % alignment:
        hazards.report(h, hazards.MISALIGNED, pc, warps[w, t.AGENT], -1, 0, start, alignment, warps[w, t.CTA_SLOT])
        return False
    return True


@jit
def tensor(h, w, code, base, mask, pc):
    """cp.async.bulk.tensor in either direction."""
    reg, pool, maps, cfg = t.u64_2(h, t.REG), t.i64_1(h, t.POOL), t.i64_2(h, t.MAPS), t.i64_1(h, t.CFG)
    ops, warps, ctas, stat = t.i64_2(h, t.OPS), t.i64_2(h, t.WARP), t.i64_2(h, t.CTA), t.i64_1(h, t.STAT)
    own = warps[w, t.CTA_SLOT]
    dims, first = code[isa.F1], code[isa.POOL]
    if cfg[t.CHECK]:
        _poisoned(h, w, code, base, mask, pc)
    for lane in range(LANES):
        if not (mask >> np.uint32(lane)) & _ONE:
            continue
        where = flight.value(reg, base, code[isa.B], lane)
        m = map_at(h, where)
        if m < 0 or maps[m, t.T_DIMS] != dims:
            rank = maps[m, t.T_DIMS] if m >= 0 else 0
            kind = hazards.MAP_RANK if m >= 0 else hazards.NO_MAP
            hazards.report(h, kind, pc, warps[w, t.AGENT], lane, 0, where, rank, own)
            continue
        nbytes = flight.rows_of(h, m) * maps[m, t.T_BOX] * maps[m, t.T_ELEMENT]
        address = (flight.value(reg, base, code[isa.A], lane) + code[isa.F0]) & 0xFFFFFFFF
        target, start = memory.target_cta(h, w, address), address & ((1 << isa.RANK_SHIFT) - 1)
        if not _shared_ok(h, w, target, start, nbytes, 128, pc):
            continue
        if code[isa.OP] == isa.TMA_STORE:
            op = flight.new_op(h, t.OP_TMA_STORE, w, pc)
            _describe(h, op, m, start, target, nbytes, lane, reg, pool, base, first, dims)
            ops[op, t.O_DATA] = code[isa.F3]
            warps[w, t.BULK_LANES] |= np.int64(_ONE << np.uint32(lane))
            warps[w, t.BULK_LAST], warps[w, t.BULK_PC] = warps[w, t.BULK_GROUPS] + 1, pc
            agent = hazards.agent_number(h, own, cfg[t.BULK_READ_AGENT] + warps[w, t.INDEX])
            survey(h, op, w, hazards.record_of(agent, warps[w, t.BULK_GROUPS] + 1, pc, hazards.WEAK), 1)
            continue
        where = (flight.value(reg, base, code[isa.C], lane) + code[isa.F2]) & 0xFFFFFFFF
        chosen = 1 << ctas[target, t.C_RANK]
        if code[isa.F3]:
            chosen = flight.value(reg, base, pool[first + dims], lane) & 0xFFFF
        counted = False
        for rank in range(16):
            if not (chosen >> rank) & 1:
                continue
            cta = own - ctas[own, t.C_RANK] + rank
            if rank >= cfg[t.CLUSTER_SIZE] or ctas[cta, t.C_ALIVE] == 0:
                hazards.report(h, hazards.CLUSTER_EXITED, pc, warps[w, t.AGENT], lane, 0, start, rank, own)
                continue
            barrier_cta = cta if code[isa.F3] else memory.target_cta(h, w, where)
            barrier = mbarrier.find(h, w, barrier_cta, where, pc)
            if barrier < 0:
                cfg[t.STOPPED] = 1
                return
            op = flight.new_op(h, t.OP_TMA_LOAD, w, pc)
            _describe(h, op, m, start, cta, nbytes, lane, reg, pool, base, first, dims)
            record = flight.attach(h, op, w, barrier, nbytes, pc)
            stat[t.TMA_LOAD_BYTES] += nbytes
            if not counted:
                deliveries = 0
                for r in range(cfg[t.CLUSTER_SIZE]):
                    deliveries += (chosen >> r) & 1
                survey(h, op, w, record, deliveries)
                counted = True
            if cfg[t.CHECK]:
                shadow.touch_shared(h, w, cta, start, nbytes, record, -1, True, True, False, ops[op, t.O_DATA] != 0)


@jit
def _describe(h, op, m, start, target, nbytes, lane, reg, pool, base, first, dims):
    ops = t.i64_2(h, t.OPS)
    ops[op, t.O_MAP], ops[op, t.O_SHARED], ops[op, t.O_TARGET] = m, start, target
    ops[op, t.O_BYTES], ops[op, t.O_LANE] = nbytes, lane
    for d in range(dims):
        ops[op, t.O_X0 + d] = _signed32(flight.value(reg, base, pool[first + d], lane))


@jit
def _array_range(h, w, address, nbytes, pc):
    """(array, offset) of a global range that is in bounds and 16-byte aligned, or (-1, 0) with a report."""
    cfg, arrays, warps = t.i64_1(h, t.CFG), t.i64_2(h, t.ARRAYS), t.i64_2(h, t.WARP)
    array, offset = (address >> isa.ARRAY_SHIFT) - 1, address & ((1 << isa.ARRAY_SHIFT) - 1)
    if not 0 <= array < cfg[t.ARRAY_COUNT] or offset + nbytes > arrays[array, t.A_BYTES]:
        hazards.report(h, hazards.OUT_OF_BOUNDS, pc, warps[w, t.AGENT], -1, 0, address, nbytes, warps[w, t.CTA_SLOT])
        return -1, 0
    return array, offset


@jit
def _mark(h, array, offset, nbytes, bit):
    """Mark and count the sectors of a range of an array."""
    marks, arrays = t.u8_1(h, t.MARKS), t.i64_2(h, t.ARRAYS)
    low, high = offset // SECTOR, (offset + nbytes - 1) // SECTOR
    for sector in range(arrays[array, t.A_MARK] + low, arrays[array, t.A_MARK] + high + 1):
        marks[sector] |= bit
    return high - low + 1


@jit
def bulk(h, w, code, base, mask, pc):
    """cp.async.bulk without a tensor map: global to shared, shared to global, and shared to a CTA of the cluster."""
    reg, pool, cfg, stat = t.u64_2(h, t.REG), t.i64_1(h, t.POOL), t.i64_1(h, t.CFG), t.i64_1(h, t.STAT)
    ops, warps, ctas = t.i64_2(h, t.OPS), t.i64_2(h, t.WARP), t.i64_2(h, t.CTA)
    own, kind = warps[w, t.CTA_SLOT], code[isa.OP]
    if cfg[t.CHECK]:
        _poisoned(h, w, code, base, mask, pc)
    for lane in range(LANES):
        if not (mask >> np.uint32(lane)) & _ONE:
            continue
        nbytes = flight.value(reg, base, pool[code[isa.POOL]], lane) & 0xFFFFFFFF
        a = flight.value(reg, base, code[isa.A], lane) + code[isa.F0]
        b = flight.value(reg, base, code[isa.B], lane) + code[isa.F1]
        target, start = memory.target_cta(h, w, a), a & ((1 << isa.RANK_SHIFT) - 1)
        if nbytes % 16 or nbytes == 0:
            hazards.report(h, hazards.MISALIGNED, pc, warps[w, t.AGENT], lane, 0, a, 16, own)
            continue
        if not _shared_ok(h, w, target, start, nbytes, 16, pc):
            continue
        if kind == isa.BULK_STORE:
            array, offset = _array_range(h, w, b, nbytes, pc)
            if array < 0 or offset % 16:
                if array >= 0:
                    hazards.report(h, hazards.MISALIGNED, pc, warps[w, t.AGENT], lane, 0, b, 16, own)
                continue
            op = flight.new_op(h, t.OP_BULK_STORE, w, pc)
            ops[op, t.O_SHARED], ops[op, t.O_TARGET], ops[op, t.O_GLOBAL] = start, target, b
            ops[op, t.O_BYTES], ops[op, t.O_LANE], ops[op, t.O_DATA] = nbytes, lane, code[isa.F3]
            ops[op, t.O_ELEMENT], ops[op, t.O_FILL] = code[isa.F2], code[isa.D]
            warps[w, t.BULK_LANES] |= np.int64(_ONE << np.uint32(lane))
            warps[w, t.BULK_LAST], warps[w, t.BULK_PC] = warps[w, t.BULK_GROUPS] + 1, pc
            stat[t.SM_TO_L2] += SECTOR * _mark(h, array, offset, nbytes, _WRITTEN)
            if cfg[t.CHECK]:
                epoch, index = warps[w, t.BULK_GROUPS] + 1, warps[w, t.INDEX]
                reader = hazards.record_of(
                    hazards.agent_number(h, own, cfg[t.BULK_READ_AGENT] + index), epoch, pc, hazards.WEAK
                )
                writer = hazards.record_of(
                    hazards.agent_number(h, own, cfg[t.BULK_WRITE_AGENT] + index),
                    epoch,
                    pc,
                    hazards.GPU if code[isa.F3] else hazards.WEAK,
                )
                dirty = shadow.touch_shared(h, w, target, start, nbytes, reader, -1, False, True, False, False)
                if dirty:
                    hazards.report(h, hazards.UNINITIALISED_OUTPUT, pc, warps[w, t.AGENT], lane, 0, offset, array, own)
                shadow.touch_global(h, w, array, offset, nbytes, writer, -1, True, True, False, dirty)
            continue
        where = (flight.value(reg, base, code[isa.C], lane) + code[isa.F2]) & 0xFFFFFFFF
        chosen = 1 << ctas[target, t.C_RANK]
        if kind == isa.BULK_LOAD and code[isa.F3]:
            chosen = flight.value(reg, base, pool[code[isa.POOL] + 1], lane) & 0xFFFF
        for rank in range(16):
            if not (chosen >> rank) & 1:
                continue
            cta = own - ctas[own, t.C_RANK] + rank
            if rank >= cfg[t.CLUSTER_SIZE] or ctas[cta, t.C_ALIVE] == 0:
                hazards.report(h, hazards.CLUSTER_EXITED, pc, warps[w, t.AGENT], lane, 0, start, rank, own)
                continue
            barrier_cta = cta if code[isa.F3] and kind == isa.BULK_LOAD else memory.target_cta(h, w, where)
            barrier = mbarrier.find(h, w, barrier_cta, where, pc)
            if barrier < 0:
                cfg[t.STOPPED] = 1
                return
            dirty = False
            if kind == isa.BULK_LOAD:
                array, offset = _array_range(h, w, b, nbytes, pc)
                if array >= 0 and offset % 16:
                    hazards.report(h, hazards.MISALIGNED, pc, warps[w, t.AGENT], lane, 0, b, 16, own)
                if array < 0 or offset % 16:
                    continue
                op = flight.new_op(h, t.OP_BULK_LOAD, w, pc)
                record = flight.attach(h, op, w, barrier, nbytes, pc)
                stat[t.TMA_LOAD_BYTES] += nbytes
                stat[t.L2_TO_SM] += SECTOR * _mark(h, array, offset, nbytes, _READ)
                if cfg[t.CHECK]:
                    dirty = (
                        shadow.touch_global(h, w, array, offset, nbytes, record, -1, False, True, False, False)
                        and dirty
                    )
            else:
                source, b = memory.target_cta(h, w, b), b & ((1 << isa.RANK_SHIFT) - 1)
                if not _shared_ok(h, w, source, b, nbytes, 16, pc):
                    continue
                op = flight.new_op(h, t.OP_DSMEM, w, pc)
                record = flight.attach(h, op, w, barrier, nbytes, pc)
                if cfg[t.CHECK]:
                    dirty = shadow.touch_shared(h, w, source, b, nbytes, record, -1, False, True, False, False)
                b += source * cfg[t.SHARED_STRIDE]
            ops[op, t.O_SHARED], ops[op, t.O_TARGET], ops[op, t.O_GLOBAL], ops[op, t.O_LANE] = start, cta, b, lane
            if cfg[t.CHECK]:
                shadow.touch_shared(h, w, cta, start, nbytes, record, -1, True, True, False, dirty)


@jit
def small(h, w, code, base, mask, pc):
    """cp.async: 4, 8 or 16 bytes a lane from global to shared memory, the rest filled with zeros."""
    reg, cfg, stat, warps = t.u64_2(h, t.REG), t.i64_1(h, t.CFG), t.i64_1(h, t.STAT), t.i64_2(h, t.WARP)
    ops, found, arrays = t.i64_2(h, t.OPS), t.i64_2(h, t.SCRATCH), t.i64_2(h, t.ARRAYS)
    width, own = code[isa.F2], warps[w, t.CTA_SLOT]
    a = base + code[isa.A] if code[isa.A] >= 0 else ~code[isa.A]
    b = base + code[isa.B] if code[isa.B] >= 0 else ~code[isa.B]
    if cfg[t.CHECK]:
        _poisoned(h, w, code, base, mask, pc)
    to = memory.locate(h, w, a, code[isa.F0], isa.SHARED, mask, width, pc)
    memory.count_wavefronts(h, to, width)
    agent = hazards.agent_number(h, own, cfg[t.CP_ASYNC_AGENT] + warps[w, t.INDEX])
    record = hazards.record_of(agent, warps[w, t.CP_GROUPS] + 1, pc, hazards.WEAK)
    reads = np.uint32(0)
    for lane in range(LANES):
        if not (to >> np.uint32(lane)) & _ONE:
            continue
        size = min(flight.value(reg, base, code[isa.C], lane) & 0xFFFFFFFF, width)
        op = flight.new_op(h, t.OP_CP_ASYNC, w, pc)
        ops[op, t.O_SHARED], ops[op, t.O_TARGET] = found[memory.OFFSET, lane], found[memory.WHERE, lane]
        ops[op, t.O_GLOBAL], ops[op, t.O_BYTES] = flight.value(reg, base, code[isa.B], lane) + code[isa.F1], size
        ops[op, t.O_FILL], ops[op, t.O_LANE] = width, lane
        if cfg[t.CHECK]:
            memory.touch_lane(h, w, lane, width, record, True, False, False)
        if size > 0:
            reads |= _ONE << np.uint32(lane)
    good = memory.locate(h, w, b, code[isa.F1], isa.GLOBAL, reads, width, pc)
    if good != reads:
        cfg[t.STOPPED] = 1
        return
    unique = memory.sectors_of(h, good, width, _READ)
    if good:
        stat[t.LOAD_SECTORS] += unique
        stat[t.L2_TO_SM] += SECTOR * unique
        stat[t.LOAD_REQUESTS] += 1
    if cfg[t.CHECK]:
        for lane in range(LANES):
            if (good >> np.uint32(lane)) & _ONE and arrays[found[memory.WHERE, lane], t.A_TRACKED]:
                memory.touch_lane(h, w, lane, width, record, False, False, False)


@jit
def store_async(h, w, code, base, mask, pc):
    """st.async: 4 to 16 bytes a lane into a CTA of the cluster's shared memory, completing on an mbarrier there."""
    reg, pool, cfg, stale = t.u64_2(h, t.REG), t.i64_1(h, t.POOL), t.i64_1(h, t.CFG), t.u32_1(h, t.POISON)
    ops, warps, ctas = t.i64_2(h, t.OPS), t.i64_2(h, t.WARP), t.i64_2(h, t.CTA)
    own, agent, width = warps[w, t.CTA_SLOT], warps[w, t.AGENT], code[isa.F3]
    nbytes, words = width * code[isa.COUNT], width // 4
    for lane in range(LANES):
        if not (mask >> np.uint32(lane)) & _ONE:
            continue
        address = flight.value(reg, base, code[isa.A], lane) + code[isa.F0]
        where = (flight.value(reg, base, code[isa.C], lane) + code[isa.F2]) & 0xFFFFFFFF
        target, start = memory.target_cta(h, w, address), address & ((1 << isa.RANK_SHIFT) - 1)
        if not _shared_ok(h, w, target, start, nbytes, nbytes, pc):
            continue
        barrier = mbarrier.find(h, w, memory.target_cta(h, w, where), where, pc)
        if barrier < 0 or ctas[target, t.C_ALIVE] == 0:
            cfg[t.STOPPED] = 1
            return
        if barrier // t.MBARRIERS != target:  # data and barrier lie in one CTA
            hazards.report(h, hazards.MBAR_INVALID, pc, agent, lane, 0, start, 3, own)
            continue
        op = flight.new_op(h, t.OP_STORE_ASYNC, w, pc)
        ops[op, t.O_CTA] = target  # the sender has given its registers away and may end
        ops[op, t.O_SHARED], ops[op, t.O_TARGET], ops[op, t.O_LANE] = start, target, lane
        record = flight.attach(h, op, w, barrier, nbytes, pc)
        dirty = False
        for i in range(code[isa.COUNT]):
            source = pool[code[isa.POOL] + i]
            row = base + source if source >= 0 else ~source
            dirty |= (stale[row] >> np.uint32(lane)) & _ONE != 0
            for word in range(words):
                bits = (reg[row, lane] >> np.uint64(32 * word)) & np.uint64(0xFFFFFFFF)
                ops[op, t.O_X0 + i * words + word] = np.int64(bits)
        if cfg[t.CHECK]:
            shadow.touch_shared(h, w, target, start, nbytes, record, -1, True, True, False, dirty)
    if cfg[t.CHECK]:
        for i in range(code[isa.COUNT]):
            source = pool[code[isa.POOL] + i]
            shadow.touch_register(h, w, base + source if source >= 0 else ~source, False, pc)
