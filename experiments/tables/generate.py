"""A language model made of these kernels: what each phase cost, and what was said."""

from collections.abc import Iterator

from experiments.markdown import three_columns
from experiments.rows import Row
from experiments.running.generation import EXPERIMENT
from lab.record import Archive, Record
from sim.machine import machine


def table(past: Archive) -> str:
    """The phases of the newest generation on each chip."""
    return three_columns(list(_rows(past)), _said(past))


def _rows(past: Archive) -> Iterator[Row]:
    """Floor, prediction and wall clock of each phase, from the newest generation on each chip.

    Only the same phase of the same model on the same machine is one row.
    """
    simulated, measured = ({_key(r): r for r in past.newest_run(experiment=EXPERIMENT, on=on)} for on in ("sim", "gpu"))
    for key in dict.fromkeys([*simulated, *measured]):
        here = [found.get(key) for found in (simulated, measured)]
        known = next(r for r in here if r)
        sources = [r.source for r in here if r and r.on == "gpu"]
        chip, model, phase, tokens = key
        case = f"{model} on the {machine(chip).title}, {phase} of {tokens:,} tokens ({known.metrics['regime']})"
        times = [None if r is None else (r.us or r.predicted_us) for r in here]
        yield Row(case, "time, us", float(known.metrics["floor_us"] or 0), *times, source="".join(sources))
        yield Row(case, "FLOP per byte", float(known.metrics["intensity"] or 0), None, None)


def _key(record: Record) -> tuple[str, str, str, int]:
    """Machine, model, phase and its tokens."""
    m = record.metrics
    return record.machine, str(m["model"]), str(m["phase"]), int(m["tokens"] or 0)


def _said(past: Archive) -> str:
    """What was said, and on which chips."""
    said = {on: past.newest_run(experiment=EXPERIMENT, on=on) for on in ("sim", "gpu")}
    sentences = [
        f"On {'the simulated chip' if on == 'sim' else found[0].source}: "
        f"`{found[0].metrics['prompt']}{str(found[0].metrics['text']).splitlines()[0]}`"
        for on, found in said.items()
        if found
    ]
    return ". ".join(sentences) + "." if sentences else ""
