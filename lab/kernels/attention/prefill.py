"""What the prefill kernels share: tiles of queries and how they are launched: parameters, tensor maps, rings.

A tile of `block_m` rows holds, token by token, all query heads of one KV head; it is multiplied with the blocks of
`block_n` keys that any of its rows sees, or any row of the tiles beside it that a cluster has (_work.cuh).
"""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lab.kernel import require_choice, require_shared
from lab.kernels.common.pointers import pointer, result
from lab.problems import Attention
from lab.problems.attention import Sequence
from sim.errors import ScheduleError
from sim.formats import FORMATS
from sim.launch import Argument, Launch, Scalar, TensorMap
from sim.machine import Machine

FACTS = ("activations", "output", "head_dim", "group", "causal", "page", "window", "lse")
TILE_OPTIONS = {
    "head_dim": (64,),
    "causal": (False,),
    "packed": (True,),
}  # of the ladder's steps on the way to attention_pingpong
WINDOWS = range(1, 2**30)
PAGES = (16, 64, 128)
SIZE = 2  # bytes of an element
INDEX = 4  # bytes of an index, of a number of lse
LANES = 32
CHUNK = 16  # bytes that a lane copies at once
LANE_ELEMENTS = 4  # elements of y that a lane stores at once
BOX_COLUMNS = 64  # elements of a box's row: 128 bytes, which the swizzle permutes
SWIZZLE = 128
ALIGNMENT = 1024  # bytes, of a tile with that swizzle
MMA_M = 64  # rows of a wgmma
MMA_K = 16
WARPGROUP = 128
WARPS = 4  # of a warpgroup
WORK_BYTES = 48  # of a description of a tile: of two in turn, and of one for each warp that multiplies
MBARRIER = 8  # bytes
TICKET = 4  # bytes
FLOAT = 4  # bytes
REGISTERS = {2: 232, 3: 160}  # of a consumer's thread, by how many consumers there are
OTHER_REGISTERS = 36  # beside scores, weights, sums and queries
WARP_ROWS = 16  # of a tile, which a warp stores
LSE_ROWS = 8  # of a warp's request for lse
MOST_SECTION = 1024
SCALES = ("q_scale", "k_scale", "v_scale")  # of fp8, for each KV head


class Tiles(NamedTuple):
    """The tiles of one sequence and KV head, from its first token on: tokens that exist, blocks first to last - 1.

    There are as many as whole clusters have.
    """

    tokens: NDArray[np.int64]
    first: NDArray[np.int64]
    last: NDArray[np.int64]


