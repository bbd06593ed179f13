"""The rungs of a ladder: the kernels of a family from the ground up."""

from lab import tuned
from lab.choice import ancestors, best_guesses
from lab.kernel import Kernel
from lab.problems import Linear
from sim.errors import InputError
from sim.machine import Machine


def climb(problem: Linear, target: Machine, family: str) -> list[Kernel]:
    """Every kernel of a family that takes the problem, each after those that it improves on; maybe none."""
    try:
        kernels = [guess.kernel for guess in best_guesses(problem, target) if guess.kernel.family == family]
    except InputError:
        return []
    return sorted(kernels, key=lambda kernel: (len(ancestors(kernel)), kernel.name))


def tuned_fields(kernel: Kernel, problem: Linear, target: Machine) -> dict[str, int | str]:
    """The tuned table's schedule where that names this kernel, else nothing: its best guess."""
    held = tuned.lookup(problem, target)
    return held[1] if held and held[0] == kernel.name else {}
