"""Pushes between two pools of one card: right on ragged rows, replayed in a graph, seen by a receiver that waits."""

from itertools import islice
from typing import Any

import numpy as np
import pytest

from lab import catalog
from lab.execute import capture, plan
from lab.problems.transfer import Transfer
from lab.verify import verify
from sim.machine import Machine

PUSH = catalog.get("push_rows")
EPOCHS = 200


@pytest.mark.parametrize(
    "problem", [Transfer(1, 8), Transfer(3, 1000, pool=5), Transfer(70, 33_000, "fp16", pool=100)], ids=str
)
def test_a_push_is_right_on_ragged_rows(problem: Transfer, chip: Machine) -> None:
    from lab.gpu.launch import executor

    for seed, schedule in enumerate(islice(PUSH.module.candidates(problem, chip), 12)):
        found = verify(PUSH, problem, schedule, chip, executor(chip), seed)
        assert found.passed, (schedule, found.check)


def test_a_receiver_that_waits_for_each_epoch_finds_its_rows(chip: Machine, cupy: Any) -> None:
    from cuda.bindings import driver

    problem = Transfer(64, 4096, pool=100)
    rng, sender, receiver = np.random.default_rng(0), cupy.cuda.Stream(), cupy.cuda.Stream()
    arrays = {name: cupy.zeros(o.shape, o.storage) for name, o in (problem.inputs | problem.outputs).items()}
    sources = cupy.asarray(rng.integers(0, 2**15, (EPOCHS, *arrays["source"].shape)).astype(np.uint16))
    tables = cupy.asarray(np.stack([rng.permutation(100)[:64] for _ in range(2 * EPOCHS)]).astype(np.int32))
    found = cupy.zeros((EPOCHS, problem.m, problem.n), np.uint16)
    given = cupy.arange(1, EPOCHS + 1, dtype=np.int32)
    cupy.cuda.Device().synchronize()
    graph = capture(plan(problem, chip, kernel=PUSH).bind(arrays))
    taken = [cupy.cuda.Event() for _ in range(EPOCHS)]
    for i in range(EPOCHS):
        with sender:
            for name, value in (("source", sources[i]), ("from_rows", tables[2 * i]), ("epoch", given[i : i + 1])):
                arrays[name][...] = value
            if i:
                sender.wait_event(taken[i - 1])  # the rows are the receiver's until it has read them
            arrays["to_rows"][...] = tables[2 * i + 1]
            graph.replay(sender.ptr)
        with receiver:
            flag, least = arrays["flag"].data.ptr, driver.CUstreamWaitValue_flags.CU_STREAM_WAIT_VALUE_GEQ
            (status,) = driver.cuStreamWaitValue32(receiver.ptr, flag, i + 1, least)
            assert status == driver.CUresult.CUDA_SUCCESS
            found[i] = arrays["target"][tables[2 * i + 1]]
            taken[i].record(receiver)
    cupy.cuda.Device().synchronize()
    for i in range(EPOCHS):
        np.testing.assert_array_equal(cupy.asnumpy(found[i]), cupy.asnumpy(sources[i][tables[2 * i]]))
