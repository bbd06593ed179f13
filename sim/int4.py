"""int4 groups: weights of four bits, a scale and an offset for each group, and the layout in which kernels read them.

A weight is scale * q + min or, where the offset is a zero point, scale * (q - zero); q is 0 to 15, scale and offset are
fp16, one pair for every row and group of columns, and a zero point is a whole number. The packed form holds the
fragments of tensor cores, so that a lane reads its own weights with one 16-byte load and no kernel shuffles:

- w, uint8 [rows / 16, columns / 64, 512]: a tile of 16 x 64 weights is contiguous. Lane l owns its bytes 16 l to
  16 l + 15, four 32-bit words; word s holds the lane's part of the A fragment of mma.m16n8k16 for columns 16 s to
  16 s + 15 (PTX ISA 9.0, 9.7.14.5.8): register i in bits 4 i and 16 + 4 i, the lower of two neighbours first.
- w_scale, fp16 [rows / 16, groups, 16, 2]: scale and offset; rows r and r + 8 of a tile are neighbours.

Rows are padded with zeros to a multiple of 64, columns to one of 64.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sim.errors import InputError
from sim.formats import FORMATS

GROUPS = tuple(f.group for f in FORMATS.values() if f.group)  # columns of a group that kernels read
TILE_ROWS, TILE_COLUMNS = 16, 64
TILE_BYTES = TILE_ROWS * TILE_COLUMNS // 2
PADDED_ROWS = 64  # of a wgmma
LEVELS = 16
MOST_ZERO = 127  # zero point: with the bias that kernels give it, it is a bf16
BIAS = 16  # tensor cores multiply q + BIAS, a bf16 among whose digits are those of q; offsets take it away

GGUF_BLOCK = 32  # weights of a block of a GGUF file
GGUF_BYTES = {"Q4_0": 18, "Q4_1": 20}  # of a block: fp16 scale, of Q4_1 also an fp16 min, and 16 bytes of nibbles
Q4_0_ZERO = 8  # of every block of Q4_0
GGUF_K_BLOCK, GGUF_K_BYTES = 256, 144  # weights and bytes of a block of Q4_K, which is eight groups of 32
_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # the column, of eight, in each nibble of a word


@dataclass(frozen=True)
class Groups:
    """A quantised matrix: q uint8 [n, k], scale and offset float16 [n, ceil(k / group)], order integers [k] or None.

    Column i of q is column order[i] of the matrix, so that the columns of a group are neighbours.

    `zero_points` says that the offset, a whole number, is subtracted from q, otherwise it is added to scale * q. Raises
    InputError for other types and shapes, and for values and zero points that are none.
    """

    q: NDArray[np.uint8]
    scale: NDArray[np.float16]
    offset: NDArray[np.float16]
    group: int
    zero_points: bool = False
    order: NDArray[np.integer] | None = None

    def __post_init__(self) -> None:
        kinds = (self.q.dtype, self.scale.dtype, self.offset.dtype)
        if kinds != (np.dtype(np.uint8), np.dtype(np.float16), np.dtype(np.float16)):
            raise InputError(
                f"int4 groups are values in uint8, scales and offsets in float16; got {', '.join(map(str, kinds))}"
            )
        groups = -(-self.q.shape[1] // self.group)
        expected = (self.q.shape[0], groups)
        if self.scale.shape != expected or self.offset.shape != expected:
            raise InputError(
                f"weights {list(self.q.shape)} in groups of {self.group} have {list(expected)} scales and offsets; got "
                f"{list(self.scale.shape)} and {list(self.offset.shape)}"
            )
        if self.q.size and self.q.max() >= LEVELS:
            raise InputError(f"int4 values are 0 to 15; found {self.q.max()}")
        if self.zero_points:
            wrong = ~((self.offset >= 0) & (self.offset <= MOST_ZERO) & (self.offset == np.rint(self.offset)))
            if wrong.any():
                raise InputError(f"zero points are whole numbers from 0 to {MOST_ZERO}; found {self.offset[wrong][0]}")

    def of_rows(self, rows: slice) -> "Groups":
        """Some rows of the matrix."""
        return Groups(self.q[rows], self.scale[rows], self.offset[rows], self.group, self.zero_points, self.order)

    def each(self, values: NDArray) -> NDArray[np.float32]:
        """A value of every group as one of every weight, float32 [n, k]."""
        return np.repeat(values.astype(np.float32), self.group, axis=1)[:, : self.q.shape[1]]

    @property
    def values(self) -> NDArray[np.float32]:
        """The weights, float32 [n, k], in the matrix's order: exact with zero points, with a min rounded once."""
        if self.zero_points:
            values = (self.q - self.each(self.offset)) * self.each(self.scale)
        else:
            values = self.q * self.each(self.scale) + self.each(self.offset)
        return values if self.order is None else values[:, np.argsort(self.order)]


