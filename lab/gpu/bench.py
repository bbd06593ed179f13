"""Bench: every contestant checked on fresh inputs, then timed in one interleaved run; each becomes a Record."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import isfinite
from typing import Any

import cupy
import numpy as np
from numpy.typing import NDArray

from lab.gpu.device import card
from lab.gpu.launch import Prepared, device_workspaces, executor
from lab.gpu.parameters import pointers_of
from lab.gpu.statistics import is_impossible
from lab.gpu.timing import Call, Clock, Contestant, Pace, Timing, measure, rotation
from lab.kernel import Kernel, schedule_fields
from lab.problems import Linear
from lab.record import Checked, Record, provenance
from lab.verify import Check, compare_with, guarded_array, guards_intact, workspaces
from sim.errors import EnvironmentFailure
from sim.formats import FORMATS
from sim.launch import Launch, Role
from sim.machine import Machine
from sim.roofline import roofline

REFERENCE_FLOPS = 2**37  # above it the reference covers evenly spaced rows of x: a host has no more patience

Arrays = Mapping[str, Any]  # CuPy arrays by argument name, in storage types
Peer = Callable[[Linear, Arrays], Call]  # makes a call that computes y from x and w on CuPy's current stream


@dataclass(frozen=True)
class Entry:
    """A kernel with one schedule, as a contestant."""

    kernel: Kernel
    schedule: Any

    @property
    def name(self) -> str:
        fields = ",".join(f"{name}={value}" for name, value in schedule_fields(self.schedule).items())
        return f"{self.kernel.name}({fields})"


@dataclass(frozen=True)
class Expectation:
    """Fresh random inputs of a problem and what y must be on the rows `rows`."""

    inputs: dict[str, NDArray]
    rows: slice
    expected: tuple[NDArray, NDArray]

    @classmethod
    def of(cls, problem: Linear, seed: int | None) -> "Expectation":
        inputs = problem.draw(np.random.default_rng(seed))
        step = max(1, -(-problem.flops // REFERENCE_FLOPS)) | 1  # odd, so that every row of a tile has its turn
        rows = slice(None, None, step)
        return cls(inputs, rows, problem.reference(inputs, rows))

    def check(self, problem: Linear, y: NDArray, intact: bool = True) -> Check:
        return compare_with(self.expected, y.reshape(problem.m, problem.n)[self.rows], problem.output, intact)


def bench(
    kernel: Kernel,
    problem: Linear,
    schedules: Sequence[Any],
    machine: Machine,
    peers: Mapping[str, Peer] | None = None,
    clocks: Sequence[Clock] = (Clock.COLD, Clock.GRAPH),
    rounds: int = 30,
    pace: Pace = Pace.SUSTAINED,
    experiment: str | None = None,
    seed: int | None = None,
) -> list[Record]:
    """`race` of one kernel's schedules and of peers."""
    entries = [Entry(kernel, schedule) for schedule in schedules]
    return race(problem, entries, machine, peers or {}, clocks, rounds, pace, experiment, seed)


def race(
    problem: Linear,
    entries: Sequence[Entry],
    machine: Machine,
    peers: Mapping[str, Peer],
    clocks: Sequence[Clock] = (Clock.COLD, Clock.GRAPH),
    rounds: int = 30,
    pace: Pace = Pace.SUSTAINED,
    experiment: str | None = None,
    seed: int | None = None,
) -> list[Record]:
    """Check, then time, kernels and peers on one problem: a record for each contestant and clock, all of one run.

    A contestant whose check failed, or whose code does not compile, gets one record without a time. Raises InputError
    or ScheduleError for what a kernel refuses, EnvironmentFailure where a kernel breaks the device.
    """
    launches = [e.kernel.launches(problem, e.schedule, machine) for e in entries]
    expectation = Expectation.of(problem, seed)
    with cupy.cuda.Stream(non_blocking=True):
        data = _copies(problem, expectation.inputs)
        contestants: list[Contestant] = []
        checks: dict[str, Check] = {}
        failures: dict[str, str] = {}
        scratch = [device_workspaces(steps) for steps in launches]
        for entry, steps, own in zip(entries, launches, scratch, strict=True):
            try:
                prepared = Prepared(steps, machine)  # compiles: a schedule that spills is out of the race
            except EnvironmentFailure as failure:
                failures[entry.name] = str(failure)
                continue
            checks[entry.name] = check_kernel(problem, steps, machine, expectation)
            if checks[entry.name].passed:
                pointers = [pointers_of({**arrays, **own}, steps) for arrays in data]
                calls = tuple(partial(_bound_call, prepared, p) for p in pointers)
                contestants.append(Contestant(entry.name, calls))
        for name, peer in peers.items():
            peer_calls = tuple(peer(problem, arrays) for arrays in data)
            checks[name] = _check_peer(problem, peer_calls[0], data[0]["y"], expectation)
            if checks[name].passed:
                contestants.append(Contestant(name, peer_calls))
        timings = [measure(contestants, clock, rounds, pace) for clock in clocks] if contestants else []
    shared = _shared_fields(problem, machine, experiment)
    records = []
    for name, described in _descriptions(problem, entries, launches, machine, peers).items():
        fields = {**shared, **described}
        check = checks.get(name)
        if check is None:
            records.append(Record(**fields, metrics={"failure": failures[name]}))
            continue
        fields["check"] = Checked(check.passed, check.error if isfinite(check.error) else None)
        facts: dict[str, int | float | str | bool | None] = {
            "rows_checked": check.rows_checked,
            "copies": len(data),
            "pace": str(pace),
        }
        timed = [t[name] for t in timings if name in t]
        records += [_timed_record(fields, facts, timing, problem, machine) for timing in timed]
        if not timed:
            records.append(Record(**fields, metrics={**facts, "failure": _complaint(check)}))
    return records


