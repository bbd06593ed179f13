"""Decode of latent attention: a token's row is read once for many heads, as key and as value, by wgmma."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from numpy.typing import NDArray

from lab.cards import fits
from lab.kernel import Bills, Solves, require_choice, require_shared
from lab.kernels.attention import mla_simulation, mla_theory
from lab.kernels.attention.mla_plan import BLOCK_M, BLOCK_N, BOX_COLUMNS, FLOAT, SIZE, WARP, partition_of, workers_of
from lab.kernels.common.norm import joined
from lab.kernels.common.pointers import null, result
from lab.problems import Attention
from sim.counts import Counts
from sim.errors import ScheduleError
from sim.launch import Array, Launch, Role, Scalar, TensorMap
from sim.machine import Machine

DIM, LATENT = 576, 512
SOLVES = Solves(
    Attention,
    formats=("bf16", "fp16"),
    arch="sm_90a",
    required={"latent": (LATENT,), "head_dim": (DIM,)},
    options={"causal": (False,), "page": (8, 16, 32, 64, 128), "lse": (True,)},
    at_most={"q_len": 4},
    facts=("kv", "head_dim", "latent", "group", "causal", "page", "window", "lse", "uniform"),
)

PLANNED_AT_ONCE = 128
WARPGROUPS = 3  # one makes scores, two add up values
MBARRIER = 8
SWIZZLE = 128  # bytes
ALIGNMENT = 1024  # bytes, of a tile with that swizzle
MMA_K = 16
WALK_BYTES = 176  # of three parts, the walk that finds them, what is loaded next, who is last


@dataclass(frozen=True)
class Schedule:
    """How rows share what is loaded, and how segments of the cache are divided over clusters."""

    cluster: int  # CTAs, 64 rows each, that load the same blocks once
    stages: int  # blocks of latents in the ring: 3, what there is room for
    early: int  # groups of a block's sum, of two, that are added up before the next block's scores are waited for
    slack: int  # powers of two by which weights may exceed 1 before the running maximum moves
    overhead: int  # blocks that a segment costs beside its own
    least: int  # blocks of a worker before another one is given work

    def __post_init__(self) -> None:
        require_choice(self, "cluster", (1, 2, 4))
        require_choice(self, "stages", (3,))
        require_choice(self, "early", (0, 1, 2))
        for name, least, most in (("slack", 0, 8), ("overhead", 1, 1024), ("least", 1, 1024)):
            if not least <= getattr(self, name) <= most:
                raise ScheduleError(f"{name} is from {least} to {most:,}; {name} = {getattr(self, name)}")

    @property
    def threads(self) -> int:
        return WARPGROUPS * 4 * WARP

    @property
    def planned_at_once(self) -> int:
        """Sequences whose lengths a warp asks for together where it divides them: they are few words for each lane."""
        return PLANNED_AT_ONCE

    @property
    def shared_bytes(self) -> int:
        """The ring, queries beside those in registers, what rows and stages have of their own, whole alignments."""
        tiles = SIZE * BLOCK_N * (self.stages * DIM + BOX_COLUMNS + MMA_K)
        rows = BLOCK_M * (2 * FLOAT + self.stages)
        barriers = self.stages * 6 * MBARRIER
        return -(-(tiles + rows + WALK_BYTES + barriers) // ALIGNMENT) * ALIGNMENT

    def fits(self, problem: Attention, machine: Machine) -> None:
        require_shared(self.shared_bytes, f"{self.stages} blocks of {BLOCK_N} latents", machine)
        if self.cluster > machine.sms:
            raise ScheduleError(f"a cluster of {self.cluster} CTAs needs as many SMs; there are {machine.sms}")


def candidates(problem: Attention, machine: Machine) -> Iterator[Schedule]:
    """As few CTAs a cluster as hold all rows of a sequence, two at most; then others, and shorter stretches."""
    cluster = 2 if problem.q_len * problem.group > BLOCK_M else 1
    guess = Schedule(cluster, 3, 0, 8, 5, 4)
    yield guess
    yield from (replace(guess, cluster=cluster) for cluster in (1, 2, 4) if cluster != guess.cluster)
    yield replace(guess, early=2)
    yield replace(guess, overhead=cluster)


def launch(problem: Attention, schedule: Schedule, machine: Machine) -> tuple[Launch, ...]:
    p, s = problem, schedule
    workers, rows = workers_of(s, machine), p.tokens * p.q_heads
    cache, places = ("cache", "block_table") if p.page else ("k", "kv_starts")
    inputs = {name: Array(name, Role.IN, *operand) for name, operand in p.inputs.items()}
    kv_rows = p.pool_pages * p.page if p.page else p.kv_rows
    partial_rows = 2 * workers * s.cluster * BLOCK_M
    tiles = -(-p.q_len * p.group // (s.cluster * BLOCK_M))
    return (
        Launch(
            kernel="attention_mla",
            entry="attention_mla",
            problem=p,
            schedule=s,
            grid=(workers * s.cluster, 1, 1),
            block=(s.threads, 1, 1),
            arguments=(
                TensorMap("q_map", "q", (rows, DIM), (DIM, 1), (BLOCK_M, BOX_COLUMNS), SWIZZLE),
                TensorMap("kv_map", cache, (kv_rows, DIM), (DIM, 1), (box_rows(p), BOX_COLUMNS), SWIZZLE),
                inputs["q"],
                inputs[cache],
                *(null(name) if p.uniform else inputs[name] for name in ("q_starts", "kv_lens")),
                inputs[places],
                Array("y", Role.OUT, *p.outputs["y"]),
                result(p, "lse"),
                Array("partial", Role.WORKSPACE, (partial_rows, LATENT), "fp32"),
                Array("partial_lse", Role.WORKSPACE, (partial_rows,), "fp32"),
                Array("arrivals", Role.WORKSPACE, (p.batch, tiles, s.cluster), "int32"),
                Scalar("batch", p.batch),
                Scalar("q_len", p.q_len),
                Scalar("kv_len", p.kv_len),
                Scalar("tiles", tiles),
                Scalar("row_pages", p.pages_per_sequence),
                Scalar("pages", p.pool_pages if p.page else 0),
                Scalar("scale", p.score_scale, "float32"),
            ),
            cluster=(s.cluster, 1, 1),
            shared_bytes=s.shared_bytes,
            dependent=True,
        ),
    )


def box_rows(problem: Attention) -> int:
    """Tokens of a box: a block's, or as many of them as lie in one page."""
    return min(problem.page or BLOCK_N, BLOCK_N)


