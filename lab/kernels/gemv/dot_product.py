"""What the GEMVs share: their launch, their counts, their operands as the tile simulator's dot product takes them."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lab.kernel import require_grid_y
from lab.kernels.common import linear
from lab.problems import Linear
from sim.counts import SECTOR, Counts, sectors
from sim.formats import decode
from sim.launch import Launch
from sim.machine import Machine

LANES = 32
ELEMENT = 2  # bytes of bf16 and of fp16


def require_tokens(problem: Linear, machine: Machine) -> None:
    """Raise ScheduleError where a grid has too few rows for those of x."""
    require_grid_y(problem.m, f"m = {problem.m:,} rows of x", machine)


def launch(kernel: str, problem: Linear, schedule: Any, ctas: int, **how: Any) -> tuple[Launch, ...]:
    """`ctas` CTAs of the schedule's threads for each row of x; `how` are further fields of the launch."""
    return (
        Launch(
            kernel=kernel,
            entry=kernel,
            problem=problem,
            schedule=schedule,
            grid=(ctas, problem.m, 1),
            block=(schedule.threads, 1, 1),
            arguments=linear.arguments(problem),
            **how,
        ),
    )


def counts(problem: Linear, loads: int, stores: int, copied: int = 0, copied_sectors: int = 0) -> Counts:
    """Counts from the sectors of ordinary loads and stores, and from the bytes and sectors of bulk copies."""
    p, inputs = problem, problem.inputs.values()
    return Counts(
        flops=p.flops,
        mma_flops=0,
        exp_count=0,
        global_load_sectors=loads,
        global_store_sectors=stores,
        tma_load_bytes=copied,
        l2_to_sm_bytes=SECTOR * (loads + copied_sectors),
        sm_to_l2_bytes=SECTOR * stores,
        hbm_read_bytes=SECTOR * sum(sectors(0, operand.nbytes) for operand in inputs),
        hbm_write_bytes=SECTOR * sectors(0, ELEMENT * p.m * p.n),
    )


def operands(problem: Linear, arrays: Mapping[str, NDArray]) -> tuple[NDArray, NDArray]:
    """x and w as bf16 bits or as floats, which is what `dot` takes; both empty where there are no arrays."""
    if not arrays:
        nothing = np.zeros((0, 0), np.uint16)
        return nothing, nothing
    if problem.weights == "bf16":
        return arrays["x"], arrays["w"]
    return decode(arrays["x"], problem.activations), decode(arrays["w"], problem.weights)
