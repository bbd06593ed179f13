"""The gated activation between two linear layers: a copy that computes as it goes, split over CTAs."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from lab.kernel import Solves
from lab.kernels.rowwise.row_parts import REQUEST, SIZE, Schedule, candidates, requests
from lab.problems.swiglu import FLOPS, SwiGLU
from sim.counts import SECTOR, Counts, row_sectors
from sim.formats import decode, encode
from sim.jit import njit
from sim.launch import Array, Launch, Role, Scalar
from sim.machine import Machine
from sim.tiles import SimulatedChip, count_exp, count_fma, load_vector, store_vector

SOLVES = Solves(
    SwiGLU,
    formats=("bf16", "fp16"),
    arch="sm_90",
    row_bytes=16,
    why_multiple="rows are read 16 bytes at a time",
    facts=("activations",),
)

__all__ = ["SOLVES", "Schedule", "candidates", "launch", "simulate", "theory"]


def launch(problem: SwiGLU, schedule: Schedule, machine: Machine) -> tuple[Launch, ...]:
    p = problem
    return (
        Launch(
            kernel="swiglu",
            entry="swiglu",
            problem=p,
            schedule=schedule,
            grid=(p.m, schedule.parts(p.n), 1),
            block=(schedule.threads, 1, 1),
            arguments=(
                Array("gate_up", Role.IN, *p.inputs["gate_up"]),
                Array("y", Role.OUT, *p.outputs["y"]),
                Scalar("n", p.n),
            ),
            dependent=True,
        ),
    )


def theory(problem: SwiGLU, schedule: Schedule, machine: Machine) -> Counts:
    p = problem
    stores = sum(row_sectors(p.m, SIZE * p.n, *request) for request in requests(p.n))
    loads = sum(row_sectors(2 * p.m, SIZE * p.n, *request) for request in requests(p.n))
    return Counts(
        flops=p.flops,
        mma_flops=0,
        exp_count=p.m * p.n,
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
    chip.on_all_cores(
        _grid, chip.count, chip.marks("gate_up"), chip.marks("y"), p.m, p.n, s.warps, s.vectors, launch.grid[1]
    )
    if arrays:
        both = decode(arrays["gate_up"], p.activations)
        gate, up = both[:, : p.n], both[:, p.n :]
        with np.errstate(over="ignore", invalid="ignore"):
            arrays["y"][...] = encode(gate / (1 + np.exp(-gate)) * up, p.activations)
    return chip.counts()


@njit(cache=True, nogil=True)
def _grid(core, cores, count, gate_up, y, m, n, warps, vectors, parts):
    sms = count.shape[0]
    for sm in range(core, sms, cores):
        for cta in range(sm, m * parts, sms):
            token, part = cta % m, cta // m
            for request in range(part * warps * vectors, (part + 1) * warps * vectors):
                at = request * REQUEST
                columns = max(min(REQUEST, n - at), 0)
                load_vector(count[sm], gate_up, SIZE * (2 * token * n + at), SIZE * columns)
                load_vector(count[sm], gate_up, SIZE * ((2 * token + 1) * n + at), SIZE * columns)
                store_vector(count[sm], y, SIZE * (token * n + at), SIZE * columns)
                count_exp(count[sm], columns)
                count_fma(count[sm], FLOPS * columns // 2)
