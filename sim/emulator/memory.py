"""Loads and stores of one warp, counted in 32-byte sectors and shared-memory wavefronts."""

import numpy as np

from sim.cache import READ, WRITTEN
from sim.counts import SECTOR
from sim.emulator import hazards, isa, places, shadow
from sim.emulator import tables as t
from sim.emulator.alu import LANES, extend, low_mask
from sim.linked_jit import jit

_READ, _WRITTEN = READ, WRITTEN
_ONE = np.uint32(1)
_BANKS = 32
# SCRATCH rows: what `locate` found for each lane; then the words that a request moves in each bank.
FLAT, OFFSET, WHERE, KIND, WORDS = range(5)
NOWHERE, IN_GLOBAL, IN_SHARED, IN_LOCAL, IN_PARAM = range(5)


@jit
def target_cta(h, w, address):
    """The CTA slot that a shared::cluster address lies in, or -1."""
    cfg, warps, ctas = t.i64_1(h, t.CFG), t.i64_2(h, t.WARP), t.i64_2(h, t.CTA)
    own = warps[w, t.CTA_SLOT]
    rank = (address & 0xFFFFFFFF) >> isa.RANK_SHIFT
    if rank == 0:
        return own
    if rank > cfg[t.CLUSTER_SIZE]:
        return -1
    return own - ctas[own, t.C_RANK] + rank - 1


@jit
def locate(h, w, row, offset, space, mask, width, pc):
    """Resolve every active lane's address; returns the lanes whose access is in bounds and aligned."""
    cfg, warps = t.i64_1(h, t.CFG), t.i64_2(h, t.WARP)
    reg, found, arrays = t.u64_2(h, t.REG), t.i64_2(h, t.SCRATCH), t.i64_2(h, t.ARRAYS)
    cta = warps[w, t.CTA_SLOT]
    good = np.uint32(0)
    for lane in range(LANES):
        if not (mask >> np.uint32(lane)) & np.uint32(1):
            continue
        address = np.int64(reg[row, lane]) + offset
        kind = NOWHERE
        inside = address
        where = 0
        flat = 0
        ok = False
        if space == isa.SHARED or (space == isa.GENERIC and address >> 56 == 1):
            kind = IN_SHARED
            where = target_cta(h, w, address)
            inside = address & ((1 << isa.RANK_SHIFT) - 1)
            ok = where >= 0 and inside + width <= cfg[t.SHARED_BYTES]
            flat = where * cfg[t.SHARED_STRIDE] + inside
        elif space == isa.LOCAL or (space == isa.GENERIC and address >> 57 == 1):
            kind = IN_LOCAL
            inside = address & (isa.LOCAL_WINDOW - 1)
            ok = inside >= 0 and inside + width <= cfg[t.LOCAL_BYTES]
            flat = (w * LANES + lane) * cfg[t.LOCAL_BYTES] + inside
        elif space == isa.PARAM or (space == isa.GENERIC and address >> 58 == 1):
            kind = IN_PARAM
            inside = address & (isa.PARAM_WINDOW - 1)
            ok = inside >= 0 and inside + width <= cfg[t.PARAM_BYTES]
            flat = inside
        else:
            where = (address >> isa.ARRAY_SHIFT) - 1
            if 0 <= where < cfg[t.ARRAY_COUNT]:
                kind = IN_GLOBAL
                inside = address & ((1 << isa.ARRAY_SHIFT) - 1)
                ok = inside + width <= arrays[where, t.A_BYTES]
                flat = arrays[where, t.A_FLAT] + inside
        if not ok:
            null = kind == NOWHERE and 0 <= address < 1 << isa.ARRAY_SHIFT
            hazard = hazards.NULL_POINTER if null else hazards.OUT_OF_BOUNDS
            hazards.report(h, hazard, pc, warps[w, t.AGENT], lane, 0, address, width, cta)
        elif inside % width:
            hazards.report(h, hazards.MISALIGNED, pc, warps[w, t.AGENT], lane, 0, address, width, cta)
        else:
            good |= np.uint32(1) << np.uint32(lane)
        found[FLAT, lane] = flat
        found[OFFSET, lane] = inside
        found[WHERE, lane] = where
        found[KIND, lane] = kind
    return good


