"""Counted warp requests to global memory: contiguous vectors, strided lanes, patches of a matrix."""

from sim.cache import READ, WRITTEN
from sim.counts import SECTOR
from sim.jit import njit
from sim.tiles.chip import L2_TO_SM, LOAD_SECTORS, SM_TO_L2, STORE_SECTORS

_READ, _WRITTEN = READ, WRITTEN
_STRIP = 8  # rows that are transposed together


@njit(cache=True, inline="always")
def _mark(marks, first, last, bit):
    run = marks[first : last + 1]  # a slice, so that the compiler sees plain indices and vectorises
    for sector in range(run.size):
        run[sector] |= bit


@njit(cache=True)
def load_vector(count, marks, start, nbytes):
    """One warp request for the contiguous bytes [start, start + nbytes) of an array; nothing where nbytes is 0."""
    if nbytes <= 0:
        return
    first, last = start // SECTOR, (start + nbytes - 1) // SECTOR
    count[LOAD_SECTORS] += last - first + 1
    count[L2_TO_SM] += SECTOR * (last - first + 1)
    _mark(marks, first, last, _READ)


@njit(cache=True)
def store_vector(count, marks, start, nbytes):
    """One warp request that writes the contiguous bytes [start, start + nbytes) of an array."""
    if nbytes <= 0:
        return
    first, last = start // SECTOR, (start + nbytes - 1) // SECTOR
    count[STORE_SECTORS] += last - first + 1
    count[SM_TO_L2] += SECTOR * (last - first + 1)
    _mark(marks, first, last, _WRITTEN)


@njit(cache=True)
def _lanes(marks, start, stride, width, lanes, step, times, bit):
    """Unique sectors of `times` requests: lane l of request t accesses `width` bytes at start + l stride + t step.

    Lane addresses ascend. How the lanes fall into sectors repeats when t step comes round to a multiple of a sector, so
    one period is counted and multiplied; every sector is marked.
    """
    if stride == 0:
        lanes = 1  # a broadcast
    period = times
    if step > 0:
        period = 1
        while (period * step) % SECTOR != 0:
            period += 1
    total = 0
    whole, rest = times // period, times % period
    for t in range(min(period, times)):
        previous = -1
        unique = 0
        for lane in range(lanes):
            at = start + lane * stride + t * step
            first, last = at // SECTOR, (at + width - 1) // SECTOR
            unique += last - max(first - 1, previous)
            previous = last
        total += unique * (whole + (1 if t < rest else 0))
    for lane in range(lanes):
        at = start + lane * stride
        _mark_run(marks, at, width, step, times, bit)
    return total


