"""The interpreter: runs one warp for a while, and schedules warps and copies in a seeded random order."""

import numpy as np

from sim.emulator import (
    alu,
    atomics,
    calls,
    copies,
    directed,
    divergence,
    flight,
    fpu,
    fragments,
    groups,
    hazards,
    isa,
    lane_order,
    lanes,
    lifecycle,
    matrices,
    mbarrier,
    memory,
    profile,
    shadow,
    sync,
    tensor,
    warpwide,
)
from sim.emulator import tables as t
from sim.emulator.alu import LANES
from sim.linked_jit import jit

_ONE = np.uint32(1)
_FULL = np.uint32(0xFFFFFFFF)
_FAR = 1 << 40
_ALL_LANES = isa.ALL_LANES
FINISHED, DEADLOCKED, OUT_OF_STEPS, STOPPED = range(4)


@jit
def write_back(reg, result, d, mask):
    if mask == _FULL:
        for i in range(LANES):
            reg[d, i] = result[i]
    else:
        for i in range(LANES):
            if (mask >> np.uint32(i)) & _ONE:
                reg[d, i] = result[i]


@jit
def run_warp(h, w, budget):
    """Execute up to `budget` instructions of warp w; it stops early where it blocks or ends."""
    warps, reg, pred = t.i64_2(h, t.WARP), t.u64_2(h, t.REG), t.u32_2(h, t.PRED)
    codes, pool, cfg, stat = t.i64_2(h, t.CODE), t.i64_1(h, t.POOL), t.i64_1(h, t.CFG), t.i64_1(h, t.STAT)
    poison, pred_poison = t.u32_1(h, t.POISON), t.u32_2(h, t.PRED_POISON)
    written_at, result = t.i64_1(h, t.WRITTEN_AT), t.u64_1(h, t.LANE_RESULT)
    base, check = warps[w, t.BASE], cfg[t.CHECK]
    pc, mask, limit = warps[w, t.PC], np.uint32(warps[w, t.MASK]), warps[w, t.LIMIT]
    steps, profiled = 0, cfg[t.PROFILED] >= 0
    while steps < budget:
        if pc >= limit:
            divergence.put_lanes(h, w, mask, pc)
            divergence.reselect(h, w)
            pc, mask, limit = warps[w, t.PC], np.uint32(warps[w, t.MASK]), warps[w, t.LIMIT]
        code = codes[pc]
        op, active = code[isa.OP], mask
        if profiled:
            profile.note(h, pc, np.uint64(mask))
        steps += 1
        guard = code[isa.GUARD]
        if guard:
            held = pred[w, (guard - 2) >> 1]
            active = mask & (~held if guard & 1 else held)
            if check and pred_poison[w, (guard - 2) >> 1] & mask:
                hazards.report(
                    h, hazards.UNINITIALISED_BRANCH, pc, warps[w, t.AGENT], -1, 0, guard, 0, warps[w, t.CTA_SLOT]
                )
        stat[code[isa.CLASS]] += 1
        if op == isa.BRA:
            target = code[isa.F0]
            if active == mask:
                pc = target
            elif active == 0:
                pc += 1
            else:
                divergence.put_lanes(h, w, active, target)
                divergence.put_lanes(h, w, mask & ~active, pc + 1)
                divergence.reselect(h, w)
                pc, mask, limit = warps[w, t.PC], np.uint32(warps[w, t.MASK]), warps[w, t.LIMIT]
            continue
        if active == 0:
            pc += 1
            continue
        a, b, c, d = code[isa.A], code[isa.B], code[isa.C], code[isa.D]
        a = base + a if a >= 0 else ~a
        b = base + b if b >= 0 else ~b
        if op < isa.FLOAT_END:
            c = base + c if c >= 0 else ~c
            d = base + d
            if op < isa.INTEGER_END:
                if not alu.common(op, reg, result, a, b, c, code[isa.F0], code[isa.F1], code[isa.F2], code[isa.F3]):
                    e = 0
                    if op == isa.BFI:
                        e = base + code[isa.F3] if code[isa.F3] >= 0 else ~code[isa.F3]
                    alu.rare(op, reg, result, a, b, c, e, code[isa.F0], code[isa.F1], code[isa.F2], code[isa.F3])
            elif op >= isa.CVT_F2F:
                if op == isa.CVT_PACK and code[isa.F1] == isa.BF16 and code[isa.F2] == isa.RN and code[isa.F3] == 0:
                    for i in range(LANES):
                        result[i] = (fpu.bf16_of(fpu.f32(reg[a, i])) << np.uint64(16)) | fpu.bf16_of(fpu.f32(reg[b, i]))
                else:
                    fpu.convert(op, reg, result, a, b, code[isa.F0], code[isa.F1], code[isa.F2], code[isa.F3])
            else:
                rounding = (code[isa.F3] >> 2) & 7
                fast = code[isa.F0] == isa.F32 and code[isa.F1] == 0 and code[isa.F3] == 0
                if rounding:
                    directed.arithmetic(op, reg, result, a, b, c, code[isa.F0], code[isa.F1], code[isa.F2], rounding)
                elif not (fast and fpu.single(op, reg, result, a, b, c, code[isa.F2])):
                    fpu.general(op, reg, result, a, b, c, code[isa.F0], code[isa.F1], code[isa.F2], code[isa.F3])
                if op == isa.FEX2:
                    stat[t.EXP] += alu.count_bits(np.uint64(active)) * (1 + (code[isa.F3] & 1))
            write_back(reg, result, d, active)
            if check:
                bad = (poison[a] | poison[b] | poison[c]) & active
                poison[d] = (poison[d] & ~active) | bad
                written_at[d] = warps[w, t.FENCES]
                if warps[w, t.OPEN_WGMMA]:
                    shadow.touch_register(h, w, a, False, pc)
                    shadow.touch_register(h, w, b, False, pc)
                    shadow.touch_register(h, w, c, False, pc)
                    shadow.touch_register(h, w, d, True, pc)
            pc += 1
            continue
        wide = code[isa.WIDE]
        if wide:
            live = np.uint32(warps[w, t.LIVE])
            needed = live
            if wide != _ALL_LANES:
                needed = warpwide.named(h, w, base + wide - 1 if wide > 0 else ~wide, active, pc)
            if active != live and not warpwide.gather(h, w, mask, active, needed, pc):
                pc, mask, limit = warps[w, t.PC], np.uint32(warps[w, t.MASK]), warps[w, t.LIMIT]
                continue
            if check and active == live:
                warps[w, t.CONVERGED] = lane_order.epoch_of_warp(h, w)
        if op < isa.BRA:
            _predicates(h, w, op, code, base, a, b, active, pc)
            pc += 1
            continue
        if op == isa.EXIT:
            warps[w, t.LIVE] &= np.int64(~active) & 0xFFFFFFFF
            divergence.put_lanes(h, w, mask, pc + 1)
            if not divergence.reselect(h, w):
                lifecycle.finish(h, w, pc)
                cfg[t.STEPS] += steps
                return
            pc, mask, limit = warps[w, t.PC], np.uint32(warps[w, t.MASK]), warps[w, t.LIMIT]
            continue
        if op == isa.CALL or op == isa.CALL_INDIRECT or op == isa.RET:
            divergence.put_lanes(h, w, mask & ~active, pc + 1)
            calls.jump(h, w, code, base, a, active, pc)
            if cfg[t.STOPPED]:
                break
            divergence.reselect(h, w)
            pc, mask, limit = warps[w, t.PC], np.uint32(warps[w, t.MASK]), warps[w, t.LIMIT]
            continue
        if op == isa.CLOCK:
            for i in range(LANES):
                if (active >> np.uint32(i)) & _ONE:
                    reg[base + d, i] = np.uint64(cfg[t.STEPS] + steps)
            poison[base + d] &= ~active
            pc += 1
            continue
        if op == isa.BRX:
            divergence.put_lanes(h, w, mask & ~active, pc + 1)
            for i in range(LANES):
                if (active >> np.uint32(i)) & _ONE:
                    choice = min(np.int64(reg[a, i]), code[isa.COUNT] - 1)
                    divergence.put_lanes(h, w, _ONE << np.uint32(i), pool[code[isa.POOL] + choice])
            divergence.reselect(h, w)
            pc, mask, limit = warps[w, t.PC], np.uint32(warps[w, t.MASK]), warps[w, t.LIMIT]
            continue
        if op == isa.LD:
            memory.load(h, w, code, base, active, pc)
            if code[isa.C] and mask != np.uint32(warps[w, t.LIVE]) and warpwide.polls(h, w, mask, pc):
                pc, mask, limit = warps[w, t.PC], np.uint32(warps[w, t.MASK]), warps[w, t.LIMIT]
                continue
        elif op == isa.ATOM:
            atomics.atomic(h, w, code, base, active, pc)
            if mask != np.uint32(warps[w, t.LIVE]) and warpwide.polls(h, w, mask, pc):
                pc, mask, limit = warps[w, t.PC], np.uint32(warps[w, t.MASK]), warps[w, t.LIMIT]
                continue
        elif op == isa.ST:
            memory.store(h, w, code, base, active, pc)
        elif op == isa.WGMMA:
            tensor.wgmma(h, w, code, base, pc)
        elif op == isa.WARP_SYNC:
            if not warpwide.sync(h, w, a, mask, active, pc):
                pc, mask, limit = warps[w, t.PC], np.uint32(warps[w, t.MASK]), warps[w, t.LIMIT]
                continue
        elif op == isa.WGMMA_WAIT:
            if not tensor.wait(h, w, code[isa.F0]):
                block(h, w, pc, mask, limit, t.W_WGMMA)
                cfg[t.STEPS] += steps
                return
            if warps[w, t.GROUPS_DONE] >= warps[w, t.GROUPS] and code[isa.F0] == 0:
                warps[w, t.OPEN_WGMMA] = 0
        elif op == isa.WGMMA_COMMIT:
            warps[w, t.GROUPS] += 1
            first = w - warps[w, t.INDEX] % 4
            for other in range(first, min(first + 4, w - warps[w, t.INDEX] + cfg[t.WARPS])):
                if warps[other, t.STATE] == t.W_WGMMA:
                    sync.wake(h, other)
        elif op == isa.WGMMA_FENCE:
            warps[w, t.FENCES] += 1
        elif op == isa.MBAR_WAIT:
            if not mbarrier.wait(h, w, code, base, active, pc):
                block(h, w, pc, mask, limit, t.W_MBAR)
                cfg[t.STEPS] += steps
                return
            if warps[w, t.SPINS] > 0:
                warps[w, t.SPINS] = 0
                budget = min(budget, steps + 64)  # give others a turn soon
        elif op == isa.BAR_SYNC or op == isa.BAR_RED or op == isa.BAR_ARRIVE:
            warps[w, t.LIMIT] = limit
            if not sync.barrier_arrive(h, w, code, base, active, pc, op != isa.BAR_ARRIVE):
                warps[w, t.MASK], warps[w, t.WAIT_PC], warps[w, t.SINCE] = np.int64(mask), pc, cfg[t.STEPS]
                cfg[t.STEPS] += steps
                return
        elif op == isa.CLUSTER_WAIT:
            warps[w, t.LIMIT] = limit
            if not sync.cluster_wait(h, w, active, pc):
                warps[w, t.WAIT_PC], warps[w, t.SINCE] = pc, cfg[t.STEPS]
                cfg[t.STEPS] += steps
                return
        elif op == isa.BULK_WAIT:
            if not groups.wait_bulk(h, w, code[isa.F0], code[isa.F1], active):
                block(h, w, pc, mask, limit, t.W_BULK)
                cfg[t.STEPS] += steps
                return
        elif op == isa.TRAP:
            hazards.report(h, hazards.TRAP, pc, warps[w, t.AGENT], -1, 0, 0, 0, warps[w, t.CTA_SLOT])
            cfg[t.STOPPED] = 1
        else:
            _others(h, w, op, code, base, a, b, active, pc)
        if cfg[t.STOPPED]:
            break
        pc += 1
    warps[w, t.PC], warps[w, t.MASK], warps[w, t.LIMIT] = pc, np.int64(mask), limit
    cfg[t.STEPS] += steps


