"""What the naive kernels share: a warp takes 32 neighbouring columns of one row of y, each lane a whole dot product."""

from lab.problems import Linear
from sim.counts import SECTOR, Counts, box_sectors, lane_sectors, sectors
from sim.formats import FORMATS
from sim.jit import njit
from sim.tiles import count_fma, dot, load_lanes, store_vector

LANES = 32


def theory(problem: Linear) -> Counts:
    """At each k a warp requests one element of x and, k elements apart, one of each of its rows of w."""
    p = problem
    size = FORMATS[p.weights].storage.itemsize

    def strided(lanes: int) -> int:
        """Sectors of w that `lanes` lanes request along the whole of k; 32 rows are whole sectors, so any warp's."""
        if size * p.k >= SECTOR:
            return lanes * p.k
        return sum(lane_sectors(size * i, size * p.k, size, lanes) for i in range(p.k))

    full, rest = divmod(p.n, LANES)
    w = p.m * (full * strided(LANES) + (strided(rest) if rest else 0))
    x = p.m * p.k * -(-p.n // LANES)
    y = box_sectors(p.m, size * p.n, size * LANES)
    return Counts(
        flops=p.flops,
        mma_flops=0,
        exp_count=0,
        global_load_sectors=x + w,
        global_store_sectors=y,
        tma_load_bytes=0,
        l2_to_sm_bytes=SECTOR * (x + w),
        sm_to_l2_bytes=SECTOR * y,
        hbm_read_bytes=SECTOR * (sectors(0, size * p.n * p.k) + sectors(0, size * p.m * p.k)),
        hbm_write_bytes=SECTOR * sectors(0, size * p.m * p.n),
    )


@njit(cache=True)
def warp(count, x_marks, w_marks, y_marks, x, w, sums, n, k, row, column, size, numerics):
    """32 lanes, one for each of the columns from `column` on, of one row of y; `size` is the bytes of an element."""
    lanes = min(LANES, n - column)
    load_lanes(count, x_marks, size * row * k, 0, size, lanes, size, k)
    load_lanes(count, w_marks, size * column * k, size * k, size, lanes, size, k)
    count_fma(count, lanes * k)
    if numerics:
        for lane in range(lanes):
            sums[row, column + lane] = dot(x, w, row, column + lane, 0, k)
    store_vector(count, y_marks, size * (row * n + column), size * lanes)
