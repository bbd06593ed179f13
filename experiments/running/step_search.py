"""The search for the schedules of a step's matrices, in their places: what a launch takes among those around it."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np

from experiments.running.jobs import StepJob, problem_of
from experiments.running.on_device import in_time
from experiments.running.steps_on_device import PEER_CLOSE, Arena
from lab import catalog, tuned
from lab.choice import contenders
from lab.execute import Plan, capture
from lab.inference.step import parts_of
from lab.kernel import recorded_schedule, schedule_fields
from lab.problems import Linear, Model
from lab.record import Checked, Record
from lab.tuned import FINAL
from lab.verify import scratch
from sim.errors import InputError, KernelError, ScheduleError
from sim.machine import Machine

MOST = 6  # schedules of each kernel
ROUNDS = 3
FINAL_ROUNDS = 9
FINALISTS = 3
LEAST = 0.02  # of all bytes of weights: what is worth a search


def search(argument: Any) -> Iterator[Record]:
    """Records of the finalists for each kind of matrix, the largest first; each best stays for the others' search."""
    done: set[Linear] = set()
    for job in in_time(argument, StepJob):
        if isinstance(job, Record):
            yield job
            continue
        model = problem_of(job.problem)
        wanted = [problem for problem in _matrices(model) if problem not in done]
        if not wanted:
            continue
        arena = Arena.of(model, peers=False)
        bound = list(arena.step.bound)
        for problem in wanted:
            places = [at for at, call in enumerate(arena.step.calls) if call.problem == problem]
            yield from _search(arena, job, problem, places, bound)
        done.update(wanted)


def _matrices(model: Model) -> list[Linear]:
    """A step's kinds of matrices with a part of all bytes of weights, the largest first."""
    from lab.gpu import device

    rows = [(model.tokens // model.batch, model.context)] * model.batch
    parts = [part for part in parts_of(model, rows, device.machine()) if isinstance(part.problem, Linear)]
    sizes = {part.problem: part.times * part.problem.bytes["weights"] for part in parts}
    large = sorted(sizes, key=lambda problem: -sizes[problem])
    return [p for p in large if isinstance(p, Linear) and sizes[p] >= LEAST * sum(sizes.values())]


def _contenders(problem: Linear, machine: Machine) -> Iterator[Plan]:
    """Each kernel's best guesses, and what the tuned table has for this matrix and for others."""
    pairs = list(contenders(problem, machine, MOST))
    for name, fields in tuned.incumbents(problem, machine, chain=True):
        with suppress(InputError, ScheduleError):  # it may not fit this matrix, or an older lab found it
            kernel = catalog.get(name)
            pairs.append((kernel, recorded_schedule(kernel, fields)))
    for kernel, schedule in dict.fromkeys(pairs):
        with suppress(InputError, ScheduleError):
            yield Plan(problem, machine, kernel, schedule, kernel.launches(problem, schedule, machine))


def _search(arena: Arena, job: StepJob, problem: Linear, places: list[int], bound: list[Any]) -> Iterator[Record]:
    """Of one kind of matrix; the best is bound in its places when this ends."""
    from lab.gpu.bench import shared_fields, timed_record
    from lab.gpu.timing import Clock

    machine = arena.machine
    with arena.stream:
        entries: dict[str, tuple[Plan, list[Any]]] = {}
        for plan in _contenders(problem, machine):
            with suppress(KernelError):  # one that spills is none
                entries[f"{plan.kernel.name} {plan.schedule}"] = plan, _bound(arena, plan, places, bound)
        graphs = {name: capture(*with_it) for name, (_, with_it) in entries.items()}
        all_times = _timed(graphs, ROUNDS)
        best = sorted(graphs, key=lambda name: all_times[name].us)[:FINALISTS]
        left = capture(*(one for at, one in enumerate(bound) if at not in places))
        times = _timed({**{name: graphs[name] for name in best}, "": left}, FINAL_ROUNDS)
        without = times.pop("").us
        best.sort(key=lambda name: times[name].us)
        for name in best:
            plan, _ = entries[name]
            timing = times[name]
            own_us = tuple((us - without) / len(places) for us in timing.samples_us)
            each = replace(timing, samples_us=own_us, clock=Clock.CHAIN)
            fields = {
                **shared_fields(problem, machine, job.experiment),
                "kernel": plan.kernel.name,
                "schedule": schedule_fields(plan.schedule),
                "overlapping": True,
                "predicted_us": plan.predicted_us("chain"),
                "check": _checked(arena, graphs[name]),
            }
            facts = {"stage": FINAL, "candidates": len(entries), "step_us": timing.us}
            yield timed_record(fields, {**job.facts, **facts}, each, problem, machine)
        bound[:] = entries[best[0]][1]


def _timed(graphs: Mapping[str, Any], rounds: int) -> dict[str, Any]:
    """The timing of each graph's replays."""
    from lab.gpu.timing import Clock, Contestant, measure

    return measure([Contestant(name, (graph.replay,)) for name, graph in graphs.items()], Clock.COLD, rounds)


def _bound(arena: Arena, plan: Plan, places: list[int], bound: list[Any]) -> list[Any]:
    """All of a step's launches, with a plan's in its places."""
    step, xp = arena.step, arena.step.chip.xp
    spaces = {name: xp.zeros(a.shape, a.storage) for name, a in scratch(plan.launches).items()}
    found = list(bound)
    for at in places:
        given = {operand: step.arrays[name] for operand, name in step.calls[at].arrays.items()}
        found[at] = plan.bind({**spaces, **given}, step.chip.device)
    return found


def _checked(arena: Arena, graph: Any) -> Checked:
    """Whether a step that such a graph makes has the logits of the step as it was."""
    from sim.formats import decode

    logits = []
    for replay in (arena.step.replay, graph.replay):
        replay()
        logits.append(decode(arena.step.chip.read(arena.step.arrays["logits"]), "bf16").astype(float))
    expected, found = logits
    return Checked(bool(np.linalg.norm(found - expected) <= PEER_CLOSE * np.linalg.norm(expected)), None)