@jit
def sectors_of(h, good, width, mark):
    """Unique 32-byte sectors that the located global lanes touch; marks them as read or written."""
    found, arrays, marks = t.i64_2(h, t.SCRATCH), t.i64_2(h, t.ARRAYS), t.u8_1(h, t.MARKS)
    unique, previous = 0, -1
    for lane in range(LANES):
        if not (good >> np.uint32(lane)) & np.uint32(1) or found[KIND, lane] != IN_GLOBAL:
            continue
        base = arrays[found[WHERE, lane], t.A_MARK]
        first = base + found[OFFSET, lane] // SECTOR
        last = base + (found[OFFSET, lane] + width - 1) // SECTOR
        for sector in range(first, last + 1):
            marks[sector] |= mark
            if sector > previous:
                unique += 1
                previous = sector
            elif sector < previous and not _seen(found, arrays, good, lane, sector, width):
                unique += 1
    return unique


@jit
def _seen(found, arrays, good, lane, sector, width):
    """Whether an earlier lane touched the sector."""
    for other in range(lane):
        if (good >> np.uint32(other)) & np.uint32(1) and found[KIND, other] == IN_GLOBAL:
            base = arrays[found[WHERE, other], t.A_MARK]
            first = base + found[OFFSET, other] // SECTOR
            if first <= sector <= base + (found[OFFSET, other] + width - 1) // SECTOR:
                return True
    return False


