"""Bench: contestants checked on fresh inputs, then timed in one interleaved run; each becomes a Record."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from math import isfinite, prod
from typing import Any

import cupy
import numpy as np
from msgspec import structs
from numpy.typing import NDArray

from lab.choice import candidate_name
from lab.compile import code_digest, compile_launch
from lab.gpu import driver
from lab.gpu.ceilings import plain_movers
from lab.gpu.device import card
from lab.gpu.expectation import Expectation
from lab.gpu.launch import Prepared, device_workspaces
from lab.gpu.parameters import pointers_of
from lab.gpu.statistics import is_impossible
from lab.gpu.timing import GRAPH_SAMPLE_US, Call, Clock, Contestant, Pace, Timing, measure, rotation
from lab.kernel import Kernel, schedule_fields
from lab.problems import Operand, Problem
from lab.record import Checked, Record, Value, provenance
from lab.verify import Check
from sim.errors import EnvironmentFailure, KernelError
from sim.launch import Launch, overlap
from sim.machine import Machine
from sim.roofline import roofline

BAND = 1024  # elements around an output that nothing may touch; so many that it keeps an allocation's alignment

Arrays = Mapping[str, Any]  # CuPy arrays by argument name, in storage types
Peer = Callable[[Problem, Arrays], "Call | Loose"]  # makes a call that computes the outputs on CuPy's current stream
Mover = Callable[[Arrays], Call]  # makes a call that only moves what the problem does
NO_MOVERS: Mapping[str, Mover] = {}


@dataclass(frozen=True)
class Loose:
    """A peer's call that leaves its main result elsewhere, or rounds what our bound does not let it round.

    It is right where the relative error of what `result` gives, float32 on the host, is at most `tolerance`.
    """

    call: Call
    result: Callable[[], NDArray]
    tolerance: float


@dataclass(frozen=True)
class Candidate:
    """A kernel with one schedule, as a contestant; a `plain` one waits for what is enqueued ahead of it to end.

    Its own later launches follow its first one as they always do.
    """

    kernel: Kernel
    schedule: Any
    plain: bool = False

    @property
    def name(self) -> str:
        return candidate_name(self.kernel.name, schedule_fields(self.schedule))


class Bench:
    """A problem on this GPU: its arrays as often as a rotation needs them, and what the outputs must be.

    What was once made ready, and its check, serve every later race.
    """

    def __init__(
        self,
        problem: Problem,
        machine: Machine,
        experiment: str | None = None,
        seed: int | None = None,
        wider: "Bench | None" = None,
    ):
        """`wider`, a bench of the same problem with more rows, lends its inputs and what it expects of them."""
        self.problem, self.machine = problem, machine
        self.experiment = experiment
        self._expectation: Expectation = (
            wider._expectation.narrowed(problem) if wider else Expectation.of(problem, seed)
        )
        self._stream = cupy.cuda.Stream(non_blocking=True)
        with self._stream:
            self._data: list[dict[str, Any]] = (
                _narrowed(problem, wider._data) if wider else _copies(problem, self._expectation.inputs)
            )
            self._guarded = {name: _guarded(operand) for name, operand in problem.outputs.items()}
            for name, operand in problem.outputs.items():
                self._data[0][name] = self._guarded[name][BAND:-BAND].reshape(operand.shape)
        self._ready: dict[str, Contestant] = {}
        self._failures: dict[str, str] = {}
        self._checks: dict[str, Check] = {}
        self._loose: dict[str, Loose] = {}

    def race(
        self,
        entries: Sequence[Candidate],
        peers: Mapping[str, Peer],
        clocks: Sequence[Clock] = (Clock.COLD, Clock.GRAPH),
        rounds: int = 30,
        paces: Sequence[Pace] = (Pace.SUSTAINED,),
        facts: Mapping[str, Value] | None = None,
        reads: bool = False,
        movers: Mapping[str, Mover] = NO_MOVERS,
    ) -> list[Record]:
        """Check, then time, kernels and peers: a record for each contestant, clock and pace, all of one run.

        A contestant whose check failed, or whose code does not compile, gets one record without a time. `facts` join
        every record's metrics. `reads` adds the fastest plain read of as many bytes as the weights and the KV cache
        have, or, where those are not most of the bytes, a plain copy that moves as many as the problem; `movers` are
        others that move what the problem does and compute nothing, so that nothing is checked. Raises InputError or
        ScheduleError for what a kernel refuses, EnvironmentFailure where a kernel breaks the device.
        """
        described = self._descriptions(entries, peers)
        predicted = {e.name: partial(e.kernel.predicted_us, self.problem, e.schedule, self.machine) for e in entries}
        with self._stream:
            self._make_ready(entries, peers)
            for name in described:
                if name in self._ready and name not in self._checks:
                    self._judge(name, is_peer=name in peers)
            right = [self._ready[name] for name in described if name in self._checks and self._checks[name].passed]
            moving = {
                name: [Contestant(name, tuple(mover(arrays) for arrays in self._data))]
                for name, mover in movers.items()
            } | (plain_movers(self.problem, len(self._data)) if reads else {})
            contestants = [*right, *(one for alike in moving.values() for one in alike)]
            timings = [measure(contestants, c, rounds, p) for p in paces for c in clocks] if right else []
        shared = shared_fields(self.problem, self.machine, self.experiment)
        found = [
            record
            for name, own in described.items()
            for record in self._records(name, {**shared, **own}, dict(facts or {}), timings, predicted.get(name))
        ]
        for timing, (movement, alike) in product(timings, moving.items()):
            best = min((timing[one.name] for one in alike), key=lambda one: one.us)
            fields = {**shared, "kernel": f"peer:{movement}"}
            found.append(
                timed_record(fields, {**(facts or {}), "launch_shape": best.name}, best, self.problem, self.machine)
            )
        return found

    def times(
        self, entries: Sequence[Candidate], clock: Clock, rounds: int, sample_us: float = GRAPH_SAMPLE_US
    ) -> dict[Candidate, float]:
        """Median microseconds of those that run, unchecked, interleaved: to see which are worth a race."""
        with self._stream:
            self._make_ready(entries, {})
            for name in [entry.name for entry in entries if entry.name in self._ready]:
                with self._out_of_the_race(name):
                    self._ready[name].calls[0]()
                    driver.synchronize(cupy.cuda.get_current_stream().ptr)
            able = {entry.name: entry for entry in entries if entry.name in self._ready}
            able_ones = [self._ready[name] for name in able]
            timings = measure(able_ones, clock, rounds, sample_us=sample_us) if able else {}
        return {able[name]: timing.us for name, timing in timings.items()}

    def check(self, entry: Candidate) -> Check:
        """Run one kernel on fresh inputs; raises EnvironmentFailure where it cannot be made ready."""
        with self._stream:
            self._make_ready([entry], {})
            if entry.name in self._failures:
                raise EnvironmentFailure(self._failures[entry.name])
            return self._check(self._ready[entry.name])

    def _make_ready(self, entries: Sequence[Candidate], peers: Mapping[str, Peer]) -> None:
        new = [entry for entry in entries if entry.name not in self._ready and entry.name not in self._failures]
        launches = [
            tuple(
                replace(launch, dependent=False) if entry.plain and number == 0 else launch
                for number, launch in enumerate(entry.kernel.launches(self.problem, entry.schedule, self.machine))
            )
            for entry in new
        ]
        compile_ahead([launch for steps in launches for launch in steps], self.machine)
        for entry, steps in zip(new, launches, strict=True):
            try:
                prepared = Prepared(steps, self.machine)
            except (EnvironmentFailure, KernelError) as failure:  # a schedule that spills is out of the race
                self._failures[entry.name] = str(failure)
                continue
            scratch = device_workspaces(steps)
            pointers = [pointers_of({**arrays, **scratch}, steps) for arrays in self._data]
            calls = tuple(partial(_bound_call, prepared, p, scratch) for p in pointers)
            self._ready[entry.name] = Contestant(entry.name, calls)
        for name, peer in peers.items():
            if name not in self._ready and name not in self._failures:
                self._make_peer_ready(name, peer)

    def _make_peer_ready(self, name: str, peer: Peer) -> None:
        try:
            made = [peer(self.problem, arrays) for arrays in self._data]
        except RuntimeError as failure:  # how PyTorch says that it has no kernel for this
            self._failures[name] = str(failure).strip().splitlines()[0]
            return
        if isinstance(made[0], Loose):
            self._loose[name] = made[0]
        calls = tuple(one.call if isinstance(one, Loose) else one for one in made)
        self._ready[name] = Contestant(name, calls)

    def _judge(self, name: str, is_peer: bool) -> None:
        with self._out_of_the_race(name, is_peer):
            self._checks[name] = self._check(self._ready[name])

    @contextmanager
    def _out_of_the_race(self, name: str, is_peer: bool = False) -> Iterator[None]:
        """A contestant that fails is out; raises EnvironmentFailure, naming it, where it takes the device with it."""
        try:
            yield
        except (EnvironmentFailure, RuntimeError) as failure:
            if isinstance(failure, RuntimeError) and not is_peer:  # how PyTorch says that it has no kernel for this
                raise
            try:
                driver.synchronize(cupy.cuda.get_current_stream().ptr)
            except EnvironmentFailure:
                raise EnvironmentFailure(f"{name} broke the device: {failure}") from failure
            del self._ready[name]
            self._failures[name] = str(failure).strip().splitlines()[0]

    def _check(self, contestant: Contestant) -> Check:
        """Run twice, the output poisoned between guard bands: the second time meets used workspaces."""
        if contestant.name in self._loose:
            return self._check_loosely(self._loose[contestant.name])
        for _ in range(2):
            for whole in self._guarded.values():
                whole.view(np.uint8)[...] = 0xFF
            contestant.calls[0]()
        driver.synchronize(cupy.cuda.get_current_stream().ptr)
        bands = [band for whole in self._guarded.values() for band in (whole[:BAND].get(), whole[-BAND:].get())]
        intact = all(bool((band.view(np.uint8) == 0xFF).all()) for band in bands)
        found = self._expectation.check(self.problem, self._data[0], intact)
        unwritten = sum(self._poisoned(name) for name in self.problem.outputs)
        return replace(found, error=float("inf"), mismatches=max(unwritten, found.mismatches)) if unwritten else found

    def _poisoned(self, name: str) -> int:
        """Elements of an output that were never written but should be: no right result has these bits of NaN."""
        bits = self._data[0][name][: self.problem.written(name)]
        bits = bits.view(f"uint{8 * bits.dtype.itemsize}")
        left = int(np.isnan(self._expectation.expected[name].value).sum())  # such as slots of a cache
        return max(0, int((bits == np.iinfo(bits.dtype).max).sum()) - left)

    def _check_loosely(self, peer: Loose) -> Check:
        peer.call()
        driver.synchronize(cupy.cuda.get_current_stream().ptr)
        main, operand = next(iter(self.problem.outputs.items()))
        expected = self._expectation.expected[main].value
        y = peer.result().reshape(operand.shape)[: self.problem.rows][self._expectation.rows]
        off = float(np.linalg.norm(y - expected) / np.linalg.norm(expected))
        return Check(off / peer.tolerance, int(not off <= peer.tolerance), None, True, len(y), off)

    def _descriptions(self, entries: Sequence[Candidate], peers: Mapping[str, Peer]) -> dict[str, dict[str, Any]]:
        described: dict[str, dict[str, Any]] = {}
        for entry in entries:
            steps = entry.kernel.launches(self.problem, entry.schedule, self.machine)
            theory = entry.kernel.module.theory(self.problem, entry.schedule, self.machine)
            described[entry.name] = {
                "kernel": entry.kernel.name,
                "schedule": schedule_fields(entry.schedule),
                "code": code_digest(entry.kernel.source),
                "overlapping": not entry.plain and overlap(steps),
                "theory": theory.as_dict(),
            }
        return described | {name: {"kernel": f"peer:{name}"} for name in peers}

    def _records(
        self,
        name: str,
        fields: dict[str, Any],
        facts: dict[str, Value],
        timings: Sequence[Mapping[str, Timing]],
        predicted: Callable[[str], float] | None,
    ) -> list[Record]:
        check = self._checks.get(name)
        if check is None:
            return [Record(**fields, metrics={**facts, "failure": self._failures[name]})]
        fields["check"] = Checked(check.passed, check.error if isfinite(check.error) else None)
        facts |= {"rows_checked": check.rows_checked, "copies": len(self._data)}
        facts["relative_error"] = check.relative_error if isfinite(check.relative_error) else None
        if not check.passed:
            return [Record(**fields, metrics={**facts, "failure": _complaint(check)})]
        found = [timed_record(fields, facts, timing[name], self.problem, self.machine) for timing in timings]
        return [structs.replace(r, predicted_us=predicted(str(r.clock))) for r in found] if predicted else found


def compile_ahead(launches: Sequence[Launch], machine: Machine) -> None:
    """Compile modules side by side into the cache; what does not compile says so when it is made ready."""

    def compile_one(launch: Launch) -> None:
        with suppress(EnvironmentFailure, KernelError):
            compile_launch(launch, machine)

    with ThreadPoolExecutor() as pool:
        list(pool.map(compile_one, launches))


def floor_us(problem: Problem, machine: Machine) -> float:
    """The larger of the two bills at data-sheet rates: a time below it is impossible."""
    bills = roofline(problem.flops, problem.bytes["total"], problem.unit, machine)
    return max(bills.compute_us, bills.memory_us)


def _bound_call(prepared: Prepared, pointers: Mapping[str, int], scratch: Mapping[str, Any]) -> None:  # noqa: ARG001
    """scratch is what some of the pointers point to: it must live as long as the call."""
    prepared.bind(pointers)()


def _copies(problem: Problem, inputs: Mapping[str, NDArray]) -> list[dict[str, Any]]:
    """The problem's arrays on the device, as often as a rotation needs them."""
    first = {name: cupy.asarray(array) for name, array in inputs.items()}
    count = rotation(problem.bytes["total"])
    copies = [first] + [{name: array.copy() for name, array in first.items()} for _ in range(count - 1)]
    return [
        {**copy, **{name: cupy.zeros(o.shape, o.storage) for name, o in problem.outputs.items()}} for copy in copies
    ]


