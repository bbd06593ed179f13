"""What the prefill kernels fed by TMA share: tiles of queries, parameters, tensor maps, closed-form counts.

A tile of `block_m` rows holds, token by token, all query heads of one KV head; it is multiplied with the blocks of
`block_n` keys that any of its rows sees (_work.cuh).
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lab.kernel import require_choice, require_shared
from lab.problems import Attention
from lab.problems.attention import Sequence
from sim.counts import SECTOR, Counts, sectors
from sim.errors import ScheduleError
from sim.launch import Argument, Array, Role, Scalar, TensorMap
from sim.machine import Machine

FACTS = ("activations", "head_dim", "group", "causal", "page", "window", "lse")
WINDOWS = range(1, 2**30)
PAGES = (16, 64, 128)
SIZE = 2  # bytes of an element
INDEX = 4  # bytes of an index, of a number of lse
LANES = 32
FOUR = 4  # elements of y that a lane stores at once
BOX_COLUMNS = 64  # elements of a box's row: 128 bytes, which the swizzle permutes
SWIZZLE = 128
ALIGNMENT = 1024  # bytes, of a tile with that swizzle
MMA_M = 64  # rows of a wgmma
MMA_K = 16
FLOAT = 4  # bytes
WARP_ROWS = 16  # of a tile, which a warp stores
LOG_SUM_READS = 2  # by a merge: for the largest, and for the weights


class Merges(NamedTuple):
    """What splits add: sectors that they store and that merges load, atomic operations, exponentials."""

    stores: int
    loads: int
    arrivals: int
    exps: int


class Tiles(NamedTuple):
    """The tiles of one sequence and KV head, from its first token on: tokens that exist, blocks first to last - 1."""

    tokens: NDArray[np.int64]
    first: NDArray[np.int64]
    last: NDArray[np.int64]


def tokens_of(problem: Attention, block_m: int) -> int:
    """Tokens of a tile."""
    return block_m // problem.group


def tile_count(problem: Attention, block_m: int) -> int:
    """Tiles that there is room for."""
    return -(-problem.q_len // tokens_of(problem, block_m)) * problem.batch * problem.kv_heads


def tiles(problem: Attention, sequence: Sequence, block_m: int, block_n: int) -> Tiles:
    """The tiles of a sequence, each with the blocks that any of its tokens sees."""
    p, most = problem, tokens_of(problem, block_m)
    token = np.arange(0, sequence.q_len, most)
    tokens = np.minimum(most, sequence.q_len - token)
    diagonal = token + sequence.kv_len - sequence.q_len + 1  # keys that the first token sees
    end = diagonal + tokens - 1 if p.causal else np.full_like(token, sequence.kv_len)
    start = diagonal - p.window if p.window else np.zeros_like(token)
    return Tiles(tokens, np.maximum(start, 0) // block_n, -(-np.maximum(end, 0) // block_n))


def part_of(of: Tiles, split: int, splits: int) -> Tiles:
    """The tiles with the blocks of one split."""
    seen = of.last - of.first
    return Tiles(of.tokens, of.first + seen * split // splits, of.first + seen * (split + 1) // splits)


def box_rows(problem: Attention, block_n: int) -> int:
    """Keys of a box: a block's, or as many of them as lie in one page."""
    return min(problem.page or block_n, block_n)


def require_boxes(problem: Attention, block_m: int, block_n: int) -> None:
    """Raise ScheduleError where a tile has no room for a group, or blocks and pages are no whole boxes."""
    p = problem
    if p.group > block_m:
        raise ScheduleError(f"a tile of {block_m} rows has no room for the {p.group} query heads of a KV head")
    rows = box_rows(p, block_n)
    if block_n % rows or (p.page and p.page % rows):
        raise ScheduleError(f"a block of {block_n} keys and a page of {p.page} are no whole boxes of {rows} keys")
    if block_n > LANES * rows:
        raise ScheduleError(f"{LANES} lanes copy a page each; a block of {block_n} keys has {block_n // rows} pages")


def shared_bytes(problem: Attention, schedule: Any) -> int:
    """Rows of head_dim elements, and what else a CTA keeps in shared memory."""
    rows, further = int(schedule.shared_rows), int(schedule.further_shared_bytes)
    return rows * problem.head_dim * SIZE + further


