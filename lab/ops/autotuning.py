"""`autotune()`: from then on, the first call for a shape races what predictions leave undecided."""

import warnings

from lab.gpu.device import machine
from lab.problems import Problem
from sim.errors import EnvironmentFailure, KernelError

_on = False


def autotune(on: bool = True) -> None:
    """Let `lab.linear` and `lab.attention` race what predictions leave undecided, at a shape's first call.

    Of shapes that no tuned table has; winners enter the user's table, for later runs too. Such a call takes a second or
    more and as much memory again as its arrays. While a graph is captured nothing is raced, and shapes that were called
    before keep their kernels. A race that fails is a warning, and the prediction stands. `on=False` ends it.
    """
    global _on
    _on = on


def settle_first(problem: Problem, device: int, stream: int) -> None:
    """Race a problem that a stream of a GPU is to run, where that is asked for and the stream is not being captured."""
    if not _on:
        return
    from lab.gpu import driver, tuning  # loaded on first use: the simulated chip needs no GPU library

    if driver.is_capturing(stream):
        return
    try:
        tuning.settle(problem, machine(device), device)
    except (EnvironmentFailure, KernelError, MemoryError) as failure:
        warnings.warn(f"not tuned, the prediction stands: {failure}", stacklevel=4)