@jit
def _predicates(h, w, op, code, base, a, b, active, pc):
    """Operations on predicates and between lanes."""
    warps, cfg = t.i64_2(h, t.WARP), t.i64_1(h, t.CFG)
    d = base + code[isa.D]
    if cfg[t.CHECK] and warps[w, t.OPEN_WGMMA] and op in (isa.SETP, isa.SHFL, isa.UNPACK, isa.REDUX):
        shadow.touch_register(h, w, a, False, pc)
    if op == isa.SETP:
        lanes.set_predicate(h, w, code, a, b, active)
    elif op == isa.PLOGIC:
        lanes.logic(h, w, code, active)
    elif op == isa.SELP:
        lanes.select(h, w, code, d, a, b, active)
    elif op == isa.PACK:
        lanes.pack(h, code, base, d, active)
    elif op == isa.UNPACK:
        lanes.unpack(h, code, base, a, active, warps[w, t.FENCES])
    elif op == isa.SHFL:
        c = base + code[isa.C] if code[isa.C] >= 0 else ~code[isa.C]
        lanes.shuffle(h, w, code, base, d, a, b, c, active, pc)
    elif op == isa.VOTE:
        lanes.vote(h, w, code, d, b, active)
    elif op == isa.REDUX:
        lanes.reduce(h, code, d, a, b, active)
    elif op == isa.MATCH:
        lanes.match(h, w, code, d, a, b, active)
    elif op == isa.ELECT:
        lanes.elect(h, w, code, d, b, active)
    elif op == isa.ACTIVEMASK:
        reg = t.u64_2(h, t.REG)
        for i in range(LANES):
            if (active >> np.uint32(i)) & _ONE:
                reg[d, i] = np.uint64(active)
        t.u32_1(h, t.POISON)[d] &= ~active
    if op not in (isa.SETP, isa.PLOGIC, isa.UNPACK) and not (op == isa.VOTE and code[isa.F0] < 3):
        t.i64_1(h, t.WRITTEN_AT)[d] = warps[w, t.FENCES]
        if cfg[t.CHECK] and warps[w, t.OPEN_WGMMA]:
            shadow.touch_register(h, w, d, True, pc)


