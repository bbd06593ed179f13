"""What the worker process runs on the GPU: plain data in, plain data out. Only functions here load a GPU library."""

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, replace
from importlib import import_module
from importlib.util import find_spec
from itertools import islice
from typing import Any

import msgspec

from experiments.running.jobs import AnyJob, Job, Search, problem_of
from lab import catalog
from lab.choice import contenders, legal_candidates
from lab.kernel import parse_schedule, schedule_fields
from lab.record import Record, provenance
from lab.tuned import winner
from sim.errors import InputError
from sim.launch import overlap

OVER = "skipped: the time box was over"


def bench(argument: Any) -> Iterator[Record]:
    """Check and time the kernel and the peers of each job of a batch; a record a contestant, clock and pace."""
    from lab.gpu.bench import Bench, Candidate
    from lab.gpu.timing import Clock, Pace

    last: Bench | None = None
    for job in in_time(argument, Job):
        if isinstance(job, Record):
            yield job
            continue
        kernel, problem = job.parts()
        last = _arena(problem, job, last)
        schedules = [parse_schedule(kernel, words, problem, last.machine) for words in job.schedules]
        if job.sweep:
            schedules += [s for s in legal_candidates(kernel, problem, last.machine) if s not in schedules]
        yield from last.race(
            [Candidate(kernel, schedule, job.plain) for schedule in schedules],
            _peers(problem) if job.peers else {},
            clocks=tuple(Clock(clock) for clock in job.clocks),
            rounds=job.rounds,
            paces=tuple(Pace(pace) for pace in job.paces),
            facts={**job.facts, "plain": True} if job.plain else job.facts,
            reads=job.reads,
            movers=_of_kind(problem, "movers") if job.reads else {},
        )


def search(argument: Any) -> Iterator[Record]:
    """The records of each search of a batch, from both of its stages."""
    from lab.gpu.bench import Bench, Candidate
    from lab.gpu.search import search as gpu_search
    from lab.gpu.timing import Clock

    last: Bench | None = None
    for job in in_time(argument, Search):
        if isinstance(job, Record):
            yield job
            continue
        problem = problem_of(job.problem)
        arena = last = _arena(problem, job, last)
        if job.kernel:
            kernel = catalog.get(job.kernel)
            legal = legal_candidates(kernel, problem, arena.machine)
            found = [(kernel, schedule) for schedule in islice(legal, job.most)]
        else:
            found = list(contenders(problem, arena.machine, job.most))
        held = [*job.incumbents, *([job.picked] if job.picked else [])]
        for name, words in held:
            with suppress(InputError):  # it may have been found by an older lab
                kernel = catalog.get(name)
                schedule = parse_schedule(kernel, words, problem, arena.machine)
                kernel.launches(problem, schedule, arena.machine)
                found.append((kernel, schedule))
        entries = [Candidate(*pair, job.plain) for pair in dict.fromkeys(found)]
        kept = [Candidate(*found[-1], job.plain)] if job.picked else []
        clock, peers = Clock(job.clock), _peers(problem) if job.peers else {}
        facts = {**job.facts, "plain": True} if job.plain else job.facts
        records = gpu_search(arena, entries, {} if job.reads else peers, clock, job.rounds, kept)
        yield from (msgspec.structs.replace(record, metrics={**facts, **record.metrics}) for record in records)
        best = winner(records, problem)
        if job.reads and best:
            (won,) = [
                e for e in entries if (e.kernel.name, schedule_fields(e.schedule)) == (best.kernel, best.schedule)
            ]
            yield from arena.race([won], peers, (clock,), job.rounds, facts=facts, reads=True)


def chains(argument: Any) -> Iterator[Record]:
    """A record for each way in which each job's chain of layers ran; `launches` says which."""
    from lab.gpu import chain as gpu
    from lab.gpu import device

    last: gpu.Chain | None = None
    for job in in_time(argument, Job):
        if isinstance(job, Record):
            yield job
            continue
        kernel, problem = job.parts()
        machine = device.machine()
        if last is None or last.problem != problem:
            last = gpu.chain_of(problem, int(job.facts["layers"] or 1))
        schedules = [parse_schedule(kernel, words, problem, machine) for words in job.schedules]
        if len(schedules) > 1:
            schedules = gpu.fastest(last, kernel, schedules, machine)
        for schedule in schedules:
            yield from _chained(job, last, schedule)


def _chained(job: Job, chain: Any, schedule: Any) -> Iterator[Record]:
    """A record for each way in which a chain ran with one schedule."""
    from lab.gpu import chain as gpu
    from lab.gpu import device
    from lab.gpu.bench import shared_fields, timed_record

    (kernel, problem), machine = job.parts(), device.machine()
    own = {"kernel": kernel.name, "schedule": schedule_fields(schedule)}
    clocks = {gpu.DEPENDENT: "chain", gpu.PLAIN: "graph"}  # a launch that waits for the one before hides nothing
    predicted = {way: kernel.predicted_us(problem, schedule, machine, clock) for way, clock in clocks.items()}
    shared = shared_fields(problem, machine, job.experiment)
    rivals = _chain_peers(problem) if job.peers else {}
    for name, timing in gpu.race(chain, kernel, schedule, machine, rivals, job.rounds).items():
        fields, facts = {**shared, "kernel": f"peer:{name}"}, dict(job.facts)
        if name in predicted:
            overlapping = name == gpu.DEPENDENT and overlap(kernel.launches(problem, schedule, machine))
            fields |= {**own, "predicted_us": predicted[name], "overlapping": overlapping}
            facts["launches"] = name
        yield timed_record(fields, facts, timing, problem, machine)