def require_room(problem: Attention, schedule: Any, machine: Machine) -> None:
    """Raise ScheduleError where a CTA needs more shared memory than there is."""
    what = f"{schedule.stages} stages of {schedule.block_n} keys and values"
    require_shared(shared_bytes(problem, schedule), what, machine)


def require_blocks(schedule: Any, block_m: tuple[int, ...], block_n: tuple[int, ...]) -> None:
    """Raise ScheduleError for a tile or a ring that no kernel here has."""
    require_choice(schedule, "block_m", block_m)
    require_choice(schedule, "block_n", block_n)
    if schedule.stages < 2:
        raise ScheduleError(f"a ring has 2 stages or more; stages = {schedule.stages}")


def arguments(problem: Attention, block_m: int, block_n: int) -> tuple[Argument, ...]:
    """Tensor maps of q, k and v, then pointers, then the capacities."""
    p, dim = problem, problem.head_dim
    box = box_rows(p, block_n)
    inputs = {name: Array(name, Role.IN, *operand) for name, operand in p.inputs.items()}
    shape, strides, box_shape = inputs["q"].shape, (p.q_heads * dim, dim, 1), (tokens_of(p, block_m), p.group)
    maps = [TensorMap("q_map", "q", shape, strides, (*box_shape, BOX_COLUMNS), SWIZZLE)]
    of: dict[str, Argument]
    if p.page:
        of = {"k": inputs["cache"], "v": Scalar("v", 0, "int64")}
        shape, strides, box_shape = (2 * p.pool_pages * p.kv_heads, p.page, dim), (p.page * dim, dim, 1), (1, box)
    else:
        of = {"k": inputs["k"], "v": inputs["v"]}
        shape, strides, box_shape = inputs["k"].shape, (p.kv_heads * dim, dim, 1), (box, 1)
    maps += [
        TensorMap(f"{x}_map", "cache" if p.page else x, shape, strides, (*box_shape, BOX_COLUMNS), SWIZZLE) for x in of
    ]
    outputs = {name: Array(name, Role.OUT, *operand) for name, operand in p.outputs.items()}
    return (
        *maps,
        inputs["q"],
        *of.values(),
        outputs["y"],
        outputs.get("lse", Scalar("lse", 0, "int64")),
        inputs["q_starts"],
        inputs["kv_lens"],
        inputs["block_table" if p.page else "kv_starts"],
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


def theory(problem: Attention, block_m: int, block_n: int, splits: int = 1) -> Counts:
    """Each split of a tile loads its queries and the blocks that it sees; each query is stored once.

    A row makes an exponential of every key of a block, and each of the four threads that share it one of the decay. The
    tables are read once a tile, and for paged keys once a block, two blocks ahead.
    """
    p, dim = problem, problem.head_dim
    blocks = loaded = rows_of_q = index = there = 0
    for b, sequence in enumerate(p.sequences):
        of = tiles(p, sequence, block_m, block_n)
        blocks += int((of.last - of.first).sum())
        loaded += _rows_loaded(p, sequence, of, block_n)
        there += of.tokens.size
        rows_of_q += _queries_loaded(p, sequence, tokens_of(p, block_m))
        for split in range(splits):
            index += _table_sectors(p, b, sequence.kv_len, part_of(of, split, splits), block_n)
    blocks, loaded, there, rows_of_q = (p.kv_heads * n for n in (blocks, loaded, there, rows_of_q))
    # Where a sequence starts and ends and how many keys it has, for every tile that there is room for.
    merges = _merges(p, block_m, block_n, splits)
    loads = 3 * splits * tile_count(p, block_m) + p.kv_heads * index + merges.loads
    y = p.rows * p.q_heads * dim * SIZE // SECTOR
    stores = y + (sum(_lse_sectors(p, block_m, block_n, splits)) if p.lse else 0) + merges.stores
    per_block = block_m * block_n
    return Counts(
        flops=p.flops,
        mma_flops=4 * blocks * per_block * dim,
        exp_count=blocks * (per_block + 4 * block_m) + merges.exps,
        global_load_sectors=loads,
        global_store_sectors=stores,
        tma_load_bytes=SIZE * dim * (splits * there * tokens_of(p, block_m) * p.group + 2 * blocks * block_n),
        l2_to_sm_bytes=SIZE * dim * (splits * rows_of_q * p.group + 2 * loaded) + SECTOR * loads,
        sm_to_l2_bytes=SECTOR * (stores + merges.arrivals),
        hbm_read_bytes=p.read_bytes,
        hbm_write_bytes=p.write_bytes,
    )


def _merges(problem: Attention, block_m: int, block_n: int, splits: int) -> Merges:
    """Splits store whole tiles in float32; a merge loads rows of queries, of the splits that see a key of theirs."""
    if splits == 1:
        return Merges(0, 0, 0, 0)
    p, row = problem, FLOAT * problem.head_dim // SECTOR
    there = stored = requests = seen = 0
    for sequence in p.sequences:
        of = tiles(p, sequence, block_m, block_n)
        start, end = p.visible(sequence)
        tile = np.arange(sequence.q_len) // tokens_of(p, block_m)
        there += of.tokens.size
        requests += int((-(-of.tokens * p.group * p.head_dim // (LANES * FOUR))).sum())
        for split in range(splits):
            _, first, last = part_of(of, split, splits)
            stored += int((last > first).sum())
            seen += int((np.minimum(end, block_n * last[tile]) > np.maximum(start, block_n * first[tile])).sum())
    there, stored, requests, seen = (
        p.kv_heads * n for n in (splits * there, stored, splits * requests, seen * p.group)
    )
    return Merges(
        stores=there * block_m * FLOAT // SECTOR + stored * block_m * row,
        loads=LOG_SUM_READS * requests + seen * row,
        arrivals=there * block_m // WARP_ROWS,
        exps=seen * p.head_dim // FOUR,
    )


def _queries_loaded(problem: Attention, sequence: Sequence, tokens: int) -> int:
    """Tokens of q that the tiles of a sequence load: whole boxes, as far as q goes."""
    token = sequence.q_start + np.arange(0, sequence.q_len, tokens)
    return int(np.minimum(tokens, problem.tokens - token).sum())


def _rows_loaded(problem: Attention, sequence: Sequence, of: Tiles, block_n: int) -> int:
    """Keys that the tiles load: whole blocks, as far as the cache goes."""
    if problem.page:
        return block_n * int((of.last - of.first).sum())
    blocks = np.arange(-(-sequence.kv_len // block_n))
    inside = np.clip(problem.kv_rows - sequence.kv_start - blocks * block_n, 0, block_n)
    before = np.concatenate(([0], np.cumsum(inside)))
    return int((before[of.last] - before[of.first]).sum())


def _table_sectors(problem: Attention, b: int, keys: int, of: Tiles, block_n: int) -> int:
    """Sectors of a sequence's row of the block table, or of its start, that the tiles ask for."""
    some = of.last > of.first
    if not problem.page:
        return int((1 + of.last - of.first)[some].sum())
    rows = box_rows(problem, block_n)
    final = max(keys - 1, 0) // rows * rows
    block = np.arange(-(-keys // block_n)) * block_n
    ends = (np.minimum(at, final) // problem.page for at in (block, block + (LANES - 1) * rows))
    row = b * problem.pages_per_sequence
    asked = np.array([sectors(INDEX * (row + a), INDEX * (z - a + 1)) for a, z in zip(*ends, strict=True)], np.int64)
    before = np.concatenate(([0], np.cumsum(asked)))
    # Of every block, and of the first one twice more in place of the two before it.
    return int((before[of.last] - before[of.first])[some].sum() + 2 * asked[of.first[some]].sum())


def _lse_sectors(problem: Attention, block_m: int, block_n: int, splits: int) -> Iterator[int]:
    """Sectors of each request for lse: eight rows of a tile's, or as many as a warp clears or merges."""
    p, of_tile = problem, tokens_of(problem, block_m)
    cleared = LANES * FOUR // p.head_dim
    for sequence in p.sequences:
        of = tiles(p, sequence, block_m, block_n)
        row = np.arange(of_tile * p.group)
        for tile, (tokens, first, last) in enumerate(zip(*of, strict=True)):
            here = row[: tokens * p.group]
            token = sequence.q_start + tile * of_tile + here // p.group
            for head in range(p.kv_heads):
                at = INDEX * ((token * p.kv_heads + head) * p.group + here % p.group) // SECTOR
                request = here // (8 if splits == 1 and last > first else cleared)
                yield len(np.unique(np.stack((request, at)), axis=1).T)
