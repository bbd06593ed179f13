"""Rows of a table by their numbers: a copy whose rows are chosen, split over CTAs."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lab.kernel import Solves, require_choice, require_grid_y, require_threads
from lab.problems.embedding import Embedding
from sim.counts import SECTOR, Counts, row_sectors
from sim.jit import njit, prange
from sim.launch import Array, Launch, Role, Scalar
from sim.machine import Machine
from sim.tiles import Chip, load_vector, store_vector

SOLVES = Solves(
    Embedding,
    formats=("bf16", "fp16"),
    arch="sm_90",
    row_bytes=16,
    why_multiple="rows are read 16 bytes at a time",
    facts=("activations",),
)

LANES = 32
SIZE = 2  # bytes of an element
REQUEST = LANES * 16 // SIZE  # elements of a warp's load
INDEX = 4  # bytes


@dataclass(frozen=True)
class Schedule:
    """How much of a row a CTA has."""

    warps: int
    vectors: int  # 16-byte loads of a lane

    def __post_init__(self) -> None:
        require_choice(self, "warps", (1, 2, 4, 8))
        require_choice(self, "vectors", (1, 2, 4, 8))

    @property
    def threads(self) -> int:
        return LANES * self.warps

    @property
    def columns(self) -> int:
        """Elements of a CTA."""
        return self.warps * self.vectors * REQUEST

    def fits(self, problem: Embedding, machine: Machine) -> None:
        require_threads(1, self.threads, machine)
        require_grid_y(-(-problem.n // self.columns), f"parts of {self.columns:,} elements of a row", machine)


def candidates(problem: Embedding, machine: Machine) -> Iterator[Schedule]:
    """Few rows: small parts, on many SMs; many: a row in as few CTAs as it fills."""
    found = [Schedule(warps, vectors) for warps in (1, 2, 4, 8) for vectors in (1, 2, 4)]
    legal = [s for s in found if -(-problem.n // s.columns) <= machine.max_grid[1]]
    useful = [s for s in legal if s.columns < 2 * problem.n] or legal[:1]
    few = problem.m <= machine.sms
    yield from sorted(useful, key=lambda s: s.columns if few else (abs(s.columns - problem.n), s.vectors))


def launch(problem: Embedding, schedule: Schedule, machine: Machine) -> tuple[Launch, ...]:
    p = problem
    return (
        Launch(
            kernel="embedding",
            entry="embedding",
            problem=p,
            schedule=schedule,
            grid=(p.m, -(-p.n // schedule.columns), 1),
            block=(schedule.threads, 1, 1),
            arguments=(
                *(Array(name, Role.IN, *operand) for name, operand in p.inputs.items()),
                Array("y", Role.OUT, *p.outputs["y"]),
                Scalar("n", p.n),
                Scalar("vocab", p.table_rows),
            ),
            dependent=True,
        ),
    )


def theory(problem: Embedding, schedule: Schedule, machine: Machine) -> Counts:
    p = problem
    requests = [(SIZE * at, SIZE * min(REQUEST, p.n - at)) for at in range(0, p.n, REQUEST)]
    stores = sum(row_sectors(p.m, SIZE * p.n, *request) for request in requests)
    period = SECTOR // np.gcd(SECTOR, SIZE * p.n)  # rows after which their place in a sector repeats
    places = np.bincount(np.minimum(p.indices()["ids"].view(np.uint32), p.table_rows - 1) % period)
    of_place = [
        sum(row_sectors(r + 1, SIZE * p.n, *q) - row_sectors(r, SIZE * p.n, *q) for q in requests)
        for r in range(len(places))
    ]
    warps = schedule.warps * -(-p.n // schedule.columns)
    loads = int(places @ of_place) + p.m * warps
    return Counts(
        flops=0,
        mma_flops=0,
        exp_count=0,
        global_load_sectors=loads,
        global_store_sectors=stores,
        tma_load_bytes=0,
        l2_to_sm_bytes=SECTOR * loads,
        sm_to_l2_bytes=SECTOR * stores,
        hbm_read_bytes=p.read_bytes,
        hbm_write_bytes=p.write_bytes,
    )


def simulate(launch: Launch, arrays: Mapping[str, NDArray], machine: Machine) -> Counts:
    p, s = launch.problem, launch.schedule
    chip = Chip(launch, machine)
    ids = np.minimum(arrays["ids"].view(np.uint32), p.table_rows - 1).astype(np.int64)
    marks = (chip.marks(name) for name in ("ids", "table", "y"))
    _grid(chip.count, *marks, ids, p.n, s.warps, s.vectors, launch.grid[1])
    if "table" in arrays:
        arrays["y"][...] = arrays["table"][ids]
    return chip.counts()


@njit(cache=True, parallel=True)
def _grid(count, ids_marks, table, y, ids, n, warps, vectors, parts):
    sms = count.shape[0]
    for sm in prange(sms):
        for cta in range(sm, ids.size * parts, sms):
            token, part = cta % ids.size, cta // ids.size
            for warp in range(part * warps, (part + 1) * warps):
                load_vector(count[sm], ids_marks, INDEX * token, INDEX)
                for vector in range(vectors):
                    at = (warp * vectors + vector) * REQUEST
                    nbytes = SIZE * min(REQUEST, n - at)
                    load_vector(count[sm], table, SIZE * (ids[token] * n + at), nbytes)
                    store_vector(count[sm], y, SIZE * (token * n + at), nbytes)
