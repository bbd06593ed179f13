"""The search for the schedules of a step's large parts, in their places: what a launch takes among those around it."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
from lab.inference.step import FEW_TOKENS
from lab.kernel import recorded_schedule, schedule_fields
from lab.problems import Attention, Linear, Model, Problem
from lab.record import Checked, Record
from lab.tuned import FINAL
from lab.verify import scratch
from sim.errors import InputError, KernelError, ScheduleError
from sim.machine import Machine

MOST = 6  # schedules of each kernel, before those of the least predicted time are taken
TRIED = 16  # of all kernels
ROUNDS = 3
FINAL_ROUNDS = 6
FINALISTS = 3
LEAST = 0.02  # of all bytes of weights: a matrix that is worth a search
SHALLOWEST = 2  # stages of a ring
HIDDEN_US = 0.001  # of what adds nothing to a step, its time being hidden by others'


def search(argument: Any) -> Iterator[Record]:
    """Records of the finalists for each large part of a step; each best stays for the search of the next."""
    done: set[Model | Problem] = set()
    for job in in_time(argument, StepJob):
        if isinstance(job, Record):
            yield job
            continue
        model = problem_of(job.problem)
        alike = replace(model, context=1)
        if alike in done:  # the schedules of the first context serve the others
            continue
        done.add(alike)
        arena = Arena.of(model, peers=False)
        solved, bound = [call.problem for call in arena.step.calls], list(arena.step.bound)
        for problem in _large(solved):
            if problem not in done:
                places = [at for at, other in enumerate(solved) if other == problem]
                yield from _search(arena, job, problem, places, bound)
                done.add(problem)


def _large(solved: Sequence[Problem]) -> list[Problem]:
    """Of a step: matrices with a part of all bytes of weights, the largest first, then attention of a few tokens."""
    times = Counter(solved)
    sizes = {p: n * p.bytes["weights"] for p, n in times.items() if isinstance(p, Linear)}
    large = [problem for problem, size in sizes.items() if size >= LEAST * sum(sizes.values())]
    few = [problem for problem in times if isinstance(problem, Attention) and problem.q_len <= FEW_TOKENS]
    return [*sorted(large, key=lambda problem: -sizes[problem]), *few]


def _contenders(problem: Problem, machine: Machine) -> list[Plan]:
    """Of each kernel's best guesses and what the tuned table has, for other matrices too, those predicted best.

    Attention is to overlap, and may have shallower rings: what they leave of an SM's memory is L1, where matrices keep
    x.
    """
    pairs = list(contenders(problem, machine, MOST))
    for name, fields in tuned.incumbents(problem, machine, chain=True):
        with suppress(InputError, ScheduleError):  # it may not fit this matrix, or an older lab found it
            kernel = catalog.get(name)
            pairs.append((kernel, recorded_schedule(kernel, fields)))
    if isinstance(problem, Attention):
        rings = [(kernel, schedule) for kernel, schedule in pairs if getattr(schedule, "stages", 0) > SHALLOWEST]
        pairs += [(kernel, replace(schedule, stages=schedule.stages - 1)) for kernel, schedule in rings]
    found = []
    for kernel, schedule in dict.fromkeys(pairs):
        with suppress(InputError, ScheduleError):
            plan = Plan(problem, machine, kernel, schedule, kernel.launches(problem, schedule, machine))
            if plan.launches[0].dependent or not isinstance(problem, Attention):
                found.append(plan)
    return sorted(found, key=lambda plan: plan.predicted_us(tuned.CHAIN))[:TRIED]


def _twins(plans: Iterable[Plan]) -> Iterator[Plan]:
    """The same schedules that let the launch behind begin at another time, where they can."""
    for plan in plans:
        if hasattr(plan.schedule, "late"):
            schedule = replace(plan.schedule, late=1 - plan.schedule.late)
            launches = plan.kernel.launches(plan.problem, schedule, plan.machine)
            yield replace(plan, schedule=schedule, launches=launches)


def _search(arena: Arena, job: StepJob, problem: Problem, places: list[int], bound: list[Any]) -> Iterator[Record]:
    """Of one part of a step; the best is bound in its places when this ends."""
    from lab.gpu.bench import shared_fields, timed_record
    from lab.gpu.timing import Clock

    machine = arena.machine
    with arena.stream:
        entries: dict[str, tuple[Plan, list[Any]]] = {}
        graphs: dict[str, Any] = {}

        def enter(plans: Iterable[Plan]) -> None:
            for plan in plans:
                with suppress(KernelError):  # one that spills is none
                    name = f"{plan.kernel.name} {plan.schedule}"
                    entries[name] = plan, _bound(arena, plan, places, bound)
                    graphs[name] = capture(*entries[name][1])

        enter(_contenders(problem, machine))
        first = _timed(graphs, ROUNDS)
        best = sorted(graphs, key=lambda name: first[name].us)[:FINALISTS]
        enter(_twins([entries[name][0] for name in best]))
        last = {name: graphs[name] for name in graphs if name in best or name not in first}
        last[""] = capture(*(one for at, one in enumerate(bound) if at not in places))
        times = _timed(last, FINAL_ROUNDS)
        without = times.pop("").us
        best = sorted(times, key=lambda name: times[name].us)[:FINALISTS]
        for name in best:
            plan, _ = entries[name]
            timing = times[name]
            own_us = tuple(max((us - without) / len(places), HIDDEN_US) for us in timing.samples_us)
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
