"""Which kernel solves a problem, and how: the tuned table's answer, else the smallest predicted time."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from itertools import islice
from typing import Any, NamedTuple

from lab import catalog, tuned
from lab.cards import fits
from lab.cards.files import settled
from lab.kernel import RANKING_CLOCK, Kernel, recorded_schedule
from lab.problems import Problem
from sim.errors import InputError, ScheduleError
from sim.launch import Launch
from sim.machine import Machine

MOST_UNDECIDED = 24
UNKNOWN_ERROR = 0.25  # the share by which the predictions of a kernel may be off that nobody judged
CONTENDING = 3.0  # a best guess predicted to take longer than this many times the fastest is not worth a search


class Guess(NamedTuple):
    """A kernel's best guess for a problem; `us` is its predicted time in microseconds."""

    us: float
    kernel: Kernel
    schedule: Any
    launches: tuple[Launch, ...]


def choose(problem: Problem, machine: Machine, chain: bool = False) -> tuple[Kernel, Any, tuple[Launch, ...]]:
    """The kernel, schedule and launches for a problem on a machine, alone or in a `chain` of launches that overlap.

    They are the tuned table's; where it has none that still runs, or was tuned for other extents at which these are
    predicted to be faster beyond the models' errors, those of the smallest predicted time among the best guesses of all
    kernels that are not outgrown. Raises InputError, with each kernel's reason, where none takes the
    problem.
    """
    found = tuned.lookup(problem, machine, chain)
    if found:
        with suppress(InputError, ScheduleError):  # the kernel has changed since
            kernel = catalog.get(found[0])
            schedule = recorded_schedule(kernel, found[1])
            launches = kernel.launches(problem, schedule, machine)
            if tuned.is_tuned_at(problem, machine, chain) or not _is_beaten(kernel, schedule, problem, machine):
                return kernel, schedule, launches
    best = predicted_best(problem, machine)
    return best.kernel, best.schedule, best.launches


def _is_beaten(kernel: Kernel, schedule: Any, problem: Problem, machine: Machine) -> bool:
    """Whether the best guess is predicted to take less time even if both predictions are as wrong as on average."""
    best = predicted_best(problem, machine)
    us = kernel.predicted_us(problem, schedule, machine, RANKING_CLOCK)
    return us * (1 - _mean_error(kernel, machine)) > best.us * (1 + _mean_error(best.kernel, machine))


def predicted_best(problem: Problem, machine: Machine) -> Guess:
    """The best guess of the smallest predicted time, whatever the tuned table says; raises as `choose` does."""
    left = _not_outgrown(problem, machine)
    return min(left, key=lambda guess: (guess.us, -len(ancestors(guess.kernel))))


def _not_outgrown(problem: Problem, machine: Machine) -> list[Guess]:
    """The best guesses of the kernels that none of the others improves on."""
    guesses = best_guesses(problem, machine)
    gone = outgrown([guess.kernel for guess in guesses])
    return [guess for guess in guesses if guess.kernel.name not in gone]


def is_solvable(problem: Problem, machine: Machine) -> bool:
    """Whether any kernel takes the problem on the machine."""
    kernels = [kernel for kernel in catalog.kernels() if kernel.solves.runs_on(machine.arch, problem)]
    return any(kernel.solves.refusal(problem) is None for kernel in kernels)


def best_guesses(problem: Problem, machine: Machine) -> list[Guess]:
    """Every kernel's best guess; raises InputError, with each kernel's reason, where none takes the problem."""
    with settled():
        return _best_guesses(problem, machine)


def _best_guesses(problem: Problem, machine: Machine) -> list[Guess]:
    found, reasons = [], []
    for kernel in catalog.kernels():
        if not isinstance(problem, kernel.solves.problem):
            continue
        try:
            schedule = kernel.best_guess(problem, machine)
            launches = kernel.launches(problem, schedule, machine)
        except (InputError, ScheduleError) as refusal:
            reasons.append(str(refusal))
            continue
        us = kernel.predicted_us(problem, schedule, machine, RANKING_CLOCK)
        found.append(Guess(us, kernel, schedule, launches))
    if not found:
        raise InputError(f"no kernel takes this problem on the {machine.title}: {'; '.join(reasons)}")
    return found