@jit
def _others(h, w, op, code, base, a, b, active, pc):
    """Operations that never block."""
    warps = t.i64_2(h, t.WARP)
    if op == isa.SPILL or op == isa.FILL:
        calls.keep(h, w, code, base, active, pc)
    elif op == isa.PRINT:
        calls.remember(h, w, a, b, active)
    elif op == isa.MALLOC:
        calls.allocate(h, base + code[isa.D], a, active)
    elif op == isa.ASSERT:
        calls.fail(h, w, a, b, active, pc)
    elif op == isa.LDMATRIX or op == isa.STMATRIX:
        matrices.matrix(h, w, code, base, active, pc, op == isa.STMATRIX)
    elif op == isa.TMA_LOAD or op == isa.TMA_STORE:
        copies.tensor(h, w, code, base, active, pc)
    elif op == isa.BULK_LOAD or op == isa.BULK_STORE or op == isa.BULK_DSMEM:
        copies.bulk(h, w, code, base, active, pc)
    elif op == isa.STORE_ASYNC:
        copies.store_async(h, w, code, base, active, pc)
    elif op == isa.BULK_COMMIT:
        groups.commit(h, w, active)
    elif op == isa.CP_ASYNC:
        copies.small(h, w, code, base, active, pc)
    elif op == isa.CP_ASYNC_COMMIT:
        groups.commit_small(h, w)
    elif op == isa.CP_ASYNC_WAIT:
        groups.wait_small(h, w, code[isa.F0], code[isa.F1])
    elif op == isa.CP_ASYNC_MBARRIER:
        groups.arrive_small(h, w, code, base, active, pc)
    elif isa.MBAR_INIT <= op <= isa.MBAR_EXPECT or op == isa.MBAR_COMPLETE:
        mbarrier.execute(h, w, code, base, active, pc)
    elif op == isa.FENCE:
        sync.fence(h, w, code[isa.F0], code[isa.F1])
    elif op == isa.CLUSTER_ARRIVE:
        sync.cluster_arrive(h, w, code[isa.F0], pc)
    elif op == isa.MMA:
        if code[isa.D] == 1:
            fragments.mma(h, w, code, base)
        else:
            tensor.mma(h, w, code, base)
    elif op == isa.MAPA:
        reg, d = t.u64_2(h, t.REG), base + code[isa.D]
        for i in range(LANES):
            if (active >> np.uint32(i)) & _ONE:
                inside = reg[a, i] & np.uint64((1 << isa.RANK_SHIFT) - 1)
                window = np.uint64(isa.SHARED_WINDOW) if code[isa.F0] and reg[a, i] >> np.uint64(56) else np.uint64(0)
                reg[d, i] = inside | ((reg[b, i] + np.uint64(1)) << np.uint64(isa.RANK_SHIFT)) | window
        stale = t.u32_1(h, t.POISON)
        stale[d] = (stale[d] & ~active) | ((stale[a] | stale[b]) & active)
    elif op == isa.SETMAXNREG:
        warps[w, t.REGISTER_CHANGES] = (warps[w, t.REGISTER_CHANGES] * 257 + code[isa.F0]) & 0xFFFFFFFF
        warps[w, t.REGISTERS_PC] = pc


