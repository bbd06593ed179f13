"""What a generation leaves behind: a record of each phase."""

from collections.abc import Iterator

from lab.gpu import device
from lab.inference.generation import Generation
from lab.record import Provenance, Record

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
