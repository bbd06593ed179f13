"""attention_split_kv, counted and computed: what the tile schedule in decode_walk.py takes, and what it leaves."""

from collections import namedtuple
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lab.kernels.attention.decode_plan import divide
from lab.kernels.attention.decode_walk import LANES, grid
from sim.counts import Counts
from sim.formats import FORMATS, decode, encode
from sim.launch import Launch, Scalar
from sim.machine import Machine
from sim.tiles import ELEMENT, SimulatedChip

LOG2_E = np.float32(1.4426950408889634)
SCRATCH = ("partial", "partial_sums", "arrivals")


class Shape(NamedTuple):
    """The problem and the schedule, for compiled code; strides of the cache are in rows of head_dim elements."""

    batch: int
    kv_len: int
    kv_heads: int
    group: int
    dim: int
    causal: bool
    window: int
    page: int
    table_width: int
    pages: int
    lse: bool
    uniform: bool
    page_stride: int
    head_stride: int
    token_stride: int
    value_offset: int
    row_bytes: int
    warps: int
    slots: int
    heads: int
    row_groups: int
    cluster: int
    spread: bool
    rows: int
    unit: int
    stretches: int
    planned_at_once: int
    scale: np.float32  # with log2(e)
    headroom: int
    slack: int
    element: int  # of the cache
    operand: int  # of weights


Marks = namedtuple(  # the sectors of each array
    "Marks", "q k v q_starts kv_lens where k_scale v_scale y lse partial partial_sums arrivals"
)


class Data(NamedTuple):
    """The arrays: indices, and as rows of floats q, y and the cache; no row where it is only counted."""

    q_starts: NDArray[np.int32]
    kv_lens: NDArray[np.int32]
    where: NDArray[np.int32]
    q: NDArray[np.float32]
    k: NDArray[np.float32]
    v: NDArray[np.float32]
    k_scale: NDArray[np.float32]
    v_scale: NDArray[np.float32]
    y: NDArray[np.float32]
    lse: NDArray[np.float32]
    partial: NDArray[np.float32]
    partial_sums: NDArray[np.float32]  # exponents and sums of weights


class Tiles(NamedTuple):
    """What a CTA works on: queries, a unit of keys (transposed) and values, scores; and the sums of every team."""

    q: NDArray[np.float32]
    k: NDArray[np.float32]
    v: NDArray[np.float32]
    scores: NDArray[np.float32]
    y: NDArray[np.float32]
    exponent: NDArray[np.float32]
    total: NDArray[np.float32]
    start: NDArray[np.int64]  # of the columns that a row sees
    end: NDArray[np.int64]
    decay: NDArray[np.float32]
    at: NDArray[np.int64]  # what the lanes of a warp load


def simulate(launch: Launch, arrays: Mapping[str, NDArray], machine: Machine) -> Counts:
    """All CTAs of a launch; writes y and lse where `arrays` has q."""
    p, chip = launch.problem, SimulatedChip(launch, machine)
    shape, data = _shape(launch), _data(launch, arrays)
    k, v, where = ("cache", "cache", "block_table") if p.page else ("k", "v", "kv_starts")
    names = ("q", k, v, "q_starts", "kv_lens", where, "k_scale", "v_scale", "y", "lse", *SCRATCH)
    marks = Marks(*chip.marks_of(*names))
    kv_lens = np.minimum(data.kv_lens, p.kv_len)
    plan = divide(np.diff(data.q_starts), kv_lens, p.window, launch.schedule, shape.stretches)
    grid(chip.count, marks, data, shape, plan, _tiles(shape), launch.ctas)
    if data.q.size > 0:
        written = slice(int(data.q_starts[0]), int(data.q_starts[-1]))
        arrays["y"][written] = encode(data.y, p.output).reshape(p.tokens, p.q_heads, p.head_dim)[written]
        if p.lse:
            arrays["lse"][written] = data.lse.reshape(p.tokens, p.q_heads)[written]
    return chip.counts()


def _shape(launch: Launch) -> Shape:
    p, s = launch.problem, launch.schedule
    scalars = {a.name: a.value for a in launch.arguments if isinstance(a, Scalar)}
    page, head, token, value = (
        int(scalars[name]) // p.head_dim for name in ("page_stride", "head_stride", "token_stride", "value_offset")
    )
    operand = "fp16" if p.kv == "fp8" else p.kv
    return Shape(
        batch=p.batch, kv_len=p.kv_len, kv_heads=p.kv_heads, group=p.group, dim=p.head_dim, causal=p.causal,
        window=p.window, page=p.page, table_width=p.pages_per_sequence, pages=p.pool_pages, lse=p.lse,
        uniform=p.uniform, page_stride=page, head_stride=head, token_stride=token, value_offset=value,
        row_bytes=FORMATS[p.kv].nbytes(1, p.head_dim), warps=s.warps, slots=s.slots, heads=s.heads,
        row_groups=s.row_groups, cluster=max(s.cluster, 1), spread=s.spread > 0, rows=s.rows, unit=s.unit,
        stretches=launch.ctas // (p.kv_heads // s.heads), planned_at_once=s.planned_at_once,
        scale=np.float32(p.score_scale) * LOG2_E, headroom=s.headroom if operand == "fp16" else 0, slack=s.slack,
        element=ELEMENT[p.kv], operand=ELEMENT[operand],
    )  # fmt: skip


def _data(launch: Launch, arrays: Mapping[str, NDArray]) -> Data:
    """Index arrays, and all others as rows of floats, or without any row where they are only counted."""
    p, s = launch.problem, launch.schedule
    dim, computed = p.head_dim, "q" in arrays

    def floats(name: str, form: str, *row: int) -> NDArray[np.float32]:
        there = computed and name in arrays
        return decode(arrays[name], form).reshape(-1, *row) if there else np.zeros((0, *row), np.float32)

    q = floats("q", p.activations, dim)
    if p.kv == "fp8":  # what is multiplied are queries in fp16
        shift = np.float32(2.0**s.query_shift)
        q = decode(encode(q / shift, "fp16"), "fp16") * shift
    cache = floats("cache" if p.page else "k", p.kv, dim)
    parts = launch.ctas // (p.kv_heads // s.heads) + p.batch
    partial = parts * p.kv_heads * s.rows if computed else 0
    q_starts, kv_lens, where = (
        np.ascontiguousarray(arrays[name]).reshape(-1)
        for name in ("q_starts", "kv_lens", "block_table" if p.page else "kv_starts")
    )
    return Data(
        q_starts, kv_lens, where, q, cache, cache if p.page else floats("v", p.kv, dim),
        floats("k_scale", "fp32"), floats("v_scale", "fp32"), np.zeros(q.shape, np.float32),
        np.zeros(len(q), np.float32), np.zeros((partial, dim), np.float32), np.zeros((partial, 2), np.float32),
    )  # fmt: skip


def _tiles(shape: Shape) -> Tiles:
    rows, unit, dim, slots = shape.rows, shape.unit, shape.dim, shape.slots

    def floats(*of: int) -> NDArray[np.float32]:
        return np.zeros(of, np.float32)

    def ints(size: int) -> NDArray[np.int64]:
        return np.zeros(size, np.int64)

    return Tiles(
        floats(rows, dim), floats(dim, unit), floats(unit, dim), floats(rows, unit),
        floats(slots, rows, dim), floats(slots, rows), floats(slots, rows),
        ints(rows), ints(rows), floats(rows), ints(LANES),
    )  # fmt: skip