def check_kernel(problem: Linear, launches: tuple[Launch, ...], machine: Machine, expectation: Expectation) -> Check:
    """Run launches on the GPU, the output poisoned between guard bands, and compare with what is expected."""
    outputs = {a.name: guarded_array(a) for launch in launches for a in launch.arrays if a.role is Role.OUT}
    arrays = {**expectation.inputs, **workspaces(launches), **{name: inside for name, (_, inside) in outputs.items()}}
    executor(machine)(launches, arrays)
    return expectation.check(problem, arrays["y"], all(guards_intact(whole) for whole, _ in outputs.values()))


def floor_us(problem: Linear, machine: Machine) -> float:
    """The larger of the two bills at data-sheet rates: a time below it is impossible."""
    bills = roofline(problem.flops, problem.bytes["total"], problem.activations, machine)
    return max(bills.compute_us, bills.memory_us)


def _bound_call(prepared: Prepared, pointers: Mapping[str, int]) -> None:
    prepared.bind(pointers)()


def _check_peer(problem: Linear, call: Call, y: Any, expectation: Expectation) -> Check:
    y.view(cupy.uint8)[...] = 0xFF
    call()
    cupy.cuda.get_current_stream().synchronize()
    return expectation.check(problem, y.get())


def _copies(problem: Linear, inputs: Mapping[str, NDArray]) -> list[dict[str, Any]]:
    """The problem's arrays on the device, as often as a rotation needs them; y is storage of the output's format."""
    first = {name: cupy.asarray(array) for name, array in inputs.items()}
    count = rotation(problem.bytes["total"])
    copies = [first] + [{name: array.copy() for name, array in first.items()} for _ in range(count - 1)]
    storage = FORMATS[problem.output].storage
    return [{**copy, "y": cupy.zeros((problem.m, problem.n), storage)} for copy in copies]


def _shared_fields(problem: Linear, machine: Machine, experiment: str | None) -> dict[str, Any]:
    gpu = card()
    return {
        **provenance(),
        "on": "gpu",
        "machine": machine.name,
        "card": gpu.name,
        "driver": gpu.driver,
        "experiment": experiment,
        "problem": problem.as_dict(),
    }


def _descriptions(
    problem: Linear,
    entries: Sequence[Entry],
    launches: Sequence[tuple[Launch, ...]],
    machine: Machine,
    peers: Mapping[str, Peer],
) -> dict[str, dict[str, Any]]:
    described: dict[str, dict[str, Any]] = {}
    for entry, steps in zip(entries, launches, strict=True):
        theory = entry.kernel.module.theory(problem, entry.schedule, machine)
        described[entry.name] = {
            "kernel": entry.kernel.name,
            "schedule": schedule_fields(entry.schedule),
            "predicted_us": entry.kernel.predicted_us(problem, entry.schedule, steps, machine),
            "theory": theory.as_dict(),
        }
    return described | {name: {"kernel": f"peer:{name}"} for name in peers}


def _timed_record(
    fields: dict[str, Any], facts: dict[str, Any], timing: Timing, problem: Linear, machine: Machine
) -> Record:
    seen = timing.conditions
    clocks = {"sm": seen.sm_clock, "memory": seen.memory_clock}
    known = {name: clock for name, clock in clocks.items() if clock is not None}
    impossible = {"impossible": True} if is_impossible(timing.us, floor_us(problem, machine)) else {}
    return Record(
        **fields,
        clocks=known or None,
        throttle=None if seen.throttle is None else list(seen.throttle),
        power_w=seen.power_w,
        clock=timing.clock.value,
        us=timing.us,
        samples_us=list(timing.samples_us),
        metrics={**facts, **impossible},
    )


def _complaint(check: Check) -> str:
    if not check.guards_intact:
        return "wrote outside its output"
    return f"{check.mismatches} of {check.rows_checked} rows' elements are wrong, the first at {check.first_mismatch}"
