"""lab bench: time a kernel on this machine's GPU, beside its peers in the same run."""

from typing import Annotated, Any

import typer

from experiments.cli.options import Deadline, Json, Kernel, Schedule, Words
from experiments.cli.output import emit, number, say, table, working
from sim.errors import InputError

CLOCKS = ("cold", "graph")

Sweep = Annotated[bool, typer.Option("--sweep", help="Also time every candidate schedule of the kernel.")]
Tune = Annotated[
    bool, typer.Option("--tune", help="Search all candidates, and keep the winner in lab/tuned.jsonl for lab.linear.")
]
Clocks = Annotated[
    str,
    typer.Option(
        metavar="CLOCK,...",
        help="cold: L2 flushed before each; graph: inside a CUDA graph. Both by default, cold to tune.",
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
    from lab.choice import schedule_words
    from lab.kernel import schedule_fields
    from lab.record import append, folder, provenance

    chosen = tuple(clocks.split(",")) if clocks else CLOCKS[:1] if tune else CLOCKS
    if unknown := set(chosen) - set(CLOCKS):
        raise InputError(f"unknown clock {sorted(unknown)[0]!r}; clocks: {', '.join(CLOCKS)}")
    if tune and (len(chosen) > 1 or sweep or schedule):
        raise InputError("--tune tries every schedule by one clock; no --schedule, no --sweep, no second clock")
    subject = checking.benched_on(backends.real_machine(), kernel, words or [], schedule)
    problem = subject.problem.as_dict()
    if tune:
        name = subject.kernel.name if kernel == subject.kernel.name else ""
        search = Search(problem=problem, kernel=name, clock=chosen[0], rounds=rounds, experiment="bench")
        found = backends.tune([search], provenance(), deadline, deadline)
    else:
        if not sweep:  # which leaves out what does not compile
            checking.compiled(subject)
        job = Job(
            kernel=subject.kernel.name,
            problem=problem,
            schedules=(schedule_words(schedule_fields(subject.schedule)),),
            sweep=sweep,
            peers=peers,
            clocks=chosen,
            rounds=rounds,
            experiment="bench",
        )
        found = backends.in_worker(on_device.bench, [job], provenance(), deadline, deadline)
    records = []
    with working(f"timing {kernel}"):
        for one in found:
            if record:
                append(one, folder() / "bench.jsonl")
            records.append(one)
    raced = [r for r in records if r.tried is None]
    emit({"kernel": kernel, "problem": problem, "records": records}, as_json, _render)
    return 0 if raced and all(r.check and r.check.passed for r in raced) else 1


def _result(record: Any) -> str:
    """Whether the result was right, and what makes its time doubtful."""
    if not (record.check and record.check.passed):
        return str(record.metrics.get("failure", "wrong"))
    doubts = ["below the floor: impossible"] if record.metrics.get("impossible") else []
    doubts += [f"throttled: {', '.join(record.throttle)}"] if record.throttle else []
    return "; ".join(["right", *doubts])


def _render(document: dict[str, Any]) -> None:
    from experiments.lookup import best_peer, question_of
    from experiments.words import spell
    from lab.explain import explain
    from sim.machine import MACHINES

    records = [r for r in document["records"] if r.tried is None]
    say(f"{document['kernel']}: {spell(document['problem'])}")
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
                f"{floor / r.us:.0%}" if floor and r.us else "-",
                f"{peer.us / r.us:.3g}" if peer and peer.us and r.us else "-",
                _result(r),
            ]
        )
    table(["kernel", "schedule", "clock", "us", "of floor", "x best peer", "result"], rows, numbers_from=3)
    if records:
        say(f"measured on {records[0].source}")
