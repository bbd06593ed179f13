"""What of a problem is simulated with numbers, and what is only counted."""

import pytest

from experiments.running.simulation import affordable_part, simulate
from lab import catalog
from lab.problems import Linear
from sim.counts import Counts
from sim.machine import H100


@pytest.mark.parametrize("m", [1, 100, 3000])
def test_a_part_is_affordable_and_keeps_the_ragged_edge(m: int) -> None:
    problem = Linear(m, 20_011, 8192)
    part = affordable_part(problem, Counts(mma_flops=0), budget_s=1.0)
    assert isinstance(part, Linear)
    assert part.k == problem.k
    assert part.flops <= 1e9 or (part.m <= 256 and part.n <= 256)
    assert (part.n - problem.n) % 128 == 0
    assert part.m == problem.m or (part.m - problem.m) % 128 == 0
    small = Linear(3, 5, 8)
    assert affordable_part(small, Counts(mma_flops=0), budget_s=1.0) == small


def test_a_part_is_checked_with_the_counts_of_the_whole() -> None:
    kernel = catalog.get("gemv_vectorized")
    problem = Linear(2, 4000, 512)
    found = simulate(kernel, problem, kernel.best_guess(problem, H100), H100, budget_s=0.001)
    assert found.passed
    assert found.part != problem
    assert found.simulated.flops == problem.flops
    assert found.check.rows_checked == found.part.m
