"""A loop at its knee for long, with clients that leave: nothing is left behind, and memory does not grow."""

import gc
import tracemalloc
from collections import deque

import numpy as np
import pytest

from lab.serving.clock import VirtualClock
from lab.serving.engine import Engine
from lab.serving.executor import PredictedExecutor, scripted
from lab.serving.policy import Policy
from lab.serving.request import Request
from lab.serving.scheduler import Scheduler
from lab.serving.step import StepPlan

POLICY = Policy(
    max_rows=16, max_tokens=256, pages=120, host_pages=60, page_tokens=16, max_length=512, preemption="swap"
)
LEFT = 0.2  # of the clients, before their answer is whole
GROWTH = 256 * 1024  # bytes: what numbers that are longer by a digit, and pools of the interpreter, may take


class Pace:
    """About an 8B model's: 30 ms a step, more for tokens of prompts."""

    def plan_us(self, plan: StepPlan, idle_us: float) -> float:  # noqa: ARG002
        return 30e3 + 20.0 * plan.tokens


def soak(virtual_s: float, seed: int) -> None:
    """Serve so long at as many requests a second as just can be served."""
    rng, steps = np.random.default_rng(seed), 0
    scheduler = Scheduler(POLICY)
    seen: deque[int] = deque(maxlen=1)
    engine = Engine(
        scheduler, PredictedExecutor(Pace(), scripted(1000)), VirtualClock(), lambda f, _: seen.append(f.rows)
    )
    ids, arrival = 0, 0.0
    leaving: dict[int, float] = {}
    while engine.clock.now_us < virtual_s * 1e6:
        now = engine.clock.now_us
        while arrival <= now:
            prompt = (int(rng.integers(4)),) * 40 + tuple(int(x) for x in rng.integers(0, 3, int(rng.integers(1, 260))))
            engine.add(Request(ids, prompt, int(rng.integers(1, 150)), arrival_us=arrival))
            if rng.random() < LEFT:
                leaving[ids] = arrival + float(rng.exponential(2e6))
            ids += 1
            arrival += float(rng.exponential(1e6 / 5.5))
        for id in [id for id, at in leaving.items() if at <= now]:
            del leaving[id]
            engine.abort(id)
        if not engine.step():
            engine.clock.wait_until(arrival)
        steps += 1
        if len(scheduler.waiting) > 200:  # beyond the knee: let the queue be served
            arrival = engine.clock.now_us + 20e6
        if not tracemalloc.is_tracing() and engine.clock.now_us > virtual_s * 5e5:
            tracemalloc.start()  # what the first half has left is not what the second adds
    for id in list(scheduler.sequences):
        engine.abort(id)
    while engine.step():
        pass
    gc.collect()
    grown = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert steps > virtual_s * 5
    assert scheduler.preemptions
    assert scheduler.hits
    assert not scheduler.busy
    assert not scheduler.running
    assert not scheduler.waiting
    assert scheduler.table_pages == scheduler.table_tokens == 0
    assert scheduler.pool.available == POLICY.pages - 1
    assert scheduler.host.available == POLICY.host_pages - 1
    assert grown < GROWTH


def test_two_minutes_leave_nothing_behind() -> None:
    soak(120.0, seed=0)


@pytest.mark.deep
@pytest.mark.parametrize("part", range(12))
def test_two_hours_leave_nothing_behind(part: int) -> None:
    """Together a day, in parts that cores share."""
    soak(2 * 3600.0, seed=1 + part)
