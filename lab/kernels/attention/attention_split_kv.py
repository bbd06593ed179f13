"""Decode: rings of cp.async stream the cache past mma.sync, or past wgmma; SMs divide sequences on the device."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from lab.cards import fits
from lab.kernel import Bills, Solves
from lab.kernels.attention import decode_plan, decode_simulation, decode_theory
from lab.kernels.attention.decode_schedule import (
    MMA_N,
    MOST_STAGES,
    UNIT,
    WARPGROUP,
    WGMMA_UNIT,
    Schedule,
    shared_bytes,
)
from lab.kernels.common import clusters
from lab.kernels.common.norm import joined
from lab.kernels.common.pointers import null, pointer, result
from lab.problems import Attention
from sim.counts import Counts
from sim.errors import ScheduleError
from sim.formats import FORMATS
from sim.launch import Argument, Array, Launch, Role, Scalar
from sim.machine import Machine

SOLVES = Solves(
    Attention,
    formats=("bf16", "fp16", "fp8"),
    arch="sm_90",
    after="attention_pingpong",
    options={
        "head_dim": (64,),
        "causal": (False,),
        "page": (1, 16, 64, 128),
        "activations": ("fp16",),
        "window": range(1, 2**30),
        "lse": (True,),
    },
    at_most={"q_len": 16},
    facts=("kv", "activations", "head_dim", "group", "causal", "page", "window", "lse", "uniform", "settled"),
)

LENGTHS = ("q_starts", "kv_lens", "kv_starts")  # inputs that uniform sequences do not need

# As measured on an H200, best first.
GROUPS = {8: ((1, 1),), 16: ((2, 1), (1, 2)), 32: ((2, 2), (4, 1)), 64: ((4, 2), (8, 1)), 128: ((8, 2),)}  # by queries
SHAPES = (
    (8, 1, 1),
    (8, 2, 1),
    (12, 1, 1),
    (16, 1, 1),
    (4, 1, 1),
    (4, 1, 2),
    (16, 2, 1),
    (4, 2, 2),
)  # warps, heads, CTAs
RING = 192 * 1024  # bytes of an SM's rings; half as many where teams are of several warps
OVERHEAD, LEAST = 4, 4
LONG = 2**30  # bytes of a contiguous cache from which two heads a CTA are faster
SHORT = 2**26  # bytes of the only sequence up to which clusters are faster
CLUSTER = 8  # of larger ones an H200 does not hold eight at once
# By queries: warps, row groups, query tiles. Many take longer to multiply than to copy, and clusters leave some SMs
# idle: then all CTAs add up rows between them.
CLUSTERED = {8: ((4, 1, 1), (8, 1, 1)), 16: ((8, 1, 2), (8, 2, 1)), 32: ((8, 2, 2),)}
COOPERATIVE = {32: ((8, 2, 2), (12, 4, 1)), 64: ((8, 4, 2),)}
BY_WGMMA = (32, 64)  # queries of which wgmma, whose rows are 64, is faster; of the only sequence, the larger number
INBOX = 2**15  # bytes of the rings that a cluster's sums take


def candidates(problem: Attention, machine: Machine) -> Iterator[Schedule]:
    """Measured shapes with as deep rings as fit, of the only sequence in clusters; then shallower ones, longer ends."""
    p = problem
    needed = next((rows for rows in GROUPS if rows >= p.q_len * p.group), max(GROUPS))
    first = (8, 2) if not p.page and p.kv_bytes > LONG else (12, 1) if needed == 64 else (8, 1)
    found = []
    for row_groups, query_tiles in GROUPS[needed]:
        for warps, heads, ctas in sorted(SHAPES, key=lambda shape: shape[:2] != first):
            teams = max(warps // row_groups, 1)
            stages = (
                RING // (1 if row_groups == 1 else 2) // (ctas * teams * 2 * UNIT * FORMATS[p.kv].nbytes(1, p.head_dim))
            )
            with suppress(ScheduleError):
                s = Schedule(warps, min(stages, MOST_STAGES), heads, row_groups, query_tiles, ctas, OVERHEAD, LEAST)
                s.fits(p, machine)
                found.append(s)
    by_wgmma = needed in BY_WGMMA
    few = p.kv_heads <= clusters.at_once(CLUSTER, 1, machine) and 3 * CLUSTER * p.kv_heads >= machine.sms
    if few:  # clusters are all resident at once and take up a good part of the SMs
        many = needed == max(BY_WGMMA)
        yield from _by_wgmma(p, (0, CLUSTER) if many else (), machine)
        yield from _alone(p, COOPERATIVE.get(needed, ()), 0, machine)
        yield from _by_wgmma(p, (0, CLUSTER) if by_wgmma and not many else (), machine)
        yield from _alone(p, CLUSTERED.get(needed, ()), CLUSTER, machine)
    yield from _by_wgmma(p, (1,) if by_wgmma else (), machine)
    yield from found or [
        Schedule(8, 2, 1, *GROUPS[max(GROUPS)][0], 1, OVERHEAD, LEAST)
    ]  # holds most, and says how much
    for s in found[:1]:
        if s.stages >= 4:
            yield replace(s, stages=s.stages // 2)
        yield replace(s, overhead_units=2 * OVERHEAD)


def _by_wgmma(problem: Attention, of_clusters: tuple[int, ...], machine: Machine) -> Iterator[Schedule]:
    """Two warpgroups a CTA, rings as deep as fit; in clusters or all together the only sequence, if it is short."""
    p = problem
    for cluster in of_clusters:
        if cluster != 1 and (p.batch > 1 or p.kv_bytes > SHORT):
            continue
        ring = RING - INBOX if cluster > 1 else RING
        stages = min(ring // (2 * 2 * WGMMA_UNIT * FORMATS[p.kv].nbytes(1, p.head_dim)), MOST_STAGES)
        overhead = OVERHEAD * UNIT // WGMMA_UNIT if cluster == 1 else 0
        least = LEAST * UNIT // WGMMA_UNIT
        with suppress(ScheduleError):
            s = Schedule(8, stages, 1, *WARPGROUP, 1, overhead, least, cluster, WGMMA_UNIT)
            s.fits(p, machine)
            yield s


def _alone(
    problem: Attention, shapes: tuple[tuple[int, int, int], ...], cluster: int, machine: Machine
) -> Iterator[Schedule]:
    """For one short sequence, rings as deep as fit."""
    p = problem
    if p.batch > 1 or p.kv_bytes > SHORT:
        return
    for warps, row_groups, query_tiles in shapes:
        stages = RING // (warps // row_groups * 2 * UNIT * FORMATS[p.kv].nbytes(1, p.head_dim))
        s = Schedule(warps, min(stages, MOST_STAGES), 1, row_groups, query_tiles, 1, 0, LEAST, cluster)
        with suppress(ScheduleError):
            s.fits(p, machine)
            yield s


def stretches(problem: Attention, schedule: Schedule, machine: Machine) -> int:
    """Into how many parts all sequences together are divided: as many as fill the SMs, or as there may be work for."""
    p, s = problem, schedule
    if s.cluster > 1:
        return s.cluster
    at_once = max(machine.sms * s.ctas_per_sm * s.heads // p.kv_heads, 1)
    return min(at_once, -(-p.batch * (s.overhead_units + -(-p.kv_len // s.unit)) // s.least_units))


def launch(problem: Attention, schedule: Schedule, machine: Machine) -> tuple[Launch, ...]:
    p, s = problem, schedule
    ctas, parts = p.kv_heads // s.heads, stretches(p, s, machine)
    return (
        Launch(
            kernel="attention_split_kv",
            entry="attention_split_kv",
            problem=p,
            schedule=s,
            grid=(parts * ctas, 1, 1),
            block=(s.threads, 1, 1),
            arguments=(
                *_inputs(p),
                Array("y", Role.OUT, *p.outputs["y"]),
                result(p, "lse"),
                *_workspaces(p, s, parts),
                *_extents(p),
            ),
            shared_bytes=shared_bytes(p, s),
            cluster=(max(s.cluster, 1), 1, 1),
            dependent=not s.spread,  # a cooperative launch starts when what is ahead of it has ended
            cooperative=s.spread > 0,
        ),
    )


def _workspaces(problem: Attention, schedule: Schedule, parts: int) -> tuple[Argument, ...]:
    """Partial results and how many there are of each sequence; none where they stay in a cluster."""
    p, s = problem, schedule
    if s.cluster > 1:
        return tuple(null(name) for name in ("partial", "partial_sums", "arrivals"))
    rows = (parts + p.batch) * p.kv_heads * s.rows
    return (
        Array("partial", Role.WORKSPACE, (rows, p.head_dim), "fp32"),
        Array("partial_sums", Role.WORKSPACE, (rows, 2), "fp32"),
        Array("arrivals", Role.WORKSPACE, (p.batch, p.kv_heads // s.heads), "int32"),
    )


def _inputs(problem: Attention) -> tuple[Argument, ...]:
    """The cache, where it is one array, stands for k; scales only where there are some."""
    names = ("q", "cache" if problem.page else "k", "v", "q_starts", "kv_lens", _where(problem), "k_scale", "v_scale")
    return tuple(null(name) if problem.uniform and name in LENGTHS else pointer(problem, name) for name in names)


def _where(problem: Attention) -> str:
    return "block_table" if problem.page else "kv_starts"


def _extents(problem: Attention) -> tuple[Scalar, ...]:
    """Capacities, how the cache lies (strides in elements), and the scale of the scores."""
    p, dim = problem, problem.head_dim
    page_stride, head_stride, token_stride, value_offset = (
        (2 * p.kv_heads * p.page * dim, p.page * dim, dim, p.kv_heads * p.page * dim)
        if p.page
        else (0, dim, p.kv_heads * dim, 0)
    )
    return (
        Scalar("batch", p.batch),
        Scalar("kv_heads", p.kv_heads),
        Scalar("max_q_len", p.q_len),
        Scalar("max_kv_len", p.kv_len),
        Scalar("pages", p.pool_pages if p.page else 0),
        Scalar("table_width", p.pages_per_sequence),
        Scalar("page_stride", page_stride, "int64"),
        Scalar("head_stride", head_stride, "int64"),
        Scalar("token_stride", token_stride),
        Scalar("value_offset", value_offset, "int64"),
        Scalar("scale", p.score_scale, "float32"),
    )


class Coefficients(fits.Coefficients, frozen=True):
    """What the estimate is made of."""

    start_us: float  # of a launch, until the first bytes are there, and from the last ones on
    plan_us: float  # until lengths are there and divided
    part_us: float  # of an SM, for what a part of a sequence costs at its start and end
    merge_us: float  # of partial results that meet in memory
    grid_us: float  # of a cooperative launch, whose CTAs all begin together and wait for one another
    hbm_share: float  # of the rate of a large read
    sm_bytes_per_clock: float  # that an SM gets, however few ask
    tile_clocks: float  # of an SM, for 16 tokens and eight queries
    wgmma_clocks: float  # the same, for 64 queries by wgmma
    blend: float  # exponent of the norm that joins what a launch waits for: near a tie, each delays the other


def bills(problem: Attention, schedule: Schedule, machine: Machine, clock: str) -> Bills:
    """A start, and little more than the longest of four, then what joins partial results.

    The four are HBM; L2, which sequences ask each for itself; what one SM loads; its instructions.
    """
    p, s = problem, schedule
    model = fits.coefficients(Coefficients, "attention_split_kv", machine, clock)
    partition = decode_plan.partition_of(p, s, stretches(p, s, machine))
    units = partition.length * s.heads * s.ctas_per_sm
    parts = decode_plan.parts_of(partition)
    most = int(np.bincount(parts.stretch).max(initial=0)) * s.ctas_per_sm
    of_unit = s.rows // MMA_N * model.tile_clocks if s.unit == UNIT else s.unit // UNIT * model.wgmma_clocks
    of_load = FORMATS[p.kv].nbytes(2 * s.unit, p.head_dim)  # bytes of keys and values of a unit
    asked = p.kv_heads * of_load * int(partition.units.sum())
    stream = {
        "HBM": 1e6 * (p.read_bytes + p.write_bytes) / (model.hbm_share * fits.read_rate(machine)),
        "L2": 1e6 * asked / machine.l2_bandwidth if machine.l2_bandwidth else 0.0,
        "SM": 1e6 * units * of_load / (model.sm_bytes_per_clock * machine.clock_hz),
        "instructions": 1e6 * units * of_unit / machine.clock_hz + most * model.part_us,
    }
    launch = model.start_us + (0 if p.uniform else model.plan_us)
    merge = model.merge_us if s.cluster <= 1 and parts.shared.any() else 0.0
    merge += model.grid_us if s.spread else 0.0
    us = launch + joined(model.blend, *stream.values()) + merge
    return Bills(us, {"launch": launch, **stream, "merge": merge}, apart=("launch", "merge"))


def theory(problem: Attention, schedule: Schedule, machine: Machine) -> Counts:
    """Of the actual lengths; see decode_theory."""
    return decode_theory.theory(problem, schedule, stretches(problem, schedule, machine))


def simulate(launch: Launch, arrays: Mapping[str, NDArray], machine: Machine) -> Counts:
    return decode_simulation.simulate(launch, arrays, machine)
