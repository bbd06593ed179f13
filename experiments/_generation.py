"""What a generation leaves behind: a record of each phase, and the rows of a table made of them."""

from collections.abc import Iterator

from experiments._rows import Row
from lab.gpu import device
from lab.inference.generation import Generation
from lab.record import Archive, Provenance, Record

EXPERIMENT = "generate"


def records(generation: Generation, origin: Provenance) -> Iterator[Record]:
    """One record for each phase of a finished generation on a chip; `us` is all its passes together."""
    document = generation.as_dict()
    on = document["on"]
    card = device.card() if on == "gpu" else None
    for phase in document["phases"]:
        measured = [phase["us"]] if on == "gpu" else []
        yield Record(
            **origin,
            on=on,
            machine=document["machine"],
            card=card.name if card else None,
            driver=card.driver if card else None,
            experiment=EXPERIMENT,
            us=phase["us"] if measured else None,
            samples_us=measured,
            predicted_us=None if measured else phase["us"],
            theory=phase["counts"] if measured else None,
            simulated=None if measured else phase["counts"],
            metrics={
                "model": document["model"],
                "prompt": document["prompt"],
                "text": document["text"],
                **{name: phase[name] for name in ("phase", "tokens", "flops", "intensity", "regime", "floor_us")},
                **{f"{name}_bytes": size for name, size in phase["bytes"].items()},
            },
        )


def rows(past: Archive) -> Iterator[Row]:
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


def verdict(past: Archive) -> str:
    """What was said, and on which chips."""
    said = {on: past.newest_run(experiment=EXPERIMENT, on=on) for on in ("sim", "gpu")}
    sentences = [
        f"On {'the simulated chip' if on == 'sim' else found[0].source}: "
        f"`{found[0].metrics['prompt']}{str(found[0].metrics['text']).splitlines()[0]}`"
        for on, found in said.items()
        if found
    ]
    return ". ".join(sentences) + "." if sentences else ""
