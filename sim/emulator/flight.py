"""Asynchronous copies in flight: from the instruction that issues one to the moment its data lands."""

import numpy as np

from sim.emulator import atomics, hazards, isa, mbarrier, memory, sync
from sim.emulator import tables as t
from sim.linked_jit import jit

_CHUNK = 16  # bytes: the unit of the swizzle


@jit
def value(reg, base, row, lane):
    return np.int64(reg[base + row if row >= 0 else ~row, lane])


@jit
def swizzled(address, swizzle):
    """Where the swizzle puts the 16-byte chunk that holds a shared address: chunk bits ^= row bits."""
    if swizzle == 128:
        return address ^ (((address >> 7) & 7) << 4)
    if swizzle == 64:
        return address ^ (((address >> 7) & 3) << 4)
    if swizzle == 32:
        return address ^ (((address >> 7) & 1) << 4)
    return address


@jit
def box_row(h, op, row):
    """(global byte offset, first byte, end byte) of a row of a tensor operation's box: what of it is in bounds."""
    maps, ops = t.i64_2(h, t.MAPS), t.i64_2(h, t.OPS)
    m = ops[op, t.O_MAP]
    element = maps[m, t.T_ELEMENT]
    x = ops[op, t.O_X0]
    first = max(0, -x)
    end = min(maps[m, t.T_BOX], maps[m, t.T_SIZE] - x)
    offset = x * element
    rest = row
    for d in range(1, maps[m, t.T_DIMS]):
        box = maps[m, t.T_BOX + d]
        at = ops[op, t.O_X0 + d] + rest % box
        rest //= box
        if at < 0 or at >= maps[m, t.T_SIZE + d]:
            end = first
        offset += at * maps[m, t.T_STRIDE + d]
    return offset, first * element, max(first, end) * element


@jit
def rows_of(h, m):
    maps = t.i64_2(h, t.MAPS)
    rows = 1
    for d in range(1, maps[m, t.T_DIMS]):
        rows *= maps[m, t.T_BOX + d]
    return rows


@jit
def new_op(h, kind, w, pc):
    """A row of OPS for a copy in flight; makes room by landing one where all are taken."""
    ops, cfg, warps = t.i64_2(h, t.OPS), t.i64_1(h, t.CFG), t.i64_2(h, t.WARP)
    if cfg[t.OPS_COUNT] == t.MAX_OPS - 1:
        land(h, 0)
    op = cfg[t.OPS_COUNT]
    cfg[t.OPS_COUNT] = op + 1
    t.fill_rows(ops, op, op + 1, 0)
    ops[op, t.O_KIND], ops[op, t.O_WARP], ops[op, t.O_CTA], ops[op, t.O_PC] = kind, w, warps[w, t.CTA_SLOT], pc
    ops[op, t.O_SINCE] = cfg[t.STEPS]
    return op


