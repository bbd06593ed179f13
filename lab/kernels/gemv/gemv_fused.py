"""A layer's norm, gate and residual in the launch of its matrix, whose weights are asked for before x is there."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import product

from numpy.typing import NDArray

from lab.cards import fits
from lab.kernel import Bills, Solves, require_choice, require_grid_y, require_resident, require_shared
from lab.kernels.gemv import bulk_ring, gemv_fused_counts
from lab.kernels.gemv.gemv_fused_counts import pair_bytes
from lab.kernels.gemv.mma_tiles import FLOAT, LANES, MMA_M, SIZE
from lab.problems import Linear
from sim.counts import Counts
from sim.errors import ScheduleError
from sim.formats import FORMATS
from sim.launch import Array, Launch, Role, Scalar
from sim.machine import Machine

SOLVES = Solves(
    Linear,
    formats=("bf16", "fp8", "int4_g32", "int4_g64", "int4_g128"),
    arch="sm_90",
    multiple_of={"k": 64, "n": 32},
    why_multiple="row tiles are copied whole, and in 64-byte parts of rows",
    after="gemv_mma",
    options={
        "scales": ("tensor", "row"), "offset": ("zero",), "epilogue": ("residual", "swiglu"), "norm": (True,)
    },
    at_most={"m": 8},
    facts=("weights", "scaled", "row_scales", "group", "zero_points", "norm", "residual", "swiglu"),
)  # fmt: skip

BARRIERS = 16  # bytes of a stage's two
ALIGNED = 128  # bytes: where the ring begins
VECTOR = 16  # bytes
ROW_BYTES = 64  # of a row of w in a packet, what a warp takes of a row tile at once


@dataclass(frozen=True)
class Schedule:
    """Tokens and warps of a CTA, its ring, and how many CTAs share the row tiles."""

    block_m: int  # tokens that a CTA has room for
    warps: int  # that multiply; one more copies
    unroll: int  # packets of a warp in a stage
    stages: int  # of the ring
    ctas: int  # of the grid, all resident at once
    ctas_per_sm: int  # that an SM has registers for: this launch's and the next one's

    def __post_init__(self) -> None:
        require_choice(self, "block_m", (1, 2, 4, 8))
        require_choice(self, "warps", (2, 4, 8, 16))
        require_choice(self, "unroll", (1, 2, 4))
        require_choice(self, "ctas_per_sm", (1, 2, 4))
        if not 2 <= self.stages <= 64:
            raise ScheduleError(f"a ring has 2 to 64 stages; stages = {self.stages}")
        if not 1 <= self.ctas <= 2**16:
            raise ScheduleError(f"a grid has 1 to 65,536 CTAs; ctas = {self.ctas}")

    @property
    def threads(self) -> int:
        return LANES * (self.warps + 1)

    @property
    def step_bytes(self) -> int:
        """Of a row of w in a stage, whatever its format: of packed ones too a warp takes twice 16 bytes a lane."""
        return ROW_BYTES * self.warps * self.unroll

    def fits(self, problem: Linear, machine: Machine) -> None:
        p = problem
        require_grid_y(gemv_fused_counts.blocks(p, self), "blocks of tokens", machine)
        require_shared(shared_bytes(p, self), f"{self.stages} stages of {self.warps} warps, and x", machine)
        require_resident(self.ctas_per_sm, 0, self.threads, REGISTERS, machine)


REGISTERS = 80  # of a thread, so that nothing spills


def stage_columns(problem: Linear, schedule: Schedule) -> int:
    return 8 * schedule.step_bytes // FORMATS[problem.weights].bits


def stage_bytes(problem: Linear, schedule: Schedule) -> int:
    """A row tile's columns; row-major rows lie apart, so that two of them are at other banks."""
    p, row = problem, schedule.step_bytes
    if p.group:
        return MMA_M * row + pair_bytes(p, stage_columns(p, schedule))
    return MMA_M * (row + (ROW_BYTES if row % (2 * ROW_BYTES) == 0 else 0)) + VECTOR