@njit(cache=True, inline="always")
def _mark_run(marks, at, width, step, times, bit):
    if step <= max(SECTOR, width):
        _mark(marks, at // SECTOR, (at + (times - 1) * step + width - 1) // SECTOR, bit)
    else:
        for t in range(times):
            _mark(marks, (at + t * step) // SECTOR, (at + t * step + width - 1) // SECTOR, bit)


@njit(cache=True)
def load_lanes(count, marks, start, stride, width, lanes, step, times):
    """`times` warp requests in which lane l loads `width` bytes at start + l stride, each request `step` bytes on."""
    unique = _lanes(marks, start, stride, width, lanes, step, times, _READ)
    count[LOAD_SECTORS] += unique
    count[L2_TO_SM] += SECTOR * unique


@njit(cache=True)
def store_lanes(count, marks, start, stride, width, lanes, step, times):
    """`times` warp requests in which lane l stores `width` bytes at start + l stride, each request `step` bytes on."""
    unique = _lanes(marks, start, stride, width, lanes, step, times, _WRITTEN)
    count[STORE_SECTORS] += unique
    count[SM_TO_L2] += SECTOR * unique


@njit(cache=True)
def store_scattered(count, marks, at, width):
    """One warp request whose lanes store `width` bytes each at the ascending offsets `at`."""
    unique = _scattered(marks, at, width, _WRITTEN)
    count[STORE_SECTORS] += unique
    count[SM_TO_L2] += SECTOR * unique


@njit(cache=True)
def load_scattered(count, marks, at, width):
    """One warp request whose lanes load `width` bytes each at the ascending offsets `at`."""
    unique = _scattered(marks, at, width, _READ)
    count[LOAD_SECTORS] += unique
    count[L2_TO_SM] += SECTOR * unique


@njit(cache=True)
def _scattered(marks, at, width, bit):
    """Unique sectors of a request whose lanes access `width` bytes each at ascending offsets."""
    total, previous = 0, -1
    for start in at:
        first, last = start // SECTOR, (start + width - 1) // SECTOR
        total += last - max(first - 1, previous)
        previous = last
        _mark(marks, first, last, bit)
    return total


@njit(cache=True)
def add_atomically(count, marks, start, nbytes):
    """One lane's atomic operation on a number, which L2 carries out."""
    first, last = start // SECTOR, (start + nbytes - 1) // SECTOR
    count[SM_TO_L2] += SECTOR * (last - first + 1)
    _mark(marks, first, last, _WRITTEN)


@njit(cache=True)
def load_patch(count, marks, size, source, rows, columns, row, column, patch, request_rows):
    """Load the patch at (row, column) of a [rows, columns] matrix of `size`-byte elements, zeros outside of it.

    A warp request is `request_rows` rows of the patch, of which lanes outside the matrix load nothing. `source` holds
    the elements as float32; where it is empty, the requests are only counted. Pass `patch.T` to have it transposed.
    """
    unique = _patch(marks, size, rows, columns, row, column, patch.shape, request_rows, _READ)
    count[LOAD_SECTORS] += unique
    count[L2_TO_SM] += SECTOR * unique
    if source.size > 0:
        height, width = max(min(patch.shape[0], rows - row), 0), max(min(patch.shape[1], columns - column), 0)
        if height < patch.shape[0] or width < patch.shape[1]:
            patch[:] = 0
        assign(patch, source[row : row + height, column : column + width])


@njit(cache=True)
def store_patch(count, marks, size, target, rows, columns, row, column, patch, request_rows):
    """Store the patch at (row, column) of a [rows, columns] matrix, clipped to it, by requests as in `load_patch`."""
    unique = _patch(marks, size, rows, columns, row, column, patch.shape, request_rows, _WRITTEN)
    count[STORE_SECTORS] += unique
    count[SM_TO_L2] += SECTOR * unique
    if target.size > 0:
        height, width = max(min(patch.shape[0], rows - row), 0), max(min(patch.shape[1], columns - column), 0)
        assign(target[row : row + height, column : column + width], patch[:height, :width])


@njit(cache=True)
def _patch(marks, size, rows, columns, row, column, shape, request_rows, bit):
    """Unique sectors of the requests of a patch; a sector that two rows of one request share counts once."""
    nbytes = size * min(shape[1], columns - column)
    total = 0
    if nbytes > 0:
        for top in range(row, min(row + shape[0], rows), request_rows):
            previous = -1
            for r in range(top, min(top + request_rows, row + shape[0], rows)):
                start = size * (r * columns + column)
                first, last = start // SECTOR, (start + nbytes - 1) // SECTOR
                total += last - max(first - 1, previous)
                previous = last
                _mark(marks, first, last, bit)
    return total


@njit(cache=True)
def assign(target, source):
    """target[:] = source, matrices of one shape, in strips of rows whose columns are short runs of a transposed target.

    Numba's own assignment brings the text of its complaint about other shapes along: seven seconds of compilation.
    """
    for top in range(0, source.shape[0], _STRIP):
        strip, into = source[top : top + _STRIP], target[top : top + _STRIP]
        if target.strides[0] > target.strides[1]:
            for r in range(strip.shape[0]):
                for c in range(strip.shape[1]):
                    into[r, c] = strip[r, c]
        else:
            for c in range(strip.shape[1]):
                for r in range(strip.shape[0]):
                    into[r, c] = strip[r, c]
