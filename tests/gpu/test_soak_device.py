"""A loop on the GPU for long, with clients that leave: no page, file, thread or byte of either memory stays behind.

What a loop loses it loses by the step and by the request: a small model's steps are as many in half a minute as an 8B
model's in eight.
"""

import gc
import os
import threading
import tracemalloc
from typing import Any

import numpy as np

from lab.inference import chip as chips
from lab.inference.step_weights import random
from lab.problems import Model
from lab.serving.clock import WallClock
from lab.serving.engine import Engine
from lab.serving.on_chip import ChipExecutor, MarkStopwatch
from lab.serving.policy import Policy
from lab.serving.request import Request
from lab.serving.scheduler import Scheduler
from sim.machine import Machine

MODEL = Model(2, 256, q_heads=4, kv_heads=2, head_dim=64, ffn=512, vocab=512)
POLICY = Policy(max_rows=16, max_tokens=256, pages=30, host_pages=30, max_length=512, preemption="swap")
STEPS = 60_000  # 480 s at 8 ms a step, as conversations give an 8B model at 16 requests a second
WAITING = 4  # requests, beyond which none arrives: the loop is full and no queue grows
LEFT = 0.2  # of the clients, before their answer is whole
GROWTH = 256 * 1024  # bytes: what numbers that are longer by a digit, and pools of the interpreter, may take


def kept(cupy: Any) -> tuple[int, int, int]:
    """Open files, threads, and bytes that are in use on the GPU."""
    return len(os.listdir("/proc/self/fd")), threading.active_count(), cupy.get_default_memory_pool().used_bytes()


def test_eight_minutes_worth_of_steps_leave_nothing_behind(chip: Machine, cupy: Any) -> None:
    gpu, clock, rng = chips.gpu(chip), WallClock(), np.random.default_rng(0)
    scheduler, steps, ids = Scheduler(POLICY), [0], 0
    executor = ChipExecutor(random(MODEL, 512, gpu), scheduler, gpu, MarkStopwatch(gpu, clock))
    executor.prepare(POLICY.buckets.all())

    def count(*_: Any) -> None:
        steps[0] += 1

    engine, before = Engine(scheduler, executor, clock, count), None
    while steps[0] < STEPS:
        while len(scheduler.waiting) < WAITING:
            prompt = (int(rng.integers(4)),) * 130 + tuple(
                int(x) for x in rng.integers(0, 3, int(rng.integers(1, 200)))
            )
            engine.add(Request(ids, prompt, int(rng.integers(1, 150))))
            ids += 1
        if rng.random() < LEFT / 10:  # a request ends every ten steps or so
            engine.abort(int(rng.choice(list(scheduler.sequences))))
        assert engine.step()
        if before is None and steps[0] > STEPS / 2:
            gc.collect()
            before = kept(cupy)
            tracemalloc.start()  # what the first half has left is not what the second adds
    for id in list(scheduler.sequences):
        engine.abort(id)
    while engine.step():
        pass
    gc.collect()
    grown = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert scheduler.preemptions
    assert scheduler.hits
    assert not executor.late
    assert not scheduler.busy
    assert scheduler.table_pages == scheduler.table_tokens == 0
    assert scheduler.pool.available == POLICY.pages - 1
    assert scheduler.host
    assert scheduler.host.available == POLICY.host_pages - 1
    assert kept(cupy) == before
    assert grown < GROWTH
