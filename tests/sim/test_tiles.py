"""The tile simulator's primitives against brute force: enumerated sectors, clipping, numerics within their bound."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from sim import int4
from sim.cache import READ, WRITTEN
from sim.counts import SECTOR, lane_sectors, row_sectors
from sim.formats import FORMATS, decode, encode
from sim.tiles import (
    BF16,
    ELEMENT,
    add_groups,
    dot,
    in_packed_order,
    load_groups,
    load_lanes,
    load_patch,
    load_tile,
    load_vector,
    mma,
    store_lanes,
    store_patch,
    store_tile,
    store_vector,
)
from sim.tiles.chip import (
    FIELDS,
    FLOPS,
    L2_TO_SM,
    LOAD_SECTORS,
    MMA_FLOPS,
    SM_TO_L2,
    STORE_SECTORS,
    TMA_LOAD_BYTES,
)

TWO = 2  # bytes of an element


def fresh(nbytes: int) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    return np.zeros(len(FIELDS), np.int64), np.zeros(-(-nbytes // SECTOR), np.uint8)


def bytes_to_sectors(addresses: list[int]) -> set[int]:
    return {a // SECTOR for a in addresses}


@given(start=st.integers(0, 200), nbytes=st.integers(0, 600))
def test_vector_requests_count_and_mark_the_sectors_they_touch(start: int, nbytes: int) -> None:
    expected = bytes_to_sectors([start + i for i in range(nbytes)])
    for request, sectors, moved, bit in (
        (load_vector, LOAD_SECTORS, L2_TO_SM, READ),
        (store_vector, STORE_SECTORS, SM_TO_L2, WRITTEN),
    ):
        count, marks = fresh(1000)
        request(count, marks, start, nbytes)
        assert count[sectors] == len(expected)
        assert count[moved] == SECTOR * len(expected)
        assert count.sum() == count[sectors] + count[moved]
        assert {int(i) for i in np.flatnonzero(marks == bit)} == expected
        assert np.count_nonzero(marks) == len(expected)


@given(
    start=st.integers(0, 40),
    stride=st.integers(0, 100),
    width=st.sampled_from([1, 2, 4, 8, 16]),
    lanes=st.integers(1, 32),
    step=st.integers(1, 70),
    times=st.integers(1, 70),
)
def test_lane_requests_count_unique_sectors(
    start: int, stride: int, width: int, lanes: int, step: int, times: int
) -> None:
    requests = [
        bytes_to_sectors([start + lane * stride + t * step + i for lane in range(lanes) for i in range(width)])
        for t in range(times)
    ]
    unique = sum(len(r) for r in requests)
    for request, sectors, moved, bit in (
        (load_lanes, LOAD_SECTORS, L2_TO_SM, READ),
        (store_lanes, STORE_SECTORS, SM_TO_L2, WRITTEN),
    ):
        count, marks = fresh(start + 32 * 100 + 70 * 70 + 16)
        request(count, marks, start, stride, width, lanes, step, times)
        assert count[sectors] == unique
        assert count[moved] == SECTOR * unique
        touched = {int(i) for i in np.flatnonzero(marks == bit)}
        assert touched >= set.union(*requests)
        if step <= width or step > SECTOR:  # otherwise a run of small steps is marked without its gaps
            assert touched == set.union(*requests)


@given(element=st.sampled_from([1, 2, 4]), k=st.integers(1, 64), first=st.integers(0, 64), lanes=st.integers(1, 32))
def test_lane_sectors_is_the_closed_form_of_a_strided_request(element: int, k: int, first: int, lanes: int) -> None:
    start, stride = element * first, element * k
    enumerated = bytes_to_sectors([start + lane * stride + i for lane in range(lanes) for i in range(element)])
    assert lane_sectors(start, stride, element, lanes) == len(enumerated)


@st.composite
def boxes(draw: st.DrawFn) -> tuple[int, int, int, int, int, int]:
    """rows, columns of an array; row, column of a box that may hang over any far edge or lie outside; its shape."""
    rows, columns = draw(st.integers(1, 40)), draw(st.integers(1, 80))
    row, column = draw(st.integers(0, 48)), draw(st.integers(0, 96))
    return rows, columns, row, column, 4 * draw(st.integers(1, 6)), 4 * draw(st.integers(1, 16))


def box_sectors(box: tuple[int, int, int, int, int, int], size: int) -> list[int]:
    """Every sector of every in-bounds box row, each row by itself."""
    rows, columns, row, column, box_rows, box_columns = box
    found: list[int] = []
    for r in range(row, min(row + box_rows, rows)):
        inside = range(column, min(column + box_columns, columns))
        found += sorted(bytes_to_sectors([(r * columns + c) * size + i for c in inside for i in range(size)]))
    return found


def patch_requests(box: tuple[int, int, int, int, int, int], size: int, together: int) -> list[set[int]]:
    """The sectors of each warp request of a patch: `together` of its rows, clipped to the array."""
    rows, columns, row, column, box_rows, box_columns = box
    inside = range(column, min(column + box_columns, columns))
    requests = []
    for top in range(row, row + box_rows, together):
        request = range(top, min(top + together, row + box_rows, rows))
        addresses = [(r * columns + c) * size + i for r in request for c in inside for i in range(size)]
        requests.append(bytes_to_sectors(addresses))
    return requests


@given(
    box=boxes(),
    size=st.sampled_from([1, 2, 4]),
    together=st.sampled_from([1, 2, 4, 8]),
    transposed=st.booleans(),
    seed=st.integers(0, 9),
)
def test_patches_count_what_each_request_touches_and_move_what_lies_inside(
    box: tuple[int, int, int, int, int, int], size: int, together: int, transposed: bool, seed: int
) -> None:
    rows, columns, row, column, box_rows, box_columns = box
    array = np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)
    requests = patch_requests(box, size, together)
    unique, touched = sum(len(request) for request in requests), set.union(*requests)
    patch = np.full((box_columns, box_rows) if transposed else (box_rows, box_columns), np.nan, np.float32)
    patch = patch.T if transposed else patch
    count, marks = fresh(rows * columns * size)
    load_patch(count, marks, size, array, rows, columns, row, column, patch, together)
    expected = np.zeros((box_rows, box_columns), np.float32)
    inside = array[row : row + box_rows, column : column + box_columns]
    expected[: inside.shape[0], : inside.shape[1]] = inside
    assert np.array_equal(patch, expected)
    assert (count[LOAD_SECTORS], count[L2_TO_SM]) == (unique, SECTOR * unique)
    assert count.sum() == (1 + SECTOR) * unique
    assert {int(i) for i in np.flatnonzero(marks == READ)} == touched

    count, marks = fresh(rows * columns * size)
    stored = np.full_like(array, -1)
    store_patch(count, marks, size, stored, rows, columns, row, column, patch, together)
    where = np.zeros(array.shape, bool)
    where[row : row + box_rows, column : column + box_columns] = True
    assert np.array_equal(stored, np.where(where, array, -1))
    assert (count[STORE_SECTORS], count[SM_TO_L2]) == (unique, SECTOR * unique)
    assert {int(i) for i in np.flatnonzero(marks == WRITTEN)} == touched


@given(box=boxes(), name=st.sampled_from(list(ELEMENT)), transposed=st.booleans(), seed=st.integers(0, 9))
def test_tile_loads_count_full_boxes_deliver_inside_sectors_and_fill_with_zero(
    box: tuple[int, int, int, int, int, int], name: str, transposed: bool, seed: int
) -> None:
    rows, columns, row, column, box_rows, box_columns = box
    source = encode(np.random.default_rng(seed).standard_normal((rows, columns)), name)
    tile = np.full((box_columns, box_rows) if transposed else (box_rows, box_columns), np.nan, np.float32)
    count, marks = fresh(source.nbytes)
    load_tile(count, marks, source, rows, columns, row, column, tile.T if transposed else tile, ELEMENT[name])

    expected = np.zeros((box_rows, box_columns), np.float32)
    inside = decode(source, name)[row : row + box_rows, column : column + box_columns]
    expected[: inside.shape[0], : inside.shape[1]] = inside
    assert np.array_equal(tile.T if transposed else tile, expected)
    touched = box_sectors(box, source.itemsize)
    assert count[TMA_LOAD_BYTES] == box_rows * box_columns * source.itemsize
    assert count[L2_TO_SM] == SECTOR * len(touched)
    assert count.sum() == count[TMA_LOAD_BYTES] + count[L2_TO_SM]
    assert {int(i) for i in np.flatnonzero(marks)} == set(touched)

    only, its_marks = fresh(source.nbytes)
    load_tile(only, its_marks, np.zeros((0, 0), source.dtype), rows, columns, row, column, tile, ELEMENT[name])
    assert transposed or (np.array_equal(only, count) and np.array_equal(its_marks, marks))


@given(box=boxes(), name=st.sampled_from(list(ELEMENT)), seed=st.integers(0, 9))
def test_tile_stores_are_clipped_and_rounded(box: tuple[int, int, int, int, int, int], name: str, seed: int) -> None:
    rows, columns, row, column, box_rows, box_columns = box
    tile = np.random.default_rng(seed).standard_normal((box_rows, box_columns)).astype(np.float32)
    target = np.full((rows, columns), 0x71, FORMATS[name].storage)
    expected = target.copy()
    height, width = max(min(box_rows, rows - row), 0), max(min(box_columns, columns - column), 0)
    if height and width:
        expected[row : row + height, column : column + width] = encode(tile[:height, :width], name)
    count, marks = fresh(target.nbytes)
    store_tile(count, marks, target, rows, columns, row, column, tile, ELEMENT[name])
    assert np.array_equal(target, expected)
    touched = box_sectors(box, target.itemsize)
    assert count[SM_TO_L2] == SECTOR * len(touched) == count.sum()
    assert {int(i) for i in np.flatnonzero(marks)} == set(touched)


@given(rows=st.integers(1, 70), columns=st.integers(1, 70), start=st.integers(0, 40), width=st.integers(1, 40))
def test_a_column_of_boxes_moves_the_row_sectors_of_the_closed_form(
    rows: int, columns: int, start: int, width: int
) -> None:
    width = max(min(width, columns - start), 0)
    count, marks = fresh(rows * columns * TWO)
    for row in range(0, rows, 16):
        tile = np.zeros((16, width), np.float32)
        load_tile(count, marks, np.zeros((0, 0), np.uint16), rows, columns, row, start, tile, BF16)
    assert count[L2_TO_SM] == SECTOR * row_sectors(rows, TWO * columns, TWO * start, TWO * width)


@given(
    m=st.integers(1, 6),
    n=st.integers(1, 70),
    k=st.integers(1, 20),
    reach=st.tuples(st.integers(-3, 40), st.integers(-3, 90), st.integers(-3, 100)),
    seed=st.integers(0, 9),
)
def test_mma_counts_padding_and_accumulates_within_the_float32_bound(
    m: int, n: int, k: int, reach: tuple[int, int, int], seed: int
) -> None:
    m, k = 4 * m, 4 * k
    rng = np.random.default_rng(seed)
    a = decode(encode(rng.standard_normal((m, k)), "bf16"), "bf16")
    b = decode(encode(rng.standard_normal((k, n)), "bf16"), "bf16")
    total = rng.standard_normal((m, n)).astype(np.float32)
    exact = total + a.astype(np.float64) @ b.astype(np.float64)
    # k products, each exact in float32 (8 x 8 significant bits), and the tile itself: k additions of k + 1 terms.
    bound = k * 2.0**-24 / (1 - k * 2.0**-24) * (np.abs(total) + np.abs(a).astype(np.float64) @ np.abs(b))
    count, _ = fresh(0)
    mma(count, total, a, b, *reach, True)
    assert (np.abs(total - exact) <= bound).all()
    assert count[MMA_FLOPS] == 2 * m * n * k
    useful = [max(min(extent, r), 0) for extent, r in zip((m, n, k), reach, strict=True)]
    assert count[FLOPS] == 2 * np.prod(useful)
    assert count.sum() == count[MMA_FLOPS] + count[FLOPS]
    before, only = total.copy(), fresh(0)[0]
    mma(only, total, a, b, *reach, False)
    assert np.array_equal(total, before)
    assert np.array_equal(only, count)


@given(start=st.integers(0, 30), width=st.integers(0, 200), seed=st.integers(0, 9), bits=st.booleans())
def test_dot_is_within_the_float32_bound(start: int, width: int, seed: int, bits: bool) -> None:
    rng = np.random.default_rng(seed)
    x, w = (rng.standard_normal((3, 240)).astype(np.float32) for _ in range(2))
    if bits:
        x, w = encode(x, "bf16"), encode(w, "bf16")
    a, b = ((decode(v, "bf16") if bits else v).astype(np.float64)[r] for v, r in ((x, 2), (w, 1)))
    part = slice(start, start + width)
    got = dot(x, w, 2, 1, start, width)
    assert abs(got - a[part] @ b[part]) <= (width + 1) * 2.0**-24 * (np.abs(a[part]) @ np.abs(b[part]))


@pytest.mark.parametrize("grown", [0, 1])
def test_a_perturbed_box_changes_the_counts(grown: int) -> None:
    def loaded(shape: tuple[int, int]) -> NDArray[np.int64]:
        count, marks = fresh(256 * 256 * TWO)
        load_tile(count, marks, np.zeros((0, 0), np.uint16), 256, 256, 64, 64, np.zeros(shape, np.float32), BF16)
        return count

    box = [64, 64]
    box[grown] += 16
    assert (loaded((box[0], box[1])) != loaded((64, 64)))[[TMA_LOAD_BYTES, L2_TO_SM]].all()


@given(
    n=st.integers(1, 70),
    k=st.integers(1, 40).map(lambda eights: 8 * eights),
    group=st.sampled_from((32, 64, 128)),
    zero_points=st.booleans(),
    corner=st.tuples(st.integers(0, 4), st.integers(0, 2)),
    seed=st.integers(0, 2**32 - 1),
)
def test_packed_groups_are_multiplied_as_the_weights_they_were_packed_from(
    n: int, k: int, group: int, zero_points: bool, corner: tuple[int, int], seed: int
) -> None:
    draw = np.random.default_rng(seed)
    lowest = (-8, 0 if zero_points else -8)  # zero points are from 0 on
    scale, offset = (draw.integers(low, 8, (n, -(-k // group))).astype(np.float16) for low in lowest)
    weights = int4.Groups(draw.integers(0, 16, (n, k), np.uint8), scale, offset, group, zero_points)
    w, pairs = int4.pack(weights)
    row, column = 16 * corner[0], 128 * corner[1]
    count, marks = fresh(w.nbytes)
    _, pair_marks = fresh(pairs.nbytes)
    load_groups(count, marks, pair_marks, n, k, row, column, 32, 128, group)
    x = np.zeros((2, 128), np.float32)
    inside = weights.values[row : row + 32, column : column + 128]
    x[:, : inside.shape[1]] = draw.integers(-8, 8, (2, inside.shape[1]))
    total = np.zeros((32, 2), np.float32)
    add_groups(total, w, pairs, n, k, row, column, 128, in_packed_order(x, group), 0, group, zero_points)
    shown = inside.shape[0]  # rows beyond the last of a tile are padding
    assert np.array_equal(total[:shown], inside @ x[:, : inside.shape[1]].T)
    tiles = len(range(row, min(row + 32, n), 16))
    sectors = len(range(column, min(column + 128, k), 64)) * 16 + len(range(column, min(column + 128, k), group)) * 2
    assert count[LOAD_SECTORS] == tiles * sectors == (marks != 0).sum() + (pair_marks != 0).sum()


def test_a_patch_is_stored_no_further_than_its_matrix_goes() -> None:
    count, marks = fresh(8 * 8 * 4)
    whole = np.zeros((8, 8), np.float32)
    store_patch(count, marks, 4, whole, 3, 8, 1, 4, np.ones((4, 8), np.float32), 1)
    assert whole.sum() == whole[1:3, 4:].sum() == 8
