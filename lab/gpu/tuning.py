"""A race, in this process, of what predictions leave undecided for one problem; the winner enters the user's table."""

from lab import tuned
from lab.choice import undecided
from lab.gpu import driver
from lab.gpu.bench import Bench, Candidate
from lab.gpu.search import search
from lab.gpu.timing import Clock
from lab.problems import Problem
from sim.machine import Machine

ROUNDS = 9  # samples of each finalist


def settle(problem: Problem, machine: Machine, device: int) -> None:
    """Race on a GPU what the models' errors do not tell apart, on inputs of its own, where no table has the problem.

    Raises InputError where no kernel takes it, EnvironmentFailure where a kernel breaks the device or a table cannot be
    written, MemoryError where the GPU has no room for a second set of its arrays.
    """
    if tuned.is_tuned(problem, machine):
        return
    entries = [Candidate(kernel, schedule, plain=True) for kernel, schedule in undecided(problem, machine)]
    if len(entries) == 1:
        return
    with driver.current(device):
        records = search(Bench(problem, machine, "autotune"), entries, {}, Clock.GRAPH, ROUNDS)
    entry = tuned.winner(records, problem)
    if entry:
        tuned.put([entry], tuned.user_table())
