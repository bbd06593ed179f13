"""A ring of bulk copies for each warp: no thread copies for others, the next launch has its weights on their way."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from lab.cards import fits
from lab.kernel import Bills, Solves, require_choice, require_shared
from lab.kernels.common import clusters, linear
from lab.kernels.gemv import bulk_ring, dot_product
from lab.kernels.gemv.bulk_ring import MBARRIER
from lab.kernels.gemv.dot_product import ELEMENT, LANES
from lab.problems import Linear
from sim.counts import Counts, row_sectors, sectors
from sim.errors import ScheduleError
from sim.formats import FORMATS, encode
from sim.jit import njit
from sim.launch import Launch
from sim.machine import Machine
from sim.tiles import ELEMENT as CODES
from sim.tiles import SimulatedChip, count_fma, dot, load_tile, load_vector, store_vector

SOLVES = Solves(
    Linear,
    formats=("bf16", "fp16", "fp8"),
    arch="sm_90a",
    multiple_of={"k": 16},
    why_multiple="bulk copies need rows that are multiples of 16 bytes, in fp8 too",
    after="gemv_split_k",
    at_most={"k": 2**16},
    options={"scales": ("tensor", "row")},
    facts=("weights", "activations", "output", "scaled", "row_scales"),
)

FLOAT = 4  # bytes of a scale
SM_IPC = 2.3  # instructions a clock of an SM, as gemv_vectorized's were fitted


@dataclass(frozen=True)
class Schedule:
    """The rows of a CTA, its warps, and the ring of each."""

    block_n: int  # rows of w
    warps: int  # of a CTA
    rows: int  # of w that a warp multiplies at once, so that it widens x once for them
    step_bytes: int  # of a row of w in a stage: a bulk copy
    stages: int  # of a warp's ring
    late: int = 0  # 1: the launch behind begins when a warp has asked for its last segment, 0: at once

    def __post_init__(self) -> None:
        require_choice(self, "warps", (1, 2, 4, 8, 16))
        require_choice(self, "rows", (1, 2, 4))
        require_choice(self, "step_bytes", (512, 1024, 2048, 4096, 8192))
        require_choice(self, "late", (0, 1))
        if not 1 <= self.block_n <= 2**16:
            raise ScheduleError(f"a CTA has from 1 to 65,536 rows; block_n = {self.block_n}")
        if not 2 <= self.stages <= 64:
            raise ScheduleError(f"a ring has 2 to 64 stages; stages = {self.stages}")

    @property
    def threads(self) -> int:
        return LANES * self.warps

    def fits(self, problem: Linear, machine: Machine) -> None:
        dot_product.require_tokens(problem, machine)
        what = f"{self.stages} stages of {self.warps} warps, and x,"
        require_shared(shared_bytes(problem, self), what, machine)


def shared_bytes(problem: Linear, schedule: Schedule) -> int:
    """The warps' rings, a barrier for each stage and for x, scales; x."""
    s = schedule
    stages = s.warps * s.stages * (s.rows * s.step_bytes + MBARRIER)
    scales = FLOAT * (s.block_n if problem.scaled else 1)
    return -(-(stages + MBARRIER + scales) // 16) * 16 + ELEMENT * problem.k


RINGS = (  # CTAs an SM, warps, rows, step_bytes
    (1, 8, 1, 4096),
    (2, 4, 1, 4096),
    (1, 8, 1, 2048),
    (2, 4, 1, 2048),
    (1, 8, 2, 2048),
    (2, 4, 2, 2048),
    (1, 16, 1, 2048),
    (2, 8, 1, 2048),
    (1, 4, 1, 8192),
    (1, 8, 4, 1024),
    (2, 4, 4, 1024),
    (1, 16, 2, 1024),
)
MOST_STAGES = 12


def candidates(problem: Linear, machine: Machine) -> Iterator[Schedule]:
    """One wave of CTAs, the rings as deep as shared memory allows beside one or two launches behind, or alone."""
    for ctas, warps, rows, step_bytes in RINGS:
        least = Schedule(-(-problem.n // (ctas * machine.sms)), warps, rows, step_bytes, 2)
        depths = [_stages(problem, least, ctas * launches, machine) for launches in (2, 3, 1)]
        beside = [stages for stages in dict.fromkeys(depths[:2]) if stages >= least.stages]
        yield from (replace(least, stages=stages) for stages in beside or depths[2:] if stages >= least.stages)


def _stages(problem: Linear, least: Schedule, ctas: int, machine: Machine) -> int:
    """Of the rings of so many CTAs on an SM."""
    room = min(machine.shared_bytes_per_sm // ctas - machine.reserved_shared_bytes, machine.shared_bytes_per_block)
    stage = least.warps * (least.rows * least.step_bytes + MBARRIER)
    return min(MOST_STAGES, least.stages + (room - shared_bytes(problem, least)) // stage)


def bills(problem: Linear, schedule: Schedule, machine: Machine, clock: str) -> Bills:
    """A start, and the longer of two: HBM, which sends w again for each row of x; instructions."""
    p, s = problem, schedule
    model = fits.coefficients(bulk_ring.Coefficients, "gemv_ring", machine, clock)
    ctas = -(-p.n // s.block_n)
    busy = min(1.0, ctas * p.m / machine.sms)
    moved = p.m * p.bytes["weights"] + p.bytes["activations"]
    hbm = 1e6 * moved / (model.hbm_share * fits.read_rate(machine) * busy)
    vector = (20 if p.weights == "fp8" else 16) + 2 + 9 / s.rows  # to widen eight weights, to multiply; for x
    issued = p.m * p.n * p.k / (8 * LANES) * vector / (machine.sms * busy)
    instructions = 1e6 * issued / (SM_IPC * machine.clock_hz)
    parts = {"launch": model.start_us, "HBM": hbm, "instructions": instructions}
    return Bills(model.start_us + max(hbm, instructions), parts, apart=("launch",))


def launch(problem: Linear, schedule: Schedule, machine: Machine) -> tuple[Launch, ...]:
    ctas = clusters.even(-(-problem.n // schedule.block_n), machine)
    return (
        Launch(
            kernel="gemv_warp_rings",
            entry="gemv_warp_rings",
            problem=problem,
            schedule=schedule,
            grid=(ctas, problem.m, 1),
            block=(schedule.threads, 1, 1),
            arguments=linear.scaled_arguments(problem),
            shared_bytes=shared_bytes(problem, schedule),
            dependent=True,
        ),
    )


def _weight_bytes(problem: Linear) -> int:
    return FORMATS[problem.weights].storage.itemsize


def _steps(problem: Linear, schedule: Schedule) -> list[tuple[int, int]]:
    """(first column, columns) of every step along a row."""
    step = schedule.step_bytes // _weight_bytes(problem)
    return [(at, min(step, problem.k - at)) for at in range(0, problem.k, step)]


def theory(problem: Linear, schedule: Schedule, machine: Machine) -> Counts:
    """Each row of x passes all of w and comes once to every CTA with work; each row of y is stored by itself."""
    p, s, size = problem, schedule, _weight_bytes(problem)
    blocks = [(row, min(s.block_n, p.n - row)) for row in range(0, p.n, s.block_n)]
    w = p.m * sum(row_sectors(p.n, size * p.k, size * at, size * width) for at, width in _steps(p, s))
    x = len(blocks) * row_sectors(p.m, ELEMENT * p.k, 0, ELEMENT * p.k)
    requests = [(row + at, min(LANES, rows - at)) for row, rows in blocks for at in range(0, rows, LANES)]
    scales = sum(sectors(FLOAT * row, FLOAT * rows) if p.row_scales else 1 for row, rows in requests)
    return dot_product.counts(
        p,
        loads=p.m * scales if p.scaled else 0,
        stores=p.m * p.n,
        copied=p.m * p.k * (size * p.n + ELEMENT * len(blocks)),
        copied_sectors=w + x,
    )


def simulate(launch: Launch, arrays: Mapping[str, NDArray], machine: Machine) -> Counts:
    p, s = launch.problem, launch.schedule
    chip = SimulatedChip(launch, machine)
    x, w = (arrays[name] if arrays else np.zeros((0, 0), p.inputs[name].storage) for name in ("x", "w"))
    sums = np.zeros((p.m, p.n) if arrays else (0, 0), np.float32)
    marks = [chip.marks(name) for name in ("x", "w", "y")]
    scale_marks = chip.marks("w_scale") if p.scaled else np.zeros(0, np.uint8)
    steps = np.array(_steps(p, s), np.int64)
    chip.on_all_cores(
        _grid, chip.count, *marks, scale_marks, x, w, sums, p.m, p.n, p.k, steps, s.block_n, s.warps, s.rows,
        s.step_bytes // _weight_bytes(p), p.row_scales, CODES[p.activations], CODES[p.weights],
    )  # fmt: skip
    if arrays:
        arrays["y"][...] = encode(sums * arrays["w_scale"] if p.scaled else sums, p.output)
    return chip.counts()


@njit(cache=True, nogil=True)
def _grid(
    core, cores,
    count, x_marks, w_marks, y_marks, scale_marks, x, w, sums, m, n, k, steps, block_n, warps, group, step, row_scales,
    x_element, w_element,
):  # fmt: skip
    sms, blocks = count.shape[0], -(-n // block_n)
    for sm in range(core, sms, cores):
        x_row = np.empty((1, k), np.float32)
        stage = np.empty((group, step), np.float32)
        for block in range(sm, blocks * m, sms):
            token, first = block // blocks, block % blocks * block_n
            end = min(first + block_n, n)
            load_tile(count[sm], x_marks, x, m, k, token, 0, x_row, x_element)
            if scale_marks.size > 0:
                for row in range(first, end, LANES):
                    at, scales = (row, min(LANES, end - row)) if row_scales else (0, 1)
                    load_vector(count[sm], scale_marks, FLOAT * at, FLOAT * scales)
            for warp in range(warps):
                for row in range(first + warp * group, end, warps * group):
                    rows = min(group, end - row)
                    for at, width in steps:
                        load_tile(count[sm], w_marks, w, n, k, row, at, stage[:rows, :width], w_element)
                        count_fma(count[sm], rows * width)
                        if sums.size > 0:
                            for r in range(rows):
                                sums[token, row + r] += dot(stage, x_row[:, at : at + width], r, 0, 0, width)
                    for own in range(row, row + rows):
                        store_vector(count[sm], y_marks, ELEMENT * (token * n + own), ELEMENT)
