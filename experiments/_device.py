"""What the worker process runs on the GPU: plain data in, plain data out. Only functions here load a GPU library."""

from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from lab import catalog
from lab.kernel import Kernel, parse_schedule
from lab.problems import QUESTIONS, Linear
from lab.record import Record, provenance


class Job(msgspec.Struct, frozen=True):
    """A kernel on a problem. `schedules` are words as --schedule takes them; `sweep` adds every candidate.

    `peers` asks for the libraries that experiments/peers.py knows, in the same run; `clocks` are "cold" and "graph".
    """

    kernel: str
    problem: dict[str, Any]
    schedules: tuple[str, ...]
    sweep: bool = False
    peers: bool = True
    clocks: tuple[str, ...] = ("cold", "graph")
    rounds: int = 30
    experiment: str | None = None
    seed: int | None = None

    def parts(self) -> tuple[Kernel, Any]:
        """(kernel, problem)."""
        fields = dict(self.problem)
        return catalog.get(self.kernel), QUESTIONS[fields.pop("kind")](**fields)


def bench(argument: Any) -> Iterator[Record]:
    """Check and time the kernel and the peers of each job in turn; one record a contestant and clock."""
    for job in msgspec.convert(argument, list[Job]):
        yield from _bench(job)


def _bench(job: Job) -> Iterator[Record]:
    from lab.gpu import bench as gpu_bench
    from lab.gpu import device
    from lab.gpu.timing import Clock

    kernel, problem = job.parts()
    machine = device.machine()
    schedules = [parse_schedule(kernel, words, problem, machine) for words in job.schedules]
    if job.sweep:
        schedules += [s for s in kernel.module.candidates(problem, machine) if s not in schedules]
    yield from gpu_bench.bench(
        kernel,
        problem,
        schedules,
        machine,
        peers=_peers(problem) if job.peers else {},
        clocks=tuple(Clock(clock) for clock in job.clocks),
        rounds=job.rounds,
        experiment=job.experiment,
        seed=job.seed,
    )


def check(argument: Any) -> dict[str, Any]:
    """Run a job's first schedule once and compare with the reference; the fields of a Check."""
    from lab.gpu import device
    from lab.gpu.bench import Expectation, check_kernel

    job = msgspec.convert(argument, Job)
    kernel, problem = job.parts()
    machine = device.machine()
    schedule = parse_schedule(kernel, job.schedules[0], problem, machine)
    found = check_kernel(
        problem, kernel.launches(problem, schedule, machine), machine, Expectation.of(problem, job.seed)
    )
    return {
        "passed": found.passed,
        "error": found.error,
        "mismatches": found.mismatches,
        "first_mismatch": found.first_mismatch,
        "guards_intact": found.guards_intact,
        "rows_checked": found.rows_checked,
    }


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
        for found in [*gpu.read_ceilings(clock), *([gpu.copy_ceiling()] if clock is Clock.COLD else [])]:
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

    from lab import ops

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
        "lab.linear, CuPy": host_us(lambda: ops.linear(a, b, out=y)),
        "lab.linear, torch": host_us(lambda: ops.linear(x, w, out=out)),
        "torch linear": host_us(lambda: torch.nn.functional.linear(x, w)),
    }


def _peers(problem: Any) -> dict[str, Any]:
    """What our kernels are measured against; none, saying so, where PyTorch is not installed."""
    try:
        from experiments import peers
    except ImportError as error:
        print(f"lab: no peers are timed beside it: {error}", flush=True)
        return {}
    return peers.linear_peers(problem) if isinstance(problem, Linear) else {}