@jit
def count_wavefronts(h, good, width):
    """Wavefronts of a shared-memory request: for each 128 bytes that its lanes move, the most words in one bank."""
    found, stat = t.i64_2(h, t.SCRATCH), t.i64_1(h, t.STAT)
    distinct = found[WORDS]
    words = max(width // 4, 1)
    group = _BANKS // words
    total, ideal = 0, 0
    for start in range(0, LANES, group):
        worst, taken = 0, np.uint32(0)  # taken: banks that some word lies in
        for lane in range(start, start + group):
            if not (good >> np.uint32(lane)) & _ONE or found[KIND, lane] != IN_SHARED:
                continue
            first = found[FLAT, lane] >> 2
            bank = first % _BANKS
            if (taken >> np.uint32(bank)) & _ONE and _moved(found, good, start, lane, first):
                continue
            for to in range(bank, bank + words):  # aligned: none is beyond the last bank
                bit = _ONE << np.uint32(to)
                distinct[to] = distinct[to] + 1 if taken & bit else 1
                taken |= bit
                worst = max(worst, distinct[to])
        total += worst
        ideal += min(worst, 1)
    if total:
        stat[t.SHARED_REQUESTS] += 1
        stat[t.SHARED_WAVEFRONTS] += total
        stat[t.SHARED_IDEAL] += ideal


@jit
def _moved(found, good, start, lane, first):
    """Whether a lane of [start, lane) moves the word `first` of shared memory too; all lanes move equal widths."""
    for other in range(lane - 1, start - 1, -1):
        held = (good >> np.uint32(other)) & _ONE and found[KIND, other] == IN_SHARED
        if held and found[FLAT, other] >> 2 == first:
            return True
    return False


@jit
def read_element(h, kind, flat, width):
    if kind == IN_GLOBAL:
        if width == 4:
            return np.uint64(t.u32_1(h, t.G32)[flat >> 2])
        if width == 2:
            return np.uint64(t.u16_1(h, t.G16)[flat >> 1])
        if width == 8:
            return t.u64_1(h, t.G64)[flat >> 3]
        return np.uint64(t.u8_1(h, t.G8)[flat])
    if kind == IN_SHARED:
        if width == 4:
            return np.uint64(t.u32_1(h, t.S32)[flat >> 2])
        if width == 2:
            return np.uint64(t.u16_1(h, t.S16)[flat >> 1])
        if width == 8:
            return t.u64_1(h, t.S64)[flat >> 3]
        return np.uint64(t.u8_1(h, t.S8)[flat])
    data = t.u8_1(h, t.LOCAL8) if kind == IN_LOCAL else t.u8_1(h, t.PARAM8)
    value = np.uint64(0)
    for i in range(width):
        value |= np.uint64(data[flat + i]) << np.uint64(8 * i)
    return value


@jit
def write_element(h, kind, flat, width, value):
    if kind == IN_GLOBAL:
        if width == 4:
            t.u32_1(h, t.G32)[flat >> 2] = value
        elif width == 2:
            t.u16_1(h, t.G16)[flat >> 1] = value
        elif width == 8:
            t.u64_1(h, t.G64)[flat >> 3] = value
        else:
            t.u8_1(h, t.G8)[flat] = value
    elif kind == IN_SHARED:
        if width == 4:
            t.u32_1(h, t.S32)[flat >> 2] = value
        elif width == 2:
            t.u16_1(h, t.S16)[flat >> 1] = value
        elif width == 8:
            t.u64_1(h, t.S64)[flat >> 3] = value
        else:
            t.u8_1(h, t.S8)[flat] = value
    elif kind == IN_LOCAL:
        data = t.u8_1(h, t.LOCAL8)
        for i in range(width):
            data[flat + i] = (value >> np.uint64(8 * i)) & np.uint64(255)


@jit
def touch_lane(h, w, lane, width, record, is_write, equal, poison):
    """Check a located lane's access against the shadow memory; True where it reads poison."""
    found = t.i64_2(h, t.SCRATCH)
    if found[KIND, lane] == IN_SHARED:
        return shadow.touch_shared(
            h, w, found[WHERE, lane], found[OFFSET, lane], width, record, lane, is_write, False, equal, poison
        )
    if found[KIND, lane] == IN_GLOBAL:
        return shadow.touch_global(
            h, w, found[WHERE, lane], found[OFFSET, lane], width, record, lane, is_write, False, equal, poison
        )
    return False


@jit
def unset(h, lane, width):
    """Whether part of what a located lane touches was never written or holds poison."""
    found, cfg, arrays = t.i64_2(h, t.SCRATCH), t.i64_1(h, t.CFG), t.i64_2(h, t.ARRAYS)
    where, offset = found[WHERE, lane], found[OFFSET, lane]
    if found[KIND, lane] == IN_SHARED:
        state, shift, base = t.u8_1(h, t.SHARED_STATE), cfg[t.SHARED_SHIFT], where * cfg[t.SHARED_STRIDE]
        first = (base + offset) >> shift
    elif found[KIND, lane] == IN_GLOBAL and arrays[where, t.A_TRACKED]:
        state, shift = t.u8_1(h, t.GLOBAL_STATE), cfg[t.GLOBAL_SHIFT]
        first = arrays[where, t.A_GRANULE] + (offset >> shift)
    else:
        return False
    for g in range(first, first + max(width >> shift, 1)):
        if state[g] != shadow.CLEAN:
            return True
    return False


@jit
def place(h, lane):
    """A number for the location that a lane touches, not 0."""
    found = t.i64_2(h, t.SCRATCH)
    if found[KIND, lane] == IN_SHARED:
        return places.shared_key(h, found[WHERE, lane], found[OFFSET, lane])
    return ((found[WHERE, lane] + 1) << isa.ARRAY_SHIFT) + found[OFFSET, lane]


@jit
def check_remote(h, w, lane, pc):
    """An access to the shared memory of a CTA that has exited."""
    found, ctas, warps = t.i64_2(h, t.SCRATCH), t.i64_2(h, t.CTA), t.i64_2(h, t.WARP)
    if found[KIND, lane] == IN_SHARED and ctas[found[WHERE, lane], t.C_ALIVE] == 0:
        hazards.report(
            h, hazards.CLUSTER_EXITED, pc, warps[w, t.AGENT], lane, 0, found[OFFSET, lane], 0, warps[w, t.CTA_SLOT]
        )


@jit
def load(h, w, code, base, mask, pc):
    """ld in any space."""
    pool, reg, cfg, stat = t.i64_1(h, t.POOL), t.u64_2(h, t.REG), t.i64_1(h, t.CFG), t.i64_1(h, t.STAT)
    found = t.i64_2(h, t.SCRATCH)
    poison, written_at, warps = t.u32_1(h, t.POISON), t.i64_1(h, t.WRITTEN_AT), t.i64_2(h, t.WARP)
    row = base + code[isa.A] if code[isa.A] >= 0 else ~code[isa.A]
    width, count, first = code[isa.F2], code[isa.COUNT], code[isa.POOL]
    whole = width * count
    good = locate(h, w, row, code[isa.F0], code[isa.F1], mask, whole, pc)
    check = cfg[t.CHECK]
    signed, register_shift = code[isa.F3] & 1, code[isa.F3] >> 1
    out_mask = low_mask(register_shift)
    strong = (code[isa.C] & isa.STRONG) != 0
    record = hazards.warp_record(h, w, pc, places.strength(code[isa.C])) if check else 0
    if check and poison[row] & mask:
        hazards.report(h, hazards.UNINITIALISED_ADDRESS, pc, warps[w, t.AGENT], -1, 0, row, 0, warps[w, t.CTA_SLOT])
    dirty = np.uint32(0)
    any_global, any_shared = False, False
    for lane in range(LANES):
        bit = np.uint32(1) << np.uint32(lane)
        if not mask & bit:
            continue
        if not good & bit:
            for i in range(count):
                reg[base + pool[first + i], lane] = 0
            continue
        kind, flat = found[KIND, lane], found[FLAT, lane]
        any_global |= kind == IN_GLOBAL
        any_shared |= kind == IN_SHARED
        for i in range(count):
            value = read_element(h, kind, flat + i * width, width)
            if signed:
                value = np.uint64(extend(value, 64 - 8 * width, True)) & out_mask
            reg[base + pool[first + i], lane] = value
        if check and kind in (IN_GLOBAL, IN_SHARED):
            if kind == IN_SHARED:
                check_remote(h, w, lane, pc)
            if strong:
                places.meet(h, w, lane, place(h, lane), True, False, code[isa.C])
            if touch_lane(h, w, lane, whole, record, False, False, False):
                dirty |= bit
    if any_global and code[isa.F1] != isa.CONST:
        if strong:
            stat[t.POLLS] += 1
            stat[t.SPUN] += 1
        else:
            unique = sectors_of(h, good, whole, _READ)
            stat[t.LOAD_SECTORS] += unique
            stat[t.L2_TO_SM] += SECTOR * unique
            stat[t.LOAD_REQUESTS] += 1
    if any_shared:
        count_wavefronts(h, good, whole)
    if check:
        for i in range(count):
            to = base + pool[first + i]
            poison[to] = (poison[to] & ~mask) | dirty
            written_at[to] = warps[w, t.FENCES]
            shadow.touch_register(h, w, to, True, pc)


@jit
def store(h, w, code, base, mask, pc):
    """st in any space."""
    pool, reg, cfg, stat = t.i64_1(h, t.POOL), t.u64_2(h, t.REG), t.i64_1(h, t.CFG), t.i64_1(h, t.STAT)
    found, poison, warps = t.i64_2(h, t.SCRATCH), t.u32_1(h, t.POISON), t.i64_2(h, t.WARP)
    row = base + code[isa.A] if code[isa.A] >= 0 else ~code[isa.A]
    width, count, first = code[isa.F2], code[isa.COUNT], code[isa.POOL]
    whole = width * count
    good = locate(h, w, row, code[isa.F0], code[isa.F1], mask, whole, pc)
    check = cfg[t.CHECK]
    strong = (code[isa.C] & isa.STRONG) != 0
    record = hazards.warp_record(h, w, pc, places.strength(code[isa.C])) if check else 0
    cta, agent = warps[w, t.CTA_SLOT], warps[w, t.AGENT]
    dirty = np.uint32(0)
    if check:
        if poison[row] & mask:
            hazards.report(h, hazards.UNINITIALISED_ADDRESS, pc, agent, -1, 0, row, 0, cta)
        for i in range(count):
            source = base + pool[first + i] if pool[first + i] >= 0 else ~pool[first + i]
            dirty |= poison[source]
            shadow.touch_register(h, w, source, False, pc)
    any_global, any_shared = False, False
    for lane in range(LANES):
        bit = np.uint32(1) << np.uint32(lane)
        if not good & bit:
            continue
        kind, flat = found[KIND, lane], found[FLAT, lane]
        any_global |= kind == IN_GLOBAL
        any_shared |= kind == IN_SHARED
        if check and kind in (IN_GLOBAL, IN_SHARED):
            if kind == IN_SHARED:
                check_remote(h, w, lane, pc)
            elif dirty & bit:
                hazards.report(
                    h, hazards.UNINITIALISED_OUTPUT, pc, agent, lane, 0, found[OFFSET, lane], found[WHERE, lane], cta
                )
            equal = not strong and not dirty & bit
            for i in range(count):
                if not equal:
                    break
                source = base + pool[first + i] if pool[first + i] >= 0 else ~pool[first + i]
                equal = read_element(h, kind, flat + i * width, width) == reg[source, lane] & low_mask(64 - 8 * width)
            touch_lane(h, w, lane, whole, record, True, equal, (dirty & bit) != 0)
            if strong:
                places.meet(h, w, lane, place(h, lane), False, True, code[isa.C])
        for i in range(count):
            source = base + pool[first + i] if pool[first + i] >= 0 else ~pool[first + i]
            write_element(h, kind, flat + i * width, width, reg[source, lane])
    stat[t.PROGRESS] += 1
    if any_global:
        unique = sectors_of(h, good, whole, _WRITTEN)
        stat[t.SM_TO_L2] += SECTOR * unique
        if not strong:
            stat[t.STORE_SECTORS] += unique
            stat[t.STORE_REQUESTS] += 1
    if any_shared:
        count_wavefronts(h, good, whole)