def shared_bytes(problem: Linear, schedule: Schedule) -> int:
    """Barriers, squares and sums; the ring; x, its rows 16 bytes apart."""
    p, s = problem, schedule
    sums = 2 * (2 if p.swiglu else 1) * s.warps * s.block_m * MMA_M * FLOAT
    first = s.stages * BARRIERS + s.block_m * s.warps * FLOAT + sums
    x = min(p.m, s.block_m) * (SIZE * p.k + VECTOR)
    return -(-first // ALIGNED) * ALIGNED + s.stages * stage_bytes(p, s) + x


SHAPES = ((8, 2), (8, 1), (8, 4), (16, 1), (4, 2), (4, 1))  # warps, packets of each in a stage
MOST_STAGES = 24


def candidates(problem: Linear, machine: Machine) -> Iterator[Schedule]:
    """A CTA an SM, its ring in half of the shared memory, so that the next launch's has the other, or in all of it."""
    p = problem
    ctas = min(machine.sms, gemv_fused_counts.tiles(p))
    half = machine.shared_bytes_per_sm // 2 - machine.reserved_shared_bytes
    rooms = ((half, 2), (machine.shared_bytes_per_block, 1))
    most = (p.m - 1).bit_length()
    for block_m in (1 << power for power in range(most, -1, -1)):
        for (room, per_sm), (warps, unroll) in product(rooms, SHAPES):
            least = Schedule(block_m, warps, unroll, 2, ctas, per_sm)
            left = room - shared_bytes(p, least) - ALIGNED
            stages = 2 + min(left // (stage_bytes(p, least) + BARRIERS), MOST_STAGES - 2)
            with suppress(ScheduleError):
                deepest = replace(least, stages=stages)
                deepest.fits(p, machine)
                yield deepest
    yield Schedule(1, *SHAPES[-1], 2, ctas, 1)  # takes least


def bills(problem: Linear, schedule: Schedule, machine: Machine, clock: str) -> Bills:
    """A start, and HBM, which sends w once for each block of tokens."""
    p = problem
    model = fits.coefficients(bulk_ring.Coefficients, "gemv_ring", machine, clock)
    again = (gemv_fused_counts.blocks(p, schedule) - 1) * p.bytes["weights"]
    hbm = 1e6 * (p.read_bytes + p.write_bytes + again) / (model.hbm_share * fits.read_rate(machine))
    return Bills(model.start_us + hbm, {"launch": model.start_us, "HBM": hbm})


def launch(problem: Linear, schedule: Schedule, machine: Machine) -> tuple[Launch, ...]:
    p, s = problem, schedule

    def operand(name: str) -> Array | Scalar:
        return Array(name, Role.IN, *p.inputs[name]) if name in p.inputs else Scalar(name, 0, "int64")

    return (
        Launch(
            kernel="gemv_fused",
            entry="gemv_fused",
            problem=p,
            schedule=s,
            grid=(s.ctas, gemv_fused_counts.blocks(p, s), 1),
            block=(s.threads, 1, 1),
            arguments=(
                *(operand(name) for name in ("x", "norm", "w", "w_scale", "residual")),
                Array("y", Role.OUT, *p.outputs["y"]),
                *(Scalar(name, getattr(p, name)) for name in ("m", "n", "k")),
                Scalar("eps", p.eps, "float32"),
            ),
            shared_bytes=shared_bytes(p, s),
            dependent=True,
        ),
    )


def theory(problem: Linear, schedule: Schedule, machine: Machine) -> Counts:
    """Every CTA reads x and the norm's weights; each row tile is copied once, and finished by one warp."""
    return gemv_fused_counts.theory(problem, schedule)


def simulate(launch: Launch, arrays: Mapping[str, NDArray], machine: Machine) -> Counts:
    p, s = launch.problem, launch.schedule
    return gemv_fused_counts.simulate(launch, arrays, machine, stage_columns(p, s))
