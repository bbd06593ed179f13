"""lab demo: the article's claim in a minute on the simulated chip: two kernels on two shapes, then a model speaks."""

from textwrap import fill
from typing import TYPE_CHECKING, Any

from experiments.cli.options import Json, Machine
from experiments.cli.output import emit, number, table

if TYPE_CHECKING:
    from experiments.runner import Answer
    from lab.inference import Generation
    from lab.record import Archive, Record
    from sim.machine import Machine

EXPERIMENT, CLOCK = "two_machines", "graph"
PROMPT = "What is the capital of France?"
MAX_TOKENS = 32
ENDS = (".", "!", "?")
WIDTH = 80  # columns that the headline needs
LEGEND = """
FLOP/B     arithmetic intensity: operations for each byte moved between HBM and chip;
           from the ridge on, {ridge:.0f} on the {chip}, the tensor cores bind, below it HBM
floor      the larger of both bills at data-sheet rates: no kernel can be faster
predicted  by the kernel's model, from what was measured on such a card
measured   median on a card, launches back to back in a CUDA graph; - where not yet
"""


def demo(machine: Machine = "h200", as_json: Json = False) -> int:
    """Show that prefill and decode are two machines, then let a language model speak through the same kernels."""
    from lab.record import archive
    from sim.machine import machine as machine_named

    chip = machine_named(machine)
    say = _silent if as_json else _say
    say("1 of 2: one layer of a transformer in prefill and in decode, each by two kernels, on")
    say(f"the simulated {chip.title}. Results are checked, bytes and operations counted.")
    past = archive()
    answer = _answer(chip, past, say)
    if not as_json:
        headline(answer, past, chip)
    say(f"\n2 of 2: a language model answers through such kernels on the simulated {chip.name.upper()}.")
    say("Its weights are fetched the first time. " + PROMPT)
    generation = _speak(chip, say)
    document = {
        "rows": _rows(answer, past),
        "passed": answer.passed,
        "verdict": answer.verdict.sentence,
        **generation.as_dict(),
    }
    emit(document, as_json, _bills)
    return 1 if answer.passed is False else 0


def _answer(chip: "Machine", past: "Archive", say: Any) -> "Answer":
    """The experiment's records, each told as soon as it is there, and its verdict."""
    from experiments import runner
    from experiments.running.backends import backend_on
    from lab.record import provenance

    experiment = runner.get(EXPERIMENT)
    records = []
    for record in experiment.measure(experiment.Options(), backend_on("sim", chip.name, EXPERIMENT, provenance())):
        right = "right" if record.check and record.check.passed else "WRONG"
        moved = ((record.simulated or {}).get("hbm_read_bytes") or 0) / 1e6
        say(f"  {_case(record)} by {record.kernel}: result {right}, {moved:,.0f} MB read from HBM")
        records.append(record)
    return runner.conclude(EXPERIMENT, records, past)


def _case(record: "Record") -> str:
    from experiments.lookup import layer_of

    tokens = layer_of(record).m
    return f"prefill, m = {tokens:,}" if tokens > 1 else f"decode, m = {tokens}"


def headline(answer: "Answer", past: "Archive", chip: "Machine") -> None:
    """Print the table, what its words mean, and the verdict: one screen."""
    rows = _rows(answer, past)
    times = ("floor_us", "predicted_us", "measured_us")
    cells = ([r["case"], r["kernel"], *(number(r[name]) for name in (*times, "intensity"))] for r in rows)
    table(["", "kernel", "floor, us", "predicted", "measured", "FLOP/B"], cells, numbers_from=2)
    _say(LEGEND.strip().format(ridge=chip.ridge("bf16"), chip=chip.name.upper()))
    for source in sorted({r["source"] for r in rows if r["source"]}):
        _say(f"Measured on {source}.")
    _say(fill(answer.verdict.sentence, WIDTH))


def _rows(answer: "Answer", past: "Archive") -> list[dict[str, Any]]:
    """The lines of the headline: times in microseconds."""
    return [_row(record, past) for record in answer.records]


def _row(record: "Record", past: "Archive") -> dict[str, Any]:
    """One line of the headline: times in microseconds."""
    from experiments.lookup import measured, question_of
    from lab.explain import explain
    from sim.machine import machine as machine_named

    placed = explain(question_of(record), machine_named(record.machine)).roofline
    timed = measured(past, record, CLOCK)
    return {
        "case": _case(record),
        "kernel": record.kernel,
        "floor_us": placed.floor_us,
        "predicted_us": record.predicted_us,
        "measured_us": timed.us if timed else None,
        "source": timed.source if timed else None,
        "intensity": placed.intensity,
        "regime": placed.regime,
    }


def _speak(chip: "Machine", say: Any) -> "Generation":
    """Answer the prompt on the simulated chip, up to the end of a sentence."""
    from experiments.cli.generate import printable
    from lab.inference import generate

    generation = generate(PROMPT, max_tokens=MAX_TOKENS, chat=True, machine=chip)
    for piece in generation:
        say(printable(piece), end="")
        if piece.rstrip().endswith(ENDS):
            break
    say("")
    return generation


def _bills(document: dict[str, Any]) -> None:
    """What each phase of the answer cost, a line each."""
    for phase in document["phases"]:
        use = phase["flops"] / phase["bytes"]["weights"]
        _say(
            f"{phase['phase']}: {phase['tokens']} tokens, {number(phase['us'] / phase['tokens'])} us a token "
            f"{phase['clock']}, {use:,.3g} FLOPs for each byte of weights"
        )


def _say(text: str, end: str = "\n") -> None:
    print(text, end=end, flush=True)


def _silent(text: str, end: str = "\n") -> None:
    """Standard output is a document's alone."""
