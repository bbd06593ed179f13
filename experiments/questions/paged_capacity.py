"""How many conversations a card's memory holds: in pages as they grow, and in slabs as long as the longest may be."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from experiments.markdown import three_columns
from experiments.rows import Row, Verdict
from experiments.running.backends import Backend
from experiments.served import cases, figure, newest, served_rows
from lab.inference.step_input import PAGE
from lab.problems.model import model_named
from lab.record import Archive, Record
from lab.serving.simulated import pages_within
from lab.serving.step import Buckets
from lab.serving.times import StepTimes
from lab.serving.workload import Workload
from sim.errors import InputError
from sim.machine import machine as machine_named

QUESTION = "How many more sequences do pages hold than slabs of the longest?"

SHOWN = ("sequences", "step_ms", "output_throughput", "kv_waste")
CARDS = ("h100", "h200")
MOST = 4096  # sequences of a step


@dataclass(frozen=True)
class Options:
    """Conversations (Azure's lengths), each at a random place of its answer; a slab is as `longest` as one may be."""

    model: str = "llama-3-8b"
    longest: int = 8192
    seed: int = 0

    def __post_init__(self) -> None:
        model_named(self.model)
        if self.longest < PAGE or self.seed < 0:
            raise InputError(f"longest is at least {PAGE}, seed at least 0; got {self.longest}, {self.seed}")


def measure(options: Options, backend: Backend) -> Iterator[Record]:
    """Both ways in the memory of both cards; nothing is measured."""
    model, rng = model_named(options.model), np.random.default_rng(options.seed)
    asked = Workload("azure-conv", MOST, max_length=options.longest, seed=options.seed).requests(2)
    lengths = [len(r.prompt) + int(rng.integers(r.max_tokens)) for r in asked]
    needed = np.cumsum([-(-length // PAGE) for length in lengths])
    slab = -(-options.longest // PAGE)
    for name in CARDS:
        card = machine_named(name)
        pages = pages_within(model, card) - 1
        for kind in ("slabs", "pages"):
            held = pages // slab if kind == "slabs" else int(np.searchsorted(needed, pages, "right"))
            if not held:
                raise InputError(f"the {card.title} holds no slab of {options.longest:,} tokens")
            held = min(held, MOST)
            live, room = lengths[:held], PAGE * (held * slab if kind == "slabs" else int(needed[held - 1]))
            times = StepTimes(model, card, Buckets(held, held + 1, slab))
            us = times.rows_us([length - 1 for length in live], [1] * held)
            facts = {"case": f"{card.title}, {kind}", "kind": kind, "sequences": held, "step_ms": us / 1e3}
            facts |= {"output_throughput": held / us * 1e6, "kv_waste": 1 - sum(live) / room}
            yield backend.closed_form(facts, model, card)


def rows(records: Sequence[Record], past: Archive) -> Iterator[Row]:  # noqa: ARG001 (all is of one run)
    """Sequences held, and what a decode step of all of them takes."""
    return served_rows(records, SHOWN)


def verdict(records: Sequence[Record], past: Archive) -> Verdict:  # noqa: ARG001
    """How many times as many sequences, and tokens a second."""
    said = []
    for card in CARDS:
        found = {c.either.metrics.get("kind"): c.either for c in cases(records).values() if c.either.machine == card}
        if len(found) == 2:
            more, faster = (
                (figure(found["pages"], name) or 0.0) / (figure(found["slabs"], name) or 1.0)
                for name in ("sequences", "output_throughput")
            )
            title = machine_named(card).title
            said.append(f"{more:.1f} times as many sequences on the {title}, for {faster:.2f} of the tokens a second")
    return Verdict(None, f"Pages hold {'; '.join(said)} (predicted)." if said else "There is nothing to compare.")


def table(past: Archive) -> str:
    """The newest run."""
    found = newest(past, "paged_capacity")
    if not found:
        return "No records yet: `lab run paged_capacity --record` makes them."
    return three_columns(list(rows(found, past)), verdict(found, past).sentence)
