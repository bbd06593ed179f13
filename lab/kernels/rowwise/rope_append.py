"""Rotary embedding and the append to the KV cache in one pass over the QKV projection."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lab.kernel import Solves, require_choice, require_grid_y, require_threads
from lab.problems.rope_append import RopeAppend
from sim.counts import SECTOR, Counts, sectors
from sim.formats import FORMATS, encode
from sim.jit import njit
from sim.launch import Array, Launch, Role, Scalar
from sim.machine import Machine
from sim.tiles import SimulatedChip, count_fma, load_lanes, load_vector, store_vector

SOLVES = Solves(
    RopeAppend,
    formats=("bf16", "fp16", "fp8"),
    arch="sm_90",
    options={
        "head_dim": (64, 256),
        "pairs": ("neighbours",),
        "page": (1, 16, 64, 128),
        "activations": ("fp16",),
        "bias": (True,),
        "norm": (True,),
    },
    facts=("activations", "kv", "head_dim", "page", "neighbours", "bias", "norm", "settled"),
)

LANES = 32
VECTOR = 8  # elements of a lane's load
SIZE = 2  # bytes of an element of qkv and q
TURN = 8  # bytes of a cosine and a sine
WORD = 4  # bytes of an index or a scale
TAKEN = ("qkv", "positions", "slots", "turns", "bias", "norms", "k_scale", "v_scale")


@dataclass(frozen=True)
class Schedule:
    """How many heads of a token a CTA has."""

    warps: int
    rounds: int  # heads of a lane
    late: int = 2  # 0: the launch behind begins at once, 1: when that ahead has ended, 2: likewise, but for one token

    def __post_init__(self) -> None:
        require_choice(self, "warps", (1, 2, 4, 8))
        require_choice(self, "rounds", (1, 2, 3, 4))
        require_choice(self, "late", (0, 1, 2))

    @property
    def threads(self) -> int:
        return LANES * self.warps

    def fits(self, problem: RopeAppend, machine: Machine) -> None:
        require_threads(1, self.threads, machine)
        require_grid_y(parts(problem, self), "parts of a token's heads", machine)


def blocks(problem: RopeAppend) -> int:
    """How many times a warp's heads the heads of a token are."""
    return -(-problem.heads // heads_of_warp(problem))


def heads_of_warp(problem: RopeAppend) -> int:
    return LANES // (problem.head_dim // 2 // VECTOR)


def parts(problem: RopeAppend, schedule: Schedule) -> int:
    """CTAs of a token."""
    return -(-blocks(problem) // (schedule.warps * schedule.rounds))


def candidates(problem: RopeAppend, machine: Machine) -> Iterator[Schedule]:
    """Few tokens: a head a lane; many: more heads a lane, and whole tokens a CTA."""
    found = [Schedule(warps, rounds) for warps in (1, 2, 4, 8) for rounds in (1, 2, 3, 4)]
    legal = [s for s in found if parts(problem, s) <= machine.max_grid[1]]
    useful = [s for s in legal if s.warps * s.rounds < 2 * blocks(problem)] or legal[:1]
    few = problem.m <= machine.sms
    idle = {s: parts(problem, s) * s.warps * s.rounds - blocks(problem) for s in useful}
    yield from sorted(
        useful, key=lambda s: (s.rounds, idle[s], -s.warps) if few else (idle[s], abs(s.rounds - 3), s.warps)
    )


def launch(problem: RopeAppend, schedule: Schedule, machine: Machine) -> tuple[Launch, ...]:
    p = problem
    k, v = ("cache", "") if p.page else ("k", "v")
    taken = [(name, Role.IN) for name in TAKEN]
    arrays = {**p.inputs, **p.outputs}
    return (
        Launch(
            kernel="rope_append",
            entry="rope_append",
            problem=p,
            schedule=schedule,
            grid=(p.m, parts(p, schedule), 1),
            block=(schedule.threads, 1, 1),
            arguments=(
                *(
                    Array(name, role, *arrays[name]) if name in arrays else Scalar(name or "v", 0, "int64")
                    for name, role in (*taken, ("q", Role.OUT), (k, Role.OUT), (v, Role.OUT))
                ),
                Scalar("q_heads", p.q_heads),
                Scalar("kv_heads", p.kv_heads),
                Scalar("turn_rows", p.turn_rows),
                Scalar("eps", p.eps, "float32"),
            ),
            dependent=True,
        ),
    )


def theory(problem: RopeAppend, schedule: Schedule, machine: Machine) -> Counts:
    p, s, half = problem, schedule, problem.head_dim // 2
    per_warp, count, keys_end = heads_of_warp(p), blocks(p), p.q_heads + p.kv_heads
    warps = sum(min(s.warps, max(0, count - first)) for first in range(0, count, s.warps * s.rounds))
    of_qkv, of_cache = (2 * half * size // SECTOR for size in (SIZE, FORMATS[p.kv].bits // 8))  # sectors of a head
    loads = (1 + p.bias) * p.heads * of_qkv + warps * (2 + 4 * LANES // per_warp)
    if p.norm:  # a row for the queries of a warp, and one for its keys
        loads += of_qkv * (-(-p.q_heads // per_warp) + (keys_end - 1) // per_warp - p.q_heads // per_warp + 1)
    if p.kv == "fp8":
        ranges = [_kv_heads(p, b * per_warp, (b + 1) * per_warp) for b in range(count)]
        loads += sum(sectors(WORD * first, WORD * (end - first)) for both in ranges for first, end in both)
    stores = p.m * (p.q_heads * of_qkv + 2 * p.kv_heads * of_cache)
    return Counts(
        flops=p.flops,
        mma_flops=0,
        exp_count=0,
        global_load_sectors=p.m * loads,
        global_store_sectors=stores,
        tma_load_bytes=0,
        l2_to_sm_bytes=SECTOR * p.m * loads,
        sm_to_l2_bytes=SECTOR * stores,
        hbm_read_bytes=p.read_bytes,
        hbm_write_bytes=p.write_bytes,
    )


def _kv_heads(problem: RopeAppend, first: int, end: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """The KV heads whose keys, and whose values, are among heads first to end of a row of qkv."""
    p = problem
    keys, values = p.q_heads, p.q_heads + p.kv_heads
    return tuple((max(first - at, 0), min(max(end - at, 0), p.kv_heads)) for at in (keys, values))  # type: ignore[return-value]


def simulate(launch: Launch, arrays: Mapping[str, NDArray], machine: Machine) -> Counts:
    p, s = launch.problem, launch.schedule
    chip, unused = SimulatedChip(launch, machine), np.zeros(0, np.uint8)
    k, v = ("cache", "cache") if p.page else ("k", "v")
    marks = {array.name: chip.marks(array.name) for array in launch.arrays}
    ordered = (marks.get(name, unused) for name in (*TAKEN, "q", k, v))
    positions = np.minimum(arrays["positions"].view(np.uint32), p.turn_rows - 1).astype(np.int64)
    chip.on_all_cores(
        _grid, chip.count, *ordered, positions, arrays["slots"], p.q_heads, p.kv_heads, p.head_dim, p.page,
        FORMATS[p.kv].bits // 8, p.neighbours, s.warps, s.rounds, launch.grid[1],
    )  # fmt: skip
    if "qkv" in arrays:
        _numbers(p, arrays)
    return chip.counts()


def _numbers(p: RopeAppend, arrays: Mapping[str, NDArray]) -> None:
    """What the kernel writes, in float32."""
    x = p.biased(arrays)
    positions = np.minimum(arrays["positions"].view(np.uint32), p.turn_rows - 1)
    turned, _ = p.turned(p.normalised(x[:, : p.q_heads + p.kv_heads], arrays), arrays["turns"][positions])
    arrays["q"][...] = encode(turned[:, : p.q_heads], p.activations)
    slots = arrays["slots"]
    for which, (name, values) in enumerate((("k", turned[:, p.q_heads :]), ("v", x[:, p.q_heads + p.kv_heads :]))):
        if p.kv == "fp8":
            with np.errstate(over="ignore", invalid="ignore"):
                values = values / arrays[f"{name}_scale"][:, None]
        bits = encode(values, p.kv)
        if p.page:
            arrays["cache"][slots // p.page, which, :, slots % p.page] = bits
        else:
            arrays[name][slots] = bits


@njit(cache=True, nogil=True)
def _grid(
    core, cores,
    count, qkv, positions_marks, slots_marks, turns, bias, norms, k_scale, v_scale, q, k, v, positions, slots, q_heads,
    kv_heads, dim, page, element, neighbours, warps, rounds, parts,
):  # fmt: skip
    """Marks of the arrays, then which row of turns and which slot each token has."""
    sms, tokens = count.shape[0], positions.size
    units = dim // 2 // VECTOR
    per_warp, heads = LANES // units, q_heads + 2 * kv_heads
    half = dim // 2 * SIZE
    for sm in range(core, sms, cores):
        row = count[sm]
        for cta in range(sm, tokens * parts, sms):
            token, part = cta % tokens, cta // tokens
            for warp in range(warps):
                first = (part * rounds * warps + warp) * per_warp
                if first >= heads:
                    continue
                load_vector(row, positions_marks, WORD * token, WORD)
                load_vector(row, slots_marks, WORD * token, WORD)
                at = positions[token] * dim // 2 * TURN
                if neighbours:
                    load_lanes(row, turns, at, 4 * TURN, 16, units, 16, 2)
                    load_lanes(row, turns, at + dim // 4 * TURN, 4 * TURN, 16, units, 16, 2)
                else:
                    load_lanes(row, turns, at, 8 * TURN, 16, units, 16, 4)
                for r in range(rounds):
                    for head in range(first + r * warps * per_warp, min(first + (r * warps + 1) * per_warp, heads)):
                        from_row = (token * heads + head) * dim * SIZE
                        load_vector(row, qkv, from_row, half)
                        load_vector(row, qkv, from_row + half, half)
                        if bias.size > 0:
                            load_vector(row, bias, head * dim * SIZE, half)
                            load_vector(row, bias, head * dim * SIZE + half, half)
                            count_fma(row, dim // 2)
                        if head < q_heads:
                            to = (token * q_heads + head) * dim * SIZE
                            store_vector(row, q, to, half)
                            store_vector(row, q, to + half, half)
                        else:
                            value = head >= q_heads + kv_heads
                            kv_head = head - q_heads - (kv_heads if value else 0)
                            to = _place(slots[token], value, kv_head, kv_heads, page) * dim * element
                            marks = v if value else k
                            store_vector(row, marks, to, dim // 2 * element)
                            store_vector(row, marks, to + dim // 2 * element, dim // 2 * element)
                        if head < q_heads + kv_heads:
                            count_fma(row, 3 * dim // 2)
                            if norms.size > 0:
                                count_fma(row, 2 * dim)
                    begin = first + r * warps * per_warp
                    if norms.size > 0:
                        if begin < q_heads:
                            load_vector(row, norms, 0, dim * SIZE)
                        if begin < q_heads + kv_heads and begin + per_warp > q_heads:
                            load_vector(row, norms, dim * SIZE, dim * SIZE)
                    if k_scale.size > 0:
                        _scales(row, k_scale, begin - q_heads, per_warp, kv_heads)
                        _scales(row, v_scale, begin - q_heads - kv_heads, per_warp, kv_heads)


@njit(cache=True)
def _place(slot, value, head, kv_heads, page):
    """The row of head_dim elements that a slot's keys or values of a head are."""
    if page == 0:
        return np.int64(slot) * kv_heads + head
    return ((np.int64(slot) // page * 2 + value) * kv_heads + head) * page + slot % page


@njit(cache=True)
def _scales(row, marks, first, heads, kv_heads):
    """A warp's request for the scales of KV heads first to first + heads, as far as there are any."""
    begin, end = max(first, 0), min(first + heads, kv_heads)
    load_vector(row, marks, WORD * begin, WORD * (end - begin))