def _narrowed(problem: Problem, copies: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The arrays of a wider problem as far as this one's rows reach."""
    operands = {**problem.inputs, **problem.outputs}
    return [{name: copy[name][: operand.shape[0]] for name, operand in operands.items()} for copy in copies]


def _guarded(operand: Operand) -> Any:
    """Room for an output between two guard bands, flat."""
    return cupy.zeros(prod(operand.shape) + 2 * BAND, operand.storage)


def shared_fields(problem: Problem | None, machine: Machine, experiment: str | None) -> dict[str, Any]:
    """What all records of one race on this card say alike."""
    gpu = card()
    return {
        **provenance(),
        "on": "gpu",
        "machine": machine.name,
        "card": gpu.name,
        "driver": gpu.driver,
        "experiment": experiment,
        "problem": problem.as_dict() if problem else None,
    }


def timed_record(
    fields: dict[str, Any], facts: dict[str, Value], timing: Timing, problem: Problem, machine: Machine
) -> Record:
    """A record of one contestant's timing, marked where its time lies below the problem's floor."""
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
        metrics={**facts, "pace": str(timing.pace), **impossible},
    )


def _complaint(check: Check) -> str:
    if not check.guards_intact:
        return "wrote outside its output"
    if check.first_mismatch is None:
        return f"{check.mismatches} elements of the output were never written"
    return f"{check.mismatches} of {check.rows_checked} rows' elements are wrong, the first at {check.first_mismatch}"
