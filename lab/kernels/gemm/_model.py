"""How long a wgmma GEMM takes, in closed form: waves of tiles, each k-step bound by the tensor cores or by the loads.

It ranks schedules. Its constants are what an H100 showed.
"""

from math import sqrt

from lab.kernels.gemm._tiles import MMA_M, STEP_BYTES, columns_of, step_of, tiles_of
from lab.problems import Linear
from sim.counts import Counts
from sim.machine import Machine

SHARED_BYTES_PER_CLOCK = 128  # of an SM (CUDA C++ Programming Guide, 32 banks of 4 bytes)
MMA_K_BYTES = 32  # along k of a wgmma
L2_BYTES_PER_CLOCK = 42  # to each SM when all ask: machine.l2_bandwidth over its SMs and clock
FILL_CLOCKS = 2000  # launch to first mma: barriers, tensor maps, one trip to HBM
ROUND_CLOCKS = 450  # of a warpgroup for 64 x 64 outputs on their way out
START_US = 2.0  # of a kernel whose data is cold


def step_clocks(problem: Linear, block_m: int, block_n: int, cluster: int, machine: Machine) -> float:
    """Clocks of one k-step of a tile: a wgmma reads its rows of x and all rows of w from shared memory."""
    flops_per_clock = machine.peak(problem.activations) / machine.sms / machine.clock_hz
    wgmma = 2 * MMA_M * block_n * step_of(problem) * MMA_K_BYTES / STEP_BYTES / flops_per_clock
    operands = (MMA_M + block_n) * MMA_K_BYTES / SHARED_BYTES_PER_CLOCK
    mma = max(wgmma, operands) * (block_m / MMA_M) * (STEP_BYTES / MMA_K_BYTES)
    loads = (block_m + block_n / cluster) * STEP_BYTES / L2_BYTES_PER_CLOCK
    return max(mma, loads)


def persistent_us(
    problem: Linear, theory: Counts, block_m: int, block_n: int, cluster: int, overlap: float, machine: Machine
) -> float:
    """Microseconds of as many workers as the machine has SMs; `overlap` of a tile's way out is hidden."""
    tall = cluster * block_m
    tiles = tiles_of(problem.m, tall) * tiles_of(problem.columns, columns_of(problem, block_n))
    waves = tiles_of(tiles, machine.sms // cluster)
    way_out = ROUND_CLOCKS * (block_m / MMA_M / 2) * (block_n / MMA_M)
    tile = tiles_of(problem.k, step_of(problem)) * step_clocks(problem, block_m, block_n, cluster, machine)
    clocks = FILL_CLOCKS + waves * (tile + (1 - overlap) * way_out) + overlap * way_out
    moved = ((theory.hbm_read_bytes or 0) + (theory.hbm_write_bytes or 0)) / machine.hbm_bandwidth
    return START_US + 1e6 * max(clocks / machine.clock_hz, moved)


def best_group(workers: int, block_m: int, block_n: int) -> int:
    """Rows of tiles walked together so that the tiles of a wave share most: a square patch of y."""
    return max(1, round(sqrt(workers * block_n / block_m)))