def _chain_peers(problem: Any) -> dict[str, Any]:
    from experiments.peers.linear import chain_peers

    return chain_peers(problem)


def check(argument: Any) -> dict[str, Any]:
    """Run a job's first schedule and compare with the reference; the fields of a Check."""
    from lab.gpu.bench import Candidate

    job = msgspec.convert(argument, Job)
    kernel, problem = job.parts()
    arena = _arena(problem, job)
    found = arena.check(Candidate(kernel, parse_schedule(kernel, job.schedules[0], problem, arena.machine)))
    return {"passed": found.passed, **asdict(found)}


def in_time(argument: Any, kind: type[Any]) -> Iterator[Any]:
    """The jobs of a batch as long as its time lasts, then for each other one a record that says it was skipped."""
    jobs = msgspec.convert(argument["jobs"], list[kind])  # type: ignore[valid-type]
    end = time.monotonic() + argument["seconds"]
    for job in jobs:
        if time.monotonic() < end:
            yield job
        else:
            yield _skipped(job)


def _skipped(job: AnyJob) -> Record:
    from lab.gpu import device

    return Record(
        **provenance(),
        on="gpu",
        machine=device.machine().name,
        card=device.card().name,
        experiment=job.experiment,
        kernel=job.kernel or None,
        problem=job.problem,
        metrics={**job.facts, "failure": OVER},
    )


def _arena(problem: Any, job: Job | Search, last: Any = None) -> Any:
    """The arena of a job: the last one where it serves, else a new one, with the inputs of a wider last one."""
    from lab.gpu import device
    from lab.gpu.bench import Bench

    seed = job.seed if isinstance(job, Job) else None
    wider = None
    if last and seed is None:
        if last.problem == problem:
            return last
        m, more = (getattr(each, "m", 0) for each in (problem, last.problem))  # rows, where inputs are nothing else
        if more > m > 0 and replace(last.problem, m=m) == problem:
            wider = last
    return Bench(problem, device.machine(), job.experiment, seed, wider)


def ceilings(argument: Any) -> Iterator[Record]:
    """What this card launches, reads and copies at best: a record a figure. `argument` names the experiment."""
    from lab.gpu import ceilings as gpu
    from lab.gpu import device
    from lab.gpu.timing import Clock

    card = device.card()
    shared: dict[str, Any] = {
        **provenance(),
        "on": "gpu",
        "machine": device.machine().name,
        "card": card.name,
        "driver": card.driver,
        "experiment": argument["experiment"],
    }
    for clock in (Clock.COLD, Clock.GRAPH):
        timed = {**shared, "clock": clock.value}
        empty = gpu.empty_launch(clock)
        yield Record(**timed, us=empty.us, samples_us=list(empty.samples_us), metrics={"what": "empty kernel"})
        other = gpu.copy_ceiling() if clock is Clock.COLD else gpu.pairs_ceiling()
        for found in [*gpu.read_ceilings(clock), other]:
            seen = found.conditions
            yield Record(
                **timed,
                clocks=None if seen.sm_clock is None else {"sm": seen.sm_clock},
                throttle=None if seen.throttle is None else list(seen.throttle),
                power_w=seen.power_w,
                us=found.us,
                samples_us=list(found.samples_us),
                metrics={
                    "what": found.what,
                    "nbytes": found.nbytes,
                    "bytes_per_s": found.bandwidth,
                    "launch_shape": found.launch_shape,
                },
            )

    for what, us in {"CuPy launch": gpu.host_launch_us(), **_host_costs()}.items():
        yield Record(**shared, us=us, samples_us=[us], metrics={"what": what})


def _host_costs(calls: int = 200) -> dict[str, float]:
    """Host microseconds of a small linear layer, the GPU keeping up: the lab's front door beside PyTorch's."""
    try:
        import torch
    except ImportError:
        return {}
    import time

    import cupy

    import lab

    x, w = (torch.randn(rows, 256, device="cuda", dtype=torch.bfloat16) for rows in (1, 256))
    out = torch.empty(1, 256, device="cuda", dtype=torch.bfloat16)
    a, b, y = (cupy.from_dlpack(t.view(torch.int16)).view(cupy.uint16) for t in (x, w, out))

    def host_us(call: Callable[[], Any]) -> float:
        best = float("inf")
        for _ in range(5):
            call()
            torch.cuda.synchronize()
            began = time.perf_counter()
            for _ in range(calls):
                call()
            best = min(best, (time.perf_counter() - began) / calls * 1e6)
        return best

    return {
        "lab.linear, CuPy": host_us(lambda: lab.linear(a, b, out=y)),
        "lab.linear, torch": host_us(lambda: lab.linear(x, w, out=out)),
        "torch linear": host_us(lambda: torch.nn.functional.linear(x, w)),
    }


def _peers(problem: Any) -> dict[str, Any]:
    """What our kernels are measured against."""
    return _of_kind(problem, "peers")


def _of_kind(problem: Any, what: str) -> dict[str, Any]:
    """What a function of the peers of the problem's kind finds; nothing, saying so, where PyTorch is not installed."""
    name = f"experiments.peers.{problem.kind}"
    if find_spec(name) is None:
        return {}
    try:
        function = getattr(import_module(name), what, None)
        found: dict[str, Any] = function(problem) if function else {}
    except ImportError as error:
        print(f"lab: no peers are timed beside it: {error}", flush=True)
        return {}
    return found
