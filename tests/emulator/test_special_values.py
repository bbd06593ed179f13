"""Infinite, NaN and huge inputs: the tile simulator makes of them what the kernel's own PTX makes."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lab import catalog
from lab.kernel import Kernel
from lab.problems import Attention, Linear, Problem
from lab.problems.protocol import SPECIALS
from lab.ptx_executor import Emulator
from lab.verify import Execute, guarded_outputs, simulator, workspaces
from sim.formats import FORMATS, decode, encode
from sim.machine import Machine
from tests.emulator.cases import CHIP, Case, hardest

SHOWN = [special for special in SPECIALS if special in ("inf", "nan", "huge")]
GROUPED = [name for name in catalog.names() if "int4_g32" in catalog.get(name).solves.formats]


def kinds(values: NDArray) -> NDArray:
    """0 for finite numbers, else NaN or the infinity itself."""
    return np.where(np.isfinite(values), 0, values)


def outputs(execute: Execute, launches: Any, inputs: dict[str, NDArray], problem: Problem) -> dict[str, NDArray]:
    found = {name: inside for name, (_, inside) in guarded_outputs(launches).items()}
    execute(launches, {**inputs, **workspaces(launches), **found})
    return {
        name: decode(found[name], operand.format) if operand.format in FORMATS else found[name]
        for name, operand in problem.outputs.items()
    }


def assert_alike(kernel: Kernel, problem: Problem, schedule: Any, machine: Machine, inputs: dict[str, NDArray]) -> None:
    launches = kernel.launches(problem, schedule, machine)
    simulated = outputs(simulator(kernel, machine), launches, inputs, problem)
    executed = outputs(Emulator(machine, check=False), launches, inputs, problem)
    for name, values in executed.items():
        np.testing.assert_array_equal(kinds(simulated[name]), kinds(values), err_msg=name)


@pytest.mark.parametrize("case", [hardest(kernel) for kernel in catalog.kernels()], ids=str)
def test_the_simulator_and_the_ptx_agree(case: Case) -> None:
    for special in SHOWN:
        if special == "huge" and isinstance(case.problem, Attention):
            continue  # a score beyond 2^24 has no bit left of what an exponential sees (Attention.reference)
        inputs = case.problem.draw(np.random.default_rng(1), special)
        assert_alike(case.kernel, case.problem, case.schedule, case.machine, inputs)


@pytest.mark.parametrize("offset", ["min", "zero"])
@pytest.mark.parametrize("name", GROUPED)
def test_groups_make_nothing_finite_of_what_is_infinite_and_of_nothing_else(name: str, offset: str) -> None:
    """Where q has a bias its part has the other sign: NaN, else infinity or NaN; y of other tokens is untouched."""
    kernel = catalog.get(name)
    problem = Linear(2, 64, 128, "int4_g32", offset=offset)
    inputs = problem.draw(np.random.default_rng(2))
    x = decode(inputs["x"], "bf16")
    for value in (np.inf, -np.inf):
        x[0, 3] = value
        infinite = {**inputs, "x": encode(x, "bf16")}
        schedule = kernel.best_guess(problem, CHIP)
        assert_alike(kernel, problem, schedule, CHIP, infinite)
        y = outputs(simulator(kernel, CHIP), kernel.launches(problem, schedule, CHIP), infinite, problem)["y"]
        assert not np.isfinite(y[0]).any()
        assert np.isfinite(y[1]).all()
