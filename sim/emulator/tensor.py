"""Tensor cores: wgmma and mma.sync on one warp's part of the tile.

Products are summed in float32 with fused multiply-adds in the order of k. Not modelled: the hardware sums groups of
products with aligned, truncated significands, so its last bits differ.

A wgmma of m64 is computed by its four warps, 16 rows each, when they issue it; its registers and operands stay in
flight until wgmma.wait_group, for which all four warps must have committed the group.
"""

import numpy as np

from sim.emulator import flight, fpu, hazards, isa, shadow
from sim.emulator import tables as t
from sim.emulator.alu import LANES
from sim.linked_jit import jit

_ONE = np.uint32(1)
_FULL = np.uint32(0xFFFFFFFF)
_ROWS = 16  # of a warp
_RESULT_A, _RESULT_B = 0, 16  # first rows of RESULT that hold A [16, k], B [k, n], C [16, n]
_RESULT_C = 48
MAX_K = 32


@jit
def _value(bits, fmt):
    """An operand element as float32."""
    if fmt == isa.BF16:
        return np.uint32(np.uint32(bits) << np.uint32(16)).view(np.float32)
    if fmt == isa.TF32:
        return np.uint32(np.uint32(bits) & np.uint32(0xFFFFE000)).view(np.float32)
    return np.float32(fpu.small_to_f64(np.uint64(bits), fmt))


@jit
def operand_address(descriptor, major, outer, k, element):
    """Byte address of element (outer, k) of a wgmma operand in shared memory, `outer` being its m or n.

    PTX ISA 9.7.15.5.1: bits 0-13 start, 16-29 leading byte offset, 32-45 stride byte offset, each in 16 bytes, 62-63
    the swizzle. `major` is 1 where the outer index is contiguous (the transposed form).
    """
    start = (descriptor & 0x3FFF) << 4
    leading = ((descriptor >> 16) & 0x3FFF) << 4
    stride = ((descriptor >> 32) & 0x3FFF) << 4
    mode = (descriptor >> 62) & 3
    if mode == 0:
        core = 16 // element
        if major:
            return start + outer // core * stride + k // 8 * leading + k % 8 * 16 + outer % core * element
        return start + outer // 8 * stride + k // core * leading + outer % 8 * 16 + k % core * element
    swizzle = 128 >> (mode - 1)
    if major:
        run = swizzle // element
        at = start + outer // run * leading + k // 8 * stride + k % 8 * swizzle + outer % run * element
    else:
        at = start + outer // 8 * stride + outer % 8 * swizzle + k * element
    return flight.swizzled(at, swizzle)


@jit
def read_operand(h, w, descriptor, major, first, count, k, fmt, row, by_column, record, pc):
    """Elements (first .. first + count, 0 .. k) into RESULT from `row` on, [count, k] or by column [k, count].

    Returns True where some of it was never written or holds poison.
    """
    cfg, warps = t.i64_1(h, t.CFG), t.i64_2(h, t.WARP)
    out, s8, s16, s32 = t.f32_2(h, t.RESULT), t.u8_1(h, t.S8), t.u16_1(h, t.S16), t.u32_1(h, t.S32)
    cta, element = warps[w, t.CTA_SLOT], isa.FORMAT_BYTES[fmt]
    origin = cta * cfg[t.SHARED_STRIDE]
    per_chunk = 16 // element
    dirty = False
    check = cfg[t.CHECK]
    outer_step, k_step = (per_chunk, 1) if major else (1, per_chunk)
    for o in range(0, count, outer_step):
        for j in range(0, k, k_step):
            at = operand_address(descriptor, major, first + o, j, element)
            if at + 16 > cfg[t.SHARED_BYTES]:
                hazards.report(h, hazards.OUT_OF_BOUNDS, pc, warps[w, t.AGENT], -1, 0, at, 16, cta)
                return True
            if check and shadow.touch_shared(h, w, cta, at, 16, record, -1, False, True, False, False):
                dirty = True
            for i in range(per_chunk):
                byte = origin + at + i * element
                if element == 2:
                    value = _value(s16[byte >> 1], fmt)
                elif element == 1:
                    value = _value(s8[byte], fmt)
                else:
                    value = _value(s32[byte >> 2], fmt)
                oo, kk = (o + i, j) if major else (o, j + i)
                if by_column:
                    out[row + kk, oo] = value
                else:
                    out[row + oo, kk] = value
    return dirty


