"""Rows of a table by their numbers: a copy whose rows are chosen, split over CTAs."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from lab.kernel import Solves
from lab.kernels.rowwise.row_parts import REQUEST, SIZE, Schedule, candidates, requests
from lab.problems.embedding import Embedding
from sim.counts import SECTOR, Counts, row_sectors, sectors
from sim.jit import njit
from sim.launch import Array, Launch, Role, Scalar
from sim.machine import Machine
from sim.tiles import SimulatedChip, load_vector, store_vector

SOLVES = Solves(
    Embedding,
    formats=("bf16", "fp16"),
    arch="sm_90",
    row_bytes=16,
    why_multiple="rows are read 16 bytes at a time",
    facts=("activations",),
)

__all__ = ["SOLVES", "Schedule", "candidates", "launch", "simulate", "theory"]

INDEX = 4  # bytes


def launch(problem: Embedding, schedule: Schedule, machine: Machine) -> tuple[Launch, ...]:
    p = problem
    return (
        Launch(
            kernel="embedding",
            entry="embedding",
            problem=p,
            schedule=schedule,
            grid=(p.m, schedule.parts(p.n), 1),
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
    p, warps = problem, schedule.warps * schedule.parts(problem.n)
    stores = sum(row_sectors(p.m, SIZE * p.n, *request) for request in requests(p.n))
    ids = np.minimum(p.indices()["ids"].view(np.uint32), p.table_rows - 1).astype(np.int64)
    starts, times = np.unique(ids * SIZE * p.n % SECTOR, return_counts=True)  # of a row in its first sector: few differ
    rows = [sum(sectors(int(start) + at, nbytes) for at, nbytes in requests(p.n)) for start in starts]
    loads = int(np.dot(rows, times)) + p.m * warps
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
    chip = SimulatedChip(launch, machine)
    ids = np.minimum(arrays["ids"].view(np.uint32), p.table_rows - 1).astype(np.int64)
    marks = (chip.marks(name) for name in ("ids", "table", "y"))
    chip.on_all_cores(_grid, chip.count, *marks, ids, p.n, s.warps, s.vectors, launch.grid[1])
    if "table" in arrays:
        arrays["y"][...] = arrays["table"][ids]
    return chip.counts()


@njit(cache=True, nogil=True)
def _grid(core, cores, count, ids_marks, table, y, ids, n, warps, vectors, parts):
    sms = count.shape[0]
    for sm in range(core, sms, cores):
        for cta in range(sm, ids.size * parts, sms):
            token, part = cta % ids.size, cta // ids.size
            for warp in range(part * warps, (part + 1) * warps):
                load_vector(count[sm], ids_marks, INDEX * token, INDEX)
                for vector in range(vectors):
                    at = (warp * vectors + vector) * REQUEST
                    nbytes = SIZE * min(REQUEST, n - at)
                    load_vector(count[sm], table, SIZE * (ids[token] * n + at), nbytes)
                    store_vector(count[sm], y, SIZE * (token * n + at), nbytes)
