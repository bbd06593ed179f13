"""The deepest ring: the most stages that fit, found without trying each."""

from dataclasses import dataclass
from typing import Any

import pytest

from lab.kernels.common.rings import deepest
from lab.problems import Linear
from sim.errors import ScheduleError
from sim.machine import H100


@dataclass(frozen=True)
class Ring:
    stages: int
    most: int

    def fits(self, problem: Any, machine: Any) -> None:  # noqa: ARG002
        if self.stages > self.most:
            raise ScheduleError("too deep")


@pytest.mark.parametrize(("most", "found"), [(0, []), (1, []), (2, [2]), (3, [3]), (7, [7]), (12, [12]), (99, [12])])
def test_the_most_stages_that_fit(most: int, found: list[int]) -> None:
    rings = deepest(lambda stages: Ring(stages, most), 12, Linear(1, 64, 64), H100)
    assert [ring.stages for ring in rings] == found