@jit
def block(h, w, pc, mask, limit, state):
    """Suspend a warp at an instruction that it will execute again."""
    warps, cfg = t.i64_2(h, t.WARP), t.i64_1(h, t.CFG)
    warps[w, t.PC], warps[w, t.MASK], warps[w, t.LIMIT] = pc, np.int64(mask), limit
    warps[w, t.STATE], warps[w, t.WAIT_PC], warps[w, t.SINCE] = state, pc, cfg[t.STEPS]
    sync.unready(h, w)


@jit(entry=True)
def run(h):
    """Run the launch to its end; returns FINISHED, DEADLOCKED, OUT_OF_STEPS or STOPPED."""
    cfg, clusters, ready = t.i64_1(h, t.CFG), t.i64_2(h, t.CLUSTER), t.i64_1(h, t.READY)
    while True:
        while cfg[t.FREE_SLOTS] > 0 and cfg[t.NEXT_CLUSTER] < cfg[t.CLUSTERS]:
            for slot in range(cfg[t.SLOTS]):
                if not clusters[slot, t.K_ACTIVE] and cfg[t.NEXT_CLUSTER] < cfg[t.CLUSTERS]:
                    lifecycle.start_cluster(h, slot)
        waiting, flying = cfg[t.READY_COUNT], cfg[t.OPS_COUNT]
        if flying > 0 and (waiting == 0 or t.random(h, 4) == 0):
            flight.land(h, t.random(h, flying))
        elif waiting > 0:
            w = ready[t.random(h, waiting)]
            before = cfg[t.STEPS]
            kind = t.random(h, 4)
            budget = (
                cfg[t.QUANTUM]
                if kind == 0 or not cfg[t.CHECK]
                else 1 + t.random(h, 8 if kind == 1 else 100 if kind == 2 else 400)
            )
            run_warp(h, w, budget)
            if cfg[t.TRACE]:
                warps = t.i64_2(h, t.WARP)
                sync.event(h, warps[w, t.AGENT], -1, before, cfg[t.STEPS], -1, 0)
        elif cfg[t.NEXT_CLUSTER] >= cfg[t.CLUSTERS] and cfg[t.FREE_SLOTS] == cfg[t.SLOTS]:
            return FINISHED
        elif not divergence.unstick(h):
            return DEADLOCKED
        if cfg[t.STOPPED]:
            return STOPPED
        if cfg[t.STEPS] > cfg[t.MAX_STEPS]:
            return OUT_OF_STEPS
