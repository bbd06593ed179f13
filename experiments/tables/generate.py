"""A language model made of these kernels: what each phase cost, and what was said."""

from collections.abc import Iterator

from experiments.markdown import three_columns
from experiments.rows import Row
from experiments.running.generation import EXPERIMENT
from lab.record import Archive


def table(past: Archive) -> str:
    """The phases of the newest generation on each chip."""
    return three_columns(list(_rows(past)), _said(past))


def _rows(past: Archive) -> Iterator[Row]:
    """Floor, prediction and wall clock of each phase, from the newest generation on each chip."""
    simulated = {str(r.metrics["phase"]): r for r in past.newest_run(experiment=EXPERIMENT, on="sim")}
    measured = {str(r.metrics["phase"]): r for r in past.newest_run(experiment=EXPERIMENT, on="gpu")}
    for phase in dict.fromkeys([*simulated, *measured]):
        here = [found.get(phase) for found in (simulated, measured)]
        known = next(r for r in here if r)
        sources = [r.source for r in here if r and r.on == "gpu"]
        tokens = int(known.metrics["tokens"] or 0)
        case = f"{known.metrics['model']}, {phase} of {tokens:,} tokens ({known.metrics['regime']})"
        times = [None if r is None else (r.us or r.predicted_us) for r in here]
        yield Row(case, "time, us", float(known.metrics["floor_us"] or 0), *times, source="".join(sources))
        yield Row(case, "FLOP per byte", float(known.metrics["intensity"] or 0), None, None)


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
