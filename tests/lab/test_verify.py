"""`verify` catches each way in which a kernel can be wrong."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

import lab
from lab import catalog
from lab.problems import Linear
from lab.verify import Execute, Verification, simulator, verify
from sim.counts import Counts
from sim.formats import decode, encode
from sim.launch import Launch
from sim.machine import H100

KERNEL = catalog.get("gemv_vectorized")
PROBLEM = Linear(3, 40, 64)
RIGHT = simulator(KERNEL, H100)


def verified(
    spoil: Callable[[dict[str, NDArray]], None], adjust: Callable[[Counts], Counts] = lambda c: c
) -> Verification:
    """Verify an executor that is right but for `spoil`, which edits the arrays after it, and `adjust`."""

    def execute(launches: tuple[Launch, ...], arrays: dict[str, NDArray]) -> Counts:
        counts = RIGHT(launches, arrays)
        spoil(arrays)
        return adjust(counts)

    return verify(KERNEL, PROBLEM, KERNEL.best_guess(PROBLEM, H100), H100, execute)


def nothing(arrays: dict[str, NDArray]) -> None:
    """Leave the result as it is."""


def test_a_right_kernel_passes() -> None:
    found = verified(nothing)
    assert found.passed
    assert found.check.mismatches == 0
    assert found.check.first_mismatch is None
    assert 0 < found.check.error <= 1


def test_one_wrong_element_is_found_and_named() -> None:
    def spoil(arrays: dict[str, NDArray]) -> None:
        values = decode(arrays["y"], "bf16")
        values[1, 7] += 3
        arrays["y"][...] = encode(values, "bf16")

    found = verified(spoil)
    assert not found.passed
    assert (found.check.mismatches, found.check.first_mismatch) == (1, (1, 7))
    assert found.check.error > 1


@pytest.mark.parametrize("bits", [0xFFFF, 0x7FC0, 0x7F80], ids=["poison", "NaN", "infinity"])
def test_an_element_that_was_never_written_or_is_not_finite_fails(bits: int) -> None:
    def spoil(arrays: dict[str, NDArray]) -> None:
        arrays["y"][2, 39] = bits

    found = verified(spoil)
    assert not found.passed
    assert found.check.first_mismatch == (2, 39)
    assert found.check.error == np.inf


@pytest.mark.parametrize("offset", [-1, PROBLEM.m * PROBLEM.n])
def test_a_write_outside_the_output_fails(offset: int) -> None:
    def spoil(arrays: dict[str, NDArray]) -> None:
        y = arrays["y"]
        start = (y.ctypes.data - y.base.ctypes.data) // y.itemsize
        y.base.view(y.dtype)[start + offset] = 0

    found = verified(spoil)
    assert not found.passed
    assert found.check.mismatches == 0
    assert not found.check.guards_intact


def test_a_count_that_theory_does_not_expect_fails_and_is_shown_from_both_sides() -> None:
    found = verified(nothing, lambda c: replace(c, global_load_sectors=(c.global_load_sectors or 0) + 1))
    assert found.check.passed
    assert not found.passed
    theory, counted = found.disagreements["global_load_sectors"]
    assert counted == theory + 1


def test_fields_that_a_source_does_not_count_are_not_compared() -> None:
    assert verified(nothing, lambda _: Counts()).passed


def test_the_inputs_change_with_the_seed() -> None:
    seen: list[bytes] = []

    def execute(launches: tuple[Launch, ...], arrays: dict[str, NDArray]) -> Counts:
        seen.append(arrays["x"].tobytes())
        return RIGHT(launches, arrays)

    executor: Execute = execute
    for seed in (0, 0, 1):
        verify(KERNEL, PROBLEM, KERNEL.best_guess(PROBLEM, H100), H100, executor, seed=seed)
    assert seen[0] == seen[1] != seen[2]


def test_a_name_and_a_problem_are_enough() -> None:
    problem = lab.Linear(3, 24, 64)
    found = lab.verify("gemv_vectorized", problem)
    assert found.passed
    kernel = catalog.get("gemv_vectorized")
    assert found.schedule == kernel.best_guess(problem, H100)
    assert lab.verify(kernel, problem, "rows=2", "h200").schedule.rows == 2
    for wrong, says in (
        (("gemv_v7", problem), "unknown kernel 'gemv_v7'"),
        ((3, problem), "unknown kernel 3"),
        ((kernel, "linear"), "solves linear problems, not str"),
        ((kernel, problem, {"rows": 2}), "takes a schedule of its own or words"),
        ((kernel, problem, "rows=2,rows=4"), "rows is given twice"),
        ((kernel, problem, "", "h1000"), "unknown machine 'h1000'"),
    ):
        with pytest.raises(lab.InputError, match=says):
            lab.verify(*wrong)