@jit
def attach(h, op, w, barrier, bytes_, pc):
    """Bind a copy to the mbarrier that it completes on; returns its record."""
    cfg, bars, ops, warps = t.i64_1(h, t.CFG), t.i64_2(h, t.MBAR), t.i64_2(h, t.OPS), t.i64_2(h, t.WARP)
    ops[op, t.O_BARRIER], ops[op, t.O_BYTES] = barrier, bytes_
    bars[barrier, t.M_FLYING] += bytes_
    bars[barrier, t.M_LAST_EPOCH], bars[barrier, t.M_LAST_PC] = bars[barrier, t.M_PHASE] + 1, pc
    if cfg[t.CHECK] and not bars[barrier, t.M_PUBLISHED]:
        hazards.report(h, hazards.MBAR_UNPUBLISHED, pc, warps[w, t.AGENT], -1, bars[barrier, t.M_INIT_RECORD],
                       bars[barrier, t.M_ADDRESS], 0, warps[w, t.CTA_SLOT])  # fmt: skip
    agent = hazards.agent_number(h, barrier // t.MBARRIERS, cfg[t.MBAR_AGENT] + barrier % t.MBARRIERS)
    return hazards.record_of(agent, bars[barrier, t.M_PHASE] + 1, pc, hazards.WEAK)


@jit
def land(h, op):
    """Move the data of one copy in flight, tell who waits for it, and free its row."""
    ops, cfg, bars, warps = t.i64_2(h, t.OPS), t.i64_1(h, t.CFG), t.i64_2(h, t.MBAR), t.i64_2(h, t.WARP)
    kind, w = ops[op, t.O_KIND], ops[op, t.O_WARP]
    t.i64_1(h, t.STAT)[t.PROGRESS] += 1
    if kind == t.OP_TMA_LOAD or kind == t.OP_TMA_STORE:
        _move_tile(h, op, kind == t.OP_TMA_STORE)
    else:
        _move_bytes(h, op, kind)
    if cfg[t.TRACE]:
        sync.event(
            h, warps[w, t.AGENT], ops[op, t.O_PC], ops[op, t.O_SINCE], cfg[t.STEPS], 100 + kind, ops[op, t.O_BYTES]
        )
    barrier, nbytes, waits = -1, ops[op, t.O_BYTES], False
    if kind == t.OP_TMA_LOAD or kind == t.OP_BULK_LOAD or kind == t.OP_DSMEM or kind == t.OP_STORE_ASYNC:
        barrier = ops[op, t.O_BARRIER]
    else:
        waits = warps[w, t.STATE] == t.W_BULK
    last = cfg[t.OPS_COUNT] - 1
    for column in range(ops.shape[1]):
        ops[op, column] = ops[last, column]
    cfg[t.OPS_COUNT] = last
    if barrier >= 0:
        bars[barrier, t.M_FLYING] -= nbytes
        bars[barrier, t.M_TX] -= nbytes
        if bars[barrier, t.M_TX] < 0 and bars[barrier, t.M_PENDING] == 0:
            mbarrier.report_bytes(h, barrier, -bars[barrier, t.M_TX])
        mbarrier.try_complete(h, barrier)
    if waits:
        sync.wake(h, w)


@jit
def _move_tile(h, op, is_store):
    maps, ops, arrays, cfg = t.i64_2(h, t.MAPS), t.i64_2(h, t.OPS), t.i64_2(h, t.ARRAYS), t.i64_1(h, t.CFG)
    shared, memory8 = t.u8_1(h, t.S8), t.u8_1(h, t.G8)
    shared64, memory64 = t.u64_1(h, t.S64), t.u64_1(h, t.G64)
    m = ops[op, t.O_MAP]
    width = maps[m, t.T_BOX] * maps[m, t.T_ELEMENT]
    swizzle, element, number = maps[m, t.T_SWIZZLE], maps[m, t.T_ELEMENT], maps[m, t.T_FORMAT]
    origin = ops[op, t.O_TARGET] * cfg[t.SHARED_STRIDE]
    flat = arrays[maps[m, t.T_ARRAY], t.A_FLAT]
    reduction = ops[op, t.O_DATA] - 1
    for row in range(rows_of(h, m)):
        offset, first, end = box_row(h, op, row)
        for chunk in range(0, width, _CHUNK):
            at = origin + swizzled(ops[op, t.O_SHARED] + row * width + chunk, swizzle)
            source = flat + offset + chunk
            if first <= chunk and chunk + _CHUNK <= end and source % 8 == 0 and (not is_store or reduction < 0):
                if is_store:
                    memory64[source >> 3], memory64[(source >> 3) + 1] = shared64[at >> 3], shared64[(at >> 3) + 1]
                else:
                    shared64[at >> 3], shared64[(at >> 3) + 1] = memory64[source >> 3], memory64[(source >> 3) + 1]
            elif is_store and reduction >= 0:
                for i in range(0, _CHUNK, element):
                    if first <= chunk + i < end:
                        old = memory.read_element(h, memory.IN_GLOBAL, source + i, element)
                        new = memory.read_element(h, memory.IN_SHARED, at + i, element)
                        value = atomics.combine(reduction, number, element, old, new, new)
                        memory.write_element(h, memory.IN_GLOBAL, source + i, element, value)
            else:
                for i in range(_CHUNK):
                    inside = first <= chunk + i < end
                    if not is_store:
                        shared[at + i] = memory8[source + i] if inside else np.uint8(0)
                    elif inside:
                        memory8[source + i] = shared[at + i]


@jit
def _move_bytes(h, op, kind):
    ops, arrays, cfg = t.i64_2(h, t.OPS), t.i64_2(h, t.ARRAYS), t.i64_1(h, t.CFG)
    shared, memory8 = t.u8_1(h, t.S8), t.u8_1(h, t.G8)
    at = ops[op, t.O_TARGET] * cfg[t.SHARED_STRIDE] + ops[op, t.O_SHARED]
    nbytes = ops[op, t.O_BYTES]
    if kind == t.OP_STORE_ASYNC:
        for i in range(nbytes // 4):
            t.u32_1(h, t.S32)[(at >> 2) + i] = ops[op, t.O_X0 + i]
        return
    if kind == t.OP_DSMEM:
        for i in range(nbytes):
            shared[at + i] = shared[ops[op, t.O_GLOBAL] + i]
        return
    address = ops[op, t.O_GLOBAL]
    flat = 0
    if nbytes > 0:
        flat = arrays[(address >> isa.ARRAY_SHIFT) - 1, t.A_FLAT] + (address & ((1 << isa.ARRAY_SHIFT) - 1))
    if kind == t.OP_BULK_STORE and ops[op, t.O_DATA]:
        element = ops[op, t.O_FILL]
        for i in range(0, nbytes, element):
            old = memory.read_element(h, memory.IN_GLOBAL, flat + i, element)
            new = memory.read_element(h, memory.IN_SHARED, at + i, element)
            value = atomics.combine(ops[op, t.O_DATA] - 1, ops[op, t.O_ELEMENT], element, old, new, new)
            memory.write_element(h, memory.IN_GLOBAL, flat + i, element, value)
    elif kind == t.OP_BULK_STORE:
        for i in range(nbytes):
            memory8[flat + i] = shared[at + i]
    else:
        for i in range(nbytes):
            shared[at + i] = memory8[flat + i]
        for i in range(nbytes, ops[op, t.O_FILL]):
            shared[at + i] = 0
