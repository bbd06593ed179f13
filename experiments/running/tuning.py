"""Races of what predictions leave undecided, each problem by itself: here, or wherever a runner sends them."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any

import msgspec

from experiments.running import on_device
from experiments.running.jobs import Search, batch, problem_of
from lab import catalog, tuned
from lab.choice import is_solvable, schedule_words, undecided
from lab.compile import compile_launch
from lab.gpu import worker
from lab.inference.model_step import ModelStep
from lab.kernel import RANKING_CLOCK, parse_schedule, schedule_fields
from lab.problems import Model, Problem, Question
from lab.record import Record
from lab.tuned import TunedClass, winner
from sim.errors import LabError
from sim.machine import Machine

DEADLINE_S = 300.0  # of one problem's race, after which its worker is killed

Raced = tuple[Search, list[Record] | LabError]  # a problem that breaks its device or its worker loses itself alone
Runner = Callable[[Sequence[Search]], Iterable[Raced]]


def classes(asked: Iterable[Question], machine: Machine) -> list[Problem]:
    """One problem of each tuned class that a kernel solves; of a model those of its step."""
    found: dict[str, Problem] = {}
    for question in asked:
        parts = ModelStep(question, machine).parts if isinstance(question, Model) else ()
        for problem in [part.problem for part in parts] if isinstance(question, Model) else [question]:
            if isinstance(problem, Problem) and is_solvable(problem, machine):
                found.setdefault(repr(problem.tuned_class()), problem)
    return list(found.values())


def search_of(problem: Problem, machine: Machine, most: int, rounds: int) -> Search:
    """The race of what the predictions of a problem leave undecided with what the tables have, without peers."""
    words = [(kernel.name, schedule_words(schedule_fields(s))) for kernel, s in undecided(problem, machine, most)]
    held = tuned.lookup(problem, machine)
    if held and (one := (held[0], schedule_words(held[1]))) not in words:
        words.append(one)
    return Search(
        problem=problem.as_dict(), most=0, incumbents=tuple(words), clock=RANKING_CLOCK, plain=True, peers=False,
        rounds=rounds, experiment="tune",
    )  # fmt: skip


def raced(search: Search) -> list[dict[str, Any]]:
    """The records of one search as plain data, made by a worker process; raises as `worker.stream` does."""
    return list(worker.stream(on_device.search, batch([search], DEADLINE_S), DEADLINE_S))


def one_by_one(searches: Sequence[Search]) -> Iterator[Raced]:
    """Each search on this machine's GPU."""
    for search in searches:
        try:
            yield search, msgspec.convert(raced(search), list[Record])
        except LabError as failure:
            yield search, failure


def won(search: Search, records: Sequence[Record]) -> TunedClass | None:
    """The entry of the fastest in the last race of a search; None where nothing had a time."""
    return winner(records, problem_of(search.problem))


@contextmanager
def compiling(searches: Sequence[Search], machine: Machine) -> Iterator[Callable[[], None]]:
    """Compile all that the searches try into the cache, in their order, while this lasts; the value waits for the end.

    Needs no GPU. What does not compile says so in its race.
    """

    def compile_one(name: str, words: str, problem: Any) -> None:
        kernel = catalog.get(name)
        with suppress(LabError):
            for launch in kernel.launches(problem, parse_schedule(kernel, words, problem, machine), machine):
                compile_launch(launch, machine)

    with ThreadPoolExecutor(max(1, (os.cpu_count() or 1) - 1)) as pool:
        made = [
            pool.submit(compile_one, *pair, problem_of(search.problem))
            for search in searches
            for pair in search.incumbents
        ]
        try:
            yield lambda: [one.result() for one in made] and None
        finally:
            pool.shutdown(cancel_futures=True)