@dataclass(frozen=True)
class RingTiling:
    """A tile of queries, a consumer warpgroup for each 64 rows of it, and the rings that bring it keys and values."""

    block_m: int  # rows of a tile of queries: tokens, each with all query heads of a KV head
    block_n: int  # keys in a block
    stages: int  # blocks of keys, and of values, that the rings hold

    def __post_init__(self) -> None:
        require_choice(self, "block_m", (128, 192))
        require_choice(self, "block_n", tuple(range(64, 193, 16)))
        if self.stages < 2:
            raise ScheduleError(f"a ring has 2 stages or more; stages = {self.stages}")

    @property
    def consumers(self) -> int:
        """Warpgroups that multiply, each with 64 rows."""
        return self.block_m // MMA_M

    @property
    def shared_rows(self) -> int:
        """Rows of head_dim elements in shared memory: queries, keys, values."""
        return self.block_m + 2 * self.stages * self.block_n

    @property
    def further_shared_bytes(self) -> int:
        """Barriers and descriptions of tiles, padded to the alignment of a tile, and room to align the whole."""
        inside = MBARRIER * (5 + 4 * self.stages) + TICKET + WORK_BYTES * (2 + WARPS * self.consumers)
        return -(-inside // ALIGNMENT) * ALIGNMENT + ALIGNMENT

    def fits(self, problem: Attention, machine: Machine) -> None:
        require_boxes(problem, self)
        what = f"{self.stages} stages of {self.block_n} keys and values"
        require_shared(shared_bytes(problem, self), what, machine)
        needed = self.registers(problem)
        if needed > REGISTERS[self.consumers]:
            raise ScheduleError(
                f"scores, weights, sums and queries need about {needed} registers a thread; "
                f"each of {self.consumers} consumers has {REGISTERS[self.consumers]}"
            )

    def registers(self, problem: Attention) -> int:
        """About what a thread of a consumer needs: scores, weights, sums, and the rest."""
        return self.block_n // 2 + self.block_n // 4 + problem.head_dim // 2 + OTHER_REGISTERS


class WholeTiles:
    """No tile is split, and no CTAs share loads."""

    @property
    def splits(self) -> int:
        """Parts of the blocks that a tile sees."""
        return 1

    @property
    def cluster(self) -> int:
        """CTAs that share loads."""
        return 1


class TilePerCta(WholeTiles):
    """A tile for every CTA, the last tokens first; the largest score so far is always what weights refer to."""

    @property
    def section(self) -> int:
        """KV heads whose tiles are walked together."""
        return 1

    @property
    def slack(self) -> int:
        """Powers of two by which weights may exceed 1."""
        return 0


def require_order(section: int, slack: int, most_slack: int) -> None:
    """Raise ScheduleError where so many KV heads cannot be walked together, or weights not exceed 1 by so much."""
    if not 1 <= section <= MOST_SECTION:
        raise ScheduleError(f"section is from 1 to {MOST_SECTION:,} KV heads; section = {section}")
    if not 0 <= slack <= most_slack:
        raise ScheduleError(f"slack is from 0 to {most_slack} powers of two; slack = {slack}")


def tokens_of(problem: Attention, block_m: int) -> int:
    """Tokens of a tile."""
    return block_m // problem.group


def span_count(problem: Attention, schedule: Any) -> int:
    """Spans that there is room for: the tiles of a cluster, side by side."""
    span = schedule.cluster * tokens_of(problem, schedule.block_m)
    return int(-(-problem.q_len // span) * problem.batch * problem.kv_heads)


def tile_count(problem: Attention, schedule: Any) -> int:
    """Tiles that there is room for."""
    return int(schedule.cluster * span_count(problem, schedule))


def tiles(problem: Attention, sequence: Sequence, schedule: Any) -> Tiles:
    """The tiles of a sequence, each with the blocks that any token of its span sees."""
    p, s, most = problem, schedule, tokens_of(problem, schedule.block_m)
    span = s.cluster * most
    token = np.repeat(np.arange(0, sequence.q_len, span), s.cluster)
    diagonal = token + sequence.kv_len - sequence.q_len + 1  # keys that the first token sees
    end = diagonal + np.minimum(span, sequence.q_len - token) - 1 if p.causal else np.full_like(token, sequence.kv_len)
    start = diagonal - p.window if p.window else np.zeros_like(token)
    tokens = np.clip(sequence.q_len - np.arange(token.size) * most, 0, most)
    return Tiles(tokens, np.maximum(start, 0) // s.block_n, -(-np.maximum(end, 0) // s.block_n))


def whole_spans(problem: Attention, schedule: Any, clusters: int) -> int:
    """Spans that are not split: as many as the clusters of the grid take an equal number of."""
    spans = span_count(problem, schedule)
    return spans if schedule.splits == 1 else spans - spans % clusters


def work_count(problem: Attention, schedule: Any, whole: int) -> int:
    """What the clusters of the grid work on: whole spans, then the splits of the others."""
    return int(whole + (span_count(problem, schedule) - whole) * schedule.splits)


def split_tiles(problem: Attention, schedule: Any, whole: int, b: int) -> NDArray[np.bool_]:
    """Which tiles of a sequence are split, [kv_heads, tiles]: those of the spans from `whole` on (_work.cuh)."""
    p, s = problem, schedule
    span = s.cluster * tokens_of(p, s.block_m)
    blocks, heads = -(-p.q_len // span), p.batch * p.kv_heads
    head = b * p.kv_heads + np.arange(p.kv_heads)[:, None]
    before = head // s.section * s.section
    width = np.minimum(s.section, heads - before)
    of_span = np.arange(-(-p.sequences[b].q_len // span))
    index = before * blocks + (blocks - 1 - of_span) * width + head - before
    return np.repeat(index >= whole, s.cluster, axis=1)


def part_of(of: Tiles, split: int, splits: int) -> Tiles:
    """The tiles with the blocks of one split."""
    seen = of.last - of.first
    return Tiles(of.tokens, of.first + seen * split // splits, of.first + seen * (split + 1) // splits)


def box_rows(problem: Attention, schedule: Any) -> int:
    """Keys of a box: what of a block each CTA of a cluster loads, or as many of them as lie in one page."""
    part = schedule.block_n // schedule.cluster
    return int(min(problem.page or part, part))


def require_boxes(problem: Attention, schedule: Any) -> None:
    """Raise ScheduleError where a tile has no room for a group, or blocks and pages are no whole boxes."""
    p, s = problem, schedule
    if p.group > s.block_m:
        raise ScheduleError(f"a tile of {s.block_m} rows has no room for the {p.group} query heads of a KV head")
    rows = box_rows(p, s)
    if s.block_n % (s.cluster * rows) or (p.page and p.page % rows):
        part = f"a CTA's part of {s.block_n // s.cluster}" if s.cluster > 1 else f"a block of {s.block_n}"
        raise ScheduleError(f"{part} keys and a page of {p.page} are no whole boxes of {rows} keys")
    if s.block_n > LANES * rows:
        raise ScheduleError(
            f"{LANES} lanes copy a page each; a block of {s.block_n} keys has {s.block_n // rows} pages"
        )


def request_rows(head_dim: int) -> int:
    """Rows that a warp copies at once, 16 bytes a lane."""
    return LANES * CHUNK // (SIZE * head_dim)


def shared_bytes(problem: Attention, schedule: Any) -> int:
    """Rows of head_dim elements, and what else a CTA keeps in shared memory."""
    return int(schedule.shared_rows * problem.head_dim * SIZE + schedule.further_shared_bytes)


def cached_heads(problem: Attention, machine: Machine) -> int:
    """KV heads, a power of two of them, whose keys and values fill half of L2; one at least."""
    heads = machine.l2_bytes // 2 // FORMATS[problem.kv].nbytes(2 * problem.kv_len, problem.head_dim)
    return min(1 << max(heads, 1).bit_length() - 1, MOST_SECTION)


def terms(problem: Attention) -> int:
    """Products of fp8 that a product of other elements takes: each is the sum of so many in fp8."""
    return 2 if problem.kv == "fp8" != problem.activations else 1


def arguments(problem: Attention, schedule: Any) -> tuple[Argument, ...]:
    """Tensor maps of q, k and v, then what `pointers` gives."""
    return *tensor_maps(problem, schedule), *pointers(problem)


def tensor_maps(problem: Attention, schedule: Any) -> tuple[TensorMap, ...]:
    """Those of q, k and v, with boxes of 128 bytes a row."""
    p, dim = problem, problem.head_dim
    q_columns, kv_columns = (SWIZZLE * 8 // FORMATS[form].bits for form in (p.activations, p.kv))
    box, box_shape = box_rows(p, schedule), (tokens_of(p, schedule.block_m), p.group)
    shape, strides = (p.tokens, p.q_heads, dim), (p.row_heads(p.q_heads) * dim, dim, 1)
    maps = [TensorMap("q_map", "q", shape, strides, (*box_shape, q_columns), SWIZZLE)]
    if p.page:
        shape, strides, box_shape = (2 * p.pool_pages * p.kv_heads, p.page, dim), (p.page * dim, dim, 1), (1, box)
    else:
        shape, strides, box_shape = (p.kv_rows, p.kv_heads, dim), (p.row_heads(p.kv_heads) * dim, dim, 1), (box, 1)
    for x in ("k", "v"):
        maps.append(TensorMap(f"{x}_map", "cache" if p.page else x, shape, strides, (*box_shape, kv_columns), SWIZZLE))
    return tuple(maps)


def pointers(problem: Attention) -> tuple[Argument, ...]:
    """Pointers to the operands; null where there is none of that name."""
    p = problem
    operands, indices = (
        ("q", "cache" if p.page else "k", "v"),
        ("q_starts", "kv_lens", "block_table" if p.page else "kv_starts"),
    )
    return (
        *(pointer(p, name) for name in operands),
        *(result(p, name) for name in ("y", "lse")),
        *(pointer(p, name) for name in indices),
    )


def capacities(problem: Attention) -> tuple[Argument, ...]:
    """The scalars: how large the batch and its sequences may be, and the scale of the scores."""
    p = problem
    return (
        Scalar("batch", p.batch),
        Scalar("q_len", p.q_len),
        Scalar("kv_heads", p.kv_heads),
        Scalar("row_pages", p.pages_per_sequence),
        Scalar("pages", p.pool_pages if p.page else 0),
        Scalar("scale", p.score_scale, "float32"),
    )


def tile_launch(kernel: str, problem: Attention, schedule: Any, operands: tuple[Argument, ...]) -> tuple[Launch, ...]:
    """A CTA for every tile that there is room for."""
    p, s = problem, schedule
    return (
        Launch(
            kernel=kernel,
            entry=kernel,
            problem=p,
            schedule=s,
            grid=(tile_count(p, s), 1, 1),
            block=(s.threads, 1, 1),
            arguments=(*operands, *capacities(p)),
            shared_bytes=shared_bytes(p, s),
        ),
    )


def fitting(schedules: Iterable[Any], problem: Attention, machine: Machine) -> Iterator[Any]:
    """Those that fit, each once."""
    for schedule in dict.fromkeys(schedules):
        with suppress(ScheduleError):
            schedule.fits(problem, machine)
            yield schedule
