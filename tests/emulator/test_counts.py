"""Counts are a property of the kernel, not of the interleaving."""

from lab import catalog
from lab.problems import Linear
from lab.ptx_executor import Emulator
from lab.verify import verify
from sim.machine import H100


def test_counts_do_not_depend_on_the_order_or_on_checking() -> None:
    kernel, problem = catalog.get("gemv_vectorized"), Linear(3, 24, 1032)
    schedule = kernel.best_guess(problem, H100)
    chips = [Emulator(H100, seed=seed, check=check) for seed, check in ((0, True), (1, True), (2, False))]
    assert len({verify(kernel, problem, schedule, H100, chip).counted for chip in chips}) == 1
