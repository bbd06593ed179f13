"""The search for the schedules of a step's large parts, in their places: what a launch takes among those around it."""

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import chain, product
from typing import Any

import numpy as np

from experiments.running.jobs import StepJob, problem_of
from experiments.running.on_device import in_time
from experiments.running.steps_on_device import PEER_CLOSE, Arena
from lab import catalog, tuned
from lab.choice import contenders
from lab.execute import Plan, capture
from lab.inference.step import FEW_TOKENS, planned
from lab.kernel import Kernel, recorded_schedule, schedule_fields
from lab.kernels.common import clusters
from lab.problems import Attention, Linear, Problem
from lab.record import Checked, Record
from lab.tuned import FINAL
from lab.verify import scratch
from sim.errors import InputError, KernelError, ScheduleError
from sim.machine import Machine

MOST = 24  # schedules of each kernel, before those of the least predicted time are taken
TRIED = 10  # of each kernel
PROMISING = 1.4  # times the least predicted time: what won in a step has been predicted to take up to 1.34 times that
ROUNDS = 3
FINAL_ROUNDS = 6
FINALISTS = 3
KEPT = 8  # of a part, that race again
PASSES = 3  # over all parts
LEAST = 0.02  # of all bytes of weights: a matrix that is worth a search
SHALLOWEST = 2  # stages of a ring


def search(argument: Any) -> Iterator[Record]:
    """Records of the finalists for each part of a step that is worth it; each best stays for the search of the next.

    When all have been sought the finalists race again, beside what by then is around them. Parts whose search has
    not begun when the seconds are over are passed over.
    """
    done: set[Problem] = set()
    end = time.monotonic() + argument["seconds"]
    for job in in_time(argument, StepJob):
        if isinstance(job, Record):
            yield job
            continue
        arena = Arena.of(problem_of(job.problem), peers=False)
        solved, bound = [call.problem for call in arena.step.calls], list(arena.step.bound)
        races = [_Race(arena, job, problem, bound) for problem in _parts(solved) if problem not in done]
        for again in range(PASSES):
            for race in races:
                if time.monotonic() < end and (not again or race.finalists):
                    yield from race.run(race.finalists if again else _contenders(race.problem, arena.machine))
                    done.add(race.problem)


def _parts(solved: Sequence[Problem]) -> list[Problem]:
    """Of a step: small kernels that each layer has, whose search is short, then attention of a few tokens, then
    matrices with a part of all bytes of weights, the largest first.
    """
    times = Counter(solved)
    sizes = {p: n * p.bytes["weights"] for p, n in times.items() if isinstance(p, Linear)}
    large = [problem for problem, size in sizes.items() if size >= LEAST * sum(sizes.values())]
    few = [problem for problem in times if isinstance(problem, Attention) and problem.q_len <= FEW_TOKENS]
    small = [problem for problem, n in times.items() if n > 1 and not isinstance(problem, Linear | Attention)]
    return [*small, *few, *sorted(large, key=lambda problem: -sizes[problem])]


def _contenders(problem: Problem, machine: Machine) -> list[Plan]:
    """Of each kernel's best guesses those predicted best, and what the tuned table has, for other matrices and plain
    ones too.

    Small kernels keep theirs: all others of them made up 2 us of a step at most. Attention is to overlap, and may have
    shallower rings: what they leave of an SM's memory is L1, where matrices keep x. Rings of matrices may be deeper,
    too, warps may have more loads under way, and an SM may be held to its share of a grid, which would pile up where
    launches around it leave room.
    """
    if not isinstance(problem, Linear | Attention):
        return [planned(problem, machine)]
    pairs = _predicted_best(problem, machine)
    plain = replace(problem, epilogue="none", prologue="none") if isinstance(problem, Linear) else problem
    known = [tuned.incumbents(one, machine, chain=True) for one in dict.fromkeys((problem, plain))]
    for name, fields in chain.from_iterable(known):
        with suppress(InputError, ScheduleError):  # it may not fit this matrix, or an older lab found it
            kernel = catalog.get(name)
            pairs.append((kernel, recorded_schedule(kernel, fields)))
    if isinstance(problem, Attention):
        rings = [(kernel, schedule) for kernel, schedule in pairs if getattr(schedule, "stages", 0) > SHALLOWEST]
        pairs += [(kernel, replace(schedule, stages=schedule.stages - 1)) for kernel, schedule in rings]
        pairs += [(kernel, replace(schedule, stages=SHALLOWEST)) for kernel, schedule in rings]
    else:
        rings = [(kernel, schedule) for kernel, schedule in pairs if hasattr(schedule, "stages")]
        pairs += [(k, replace(s, stages=s.stages + more)) for k, s in rings for more in (-1, 1) if s.stages + more > 1]
        streams = [(kernel, schedule) for kernel, schedule in pairs if kernel.name == "gemv_vectorized"]
        pairs += [_longer(kernel, s) for kernel, s in streams if s.unroll <= 4 and s.rows * s.unroll <= 8]
    found = []
    for kernel, schedule in dict.fromkeys(pairs):
        with suppress(InputError, ScheduleError):
            plan = _plan(problem, machine, kernel, schedule)
            if plan.launches[0].dependent or not isinstance(problem, Attention):
                found += [plan, *_held(plan)]
    return found


