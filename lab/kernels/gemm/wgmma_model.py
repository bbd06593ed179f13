"""How long a wgmma GEMM takes, in closed form: waves of tiles, each k-step bound by the tensor cores or by the loads.

It ranks schedules and kernels.
"""

from math import sqrt

from msgspec import structs

from lab.cards import fits
from lab.kernel import Bills
from lab.kernels.common import clusters
from lab.kernels.common.raster import tiles_of
from lab.kernels.gemm.wgmma_mainloop import MMA_M, STEP_BYTES, columns_of, step_of
from lab.problems import Linear
from sim.formats import FORMATS
from sim.machine import Machine

MMA_K_BYTES = 32  # along k of a wgmma


class Coefficients(fits.Coefficients, frozen=True):
    """What the model is made of."""

    start_us: float  # of a launch
    cluster_start_us: float  # more for a launch of clusters
    crossing_rows: float  # times the clocks of a row of 128 bytes that crosses a 128-byte line
    beyond_clocks: float  # of a row that a box asks for beyond x, for the share of the SMs that are busy, and
    most_beyond_clocks: float  # the most of it
    load_power: float  # more time for each further row loaded per column: at the power cap a byte moved costs clocks
    multicast: float  # the time of a step of clusters, whose CTAs wait for one another
    fill_clocks: float  # launch to first mma: barriers, tensor maps, one trip to HBM
    tile_clocks: float  # from a tile's last mma to the next one's first, the epilogue apart
    round_clocks: float  # of the epilogue of 64 x 64 outputs
    narrow_round_clocks: float  # the same in boxes of 32 columns
    restart_clocks: float  # of a CTA that follows another on its SM
    contention: float  # of the smaller bill, that of the SMs or of HBM, is not hidden behind the larger
    hbm_share: float  # of the rate of a large read, read and written together
    hot_us: float  # tensor cores that work longer than this run at the power cap
    cool_share: float  # of a launch, in which they may work at the full clock
    hot: float  # more time beyond both, for each further share


def coefficients(machine: Machine, clock: str) -> Coefficients:
    """By a clock; rows that cross lines take as long by any, and are searched by the cold one."""
    found, cold = (fits.coefficients(Coefficients, "wgmma", machine, one) for one in (clock, "cold"))
    return structs.replace(found, crossing_rows=cold.crossing_rows)


def crosses_lines(problem: Linear) -> bool:
    """Whether the rows of x and w start anywhere in a 128-byte line, so that a step's part of a row lies in two."""
    return problem.k * FORMATS[problem.activations].storage.itemsize % STEP_BYTES != 0


def step_clocks(
    problem: Linear,
    block_m: int,
    block_n: int,
    cluster: int,
    machine: Machine,
    model: Coefficients,
    crossing_w: bool | None = None,
) -> dict[str, float]:
    """Clocks of one k-step of a tile by what binds: a wgmma reads its rows of x and all rows of w from shared memory.

    L2 gives an SM so many bytes a clock through TMA, rows of 128 aligned bytes. `crossing_w` says whether those of w
    cross lines where it is not as those of x. Rows beyond x all wait for one line of L2, the longer the more SMs ask
    for it.
    """
    flops_per_clock = machine.peak(problem.activations) / machine.sms / machine.clock_hz
    wgmma = 2 * MMA_M * block_n * step_of(problem) * MMA_K_BYTES / STEP_BYTES / flops_per_clock
    operands = (MMA_M + block_n) * MMA_K_BYTES / machine.shared_bytes_per_clock
    tall = cluster * block_m
    beyond = -problem.m % tall / (cluster * tiles_of(problem.m, tall))  # rows of a CTA's x, on average
    crossing_x = crosses_lines(problem)
    row_clocks, w_row_clocks = (
        STEP_BYTES / port(machine) * (model.crossing_rows if crossing else 1)
        for crossing in (crossing_x, crossing_x if crossing_w is None else crossing_w)
    )
    tiles = tiles_of(problem.m, tall) * tiles_of(problem.columns, columns_of(problem, block_n))
    busy = min(1.0, cluster * tiles / (_waves(tiles, cluster, machine) * machine.sms))
    power = max(1.0, 1 + model.load_power * busy * (128 / block_m + 128 / block_n - 1.5))
    loads = (
        (block_m - beyond) * row_clocks
        + block_n / cluster * w_row_clocks
        + beyond * min(model.beyond_clocks * busy, model.most_beyond_clocks)
    )
    waits = model.multicast if cluster > 1 else 1
    return {
        "tensor cores": wgmma * (block_m / MMA_M) * (STEP_BYTES / MMA_K_BYTES) * power * waits,
        "shared memory": operands * (block_m / MMA_M) * (STEP_BYTES / MMA_K_BYTES) * power * waits,
        "L2": loads * waits,
    }


