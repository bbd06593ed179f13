"""Runs an experiment on either chip, keeps its records, answers its question."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from importlib import import_module
from inspect import getdoc
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
    kept: bool = False  # whether the records were written to the records' folder

    @property
    def passed(self) -> bool | None:
        """Whether every checked result was right and the claim held; None where the claim is undecided."""
        return self.verdict.passed if all(r.check.passed for r in self.records if r.check) else False


def get(name: str) -> Experiment:
    """The experiment of that name; raises InputError and lists the known ones otherwise."""
    if name not in names():
        raise InputError(f"unknown experiment {name!r}; known experiments: {', '.join(names())}")
    return cast(Experiment, import_module(module_of(name)))


def described(name: str) -> dict[str, Any]:
    """An experiment's question and options: what they mean, and the usual value of each; InputError as of `get`."""
    experiment = get(name)
    usual = {option.name: option.default for option in fields(experiment.Options)}
    return {"experiment": name, "question": experiment.QUESTION, "about": getdoc(experiment.Options), "options": usual}


def run(
    name: str, on: str = "sim", machine: str = "h100", record: bool | None = None, **options: int | str | bool
) -> Answer:
    """Run an experiment from Python: its rows, verdict and records; `options` are those of its Options class.

    Raises InputError for unknown names and options, NoDeviceError where a GPU is asked for and there is none.
    """
    words = [f"{key}={value}" for key, value in options.items()]
    return answer(name, words, on, machine, record)


def answer(
    name: str,
    words: Sequence[str],
    on: str = "sim",
    machine: str = "h100",
    record: bool | None = None,
    told: Callable[[Sequence[Record]], object] = len,
) -> Answer:
    """Run an experiment. Records are kept where `record` says so, by default those of a GPU.

    Each is written as soon as it is there, so that an interrupted run leaves whole lines; `told` is then called with
    all that there are. Raises InputError for unknown names and options, NoDeviceError where a GPU is asked for and
    there is none.
    """
    experiment = get(name)
    options: Any = parse(experiment.Options, words)
    backend = backend_on(on, machine, name, provenance())
    past = archive()
    keep = backend.on == "gpu" if record is None else record
    records: list[Record] = []
    for result in experiment.measure(options, backend):
        if keep:
            append(result, folder() / f"{name}.jsonl")
        records.append(result)
        told(records)
    return replace(conclude(name, records, archive() if keep else past), kept=keep)


def conclude(name: str, records: Sequence[Record], past: Archive) -> Answer:
    """The table and the verdict of records that were made before."""
    experiment = get(name)
    rows = tuple(experiment.rows(records, past))
    return Answer(name, experiment.QUESTION, tuple(records), rows, experiment.verdict(records, past), past.complaints)
