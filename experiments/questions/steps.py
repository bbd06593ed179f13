"""What experiments about whole steps of models share: each step beside the newest time of one like it."""

from collections.abc import Iterator, Sequence

from experiments.lookup import is_peer, question_of
from experiments.rows import Row, floor_of, timed_by
from experiments.running.backends import Backend
from experiments.running.jobs import StepJob
from lab.problems import Model
from lab.record import Archive, Record
from sim.errors import InputError

ROOM = 0.9  # of a card's memory, for weights and cache


def stepped(backend: Backend, experiment: str, steps: Sequence[Model], rounds: int, seconds: int) -> Iterator[Record]:
    """Those steps that have room on the chip, without peers; raises InputError where none has."""
    fitting = [step for step in steps if step.bytes["total"] <= ROOM * backend.machine.hbm_bytes]
    if not fitting:
        raise InputError(f"no such step of {steps[0].layers} layers has room on the {backend.machine.title}")
    how = {"experiment": experiment, "peers": False, "rounds": rounds}
    yield from backend.stepped([StepJob(problem=step.as_dict(), **how) for step in fitting], seconds)


def with_times(records: Sequence[Record], past: Archive) -> list[tuple[Record, Record | None]]:
    """Each step's record, and the newest time of a step like it on such a machine, launches overlapping in both."""
    timed = [r for r in [*past.where(on="gpu").records, *records] if r.us and is_overlapping_step(r)]
    newest = {(r.machine, str(r.problem)): r for r in timed}
    first = {str(r.problem): r for r in records if is_overlapping_step(r)}
    return [(record, newest.get((record.machine, problem))) for problem, record in first.items()]


def step_row(case: str, record: Record, found: Record | None) -> Row:
    """The floor, the predicted and the measured time of a step."""
    row = Row(case, "us a step", floor_of(record), record.predicted_us, None)
    return timed_by(row, found) if found else row


def step_of(record: Record) -> Model:
    """The step that a record is about."""
    model = question_of(record)
    assert isinstance(model, Model)
    return model


def is_overlapping_step(record: Record) -> bool:
    """Whether a record is of a whole step of the lab's, whose launches overlap."""
    whole = (record.problem or {}).get("kind") == Model.kind
    return whole and record.metrics.get("launches") == "overlapping" and not is_peer(record)
