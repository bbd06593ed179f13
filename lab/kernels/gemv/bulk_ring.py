"""What the GEMVs share that stream w through a ring in shared memory: the ring, closed-form counts, the simulation."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from lab.cards import fits
from lab.kernel import Bills, require_choice, require_shared
from lab.kernels.gemv import dot_product
from lab.kernels.gemv.dot_product import ELEMENT, LANES
from lab.problems import Linear
from sim.counts import Counts, row_sectors
from sim.errors import ScheduleError
from sim.formats import encode
from sim.jit import njit
from sim.launch import Launch
from sim.machine import Machine
from sim.tiles import ELEMENT as CODES
from sim.tiles import SimulatedChip, count_fma, dot, load_tile, store_vector

MBARRIER = 8  # bytes
LINE = 128 // ELEMENT  # elements; shares of a row begin on one
RINGS = (  # CTAs an SM, warps, step_bytes, stages: about 100 KB of an SM, the best of wide segments and of many first
    (2, 8, 2048, 3),
    (2, 4, 4096, 3),
    (2, 4, 2048, 5),
    (1, 8, 4096, 3),
    (1, 8, 2048, 6),
    (2, 8, 1024, 6),
    (1, 16, 2048, 3),
)


@dataclass(frozen=True)
class Streaming:
    """The rows of a CTA and its ring."""

    block_n: int  # rows of w
    warps: int  # that multiply, one for each row of a stage
    step_bytes: int  # of a row of w in a stage
    stages: int  # of the ring

    def __post_init__(self) -> None:
        require_choice(self, "warps", (1, 2, 4, 8, 16))
        require_choice(self, "step_bytes", (512, 1024, 2048, 4096, 8192))
        if not 1 <= self.block_n <= 2**16:
            raise ScheduleError(f"a CTA has from 1 to 65,536 rows; block_n = {self.block_n}")
        if self.stages < 2:
            raise ScheduleError(f"a ring has 2 stages or more; stages = {self.stages}")

    @property
    def threads(self) -> int:
        return LANES * (self.warps + 1)

    @property
    def ring_bytes(self) -> int:
        """The stages, each a step of the rows and of x, and a full and an empty barrier for each."""
        return -(-self.stages * ((self.warps + 1) * self.step_bytes + 2 * MBARRIER) // 16) * 16

    @property
    def shared_bytes(self) -> int:
        return self.ring_bytes

    def fits(self, problem: Linear, machine: Machine) -> None:
        dot_product.require_tokens(problem, machine)
        require_shared(self.shared_bytes, f"{self.stages} stages of {self.warps} rows", machine)


def segments(k: int, split_k: int, step_bytes: int) -> list[tuple[int, int]]:
    """(first element, elements) of every step along a row: the shares of the CTAs, each in steps."""
    lines, step = -(-k // LINE), step_bytes // ELEMENT
    bounds = [*(rank * lines // split_k * LINE for rank in range(split_k)), k]
    return [(at, min(step, end - at)) for first, end in pairwise(bounds) for at in range(first, end, step)]


def theory(problem: Linear, schedule: Streaming, split_k: int, stores: int) -> Counts:
    """Each row of x passes all of w; x is copied once for every stage's rows. `stores` are the sectors of y."""
    p, s = problem, schedule
    steps = segments(p.k, split_k, s.step_bytes)
    full, rest = divmod(p.n, s.block_n)
    turns = full * -(-s.block_n // s.warps) + -(-rest // s.warps)  # round all CTAs' rows
    w = p.m * sum(row_sectors(p.n, ELEMENT * p.k, ELEMENT * at, ELEMENT * width) for at, width in steps)
    x = turns * sum(row_sectors(p.m, ELEMENT * p.k, ELEMENT * at, ELEMENT * width) for at, width in steps)
    return dot_product.counts(
        p, loads=0, stores=stores, copied=ELEMENT * p.m * p.k * (p.n + turns), copied_sectors=w + x
    )


class Coefficients(fits.Coefficients, frozen=True):
    """What the estimate is made of."""

    start_us: float  # of a launch: barriers, and the first copies before the first product
    hbm_share: float  # of the rate of a large read, of CTAs alone
    cluster_share: float  # of those of clusters
    l2_bytes_per_s: float  # to all SMs, where rows of x share w there


def bills(problem: Linear, schedule: Streaming, split_k: int, machine: Machine, clock: str) -> Bills:
    """A start, and the larger of HBM's time and L2's, which sends w again for each row of x."""
    p, model = problem, fits.coefficients(Coefficients, "gemv_ring", machine, clock)
    blocks = -(-p.n // schedule.block_n) * split_k
    share = model.hbm_share if split_k == 1 else model.cluster_share
    rate, busy = share * fits.read_rate(machine), min(1.0, blocks * p.m / machine.sms)
    beside = {
        "HBM": 1e6 * p.bytes["total"] / (rate * busy),
        "L2": 1e6 * p.m * p.bytes["weights"] / (model.l2_bytes_per_s * busy),
    }
    return Bills(model.start_us + max(beside.values()), {"launch": model.start_us, **beside})


def simulate(
    launch: Launch, arrays: Mapping[str, NDArray], machine: Machine, split_k: int, owned: int, stored: int
) -> Counts:
    """Of a block's rows a CTA stores `owned` neighbouring ones, each request `stored` of them."""
    p, s = launch.problem, launch.schedule
    chip = SimulatedChip(launch, machine)
    x, w = (arrays[name] if arrays else np.zeros((0, 0), np.uint16) for name in ("x", "w"))
    sums = np.zeros((p.m, p.n) if arrays else (0, 0), np.float32)
    marks = [chip.marks(name) for name in ("x", "w", "y")]
    steps = np.array(segments(p.k, split_k, s.step_bytes), np.int64)
    chip.on_all_cores(
        _grid, chip.count, *marks, x, w, sums, p.m, p.n, p.k, launch.grid[0] // split_k, steps, s.block_n, s.warps,
        s.step_bytes // ELEMENT, owned, stored, CODES[p.weights],
    )  # fmt: skip
    if arrays:
        arrays["y"][...] = encode(sums, p.output)
    return chip.counts()


@njit(cache=True, nogil=True)
def _grid(
    core,
    cores,
    count,
    x_marks,
    w_marks,
    y_marks,
    x,
    w,
    sums,
    m,
    n,
    k,
    blocks,
    steps,
    block_n,
    warps,
    step,
    owned,
    stored,
    element,
):
    sms = count.shape[0]
    for sm in range(core, sms, cores):
        w_stage = np.empty((warps, step), np.float32)
        x_stage = np.empty((1, step), np.float32)
        for block in range(sm, blocks * m, sms):
            token, first = block // blocks, block % blocks * block_n
            end = min(first + block_n, n)
            for row in range(first, end, warps):
                rows = min(warps, end - row)
                for at, width in steps:
                    load_tile(count[sm], w_marks, w, n, k, row, at, w_stage[:rows, :width], element)
                    load_tile(count[sm], x_marks, x, m, k, token, at, x_stage[:, :width], element)
                    count_fma(count[sm], rows * width)
                    if sums.size > 0:
                        for r in range(rows):
                            sums[token, row + r] += dot(w_stage, x_stage, r, 0, 0, width)
            for own in range(first, end, owned):
                last = min(own + owned, end)
                for row in range(own, last, stored):
                    store_vector(
                        count[sm], y_marks, ELEMENT * (token * n + row), ELEMENT * (min(row + stored, last) - row)
                    )
