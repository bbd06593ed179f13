"""What of a problem is simulated with numbers, and what is only counted."""

from experiments.running.simulation import simulate
from lab import catalog
from lab.problems import Linear
from sim.machine import H100


def test_a_part_is_checked_with_the_counts_of_the_whole() -> None:
    kernel = catalog.get("gemv_vectorized")
    problem = Linear(2, 4000, 512)
    found = simulate(kernel, problem, kernel.best_guess(problem, H100), H100, budget_s=0.001)
    assert found.passed
    assert found.part != problem
    assert found.simulated.flops == problem.flops
    assert found.check.rows_checked == found.part.m
