"""RMSNorm fused with the residual add: a row is read once and stays in registers."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lab.cards import fits
from lab.kernel import Bills, Solves, require_choice, require_threads
from lab.problems.rmsnorm import RMSNorm
from sim.counts import SECTOR, Counts, row_sectors, sectors
from sim.errors import ScheduleError
from sim.formats import decode, encode
from sim.jit import njit
from sim.launch import Array, Launch, Role, Scalar
from sim.machine import Machine
from sim.tiles import SimulatedChip, count_fma, load_vector, store_vector

LANES = 32
VECTOR_BYTES = 16  # of a lane's load
SIZE = 2  # bytes of an element
REQUEST = LANES * VECTOR_BYTES // SIZE  # elements of a warp's load
WARPS = (1, 2, 4, 8, 16, 32)  # that share a row
VECTORS = (1, 2, 3, 4, 6, 8)  # loads of a lane

SOLVES = Solves(
    RMSNorm,
    formats=("bf16", "fp16"),
    arch="sm_90",
    row_bytes=16,
    why_multiple="rows are read 16 bytes at a time",
    options={"residual": (False,)},
    at_most={"n": WARPS[-1] * VECTORS[-1] * REQUEST},
    facts=("activations", "residual"),
)


@dataclass(frozen=True)
class Schedule:
    """How a row is shared and how many rows a CTA has."""

    warps: int  # that share a row
    vectors: int  # 16-byte loads of a lane that cover its part of a row
    rows: int = 1  # of a CTA
    late: int = 2  # 0: the launch behind begins at once, 1: when that ahead has ended, 2: likewise, but for one token

    def __post_init__(self) -> None:
        require_choice(self, "warps", WARPS)
        require_choice(self, "vectors", VECTORS)
        require_choice(self, "rows", (1, 2, 4, 8))
        require_choice(self, "late", (0, 1, 2))

    @property
    def threads(self) -> int:
        return LANES * self.warps * self.rows

    def fits(self, problem: RMSNorm, machine: Machine) -> None:
        require_threads(1, self.threads, machine)
        room = self.warps * self.vectors * REQUEST
        if problem.n > room:
            raise ScheduleError(
                f"{self.warps} warps of {self.vectors} vectors hold a row of {room:,} elements; n = {problem.n:,}"
            )


def candidates(problem: RMSNorm, machine: Machine) -> Iterator[Schedule]:
    """Few rows: a row over as many warps as it fills; many: fewer warps with more loads in flight each."""
    needed = -(-problem.n // REQUEST)  # requests of a warp that cover a row
    covering = [(w, next(v for v in VECTORS if v * w >= needed)) for w in WARPS if w * VECTORS[-1] >= needed]
    least = min(w * v for w, v in covering)
    shapes = [(w, v) for w, v in covering if (w - 1) * v < needed]  # every warp has a part of the row
    shapes = shapes or [(w, v) for w, v in covering if w * v == least]
    most = machine.max_block_threads
    found = [Schedule(w, v, rows) for w, v in shapes for rows in (1, 2, 4) if w * rows * LANES <= most]
    few = problem.m <= machine.sms
    yield from sorted(found, key=lambda s: (s.rows > 1, s.vectors) if few else (abs(s.threads - 256), -s.vectors))


class Coefficients(fits.Coefficients, frozen=True):
    """What the estimate is made of."""

    latency_us: float  # from asking for a row to having it


def bills(problem: RMSNorm, schedule: Schedule, machine: Machine, clock: str) -> Bills:
    """An empty launch, then the bytes at the rate of a copy or, where rows are few, the trip to HBM and back.

    After that an SM takes and gives the rows of its CTAs through its port to L2.
    """
    model = fits.coefficients(Coefficients, "rmsnorm", machine, clock)
    start, moved = fits.launch_us(machine, clock), problem.bytes["total"]
    hbm = 1e6 * moved / fits.copy_rate(machine)
    ctas = -(-problem.m // schedule.rows)
    rows = min(problem.m, schedule.rows * -(-ctas // machine.sms))
    port = machine.l2_bytes_per_clock_per_sm
    own = 1e6 * moved / problem.m * rows / (port * machine.clock_hz) if port else 0.0
    bills = {"launch": start, "HBM": hbm, "latency": model.latency_us, "L2": own}
    return Bills(start + max(hbm, model.latency_us + own), bills)


def launch(problem: RMSNorm, schedule: Schedule, machine: Machine) -> tuple[Launch, ...]:
    p = problem
    arrays = [(name, Role.IN, p.inputs.get(name)) for name in ("x", "residual", "weight")]
    arrays += [(name, Role.OUT, p.outputs.get(name)) for name in ("y", "total")]
    return (
        Launch(
            kernel="rmsnorm",
            entry="rmsnorm",
            problem=p,
            schedule=schedule,
            grid=(-(-p.m // schedule.rows), 1, 1),
            block=(schedule.threads, 1, 1),
            arguments=(
                *(Array(name, role, *of) if of else Scalar(name, 0, "int64") for name, role, of in arrays),
                Scalar("m", p.m),
                Scalar("n", p.n),
                Scalar("eps", p.eps, "float32"),
            ),
            dependent=True,
        ),
    )


def theory(problem: RMSNorm, schedule: Schedule, machine: Machine) -> Counts:
    p = problem
    requests = [(SIZE * at, SIZE * min(REQUEST, p.n - at)) for at in range(0, p.n, REQUEST)]
    of_rows = sum(row_sectors(p.m, SIZE * p.n, start, nbytes) for start, nbytes in requests)
    of_weight = p.m * sum(sectors(start, nbytes) for start, nbytes in requests)
    loads, stores = of_rows * (1 + p.residual) + of_weight, of_rows * (1 + p.residual)
    return Counts(
        flops=p.flops,
        mma_flops=0,
        exp_count=0,
        global_load_sectors=loads,
        global_store_sectors=stores,
        tma_load_bytes=0,
        l2_to_sm_bytes=SECTOR * loads,
        sm_to_l2_bytes=SECTOR * stores,
        hbm_read_bytes=SECTOR * sum(sectors(0, operand.nbytes) for operand in p.inputs.values()),
        hbm_write_bytes=SECTOR * sum(sectors(0, operand.nbytes) for operand in p.outputs.values()),
    )


def simulate(launch: Launch, arrays: Mapping[str, NDArray], machine: Machine) -> Counts:
    p, s = launch.problem, launch.schedule
    chip, nothing = SimulatedChip(launch, machine), np.zeros((0, 0), np.float32)
    marks = {name: chip.marks(name) for name in (*p.inputs, *p.outputs)}
    unused = np.zeros(0, np.uint8)
    total, y = (np.empty((p.m, p.n), np.float32) if arrays else nothing for _ in range(2))
    weight = nothing[0:0].reshape(0)
    if arrays:
        added = [decode(arrays[name], p.activations) for name in ("x", "residual") if name in p.inputs]
        with np.errstate(invalid="ignore", over="ignore"):
            bits = encode(sum(added[1:], added[0]), p.activations)
        total[:], weight = decode(bits, p.activations), decode(arrays["weight"], p.activations)
    chip.on_all_cores(
        _grid, chip.count,
        marks["x"], marks.get("residual", unused), marks["weight"], marks["y"], marks.get("total", unused),
        total, weight, y, p.m, p.n, np.float32(p.eps), s.warps, s.vectors, s.rows, launch.grid[0],
    )  # fmt: skip
    if arrays:
        arrays["y"][...] = encode(y, p.activations)
        if p.residual:
            arrays["total"][...] = bits
    return chip.counts()


@njit(cache=True, nogil=True)
def _grid(
    core, cores, count, x, residual, weight, y, out, total, weights, result, m, n, eps, warps, vectors, rows, ctas
):
    """Marks of the arrays; the sums of a row and its results where `total` holds numbers."""
    sms = count.shape[0]
    for sm in range(core, sms, cores):
        for row in range(sm * rows, ctas * rows, sms * rows):
            for token in range(row, min(row + rows, m)):
                _row(count[sm], x, residual, weight, y, out, n, token, warps, vectors)
                if total.size > 0:
                    _normalise(total[token], weights, result[token], eps, warps)


@njit(cache=True)
def _row(count, x, residual, weight, y, out, n, token, warps, vectors):
    for vector in range(vectors):
        for warp in range(warps):
            at = (vector * warps + warp) * REQUEST
            nbytes = SIZE * min(REQUEST, n - at)
            load_vector(count, weight, SIZE * at, nbytes)
            load_vector(count, x, SIZE * (token * n + at), nbytes)
            store_vector(count, y, SIZE * (token * n + at), nbytes)
            if residual.size > 0:
                load_vector(count, residual, SIZE * (token * n + at), nbytes)
                store_vector(count, out, SIZE * (token * n + at), nbytes)
    count_fma(count, 2 * n)
    if residual.size > 0:
        count_fma(count, n // 2)  # an addition is half of one


@njit(cache=True)
def _normalise(total, weight, y, eps, warps):
    """Each warp sums its requests' squares, then all of them their sums."""
    partial = np.zeros(warps, np.float32)
    for at in range(0, total.size, REQUEST):
        part = np.float32(0)
        for value in total[at : at + REQUEST]:
            part += value * value
        partial[at // REQUEST % warps] += part
    mean = partial.sum() / np.float32(total.size)
    root = np.float32(1) / np.sqrt(mean + eps)
    for i in range(total.size):
        y[i] = total[i] * root * weight[i]