def shapes(n: int, k: int, group: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The shapes of w (in bytes) and of w_scale for an [n, k] matrix."""
    tiles = -(-n // PADDED_ROWS) * PADDED_ROWS // TILE_ROWS
    return (tiles, -(-k // TILE_COLUMNS), TILE_BYTES), (tiles, -(-k // group), TILE_ROWS, 2)


def pack(groups: Groups) -> tuple[NDArray[np.uint8], NDArray[np.uint16]]:
    """(w, w_scale) of a quantised matrix, as storage bits; where its arrays are CuPy's, so are these."""
    n, k = groups.q.shape
    w_shape, scale_shape = shapes(n, k, groups.group)
    tiles, steps, _ = w_shape
    padded = np.zeros_like(groups.q, shape=(tiles * TILE_ROWS, steps * TILE_COLUMNS))
    padded[:n, :k] = groups.q
    # tile, half, row of 8 | k-tile, k16-step, half, pair, neighbour
    split = padded.reshape(tiles, 2, 8, steps, 4, 2, 4, 2)
    halves = split.transpose(1, 0, 3, 2, 6, 4, 7, 5)  # half | tile, k-tile, lane, step, neighbour, half of k
    pairs = np.zeros_like(groups.scale, shape=(tiles * TILE_ROWS, scale_shape[1], 2))
    pairs[:n] = np.stack([groups.scale, groups.offset], axis=-1)
    scale = pairs.reshape(tiles, 2, 8, -1, 2).transpose(0, 3, 2, 1, 4)
    return (halves[0] | halves[1] << 4).reshape(w_shape), scale.reshape(scale_shape).view(np.uint16)


def unpack(w: NDArray, w_scale: NDArray, n: int, k: int, group: int, zero_points: bool = False) -> Groups:
    """The inverse of `pack`; raises InputError where the arrays are not those of an [n, k] matrix."""
    w_shape, scale_shape = shapes(n, k, group)
    if w.shape != w_shape or w_scale.shape != scale_shape:
        raise InputError(
            f"packed weights [{n}, {k}] in groups of {group} are {list(w_shape)} bytes and {list(scale_shape)} halves; "
            f"got {list(w.shape)} and {list(w_scale.shape)}"
        )
    tiles, steps, _ = w_shape
    halves = np.stack([w & 15, w >> 4]).reshape(2, tiles, steps, 8, 4, 4, 2, 2)
    q = halves.transpose(1, 0, 3, 2, 5, 7, 4, 6).reshape(tiles * TILE_ROWS, -1)[:n, :k]
    pairs = w_scale.view(np.float16).reshape(tiles, -1, 8, 2, 2).transpose(0, 3, 2, 1, 4)
    pairs = pairs.reshape(tiles * TILE_ROWS, -1, 2)[:n]
    return Groups(np.ascontiguousarray(q), pairs[..., 0].copy(), pairs[..., 1].copy(), group, zero_points)


_UNSCALABLE = "weights to quantise must be finite, and the range of each group within fp16's"


def quantise(values: NDArray[np.float32], group: int) -> Groups:
    """Round a float matrix [n, k] to scale + min: the range of each group in 15 equal steps.

    Raises InputError where a value is not finite, and where fp16 cannot hold the scale and min of a group: its range
    exceeds fp16's, or lies so deep in its subnormals that they lose more than rounding takes from normal numbers.
    """
    n, k = values.shape
    if not np.isfinite(values).all():
        raise InputError(_UNSCALABLE)
    groups = -(-k // group)
    padded = np.full((n, groups * group), np.nan, np.float32)
    padded[:, :k] = values
    grouped = padded.reshape(n, groups, group)
    low, high = np.nanmin(grouped, axis=2), np.nanmax(grouped, axis=2)
    with np.errstate(over="ignore", invalid="ignore"):
        step = (high - low) / (LEVELS - 1)
        scale, offset = step.astype(np.float16), low.astype(np.float16)
    if not (np.isfinite(scale).all() and np.isfinite(offset).all()):
        raise InputError(_UNSCALABLE)
    lost = (LEVELS - 1) * np.abs(scale.astype(np.float32) - step) + np.abs(offset.astype(np.float32) - low)
    small = lost > 2 * FORMATS["fp16"].unit_roundoff * ((LEVELS - 1) * step + np.abs(low))
    if small.any():
        reach = np.maximum(np.abs(low), np.abs(high))[small].max()
        raise InputError(
            f"a group of weights of at most {reach:.3g} is too small for fp16 to scale; multiply them first"
        )
    divisor = np.where(scale > 0, scale, 1).astype(np.float32)
    q = np.rint((grouped - offset.astype(np.float32)[..., None]) / divisor[..., None])
    q = np.clip(np.nan_to_num(q), 0, LEVELS - 1).astype(np.uint8).reshape(n, -1)[:, :k]
    return Groups(np.ascontiguousarray(q), scale, offset, group)


def from_gguf(blocks: NDArray[np.uint8], kind: str) -> Groups:
    """The weights of a GGUF tensor of type Q4_0 or Q4_1, uint8 [n, k / 32, bytes of a block]: exact (ggml, block_q4_0).

    A block is fp16 scale, of Q4_1 an fp16 min too, and 16 bytes whose low nibbles are its first 16 weights, the high
    ones the others. Those of Q4_0 are around a zero point of 8. Blocks on a GPU, in CuPy's array, become groups there.
    """
    there = hasattr(blocks, "shape")
    got = f"{list(blocks.shape)} in {blocks.dtype}" if there else type(blocks).__name__
    if not there or blocks.shape[2:] != (GGUF_BYTES[kind],) or blocks.dtype != np.uint8:
        raise InputError(f"{kind} blocks are [n, k / {GGUF_BLOCK}, {GGUF_BYTES[kind]}] bytes; got {got}")
    head = GGUF_BYTES[kind] - GGUF_BLOCK // 2
    numbers = blocks[..., :head].copy().view(np.float16)
    nibbles = blocks[..., head:]
    q = np.concatenate([nibbles & 15, nibbles >> 4], axis=-1).reshape(blocks.shape[0], -1)
    scale = numbers[..., 0].copy()
    if kind == "Q4_0":
        return Groups(q, scale, np.full_like(scale, Q4_0_ZERO), GGUF_BLOCK, zero_points=True)
    return Groups(q, scale, numbers[..., 1].copy(), GGUF_BLOCK)


def from_gguf_k(blocks: NDArray[np.uint8]) -> Groups:
    """The weights of a GGUF tensor of type Q4_K, uint8 [n, k / 256, 144], in groups of 32 (ggml, block_q4_K).

    A block is fp16 d and dmin, eight pairs of 6-bit integers s and m in 12 bytes, and nibbles, 64 weights after 64;
    a weight is d s q - dmin m. Here the scale d s and the min -dmin m are rounded to fp16, so that a weight is off by
    at most u (15 |d s| + |dmin m|) + 16 tiny, u = 2^-11, tiny = 2^-25. Blocks on a GPU become groups there, as those of
    `from_gguf`. Raises InputError for other shapes and types.
    """
    if blocks.ndim != 3 or blocks.shape[2] != GGUF_K_BYTES or blocks.dtype != np.uint8:
        shape = f"{list(blocks.shape)} in {blocks.dtype}"
        raise InputError(f"Q4_K blocks are [n, k / {GGUF_K_BLOCK}, {GGUF_K_BYTES}] bytes; got {shape}")
    n = blocks.shape[0]
    numbers = blocks[..., :4].copy().view(np.float16).astype(np.float32)
    d, dmin = numbers[..., 0], numbers[..., 1]
    low, high, mixed = (blocks[..., at : at + 4] for at in (4, 8, 12))
    # Of the first four pairs s and m fill six bits of a byte, whose other two are the top of the last four's.
    s = np.concatenate([low & 63, mixed & 15 | low >> 6 << 4], axis=-1)
    m = np.concatenate([high & 63, mixed >> 4 | high >> 6 << 4], axis=-1)
    nibbles = blocks[..., 16:].reshape(n, -1, 4, GGUF_BLOCK)
    q = np.stack([nibbles & 15, nibbles >> 4], axis=-2).reshape(n, -1)
    with np.errstate(over="ignore", invalid="ignore"):
        scale, offset = ((by[..., None] * of).astype(np.float16).reshape(n, -1) for by, of in ((d, s), (-dmin, m)))
    return Groups(q, scale, offset, GGUF_BLOCK)


def from_gptq(
    qweight: NDArray,
    qzeros: NDArray,
    scales: NDArray,
    bias: int = 1,
    group: int | None = None,
    g_idx: NDArray | None = None,
) -> Groups:
    """The weights of a GPTQ layer: qweight int32 [k / 8, n], qzeros int32 [groups, n / 8], scales float [groups, n].

    Exact. Nibble i of a word is row or column 8 j + i; stored zero points are `bias` too small (1 in GPTQ's first
    format, 0 in its second). `group` is the columns of one group, the last of which may be shorter, and -1 one group
    for all columns; it may be left out where k is 32, 64 or 128 for each group, or there is one. `g_idx` [k] is the
    group of each column, as an act-order layer has it; columns that lie apart are brought together, in an `order`.
    Raises InputError where groups are of no size that kernels read, and where a scale is no fp16 number.
    """
    if bias not in (0, 1):
        raise InputError(f"zero points are stored 0 or 1 too small; got bias = {bias}")
    q = _nibbles(qweight).transpose(0, 2, 1).reshape(-1, qweight.shape[1])  # [k, n]
    zeros = _nibbles(qzeros).reshape(qzeros.shape[0], -1) + np.uint8(bias)
    return _from_columns(q, zeros, scales, group, g_idx)


def from_awq(qweight: NDArray, qzeros: NDArray, scales: NDArray, group: int | None = None) -> Groups:
    """The weights of an AWQ layer: qweight int32 [k, n / 8], qzeros int32 [groups, n / 8], scales float [groups, n].

    Exact. Nibble i of a word is column 8 j + order[i], the order being 0 2 4 6 1 3 5 7. `group` and what is raised are
    those of `from_gptq`.
    """
    inverse = np.argsort(_AWQ_ORDER)
    q = _nibbles(qweight)[..., inverse].reshape(qweight.shape[0], -1)
    zeros = _nibbles(qzeros)[..., inverse].reshape(qzeros.shape[0], -1)
    return _from_columns(q, zeros, scales, group, None)


def _nibbles(words: NDArray) -> NDArray[np.uint8]:
    """The eight nibbles of each 32-bit word of a matrix, lowest first, along a new last axis."""
    if not isinstance(words, np.ndarray):
        raise InputError(f"packed nibbles are a NumPy matrix in int32; got {type(words).__name__}")
    if words.ndim != 2 or not words.size or words.dtype.kind not in "iu" or words.dtype.itemsize != 4:
        raise InputError(f"packed nibbles are a matrix in int32; got {list(words.shape)} in {words.dtype}")
    bits = np.ascontiguousarray(words).astype(f"={words.dtype.kind}4").view(np.uint32)
    return (bits[..., None] >> np.arange(0, 32, 4, dtype=np.uint32) & 15).astype(np.uint8)


def _from_columns(
    q: NDArray[np.uint8], zeros: NDArray, scales: NDArray, group: int | None, g_idx: NDArray | None
) -> Groups:
    """From q [k, n], zero points and scales [groups, n]."""
    k, n = q.shape
    if not isinstance(scales, np.ndarray):
        raise InputError(f"scales are a NumPy matrix; got {type(scales).__name__}")
    if scales.ndim != 2 or scales.shape != zeros.shape or n != scales.shape[1] or not 1 <= len(scales) <= k:
        raise InputError(
            f"weights [{k}, {n}] need scales and zero points of [groups, {n}], 1 to {k} groups; got "
            f"{list(scales.shape)} and {list(zeros.shape)}"
        )
    groups = len(scales)
    given = _ordered(k, groups, group) if g_idx is None else _indexed(k, groups, g_idx)
    most = max(group if group and group > 0 else k, min(GROUPS))
    together = np.lexsort((given, -np.bincount(given)[given]))  # groups side by side, a short one last
    for order in (None, together.astype(np.int32)):
        index, columns = (given, q) if order is None else (given[order], q[order])
        for width in sorted(GROUPS, reverse=True):
            first = index[::width]
            if width <= most and np.array_equal(index, first.repeat(width)[:k]):
                scale, zero = (np.ascontiguousarray(a[first].T) for a in (_halves(scales), zeros.astype(np.float16)))
                return Groups(np.ascontiguousarray(columns.T), scale, zero, width, True, order)
    raise InputError(f"the columns of a group must be {min(GROUPS)} or a multiple of it; here they are not")


def _ordered(k: int, groups: int, group: int | None) -> NDArray[np.integer]:
    """The group of each column where they are in order."""
    if group is not None and (isinstance(group, bool) or not isinstance(group, int | np.integer)):
        raise InputError(f"group is a number of columns, or -1; got {group!r:.40}")
    if group is None and groups > 1 and (k % groups or k // groups not in GROUPS):
        raise InputError(f"{k} columns in {groups} groups are none of {GROUPS} each; say how many with group=")
    width = k // groups if group is None else k if group == -1 else group
    if width < 1 or -(-k // width) != groups:
        raise InputError(f"{k} columns in groups of {group} are not {groups} groups, the scales that there are")
    return np.arange(k) // width


def _indexed(k: int, groups: int, g_idx: NDArray) -> NDArray[np.integer]:
    """The group of each column as a layer says it."""
    index = np.asarray(g_idx)
    if index.shape != (k,) or index.dtype.kind not in "iu" or index.min() < 0 or index.max() >= groups:
        raise InputError(f"g_idx is the group of each of {k} columns, 0 to {groups - 1}; got {list(index.shape)}")
    return index


def _halves(scales: NDArray) -> NDArray[np.float16]:
    """Scales as fp16, which must hold each of them exactly."""
    if scales.dtype.name not in ("float16", "bfloat16", "float32", "float64"):
        raise InputError(f"scales are floats; these are in {scales.dtype}")
    exact = scales.astype(np.float64)
    with np.errstate(over="ignore", under="ignore"):
        halves = exact.astype(np.float16)
    wrong = ~(np.isfinite(exact) & (halves == exact))
    if wrong.any():
        raise InputError(f"scales must be numbers that fp16 holds exactly; {exact[wrong][0]:.8g} does not fit")
    return halves