@jit(fastmath={"contract"})
def _multiply(out, n, k):
    """C += A B on RESULT."""
    for r in range(_ROWS):
        for j in range(k):
            a = out[_RESULT_A + r, j]
            for c in range(n):
                out[_RESULT_C + r, c] += a * out[_RESULT_B + j, c]


@jit
def _fragment(h, base, first, fmt, count):
    """A of 16 rows from registers: PTX ISA's fragment layout, 32 bits of each row a register."""
    pool, reg, out = t.i64_1(h, t.POOL), t.u64_2(h, t.REG), t.f32_2(h, t.RESULT)
    element = isa.FORMAT_BYTES[fmt]
    per = 4 // element
    keep = np.uint64((1 << (8 * element)) - 1)
    for i in range(count):
        s = pool[first + i]
        source = base + s if s >= 0 else ~s
        for lane in range(LANES):
            row, column = lane // 4 + 8 * (i % 2), (lane % 4 + 4 * (i // 2)) * per
            for e in range(per):
                out[_RESULT_A + row, column + e] = _value((reg[source, lane] >> np.uint64(8 * element * e)) & keep, fmt)


@jit
def wgmma(h, w, code, base, pc):
    """wgmma.mma_async: this warp's 16 rows."""
    pool, reg, cfg, stat = t.i64_1(h, t.POOL), t.u64_2(h, t.REG), t.i64_1(h, t.CFG), t.i64_1(h, t.STAT)
    warps, out, stale = t.i64_2(h, t.WARP), t.f32_2(h, t.RESULT), t.u32_1(h, t.POISON)
    flight, written_at = t.i64_1(h, t.FLIGHT), t.i64_1(h, t.WRITTEN_AT)
    n, k, fmt, flags, first = code[isa.D], code[isa.F0], code[isa.F1], code[isa.F2], code[isa.POOL]
    accumulators = n // 2
    check, own, agent = cfg[t.CHECK], warps[w, t.CTA_SLOT], warps[w, t.AGENT]
    from_registers, a_count = flags & 16, code[isa.COUNT] - accumulators
    group = warps[w, t.GROUPS] + 1
    quarter = warps[w, t.INDEX] % 4
    b = base + code[isa.B] if code[isa.B] >= 0 else ~code[isa.B]
    a = base + code[isa.A] if code[isa.A] >= 0 else ~code[isa.A]
    held = t.u32_2(h, t.PRED)[w, code[isa.C] >> 1]
    accumulate = ((~held if code[isa.C] & 1 else held) & _ONE) != 0
    record = 0
    if check:
        tensor_agent = hazards.agent_number(h, own, cfg[t.TENSOR_AGENT] + warps[w, t.INDEX] // 4)
        record = hazards.record_of(tensor_agent, group, pc, hazards.WEAK)
        if (stale[b] | (np.uint32(0) if from_registers else stale[a])) or t.u32_2(h, t.PRED_POISON)[
            w, code[isa.C] >> 1
        ]:
            hazards.report(h, hazards.UNINITIALISED_ADDRESS, pc, agent, -1, 0, b, 0, own)
        for i in range(code[isa.COUNT]):
            s = pool[first + i]
            if s < 0:
                continue
            row = base + s
            if (written_at[row] >= warps[w, t.FENCES] and (i >= accumulators or accumulate)) or warps[w, t.FENCES] == 0:
                hazards.report(h, hazards.WGMMA_FENCE, pc, agent, -1, 0, row, 0, own)
            flight[row] = 2 * group + (i >= accumulators)
    bad_rows, bad_columns = np.uint32(0), False
    if from_registers:
        _fragment(h, base, first + accumulators, fmt, a_count)
        for i in range(a_count):
            s = pool[first + accumulators + i]
            bad_rows |= stale[base + s if s >= 0 else ~s]
    elif read_operand(
        h, w, np.int64(reg[a, 0]), (flags >> 2) & 1, 16 * quarter, _ROWS, k, fmt, _RESULT_A, False, record, pc
    ):
        bad_rows = _FULL
    if read_operand(h, w, np.int64(reg[b, 0]), (flags >> 3) & 1, 0, n, k, code[isa.F3], _RESULT_B, True, record, pc):
        bad_columns = True
    if flags & 1:
        for r in range(_ROWS):
            for j in range(k):
                out[_RESULT_A + r, j] = -out[_RESULT_A + r, j]
    if flags & 2:
        for j in range(k):
            for c in range(n):
                out[_RESULT_B + j, c] = -out[_RESULT_B + j, c]
    for i in range(accumulators):
        row = base + pool[first + i]
        for lane in range(LANES):
            at = _RESULT_C + lane // 4 + 8 * (i // 2 % 2)
            column = i // 4 * 8 + lane % 4 * 2 + i % 2
            out[at, column] = np.uint32(reg[row, lane]).view(np.float32) if accumulate else np.float32(0)
    _multiply(out, n, k)
    for i in range(accumulators):
        row = base + pool[first + i]
        for lane in range(LANES):
            at = _RESULT_C + lane // 4 + 8 * (i // 2 % 2)
            column = i // 4 * 8 + lane % 4 * 2 + i % 2
            reg[row, lane] = np.uint64(np.float32(out[at, column]).view(np.uint32))
        if check:
            if not accumulate:  # what the register held before matters to no later mma
                stale[row] = 0
                written_at[row] = -1
            stale[row] |= bad_rows
            if bad_columns:
                stale[row] = _FULL
    warps[w, t.OPEN_WGMMA] += 1
    stat[t.MMA_FLOPS] += 2 * _ROWS * n * k


@jit
def wait(h, w, pending):
    """wgmma.wait_group; returns False until the other warps of the warpgroup have committed as many groups."""
    warps, cfg = t.i64_2(h, t.WARP), t.i64_1(h, t.CFG)
    done = warps[w, t.GROUPS] - pending
    if done <= warps[w, t.GROUPS_DONE]:
        return True
    first = w - warps[w, t.INDEX] % 4
    for other in range(first, min(first + 4, w - warps[w, t.INDEX] + cfg[t.WARPS])):
        if warps[other, t.GROUPS] < done and warps[other, t.STATE] != t.W_DONE:
            warps[w, t.WAIT_A] = done
            return False
    warps[w, t.GROUPS_DONE] = done
    if cfg[t.CHECK]:
        hazards.know(h, w, cfg[t.TENSOR_AGENT] + warps[w, t.INDEX] // 4, done)
    return True


@jit
def mma(h, w, code, base):
    """mma.sync m16n8kK."""
    pool, reg, stat, out = t.i64_1(h, t.POOL), t.u64_2(h, t.REG), t.i64_1(h, t.STAT), t.f32_2(h, t.RESULT)
    stale, warps = t.u32_1(h, t.POISON), t.i64_2(h, t.WARP)
    k, fmt, a_count, first = code[isa.F0], code[isa.F1], code[isa.F2], code[isa.POOL]
    b_count = code[isa.COUNT] - 8 - a_count
    _fragment(h, base, first + 4, fmt, a_count)
    element = isa.FORMAT_BYTES[code[isa.F3]]
    per = 4 // element
    keep = np.uint64((1 << (8 * element)) - 1)
    bad_rows, bad_columns, bad_sums = np.int64(0), np.int64(0), t.i64_2(h, t.SCRATCH)[0]
    for i in range(b_count):
        s = pool[first + 4 + a_count + i]
        source = base + s if s >= 0 else ~s
        for lane in range(LANES):
            bad_columns |= np.int64((stale[source] >> np.uint32(lane)) & _ONE) << (lane // 4)
            for e in range(per):
                value = _value((reg[source, lane] >> np.uint64(8 * element * e)) & keep, code[isa.F3])
                out[_RESULT_B + (lane % 4 + 4 * i) * per + e, lane // 4] = value
    for i in range(a_count):
        s = pool[first + 4 + i]
        source = base + s if s >= 0 else ~s
        for lane in range(LANES):
            bad_rows |= np.int64((stale[source] >> np.uint32(lane)) & _ONE) << (lane // 4 + 8 * (i % 2))
    for i in range(4):
        s = pool[first + 4 + a_count + b_count + i]
        source = base + s if s >= 0 else ~s
        bad_sums[i] = stale[source]
        for lane in range(LANES):
            out[_RESULT_C + lane // 4 + 8 * (i // 2), lane % 4 * 2 + i % 2] = np.uint32(reg[source, lane]).view(
                np.float32
            )
    _multiply(out, 8, k)
    for i in range(4):
        to = base + pool[first + i]
        stale[to] = np.uint32(bad_sums[i])
        for lane in range(LANES):
            row, column = lane // 4 + 8 * (i // 2), lane % 4 * 2 + i % 2
            reg[to, lane] = np.uint64(np.float32(out[_RESULT_C + row, column]).view(np.uint32))
            stale[to] |= np.uint32((bad_rows >> row | bad_columns >> column) & 1) << np.uint32(lane)
        t.i64_1(h, t.WRITTEN_AT)[to] = warps[w, t.FENCES]
    stat[t.MMA_FLOPS] += 2 * _ROWS * 8 * k
