"""What the GEMVs share: launch, counts, operands as the simulator's dot product takes them, the time of waiting."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lab.cards import fits
from lab.kernel import Bills, require_grid_y
from lab.kernels.common import linear
from lab.kernels.common.pointers import pointer, result
from lab.problems import Linear
from lab.problems.protocol import SQUARES
from sim.counts import SECTOR, Counts, sectors
from sim.formats import decode, encode
from sim.launch import Argument, Launch, Scalar
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
        exp_count=p.m * p.columns if p.swiglu else 0,
        global_load_sectors=loads,
        global_store_sectors=stores,
        tma_load_bytes=copied,
        l2_to_sm_bytes=SECTOR * (loads + copied_sectors),
        sm_to_l2_bytes=SECTOR * stores,
        hbm_read_bytes=SECTOR * sum(sectors(0, operand.nbytes) for operand in inputs),
        hbm_write_bytes=SECTOR * sum(sectors(0, operand.nbytes) for operand in p.outputs.values()),
    )


def operands(problem: Linear, arrays: Mapping[str, NDArray]) -> tuple[NDArray, NDArray]:
    """x and w as bf16 bits or as floats, which is what `dot` takes; both empty where there are no arrays."""
    if not arrays:
        nothing = np.zeros((0, 0), np.uint16)
        return nothing, nothing
    if problem.weights == "bf16":
        return arrays["x"], arrays["w"]
    return decode(arrays["x"], problem.activations), decode(arrays["w"], problem.weights)


def is_joined(problem: Linear) -> bool:
    """Whether the launch is of more than a matrix."""
    return problem.swiglu or problem.rooted or problem.summed


def joined_arguments(problem: Linear) -> tuple[Argument, ...]:
    """The operands of swiglu and of the parts of a norm: squares, residual, norm, total, total_squares, eps."""
    return (
        *(pointer(problem, name) for name in ("squares", "residual", "norm")),
        *(result(problem, name) for name in ("total", "total_squares")),
        Scalar("eps", problem.eps, "float32"),
    )


def finish(problem: Linear, sums: NDArray, arrays: Mapping[str, NDArray]) -> None:
    """What the sums of products become."""
    p = problem
    with np.errstate(over="ignore", invalid="ignore"):
        if p.scaled:
            sums = sums * arrays["w_scale"]
        if p.rooted:
            mean = arrays["squares"].sum(axis=1, keepdims=True) / np.float32(p.k)
            sums = sums / np.sqrt(mean + np.float32(p.eps))
        if p.swiglu:
            gate, up = sums[:, : p.columns], sums[:, p.columns :]
            sums = gate / (1 + np.exp(-gate)) * up
        if p.summed:
            arrays["total"][...] = encode(sums + decode(arrays["residual"], p.output), p.output)
            total = decode(arrays["total"], p.output)
            parts = arrays["total_squares"]
            beyond = ((0, 0), (0, parts.shape[1] * SQUARES - p.n))
            parts[...] = np.pad(total * total, beyond).reshape(*parts.shape, SQUARES).sum(axis=2)
            sums = total * decode(arrays["norm"], p.output)
    arrays["y"][...] = encode(sums, p.output)


class Waiting(fits.Coefficients, frozen=True):
    """What the estimate of a kernel is made of whose warps have one load of w in flight."""

    start_us: float  # of a launch
    load_us: float  # from one load of a warp to its next


def waiting_bills(
    kernel: str, problem: Linear, warps: int, loads: int, lines: int, machine: Machine, clock: str
) -> Bills:
    """A start, and the loads of each warp one after another, in as many waves as an SM has room for; HBM beside them.

    An SM's L1 looks up one of the `lines` of a load each clock.
    """
    model = fits.coefficients(Waiting, kernel, machine, clock)
    full = -(-warps // machine.sms)  # warps of the fullest SM
    waves = -(-full // (machine.threads_per_sm // LANES))
    turns = max(waves * model.load_us, 1e6 * full * lines / machine.clock_hz)
    beside = {"latency": loads * turns, "HBM": 1e6 * problem.bytes["total"] / fits.read_rate(machine)}
    return Bills(model.start_us + max(beside.values()), {"launch": model.start_us, **beside})