def contenders(problem: Problem, machine: Machine, most: int | None = None) -> Iterator[tuple[Kernel, Any]]:
    """(kernel, schedule): all candidates of the kernels that a search must try, whichever they improve on.

    A brief search takes at most so many of each kernel, the best guesses, and none of kernels that are outgrown.
    """
    guesses = best_guesses(problem, machine)
    limit = CONTENDING * min(guess.us for guess in guesses)
    gone = set() if most is None else outgrown([guess.kernel for guess in guesses])
    for guess in guesses:
        if guess.us <= limit and guess.kernel.name not in gone:
            legal = legal_candidates(guess.kernel, problem, machine)
            yield from ((guess.kernel, schedule) for schedule in islice(legal, most))


def undecided(problem: Problem, machine: Machine, most: int = MOST_UNDECIDED) -> list[tuple[Kernel, Any]]:
    """(kernel, schedule): the best prediction and those that the models' own errors do not tell from it, at most so
    many, the best first. One alone is decided.

    A time may be off by the mean error that its kernel's line in fits.jsonl states. Raises InputError where no kernel
    takes the problem.
    """
    kernels = [guess.kernel for guess in _not_outgrown(problem, machine)]
    ranked = sorted(
        (
            (kernel.predicted_us(problem, schedule, machine, RANKING_CLOCK), number, kernel, schedule)
            for number, kernel in enumerate(kernels)
            for schedule in legal_candidates(kernel, problem, machine)
        ),
        key=lambda one: one[:2],
    )
    errors = {kernel.name: _mean_error(kernel, machine) for kernel in kernels}
    us, _, best, _ = ranked[0]
    limit = us * (1 + errors[best.name])
    close = [(kernel, schedule) for us, _, kernel, schedule in ranked if us * (1 - errors[kernel.name]) <= limit]
    return close[:most]


def _mean_error(kernel: Kernel, machine: Machine) -> float:
    found = fits.error(kernel.name, machine, RANKING_CLOCK)
    return found[0].mean if found else UNKNOWN_ERROR


def legal_candidates(kernel: Kernel, problem: Problem, machine: Machine) -> Iterator[Any]:
    """The candidates of one kernel that fit the problem, each once."""
    envelope = problem.envelope()
    for schedule in dict.fromkeys(kernel.module.candidates(envelope, machine)):
        with suppress(ScheduleError):
            schedule.fits(envelope, machine)
            yield schedule


def schedule_words(fields: Mapping[str, int | str]) -> str:
    """A schedule's fields as --schedule and `parse_schedule` take them."""
    return ",".join(f"{name}={value}" for name, value in fields.items())


def candidate_name(kernel: str, fields: Mapping[str, int | str]) -> str:
    """A kernel with a schedule's fields, as a search's records name what they tried."""
    return f"{kernel}({schedule_words(fields)})"


def candidate_named(name: str) -> tuple[str, dict[str, str]]:
    """The kernel and the fields, each still text, of which `candidate_name` made a name."""
    kernel, _, words = name.removesuffix(")").partition("(")
    return kernel, dict(word.split("=", 1) for word in words.split(","))


def ancestors(kernel: Kernel) -> list[str]:
    """The kernels that it improves on, directly and through others, the nearest first."""
    chain: list[str] = []
    name = kernel.solves.after
    while name is not None and name in catalog.names() and name not in chain:
        chain.append(name)
        name = catalog.get(name).solves.after
    return chain


def outgrown(kernels: list[Kernel]) -> set[str]:
    """The names of those that two improvements, one upon the other, leave behind.

    Their predictions count bytes and arithmetic, not the waits that the improvements remove, so they flatter. One
    improvement is not enough: the last rungs of a ladder are for different shapes.
    """
    return {name for kernel in kernels for name in ancestors(kernel)[1:]}
