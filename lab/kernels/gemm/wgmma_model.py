"""How long a wgmma GEMM takes, in closed form: waves of tiles, each k-step bound by the tensor cores or by the loads.

It ranks schedules and kernels. Its constants were fitted by hand to times on an H100 (experiment gemm_sweep in
experiments/records); on few or ragged rows it can be off by a third.
"""

from math import sqrt

from lab.kernels.common.raster import tiles_of
from lab.kernels.gemm.wgmma_mainloop import MMA_M, STEP_BYTES, clusters_at_once, columns_of, step_of
from lab.problems import Linear
from sim.counts import Counts
from sim.formats import FORMATS
from sim.machine import Machine

SHARED_BYTES_PER_CLOCK = 128  # of an SM (CUDA C++ Programming Guide, 32 banks of 4 bytes)
MMA_K_BYTES = 32  # along k of a wgmma
L2_BYTES_PER_CLOCK = 64  # to each SM through TMA, rows of 128 aligned bytes
CROSSING_ROWS = 2.5  # times the clocks of a row of 128 bytes that crosses a 128-byte line
LOAD_POWER = 0.08  # more time for each further row loaded per column: at the power cap a byte moved costs clocks
MULTICAST = 1.25  # the time of a step of clusters, whose CTAs wait for one another: 1.01 at best, 1.4 where m is ragged
FILL_CLOCKS = 2000  # launch to first mma: barriers, tensor maps, one trip to HBM
TILE_CLOCKS = 300  # from a tile's last mma to the next one's first, the epilogue apart
ROUND_CLOCKS = 220  # of the epilogue of 64 x 64 outputs
NARROW_ROUND_CLOCKS = 300  # the same in boxes of 32 columns
RESTART_CLOCKS = 1500  # of a CTA that follows another on its SM
START_US = 3.0  # of a launch whose data is cold
CLUSTER_START_US = 0.5  # more for a launch of clusters
CONTENTION = 0.05  # of the smaller bill, that of the SMs or of HBM, is not hidden behind the larger
HBM_SHARE = 0.87  # of the data sheet's rate, read and written together
HOT_US, HOT = 20.0, 1.24  # a kernel longer than the first runs at the power cap: its further time takes longer


def crosses_lines(problem: Linear) -> bool:
    """Whether the rows of x and w start anywhere in a 128-byte line, so that a step's part of a row lies in two."""
    return problem.k * FORMATS[problem.activations].storage.itemsize % STEP_BYTES != 0


def step_clocks(problem: Linear, block_m: int, block_n: int, cluster: int, machine: Machine) -> float:
    """Clocks of one k-step of a tile: a wgmma reads its rows of x and all rows of w from shared memory."""
    flops_per_clock = machine.peak(problem.activations) / machine.sms / machine.clock_hz
    wgmma = 2 * MMA_M * block_n * step_of(problem) * MMA_K_BYTES / STEP_BYTES / flops_per_clock
    operands = (MMA_M + block_n) * MMA_K_BYTES / SHARED_BYTES_PER_CLOCK
    mma = max(wgmma, operands) * (block_m / MMA_M) * (STEP_BYTES / MMA_K_BYTES)
    rows = block_m + block_n / cluster
    row_clocks = STEP_BYTES / L2_BYTES_PER_CLOCK * (CROSSING_ROWS if crosses_lines(problem) else 1)
    power = 1 + LOAD_POWER * (128 / block_m + 128 / block_n - 1.5)
    return max(mma * max(1.0, power), rows * row_clocks) * (MULTICAST if cluster > 1 else 1)


def tiled_us(
    problem: Linear, theory: Counts, block_m: int, block_n: int, cluster: int, between: float, machine: Machine
) -> float:
    """Microseconds of as many workers as the machine runs at once, `between` clocks apart from tile to tile."""
    tall = cluster * block_m
    tiles = tiles_of(problem.m, tall) * tiles_of(problem.columns, columns_of(problem, block_n))
    waves = tiles_of(tiles, clusters_at_once(cluster, machine))
    tile = tiles_of(problem.k, step_of(problem)) * step_clocks(problem, block_m, block_n, cluster, machine)
    clocks = FILL_CLOCKS + waves * (tile + between)
    moved = ((theory.hbm_read_bytes or 0) + (theory.hbm_write_bytes or 0)) / (HBM_SHARE * machine.hbm_bandwidth)
    bills = clocks / machine.clock_hz, moved
    cool = START_US + (CLUSTER_START_US if cluster > 1 else 0.0) + 1e6 * (max(bills) + CONTENTION * min(bills))
    return cool + (HOT - 1) * max(0.0, cool - HOT_US)


def epilogue_clocks(problem: Linear, block_m: int, block_n: int) -> float:
    """Clocks in which a tile of accumulators is rounded and handed to the stores."""
    row = columns_of(problem, block_n) * FORMATS[problem.output].storage.itemsize
    clocks = ROUND_CLOCKS if row % 128 == 0 else NARROW_ROUND_CLOCKS
    return clocks * (block_m / MMA_M) * (block_n / MMA_M)


def best_group(workers: int, block_m: int, block_n: int) -> int:
    """Rows of tiles walked together so that the tiles of a wave share most: a square patch of y."""
    return max(1, round(sqrt(workers * block_n / block_m)))


def joined(exponent: int, *clocks: float) -> float:
    """Little more than the longest: the norm of an exponent."""
    return float(sum(each**exponent for each in clocks) ** (1 / exponent))