class Coefficients(fits.Coefficients, frozen=True):
    """What the estimate is made of."""

    start_us: float  # of the launch, until the first latents are there, and from the last ones on
    hbm_share: float  # of the rate of a large read
    tensor_share: float  # of the data sheet's rate of an SM's tensor cores, while a block is multiplied
    blend: float  # exponent of the norm that joins what a launch waits for: near a tie, each delays the other


def bills(problem: Attention, schedule: Schedule, machine: Machine, clock: str) -> Bills:
    """A start, and little more than the longer of two: HBM, and the products of the worker with most blocks."""
    p, s = problem, schedule
    model = fits.coefficients(Coefficients, "attention_mla", machine, clock)
    plan = partition_of(p, s, workers_of(s, machine))
    of_piece = -(-int(plan.blocks.max()) // plan.pieces) if plan.pieces else 1
    most = (plan.each + (plan.longer > 0)) * of_piece  # blocks
    of_block = 2 * BLOCK_M * BLOCK_N * (p.head_dim + p.value_dim) * machine.sms
    stream = {
        "HBM": 1e6 * (p.read_bytes + p.write_bytes) / (model.hbm_share * fits.read_rate(machine)),
        "tensor cores": 1e6 * most * of_block / (model.tensor_share * machine.peak(p.unit)),
    }
    return Bills(model.start_us + joined(model.blend, *stream.values()), {"launch": model.start_us, **stream})


def theory(problem: Attention, schedule: Schedule, machine: Machine) -> Counts:
    """Of the actual lengths; see mla_theory."""
    return mla_theory.theory(problem, schedule, workers_of(schedule, machine))


def simulate(launch: Launch, arrays: Mapping[str, NDArray], machine: Machine) -> Counts:
    return mla_simulation.simulate(launch, arrays, machine)