def port(machine: Machine) -> float:
    """Bytes a clock from L2 to an SM; no bound where nobody says."""
    return machine.l2_bytes_per_clock_per_sm or float("inf")


def tiled_bills(
    problem: Linear,
    block_m: int,
    block_n: int,
    cluster: int,
    between: float,
    machine: Machine,
    model: Coefficients,
    crossing_w: bool | None = None,
) -> Bills:
    """Of as many workers as the machine runs at once, `between` clocks apart from tile to tile."""
    tall = cluster * block_m
    tiles = tiles_of(problem.m, tall) * tiles_of(problem.columns, columns_of(problem, block_n))
    waves = _waves(tiles, cluster, machine)
    steps = tiles_of(problem.k, step_of(problem))
    step = step_clocks(problem, block_m, block_n, cluster, machine, model, crossing_w)
    clocks = model.fill_clocks + waves * (steps * max(step.values()) + between)
    clock_hz = fits.sm_clock_hz(machine)
    bills = clocks / clock_hz, problem.bytes["total"] / (model.hbm_share * fits.read_rate(machine))
    start = model.start_us + (model.cluster_start_us if cluster > 1 else 0.0)
    cool = start + 1e6 * (max(bills) + model.contention * min(bills))
    us = 1e6 / clock_hz
    working = min(1.0, cluster * tiles / (waves * machine.sms))
    hot = power_cap(waves * steps * step["tensor cores"] * us, cool, working, model.hot_us, model.cool_share, model.hot)
    return Bills(
        cool + hot,
        {
            "launch": start,
            "HBM": 1e6 * bills[1],
            **{what: waves * steps * each * us for what, each in step.items()},
            "fill and epilogue": (model.fill_clocks + waves * between) * us,
            "power cap": hot,
        },
        apart=("launch", "power cap", *(("fill and epilogue",) if bills[0] > bills[1] else ())),
    )


def _waves(tiles: int, cluster: int, machine: Machine) -> int:
    """Tiles, one after another, until all are done."""
    return tiles_of(tiles, clusters.resident(cluster, 1, machine))


def power_cap(tensor_us: float, cool_us: float, working: float, hot_us: float, cool_share: float, hot: float) -> float:
    """Microseconds that tensor cores take longer for the cap on the chip's power, of so many at the full clock.

    The clock falls with the share of a launch, `cool_us` at the full clock, in which the chip's tensor cores work: on
    the fullest SM `tensor_us`, of which an average one is `working` such a share. The other three are as `Coefficients`
    has them.
    """
    return hot * max(0.0, working * tensor_us / cool_us - cool_share) * max(0.0, tensor_us - hot_us)


def epilogue_clocks(problem: Linear, block_m: int, block_n: int, model: Coefficients) -> float:
    """Clocks in which a tile of accumulators is rounded and handed to the stores."""
    row = columns_of(problem, block_n) * FORMATS[problem.output].storage.itemsize
    clocks = model.round_clocks if row % 128 == 0 else model.narrow_round_clocks
    return clocks * (block_m / MMA_M) * (block_n / MMA_M)


def best_group(workers: int, block_m: int, block_n: int) -> int:
    """Rows of tiles walked together so that the tiles of a wave share most: a square patch of y."""
    return max(1, round(sqrt(workers * block_n / block_m)))
