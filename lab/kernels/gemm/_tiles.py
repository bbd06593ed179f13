"""What the wgmma GEMMs share: tile arithmetic, the order of tiles, tensor maps, closed-form counts."""

from lab.kernels import _linear
from lab.problems import Linear
from sim.counts import SECTOR, Counts, row_sectors, sectors
from sim.jit import njit
from sim.launch import Argument, TensorMap
from sim.machine import Machine

BLOCK_K = 64  # bf16 in the 128 bytes of a swizzled row
MMA_M = 64  # rows of a wgmma
SWIZZLE = 128  # bytes
ALIGNMENT = 1024  # bytes, of a tile with the 128-byte swizzle
BF16 = 2  # bytes
MBARRIER = 8  # bytes
L2_BYTES_PER_CLOCK = 64  # from L2 to one SM (A100 whitepaper; Hopper's is not lower)


def tiles_of(extent: int, block: int) -> int:
    """How many tiles of `block` cover `extent`."""
    return -(-extent // block)


def stage_bytes(block_m: int, block_n: int) -> int:
    """One stage of the ring: a k-step of a tile's rows of x and of w."""
    return (block_m + block_n) * BLOCK_K * BF16


def barrier_bytes(stages: int) -> int:
    """The ring's full and empty barriers, padded to the alignment of a tile."""
    return tiles_of(2 * MBARRIER * stages, ALIGNMENT) * ALIGNMENT


def tile_count(problem: Linear, block_m: int, block_n: int) -> int:
    return tiles_of(problem.m, block_m) * tiles_of(problem.n, block_n)


def estimated_clocks(problem: Linear, block_m: int, block_n: int, machine: Machine, sms: int = 1) -> int:
    """Clocks a k-step of all waves, to rank tile shapes: the larger of the tensor cores' time and that of the loads.

    A tile is shared by `sms` SMs.
    """
    waves = tiles_of(tile_count(problem, block_m, block_n), machine.sms // sms)
    flops_per_clock = machine.peak("bf16") / machine.sms / machine.clock_hz
    mma = 2 * block_m * block_n * BLOCK_K / flops_per_clock
    loads = (block_m + block_n) * BLOCK_K * BF16 / L2_BYTES_PER_CLOCK
    return round(waves * max(mma, loads) / sms)


@njit(cache=True)
def tile_at(index, m, n, block_m, block_n, group_m):
    """The first row and column of a tile: groups of `group_m` tile rows are walked column by column."""
    tiles_m, tiles_n = -(-m // block_m), -(-n // block_n)
    first = index // (group_m * tiles_n) * group_m
    rows = min(group_m, tiles_m - first)
    inside = index - first * tiles_n
    return (first + inside % rows) * block_m, inside // rows * block_n


def arguments(problem: Linear, x_box: int, w_box: int) -> tuple[Argument, ...]:
    """The parameters of the wgmma GEMMs: x and w come in boxes of x_box and w_box rows, y leaves in 64 x 64."""
    p = problem
    return (
        TensorMap("x_map", "x", (p.m, p.k), (p.k, 1), (x_box, BLOCK_K), SWIZZLE),
        TensorMap("w_map", "w", (p.n, p.k), (p.k, 1), (w_box, BLOCK_K), SWIZZLE),
        TensorMap("y_map", "y", (p.m, p.n), (p.n, 1), (MMA_M, BLOCK_K), SWIZZLE),
        *_linear.arguments(p),
    )


def theory(problem: Linear, block_m: int, block_n: int, tiles_m: int) -> Counts:
    """Each column of tiles loads x, each of the `tiles_m` rows of tiles loads w; y leaves in boxes of 64 columns."""
    p = problem
    tiles_n, steps = tiles_of(p.n, block_n), tiles_of(p.k, BLOCK_K)
    ks = [(k0, min(BLOCK_K, p.k - k0)) for k0 in range(0, p.k, BLOCK_K)]
    ns = [(n0, min(BLOCK_K, p.n - n0)) for n0 in range(0, p.n, BLOCK_K)]
    x = sum(row_sectors(p.m, BF16 * p.k, BF16 * k0, BF16 * width) for k0, width in ks)
    w = sum(row_sectors(p.n, BF16 * p.k, BF16 * k0, BF16 * width) for k0, width in ks)
    y = sum(row_sectors(p.m, BF16 * p.n, BF16 * n0, BF16 * width) for n0, width in ns)
    return Counts(
        flops=p.flops,
        mma_flops=2 * tiles_m * block_m * tiles_n * block_n * steps * BLOCK_K,
        exp_count=0,
        global_load_sectors=0,
        global_store_sectors=0,
        tma_load_bytes=tiles_m * tiles_n * steps * (block_m + block_n) * BLOCK_K * BF16,
        l2_to_sm_bytes=SECTOR * (tiles_n * x + tiles_m * w),
        sm_to_l2_bytes=SECTOR * y,
        hbm_read_bytes=SECTOR * (sectors(0, BF16 * p.m * p.k) + sectors(0, BF16 * p.n * p.k)),
        hbm_write_bytes=SECTOR * sectors(0, BF16 * p.m * p.n),
    )
