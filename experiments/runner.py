"""Runs an experiment on either chip, keeps its records, answers its question."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol, cast

from experiments.catalog import module_of, names
from experiments.rows import Row, Verdict
from experiments.running.backends import Backend, backend_on
from experiments.words import parse
from lab.record import Archive, Record, append, archive, folder, provenance
from sim.errors import InputError


class Experiment(Protocol):
    """What a module of experiments/questions or experiments/bars defines: one question and how it is answered.

    `rows` and `verdict` are also its table in README and docs, unless the module has a `table(past: Archive) -> str`.
    """

    QUESTION: str
    Options: type

    def measure(self, options: Any, backend: Backend) -> Iterator[Record]:
        """Run on the backend, one record as soon as each result is there."""

    def rows(self, records: Sequence[Record], past: Archive) -> Iterator[Row]:
        """The table: the records of one run beside what was measured before."""

    def verdict(self, records: Sequence[Record], past: Archive) -> Verdict:
        """The answer, made of the numbers."""


@dataclass(frozen=True)
class Answer:
    """A finished run."""

    experiment: str
    question: str
    records: tuple[Record, ...]
    rows: tuple[Row, ...]
    verdict: Verdict
    complaints: tuple[str, ...] = ()  # of earlier records that could not be read

    @property
    def passed(self) -> bool:
        """Whether the claim held and every checked result was right."""
        return self.verdict.passed and all(r.check.passed for r in self.records if r.check)


def get(name: str) -> Experiment:
    """The experiment of that name; raises InputError and lists the known ones otherwise."""
    if name not in names():
        raise InputError(f"unknown experiment {name!r}; known experiments: {', '.join(names())}")
    return cast(Experiment, import_module(module_of(name)))


def run(
    name: str, on: str = "sim", machine: str = "h100", record: bool | None = None, **options: int | str | bool
) -> list[Record]:
    """Run an experiment and return its records, as `lab run` prints them; `options` are those of its Options class."""
    words = [f"{key}={value}" for key, value in options.items()]
    return list(answer(name, words, on, machine, record).records)


def answer(
    name: str, words: Sequence[str], on: str = "sim", machine: str = "h100", record: bool | None = None
) -> Answer:
    """Run an experiment. Records are kept where `record` says so, by default those of a GPU.

    Each is written as soon as it is there, so that an interrupted run leaves whole lines. Raises InputError for unknown
    names and options, NoDeviceError where a GPU is asked for and there is none.
    """
    experiment = get(name)
    options: Any = parse(experiment.Options, words)
    backend = backend_on(on, machine, name, provenance())
    past = archive()
    keep = backend.on == "gpu" if record is None else record
    records = []
    for result in experiment.measure(options, backend):
        if keep:
            append(result, folder() / f"{name}.jsonl")
        records.append(result)
    return conclude(name, records, archive() if keep else past)


def conclude(name: str, records: Sequence[Record], past: Archive) -> Answer:
    """The table and the verdict of records that were made before."""
    experiment = get(name)
    rows = tuple(experiment.rows(records, past))
    return Answer(name, experiment.QUESTION, tuple(records), rows, experiment.verdict(records, past), past.complaints)
