"""The one-shot sum with both ranks on one card: right on ragged rows, and replayed in a graph, epoch after epoch."""

from itertools import islice
from typing import Any

import numpy as np
import pytest

from lab import catalog
from lab.execute import capture, plan
from lab.problems.all_reduce import AllReduce
from lab.verify import verify
from sim.machine import Machine

SUM = catalog.get("all_reduce_one_shot")


@pytest.mark.parametrize(
    "problem", [AllReduce(1, 8), AllReduce(3, 1000), AllReduce(1, 4096, "fp16"), AllReduce(64, 4096)], ids=str
)
def test_a_sum_is_right_on_ragged_rows(problem: AllReduce, chip: Machine) -> None:
    from lab.gpu.launch import executor

    for seed, schedule in enumerate(islice(SUM.module.candidates(problem, chip), 4)):
        found = verify(SUM, problem, schedule, chip, executor(chip), seed)
        assert found.passed, (schedule, found.check)


def test_a_graph_of_several_sums_replays_with_other_numbers(chip: Machine, cupy: Any) -> None:
    problem, rng = AllReduce(4, 4096), np.random.default_rng(0)
    x, y = (cupy.zeros((2, 4, 4096), np.uint16) for _ in range(2))
    bound = plan(problem, chip, kernel=SUM).bind({"x": x, "y": y})
    graph = capture(*[bound] * 5)
    for seed in range(100):
        arrays = problem.draw(rng)
        x.set(arrays["x"])
        graph.replay()
        expected = problem.reference(arrays)["y"]
        found = (cupy.asnumpy(y).astype(np.uint32) << 16).view(np.float32)
        assert (np.abs(found - expected.value) <= expected.error).all(), seed
