"""Tensor cores for few tokens, weights through rings of cp.async: whole lines of a row, loads that never pause."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from types import SimpleNamespace

from numpy.typing import NDArray

from lab.kernel import Solves, require_choice, require_grid_y, require_shared
from lab.kernels.common import linear
from lab.kernels.gemv import gemv_mma_counts
from lab.kernels.gemv.mma_tiles import FLOAT, LANES, MMA_M
from lab.problems import Linear
from sim.counts import Counts
from sim.formats import FORMATS
from sim.launch import Launch
from sim.machine import Machine

SOLVES = Solves(
    Linear,
    formats=("bf16", "fp16", "fp8"),
    arch="sm_90",
    row_bytes=16,
    why_multiple="a lane copies 16 bytes of a row",
    after="gemv_mma",
    options={"scales": ("tensor", "row")},
    facts=("weights", "activations", "output", "scaled", "row_scales"),
)


@dataclass(frozen=True)
class Schedule:
    """Tokens and row tiles of a CTA, its warps, and the ring of each."""

    block_m: int
    tiles: int
    warps: int
    segment: int
    stages: int
    ctas_per_sm: int = 1

    def __post_init__(self) -> None:
        require_choice(self, "block_m", (8, 16))
        require_choice(self, "tiles", (1, 2))
        require_choice(self, "warps", (1, 2, 4, 8, 16))
        require_choice(self, "segment", (128, 256, 512))

    @property
    def threads(self) -> int:
        return LANES * self.warps

    @property
    def shared_bytes(self) -> int:
        rows = self.tiles * MMA_M
        return self.warps * (self.stages * rows * self.segment + FLOAT * self.block_m * (rows + 4))

    def fits(self, problem: Linear, machine: Machine) -> None:
        require_shared(self.ctas_per_sm * self.shared_bytes + 1024 * (self.ctas_per_sm - 1), "rings", machine)
        require_grid_y(-(-problem.m // self.block_m), "blocks", machine)


def candidates(problem: Linear, machine: Machine) -> Iterator[Schedule]:
    block_m = 8 if problem.m <= 8 else 16
    for segment, tiles in ((256, 1), (512, 1), (128, 1), (256, 2), (128, 2)):
        for warps in (4, 8, 2, 16):
            for ctas in (4, 3, 2, 6, 1):
                room = 230_000 // ctas // warps - FLOAT * block_m * (tiles * MMA_M + 4)
                stages = min(6, room // (tiles * MMA_M * segment))
                if stages >= 2 and ctas * warps in (8, 12, 16, 24, 32):
                    yield Schedule(block_m, tiles, warps, segment, stages, ctas)


def launch(problem: Linear, schedule: Schedule, machine: Machine) -> tuple[Launch, ...]:
    p, s = problem, schedule
    return (
        Launch(
            kernel="gemv_mma_staged",
            entry="gemv_mma_staged",
            problem=p,
            schedule=s,
            grid=(-(-p.n // (s.tiles * MMA_M)), -(-p.m // s.block_m), 1),
            block=(s.threads, 1, 1),
            arguments=linear.scaled_arguments(p),
            shared_bytes=s.shared_bytes,
            dependent=True,
        ),
    )


def _alike(schedule: Schedule) -> SimpleNamespace:
    s = schedule
    return SimpleNamespace(
        block_m=s.block_m,
        team_rows=s.tiles * MMA_M,
        block_n=s.tiles * MMA_M,
        rows=s.tiles,
        fold=1,
        teams=1,
        split_k=s.warps,
        warps=s.warps,
        unroll=s.segment // 64,
    )


def theory(problem: Linear, schedule: Schedule, machine: Machine) -> Counts:
    """As gemv_mma, but that tensor cores multiply what a last stage has beyond k, too."""
    p, s = problem, schedule
    columns = s.segment // FORMATS[p.weights].storage.itemsize
    ctas = -(-p.n // (s.tiles * MMA_M)) * -(-p.m // s.block_m)
    mma = 2 * ctas * s.tiles * MMA_M * s.block_m * -(-p.k // columns) * columns
    return replace(gemv_mma_counts.theory(p, _alike(s)), mma_flops=mma)


def simulate(launch: Launch, arrays: Mapping[str, NDArray], machine: Machine) -> Counts:
    return gemv_mma_counts.simulate(replace(launch, schedule=_alike(launch.schedule)), arrays, machine)
