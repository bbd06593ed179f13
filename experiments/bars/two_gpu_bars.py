"""Two GPUs of one host against their bars: prompts handed over, sums of two ranks, a step on both."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from experiments.markdown import three_columns
from experiments.rows import Row, Verdict
from experiments.running.backends import Backend
from experiments.running.transfer_rungs import predicted_rungs
from experiments.running.two_gpus import Pushing, pushes
from experiments.served import figure
from lab.cards.links import link_rate
from lab.problems.model import model_named
from lab.record import Archive, Record
from lab.serving.disaggregation.link import push_us
from lab.serving.disaggregation.parallel import ParallelTimes, all_reduce_us
from lab.serving.policy import Policy
from lab.serving.times import StepTimes
from sim.errors import EnvironmentFailure, InputError
from sim.machine import machine

QUESTION = "What does a second GPU cost: a prompt handed to it, a sum with it, a step on both?"

TOKENS = (1155, 8192)  # of a conversation's mean prompt, and of a long one
ROWS = (1, 2, 4)  # of 8 KB each
ENGINES = "8k prompts into 32 decodes"
PARTS = ("hand_over", "sum", "step", "engines")
# The bar of each quantity, and whether more is better.
BARS = {
    "GB/s of one push": (330.0, True),
    "us after prefill's last layer": (100.0, False),
    "CTAs that push": (16.0, False),
    "prefill slower by, while pushing, %": (3.0, False),
    "us of a sum in a graph": (3.5, False),
    "ms of a step, batch 1, 2,048 tokens": (2.35, False),
    "p99 of gaps beside prefill, of alone": (1.03, False),
}
RUNG = "GB/s by "  # and a rung's name: the link's rate stands for theory, and no bar is set


@dataclass(frozen=True)
class Options:
    """One part, or all where it is empty, on two devices; "0,0" proves the code on one card, which no bar is for.

    A part may take so many `seconds`; it needs most of a minute where nothing is compiled yet.
    """

    part: str = ""
    devices: str = "0,1"
    model: str = "llama-3-8b"
    rounds: int = 10
    seconds: int = 120

    def __post_init__(self) -> None:
        model_named(self.model)
        if self.part not in ("", *PARTS):
            raise InputError(f"parts are {', '.join(PARTS)}; got {self.part!r}")
        if min(self.rounds, self.seconds) < 1:
            raise InputError(f"rounds and seconds are at least 1; got {self.rounds}, {self.seconds}")
        self.pair  # noqa: B018 (its own check)

    @property
    def pair(self) -> tuple[int, int]:
        """The devices."""
        words = self.devices.split(",")
        if len(words) != 2 or not all(word.isdigit() for word in words):
            raise InputError(f"devices are two numbers with a comma between; got {self.devices!r}")
        return int(words[0]), int(words[1])


def measure(options: Options, backend: Backend) -> Iterator[Record]:
    """What is predicted of each part between two cards; on GPUs then what is measured of those that code drives."""
    here, there = options.pair
    for part in PARTS:
        if options.part in ("", part) and (backend.on == "sim" or here != there):
            for case, quantity, value in _predicted(part, options.model, backend):
                facts = {"case": case, "quantity": quantity, "value": value, "part": part}
                yield backend.closed_form(facts, model_named(options.model))
    if backend.on != "gpu":
        return
    for part in PARTS:
        if options.part in ("", part):
            work = Pushing(
                model=model_named(options.model).as_dict(),
                tokens=TOKENS if part == "hand_over" else (),
                rows=ROWS if part == "sum" else (),
                step=part == "step",
                engines=part == "engines",
                devices=options.pair,
                rounds=options.rounds,
                experiment="two_gpu_bars",
            )
            try:
                yield from backend.worked(pushes, work, options.seconds)
            except EnvironmentFailure as error:  # the other parts go on
                yield backend.closed_form({"part": part, "failed": str(error), "same_card": here == there})


def _predicted(part: str, name: str, backend: Backend) -> Iterator[tuple[str, str, float]]:
    """(case, quantity, value) of a part."""
    model, machine = model_named(name), backend.machine
    if part == "hand_over":
        times = StepTimes(model, machine, Policy(max_tokens=16_384).buckets)
        for tokens in TOKENS:
            pages = -(-tokens // 64)
            us, moved = push_us(model, machine, pages), pages * 64 * model.kv_bytes_per_token
            ctas = 16
            prefill_us = times.rows_us([0], [tokens])
            yield f"{tokens:,} tokens", "GB/s of one push", moved / us / 1e3
            yield f"{tokens:,} tokens", "us after prefill's last layer", push_us(model, machine, pages, layers=1)
            yield f"{tokens:,} tokens", "CTAs that push", float(ctas)
            yield (
                f"{tokens:,} tokens",
                "prefill slower by, while pushing, %",
                100 * us * ctas / machine.sms / prefill_us,
            )
            for rung, us in predicted_rungs(model, machine, pages).items():
                yield f"{tokens:,} tokens", RUNG + rung, moved / us / 1e3
    if part == "sum":
        for rows in ROWS:
            us = all_reduce_us(machine, rows, model.d, model.unit)
            yield f"{rows * model.d * 2 / 1e3:.0f} KB", "us of a sum in a graph", us
    if part == "engines":
        yield ENGINES, "p99 of gaps beside prefill, of alone", 1.0  # its steps have no prompt in them
    if part == "step":
        us = ParallelTimes(model, machine, Policy().buckets).rows_us([2047], [1])
        yield "tensor parallel", "ms of a step, batch 1, 2,048 tokens", us / 1e3


def _figures(records: Sequence[Record]) -> dict[tuple[str, str], list[float | None]]:
    """Predicted and measured by case and quantity."""
    found: dict[tuple[str, str], list[float | None]] = {}
    for record in records:
        m = record.metrics
        if "failed" in m or "why" in m:
            continue
        if record.on == "sim":
            found.setdefault((str(m["case"]), str(m["quantity"])), [None, None])[0] = figure(record, "value")
        elif m["what"] == "push":
            whole = m["layers"] != 1
            quantity = "GB/s of one push" if whole else "us after prefill's last layer"
            value = (figure(record, "bytes_per_s") or 0.0) / 1e9 if whole else figure(record, "us")
            found.setdefault((f"{m['tokens']:,} tokens", quantity), [None, None])[1] = value
        elif m["what"] == "sum":
            key = f"{float(m['rank_bytes'] or 0) / 1e3:.0f} KB", "us of a sum in a graph"
            pair = found.setdefault(key, [None, None])
            pair[1] = min(pair[1] or figure(record, "us") or 0.0, figure(record, "us") or 0.0)
        elif m["what"] == "rung":
            key = f"{m['tokens']:,} tokens", RUNG + str(m["rung"])
            found.setdefault(key, [None, None])[1] = (figure(record, "bytes_per_s") or 0.0) / 1e9
        elif m["what"] == "step":
            key = "tensor parallel", "ms of a step, batch 1, 2,048 tokens"
            found.setdefault(key, [None, None])[1] = (figure(record, "us") or 0.0) / 1e3
        elif m["what"] == "engines":
            for (case, quantity), value in _of_engines(record).items():
                found.setdefault((case, quantity), [None, None])[1] = value
    return found


def _of_engines(record: Record) -> dict[tuple[str, str], float]:
    """What engines at work kept of what each does by itself."""
    kept, pushed, alone, beside = (
        figure(record, f"{name}_us") or 0.0 for name in ("prompts_kept", "prompts", "p99_itl_alone", "p99_itl_pushed")
    )
    if not (kept and alone):
        return {}
    return {
        (ENGINES, "p99 of gaps beside prefill, of alone"): beside / alone,
        ("8,192 tokens", "prefill slower by, while pushing, %"): 100 * (pushed / kept - 1),
    }


def rows(records: Sequence[Record], past: Archive) -> Iterator[Row]:  # noqa: ARG001 (all is of one run)
    """Each figure beside its bar, which stands for theory."""
    source = next((r.source for r in records if r.on == "gpu"), "")
    for (case, quantity), (told, found) in _figures(records).items():
        bar, _ = BARS.get(quantity, (link_rate(machine(records[0].machine)) / 1e9, True))
        yield Row(case, quantity, bar, told, found, source=source if found is not None else "")


def verdict(records: Sequence[Record], past: Archive) -> Verdict:  # noqa: ARG001
    """Against the bars, where two cards were there."""
    measured = [r for r in records if r.on == "gpu"]
    wrong = [r for r in measured if r.check and not r.check.passed]
    if wrong:
        return Verdict(False, f"{len(wrong)} of {len(measured)} transfers and sums brought wrong results.")
    if not measured:
        return Verdict(None, "Nothing is measured: two GPUs that reach each other are needed.")
    if any(r.metrics.get("same_card") for r in measured):
        return Verdict(None, f"All {len(measured)} transfers and sums are right within one card, which no bar is for.")
    missed = [f"{r.metrics['part']} failed: {r.metrics['failed']}" for r in records if "failed" in r.metrics]
    for (case, quantity), (_, found) in _figures(records).items():
        bar, more = BARS.get(quantity, (None, True))
        if bar is not None and found is not None and (found < bar if more else found > bar):
            missed.append(f"{case}, {quantity}: {found:.4g}, bar {bar:g}")
    return Verdict(not missed, f"Missed: {'; '.join(missed)}." if missed else "All bars that were measured are kept.")


def table(past: Archive) -> str:
    """The newest run on two cards, else what is predicted; and what one card proved."""
    every = [r for r in past.where(experiment="two_gpu_bars").records if "failed" not in r.metrics]
    alone = [r for r in every if r.metrics.get("same_card")]
    apart = [r for r in every if not r.metrics.get("same_card")]
    measured = [r for r in apart if r.on == "gpu"]
    newest = (measured or apart or alone)[-1].run if every else ""
    found = [r for r in apart if r.run == newest]
    said = [three_columns(list(rows(found, past)), verdict(found, past).sentence)] if found else []
    return "\n\n".join([*said, *_within(alone)]) or "No records yet: `lab run two_gpu_bars --record` makes them."


def _within(alone: Sequence[Record]) -> Iterator[str]:
    """One sentence of what the code did between two pools of one card, of the newest run of each."""

    def newest(what: str) -> list[Record]:
        every = [r for r in alone if r.metrics["what"] == what]
        return [r for r in every if every and r.run == every[-1].run]

    whole = [r for r in newest("push") if r.metrics["layers"] != 1]
    sums, epochs = newest("sum"), newest("epochs")
    if whole and all(r.check and r.check.passed for r in (*whole, *sums, *epochs)):
        rates = [(figure(r, "bytes_per_s") or 0.0) / 1e9 for r in whole]
        us = [figure(r, "us") or 0.0 for r in sums]
        said = f"pushes at {min(rates):.0f} to {max(rates):.0f} GB/s"
        said += f", sums in {min(us):.2f} to {max(us):.2f} us" if us else ""
        said += f", {epochs[-1].metrics['times']} hand-overs by a flag of epochs" if epochs else ""
        ms = [(figure(r, "us") or 0.0) / 1e3 for r in newest("step") if r.check and r.check.passed]
        said += f", a step of two ranks that share its memory in {ms[-1]:.2f} ms" if ms else ""
        yield f"Within one card, where no link is crossed ({whole[-1].source}): {said}; all right."
    if rungs := [r for r in newest("rung") if "why" not in r.metrics]:
        found = Counter(int(r.metrics["tokens"] or 0) for r in rungs)
        longest = max(found, key=lambda tokens: (found[tokens], tokens))  # of those that climbed highest
        said = ", ".join(
            f"{r.metrics['rung']} at {(figure(r, 'bytes_per_s') or 0.0) / 1e9:.0f} GB/s"
            for r in rungs
            if r.metrics["tokens"] == longest
        )
        yield f"The pages of {longest:,} tokens between two pools of one card ({rungs[-1].source}): {said}."
