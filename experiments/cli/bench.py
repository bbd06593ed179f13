"""lab bench: time a kernel on this machine's GPU, beside its peers in the same run."""

from collections.abc import Sequence
from operator import attrgetter
from typing import Annotated, Any

import typer

from experiments.cli.options import Deadline, Json, Kernel, Schedule, Words
from experiments.cli.output import conclude, emit, number, say, spread, table
from experiments.cli.waiting import working
from sim.errors import InputError

CLOCKS = ("cold", "graph", "chain")

Sweep = Annotated[bool, typer.Option("--sweep", help="Also time every candidate schedule of the kernel.")]
Tune = Annotated[
    bool,
    typer.Option(
        "--tune",
        help="Search all candidates, and keep the winner in lab/tuned.jsonl for lab.linear; lists and ranges make "
        "several problems.",
    ),
]
Most = Annotated[
    int | None,
    typer.Option(min=1, help="With --tune, of each kernel only so many candidates: those predicted to be the fastest."),
]
Clocks = Annotated[
    str,
    typer.Option(
        metavar="CLOCK,...",
        help="cold: L2 flushed before each; graph: inside a CUDA graph; chain: so that dependent launches overlap, for "
        "the layers of a step. Cold and graph by default, cold to tune.",
    ),
]
Peers = Annotated[
    bool, typer.Option("--peers/--no-peers", help="Time other libraries in the same run (needs PyTorch).")
]
Rounds = Annotated[int, typer.Option(min=1, max=10_000, help="Samples of each contestant.")]
Keep = Annotated[bool, typer.Option("--record/--no-record", help="Keep the records.")]


def bench(
    kernel: Kernel,
    words: Words = None,
    schedule: Schedule = "",
    sweep: Sweep = False,
    tune: Tune = False,
    most: Most = None,
    clocks: Clocks = "",
    peers: Peers = True,
    rounds: Rounds = 30,
    deadline: Deadline = 300.0,
    record: Keep = True,
    as_json: Json = False,
) -> int:
    """Time a kernel on the GPU: checked first, then interleaved with its peers. Exit code 1 where a check fails.

    KERNEL may be "linear": the kernel that lab.linear chooses, or with --tune all kernels.
    """
    from experiments.cli import checking
    from experiments.running import backends, on_device
    from experiments.running.jobs import Job, Search
    from lab.catalog import names
    from lab.choice import schedule_words
    from lab.kernel import schedule_fields
    from lab.record import append, folder, provenance

    chosen = tuple(clocks.split(",")) if clocks else CLOCKS[:1] if tune else CLOCKS[:2]
    if unknown := set(chosen) - set(CLOCKS):
        raise InputError(f"unknown clock {sorted(unknown)[0]!r}; clocks: {', '.join(CLOCKS)}")
    if tune and (len(chosen) > 1 or sweep or schedule):
        raise InputError("--tune tries every schedule by one clock; no --schedule, no --sweep, no second clock")
    if most and not tune:
        raise InputError("--most is of a search: it goes with --tune")
    if tune:
        problems = [one.as_dict() for one in checking.tuned_on(backends.real_machine(), kernel, words or [])]
        how: Any = {"kernel": kernel if kernel in names() else "", "most": most, "clock": chosen[0], "peers": peers}
        searches = [Search(problem=one, **how, rounds=rounds, experiment="bench") for one in problems]
        found = backends.tune(searches, provenance(), deadline, deadline)
    else:
        subject = checking.benched_on(backends.real_machine(), kernel, words or [], schedule)
        problems = [subject.problem.as_dict()]
        if not sweep:  # which leaves out what does not compile
            checking.compiled(subject)
        job = Job(
            kernel=subject.kernel.name,
            problem=problems[0],
            schedules=(schedule_words(schedule_fields(subject.schedule)),),
            sweep=sweep,
            peers=peers,
            clocks=chosen,
            rounds=rounds,
            experiment="bench",
        )
        found = backends.in_worker(on_device.bench, [job], provenance(), deadline, deadline)
    records = []
    with working(f"timing {kernel}") as now:
        for one in found:
            if record:
                append(one, folder() / "bench.jsonl")
            records.append(one)
            now(f"{len(records)} results so far")
    emit({"kernel": kernel, "problems": problems, "records": records}, as_json, lambda d: _render(d, record))
    return 0 if _right(records) else 1


def _right(records: list[Any]) -> bool:
    """Whether there are results besides a search's, and all of them are right."""
    raced = [r for r in records if r.tried is None]
    return bool(raced) and all(r.check and r.check.passed for r in raced)


def _result(record: Any) -> str:
    """Whether the result was right, and what makes its time doubtful."""
    if not (record.check and record.check.passed):
        return str(record.metrics.get("failure", "wrong"))
    doubts = ["below the floor: impossible"] if record.metrics.get("impossible") else []
    doubts += [f"throttled: {', '.join(record.throttle)}"] if record.throttle else []
    return "; ".join(["right", *doubts])


def _say_ranking(swept: Sequence[Any]) -> None:
    """Of the schedules that one clock timed: what it costs to take the one that is predicted to be the fastest."""
    if len(swept) < 2:
        return
    fastest, chosen = (min(swept, key=attrgetter(name)) for name in ("us", "predicted_us"))
    say(f"{chosen.clock}: predicted to be the fastest, one takes {chosen.us / fastest.us:.3f} of the fastest's time")


def _render(document: dict[str, Any], kept: bool) -> None:
    records = [r for r in document["records"] if r.tried is None]
    for problem in document["problems"]:
        _render_one(document["kernel"], problem, [r for r in records if r.problem == problem])
    if records:
        say(f"measured on {records[0].source}")
    if kept and records:
        say(f"kept as run {records[0].run}: lab compare BEFORE {records[0].run}")
    conclude(_right(records), f"{len(records)} results checked")


def _render_one(kernel: str, problem: dict[str, Any], records: Sequence[Any]) -> None:
    from experiments.lookup import best_peer, question_of
    from experiments.words import spell
    from lab.explain import explain
    from sim.machine import MACHINES

    say(f"{kernel}: {spell(problem)}")
    rows = []
    for r in sorted(records, key=lambda r: (r.clock or "", r.us or float("inf"))):
        peer = best_peer(records, r)
        floor = explain(question_of(r), MACHINES[r.machine]).roofline.floor_us if r.machine in MACHINES else None
        rows.append(
            [
                r.kernel,
                spell(r.schedule or {}),
                r.clock or "-",
                number(r.us),
                spread(r.spread),
                number(r.predicted_us),
                f"{floor / r.us:.0%}" if floor and r.us else "-",
                f"{peer.us / r.us:.3g}" if peer and peer.us and r.us else "-",
                _result(r),
            ]
        )
    headings = ["kernel", "schedule", "clock", "us", "quartiles, n", "predicted", "of floor", "x best peer", "result"]
    table(headings, rows, numbers_from=3)
    for clock in CLOCKS:
        _say_ranking([r for r in records if r.clock == clock and r.us and r.predicted_us])