def _longer(kernel: Kernel, schedule: Any) -> tuple[Kernel, Any]:
    """Twice the loads of a warp under way, for which fewer CTAs of an SM have registers."""
    return kernel, replace(schedule, unroll=2 * schedule.unroll, ctas_per_sm=max(1, 3 * schedule.ctas_per_sm // 4))


def _held(plan: Plan) -> Iterator[Plan]:
    """The same, each SM held to its share of a grid that runs at once."""
    share = -(-plan.launches[0].ctas // plan.machine.sms)
    if getattr(plan.schedule, "most", None) == 0 and share <= clusters.MOST:
        held = _plan(plan.problem, plan.machine, plan.kernel, replace(plan.schedule, most=share))
        if held.launches[0].shared_bytes > plan.launches[0].shared_bytes:
            yield held


def _predicted_best(problem: Problem, machine: Machine) -> list[tuple[Kernel, Any]]:
    """(kernel, schedule): of each kernel those that are predicted to be the best in a chain."""
    found: dict[str, list[tuple[float, Any]]] = {}
    for kernel, schedule in contenders(problem, machine, MOST):
        us = kernel.predicted_us(problem, schedule, machine, tuned.CHAIN)
        found.setdefault(kernel.name, []).append((us, schedule))
    limit = PROMISING * min(us for guesses in found.values() for us, _ in guesses)
    return [
        (catalog.get(name), schedule)
        for name, guesses in found.items()
        for us, schedule in sorted(guesses, key=lambda guess: guess[0])[:TRIED]
        if us <= limit
    ]


def _plan(problem: Problem, machine: Machine, kernel: Kernel, schedule: Any) -> Plan:
    return Plan(problem, machine, kernel, schedule, kernel.launches(problem, schedule, machine))


def _twins(plans: Iterable[Plan]) -> Iterator[Plan]:
    """The same schedules that let the launch behind begin at another time, where they can."""
    for plan, late in product(plans, (0, 1)):
        if getattr(plan.schedule, "late", late) != late:
            schedule = replace(plan.schedule, late=late)
            yield _plan(plan.problem, plan.machine, plan.kernel, schedule)


class _Race:
    """One part of a step: its places among the launches that are `bound`, where the best stays, and its finalists."""

    def __init__(self, arena: Arena, job: StepJob, problem: Problem, bound: list[Any]) -> None:
        self.arena, self.job, self.problem, self._bound = arena, job, problem, bound
        self._places = [at for at, call in enumerate(arena.step.calls) if call.problem == problem]
        self.finalists: list[Plan] = []

    def run(self, plans: Iterable[Plan]) -> Iterator[Record]:
        """Records of the best of these plans, and of their twins."""
        with self.arena.stream:
            entries: dict[str, tuple[Plan, list[Any]]] = {}
            graphs: dict[str, Any] = {}

            def enter(plans: Iterable[Plan]) -> None:
                for plan in plans:
                    with suppress(KernelError):  # one that spills is none
                        name = f"{plan.kernel.name} {plan.schedule}"
                        entries[name] = plan, _with(self.arena, plan, self._places, self._bound)
                        graphs[name] = capture(*entries[name][1])

            enter(plans)
            first = _timed(graphs, ROUNDS)
            best = sorted(graphs, key=lambda name: first[name].us)[:FINALISTS]
            enter(_twins([entries[name][0] for name in best]))
            last = {name: graphs[name] for name in graphs if name in best or name not in first}
            last[""] = capture(*(one for at, one in enumerate(self._bound) if at not in self._places))
            times = _timed(last, FINAL_ROUNDS)
            without = times.pop("").us
            best = sorted(times, key=lambda name: times[name].us)[:FINALISTS]
            shares = {name: _shares(times[name].samples_us, without, len(self._places)) for name in best}
            hidden = min(min(shares[name]) for name in best) <= 0
            if hidden:  # a step is no shorter without this part: then the fastest's time is that of its launches alone
                alone = _timed({best[0]: capture(*(entries[best[0]][1][at] for at in self._places))}, FINAL_ROUNDS)
                shares = {best[0]: _shares(alone[best[0]].samples_us, 0.0, len(self._places))}
            for name, samples in shares.items():
                facts = {"candidates": len(entries), "step_us": times[name].us, "alone": hidden}
                yield self._record(entries[name][0], times[name], samples, facts, graphs[name])
            all_times = {**first, **times}
            self.finalists = [entries[name][0] for name in sorted(graphs, key=lambda n: all_times[n].us)[:KEPT]]
            self._bound[:] = entries[best[0]][1]

    def _record(self, plan: Plan, timing: Any, samples: tuple[float, ...], facts: dict[str, Any], graph: Any) -> Record:
        """Of a finalist with these microseconds of one of its launches."""
        from lab.gpu.bench import shared_fields, timed_record
        from lab.gpu.timing import Clock

        machine = self.arena.machine
        fields = {
            **shared_fields(self.problem, machine, self.job.experiment),
            "kernel": plan.kernel.name,
            "schedule": schedule_fields(plan.schedule),
            "overlapping": True,
            "predicted_us": plan.predicted_us(tuned.CHAIN),
            "check": _checked(self.arena, graph),
        }
        each = replace(timing, samples_us=samples, clock=Clock.CHAIN)
        return timed_record(fields, {**self.job.facts, "stage": FINAL, **facts}, each, self.problem, machine)


def _shares(samples_us: Sequence[float], without: float, places: int) -> tuple[float, ...]:
    """Microseconds that one of so many launches adds to those of a step without them."""
    return tuple((us - without) / places for us in samples_us)


def _timed(graphs: Mapping[str, Any], rounds: int) -> dict[str, Any]:
    """The timing of each graph's replays."""
    from lab.gpu.timing import Clock, Contestant, measure

    return measure([Contestant(name, (graph.replay,)) for name, graph in graphs.items()], Clock.COLD, rounds)


def _with(arena: Arena, plan: Plan, places: list[int], bound: list[Any]) -> list[Any]:
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
