"""What the prefill kernels move and compute, in closed form, and how long that takes."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lab.cards import fits
from lab.kernel import Bills
from lab.kernels.attention.prefill import (
    FLOAT,
    INDEX,
    LANE_ELEMENTS,
    LANES,
    LSE_ROWS,
    SCALES,
    SIZE,
    WARP_ROWS,
    Tiles,
    box_rows,
    part_of,
    span_count,
    split_tiles,
    terms,
    tiles,
    tokens_of,
    work_count,
)
from lab.problems import Attention
from lab.problems.attention import Sequence
from sim.counts import SECTOR, Counts, sectors
from sim.formats import FORMATS
from sim.machine import Machine


class Merges(NamedTuple):
    """What splits add: sectors that they store and that merges load, atomic operations, exponentials."""

    stores: int = 0
    loads: int = 0
    arrivals: int = 0
    exps: int = 0


def theory(problem: Attention, schedule: Any, whole: int | None = None) -> Counts:
    """Each split of a tile loads its queries and the blocks that it sees; each query is stored once.

    A row makes an exponential of every key of a block, and each of the four threads that share it one of the decay. The
    tables are read once a tile, and for paged keys once a block, two blocks ahead. Spans from `whole` on are split, by
    default none.
    """
    p, s, dim = problem, schedule, problem.head_dim
    whole = span_count(p, s) if whole is None else whole
    blocks = loaded = works = rows_of_q = index = lse = 0
    merges = Merges()
    for b, sequence in enumerate(p.sequences):
        of, split = tiles(p, sequence, s), split_tiles(p, s, whole, b)
        heads = split.sum(axis=0)  # whose tile is split
        of_tile = p.kv_heads + (s.splits - 1) * heads  # works
        blocks += p.kv_heads * int((of.last - of.first).sum())
        loaded += p.kv_heads * _rows_loaded(p, sequence, of, s.block_n)
        works += int(of_tile.sum())
        rows_of_q += int(_queries_loaded(p, sequence, of, tokens_of(p, s.block_m)) @ of_tile)
        index += int(_table_sectors(p, b, sequence.kv_len, of, s) @ (p.kv_heads - heads))
        if heads.any():
            parts = [part_of(of, part, s.splits) for part in range(s.splits)]
            index += sum(int(_table_sectors(p, b, sequence.kv_len, part, s) @ heads) for part in parts)
            merges = Merges(*map(sum, zip(merges, _merges(p, s, sequence, parts, heads), strict=True)))
        lse += sum(_lse_sectors(p, s, sequence, of, split)) if p.lse else 0
    # Where a sequence starts and ends, how many keys it has and where, for every tile that there is room for.
    loads = lengths_read(p) * s.cluster * work_count(p, s, whole) + index + merges.loads
    loads += works * sum(name in p.inputs for name in SCALES)
    stores = p.rows * p.q_heads * dim * SIZE // SECTOR + lse + merges.stores
    per_block = s.block_m * s.block_n
    of_q, of_kv = FORMATS[p.activations].nbytes(1, dim), FORMATS[p.kv].nbytes(2, dim)  # a query; a key and a value
    return Counts(
        flops=p.flops,
        mma_flops=terms(p) * 4 * blocks * per_block * dim,
        exp_count=blocks * (per_block + 4 * s.block_m) + merges.exps,
        global_load_sectors=loads,
        global_store_sectors=stores,
        tma_load_bytes=of_q * works * tokens_of(p, s.block_m) * p.group + of_kv * blocks * s.block_n,
        l2_to_sm_bytes=of_q * rows_of_q * p.group + of_kv * loaded + SECTOR * loads,
        sm_to_l2_bytes=SECTOR * (stores + merges.arrivals),
        hbm_read_bytes=p.read_bytes,
        hbm_write_bytes=p.write_bytes,
    )


def lengths_read(problem: Attention) -> int:
    """Numbers that are read for a tile: where its sequence starts and ends, how many keys it has, where they start."""
    return 3 if problem.page else 4


def _merges(
    problem: Attention, schedule: Any, sequence: Sequence, parts: list[Tiles], heads: NDArray[np.int64]
) -> Merges:
    """Parts store whole tiles in float32; a merge loads all log-sums, and rows of queries that see a key of a part.

    `heads` have a tile split, of each tile of the sequence.
    """
    p, s, row = problem, schedule, FLOAT * problem.head_dim // SECTOR
    start, end = p.visible(sequence)
    tile = np.arange(sequence.q_len) // tokens_of(p, s.block_m)
    stored = seen = 0
    for _, first, last in parts:
        stored += int((last > first) @ heads)
        some = np.minimum(end, s.block_n * last[tile]) > np.maximum(start, s.block_n * first[tile])
        seen += p.group * int(some @ heads[tile])
    warps = int(heads.sum()) * s.block_m // WARP_ROWS
    log_sums = s.splits * warps * WARP_ROWS * FLOAT // SECTOR
    return Merges(
        stores=log_sums + stored * s.block_m * row,
        loads=log_sums + seen * row,
        arrivals=s.splits * warps,
        exps=warps * LANES * -(-s.splits // 2),
    )


def _queries_loaded(problem: Attention, sequence: Sequence, of: Tiles, tokens: int) -> NDArray[np.int64]:
    """Tokens of q that each tile of a sequence loads: whole boxes, as far as q goes."""
    token = sequence.q_start + np.arange(of.tokens.size) * tokens
    return np.clip(problem.tokens - token, 0, tokens)


def _rows_loaded(problem: Attention, sequence: Sequence, of: Tiles, block_n: int) -> int:
    """Keys that the tiles load: whole blocks, as far as the cache goes."""
    if problem.page:
        return block_n * int((of.last - of.first).sum())
    blocks = np.arange(-(-sequence.kv_len // block_n))
    inside = np.clip(problem.kv_rows - sequence.kv_start - blocks * block_n, 0, block_n)
    before = np.concatenate(([0], np.cumsum(inside)))
    return int((before[of.last] - before[of.first]).sum())


def _table_sectors(problem: Attention, b: int, keys: int, of: Tiles, schedule: Any) -> NDArray[np.int64]:
    """Sectors of a sequence's row of the block table that each tile asks for."""
    some = of.last > of.first
    if not problem.page or not some.any():
        return np.zeros(some.size, np.int64)
    rows, block_n = box_rows(problem, schedule), schedule.block_n
    final = max(keys - 1, 0) // rows * rows
    block = np.arange(-(-keys // block_n)) * block_n
    ends = (np.minimum(at, final) // problem.page for at in (block, block + (LANES - 1) * rows))
    row = b * problem.pages_per_sequence
    asked = np.array([sectors(INDEX * (row + a), INDEX * (z - a + 1)) for a, z in zip(*ends, strict=True)], np.int64)
    before = np.concatenate(([0], np.cumsum(asked)))
    # Of every block, and of the first one twice more in place of the two before it.
    return np.where(some, before[of.last] - before[of.first] + 2 * asked[np.where(some, of.first, 0)], 0)


def _lse_sectors(
    problem: Attention, schedule: Any, sequence: Sequence, of: Tiles, split: NDArray[np.bool_]
) -> Iterator[int]:
    """Sectors of each request for a sequence's lse: eight rows of a tile's, or as many as a warp clears or merges."""
    p, of_tile = problem, tokens_of(problem, schedule.block_m)
    cleared = max(LANES * LANE_ELEMENTS // p.head_dim, 1)
    row = np.arange(of_tile * p.group)
    for tile, (tokens, first, last) in enumerate(zip(*of, strict=True)):
        here = row[: tokens * p.group]
        token = sequence.q_start + tile * of_tile + here // p.group
        for head in range(p.kv_heads):
            at = INDEX * ((token * p.kv_heads + head) * p.group + here % p.group) // SECTOR
            request = here // (LSE_ROWS if last > first and not split[head, tile] else cleared)
            yield len(np.unique(np.stack((request, at)), axis=1).T)


class Coefficients(fits.Coefficients, frozen=True):
    """What the estimate of a kernel's time is made of."""

    start_us: float  # of a launch, to its first products and from its last ones on
    hbm_share: float  # of the rate of a large read
    tensor_share: float  # of the data sheet's rate of the tensor cores, while consumers multiply
    merge_us: float  # until the parts of splits are stored and merged


def bills(
    kernel: str, problem: Attention, schedule: Any, machine: Machine, clock: str, whole: int | None = None
) -> Bills:
    """A start, and the longest of HBM, the products of all tiles, and those of the longest tile on its SM.

    `whole` as in `theory`.
    """
    p, s = problem, schedule
    model = fits.coefficients(Coefficients, kernel, machine, clock)
    parts = s.splits if whole == 0 else 1  # of the longest tile
    found = [part_of(tiles(p, sequence, s), part, parts) for sequence in p.sequences for part in range(parts)]
    most = max((int((of.last - of.first).max(initial=0)) for of in found), default=0)
    of_block = terms(p) * 2 * s.block_m * s.block_n * (p.head_dim + p.value_dim)
    rate = model.tensor_share * machine.peak(p.kv)
    stream = {
        "HBM": 1e6 * (p.read_bytes + p.write_bytes) / (model.hbm_share * fits.read_rate(machine)),
        "tensor cores": 1e6 * (theory(p, s).mma_flops or 0) / rate,
        "longest tile": 1e6 * most * of_block * machine.sms / rate,
    }
    start = model.start_us + (model.merge_us if s.splits > 1 else 0)
    return Bills(start + max(stream.values()), {"launch": start, **stream})
