"""What the worker process runs on the GPU for attention inside a step: layer after layer, each behind its append."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from experiments.running.jobs import Job
from experiments.running.on_device import in_time
from lab.execute.plan import plan
from lab.kernel import schedule_fields
from lab.problems import Attention
from lab.problems.rope_append import RopeAppend
from lab.record import Record
from sim.errors import EnvironmentFailure
from sim.machine import Machine


def layers(argument: Any) -> Iterator[Record]:
    """Times of a layer's append and attention in a graph of `layers` of them, launches overlapping.

    Each job's paged problem, then the same with uniform sequences, whose division asks for no lengths, in one run.
    Raises EnvironmentFailure where they, or the problem behind a launch that has ended, differ in a bit.
    """
    import cupy

    from lab.gpu import device, driver
    from lab.gpu.bench import shared_fields, timed_record
    from lab.gpu.timing import Clock, Contestant, measure

    for job in in_time(argument, Job):
        if isinstance(job, Record):
            yield job
            continue
        kernel, problem = job.parts()
        machine, count = device.machine(), int(job.facts["layers"] or 1)
        problems = {one: plan(one, machine, None, kernel) for one in (problem, replace(problem, uniform=True))}
        with cupy.cuda.Stream(non_blocking=True) as stream:
            arrays = _arrays(problem, count)
            calls = {one: _calls(one, kernel, arrays, machine) for one in (*problems, replace(problem, settled=False))}
            results = []
            for call in calls.values():
                arrays["y"].view(np.uint8)[...] = 0xFF
                call()
                driver.synchronize(stream.ptr)
                results.append(arrays["y"].get())
            if not all(np.array_equal(results[0], other) for other in results[1:]):
                raise EnvironmentFailure(f"{kernel.name}: settled or uniform sequences give another result")
            timings = measure(
                [Contestant(str(one.uniform), (calls[one],)) for one in problems], Clock.CHAIN, job.rounds
            )
        for one, planned in problems.items():
            timing = timings[str(one.uniform)]
            timing = replace(timing, samples_us=tuple(us / count for us in timing.samples_us))
            fields = {
                **shared_fields(one, machine, job.experiment),
                "kernel": kernel.name,
                "schedule": schedule_fields(planned.schedule),
                "overlapping": True,
            }
            yield timed_record(fields, dict(job.facts), timing, one, machine)


def _arrays(problem: Attention, count: int) -> dict[str, Any]:
    """What both problems of a layer read and write, with a cache for each of so many layers."""
    import cupy

    drawn = problem.draw(np.random.default_rng(0))
    first = cupy.asarray(drawn["cache"])
    append = _append(problem)
    made = append.draw(np.random.default_rng(1))
    made |= _appended(problem, drawn["block_table"])
    small = {name: cupy.asarray(array) for name, array in {**drawn, **made}.items() if name != "cache"}
    y = problem.outputs["y"]
    return {
        **small,
        "y": cupy.zeros(y.shape, y.storage),
        "caches": [first, *(first.copy() for _ in range(count - 1))],
    }


def _append(problem: Attention) -> RopeAppend:
    p = problem
    return RopeAppend(
        p.tokens, p.q_heads, p.kv_heads, p.head_dim, p.kv, page=p.page, context=p.kv_len, pool=p.pool_pages
    )


def _appended(problem: Attention, table: NDArray[np.int32]) -> dict[str, NDArray[np.int32]]:
    """Positions of the tokens that have queries, which are each sequence's last, and where their keys go."""
    sequences, page = problem.sequences, problem.page
    positions = np.concatenate([np.arange(s.kv_len - s.q_len, s.kv_len, dtype=np.int32) for s in sequences])
    of = np.repeat(np.arange(problem.batch), [s.q_len for s in sequences])
    return {"positions": positions, "slots": table[of, positions // page] * page + positions % page}


def _calls(problem: Attention, kernel: Any, arrays: dict[str, Any], machine: Machine) -> Callable[[], None]:
    """Every layer's append, then its attention."""
    appending, attending = plan(_append(problem), machine), plan(problem, machine, None, kernel)
    bound = []
    for cache in arrays["caches"]:
        own = {**arrays, "cache": cache}
        bound += [appending.bind(own), attending.bind(own)]
    return partial(_run, bound)


def _run(bound: list[Any]) -> None:
    for one in bound:
        one.run()
