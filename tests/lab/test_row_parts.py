"""When the small kernels of a step let the launch behind begin: results and counts are the same."""

from dataclasses import replace

import pytest

from lab import catalog
from lab.check_ptx import check_ptx
from lab.problems import Problem
from lab.problems.embedding import Embedding
from lab.problems.rmsnorm import RMSNorm
from lab.problems.rope_append import RopeAppend
from lab.problems.swiglu import SwiGLU
from sim.errors import ScheduleError
from tests.emulator.cases import CHIP

PROBLEMS = (Embedding(2, 264, vocab=5), RMSNorm(2, 264), RopeAppend(2, 2, 1, 64), SwiGLU(2, 264))


@pytest.mark.parametrize("late", [0, 1])
@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.kind)
def test_the_ptx_is_right_late_and_at_once(problem: Problem, late: int) -> None:
    kernel = catalog.get(problem.kind)
    schedule = replace(kernel.best_guess(problem, CHIP), late=late)
    found = check_ptx(kernel, problem, schedule, CHIP, seeds=2)
    assert found.hazards == ()
    assert all(v.check.passed and v.disagreements == {} for v in found.verifications)
    with pytest.raises(ScheduleError, match="late"):
        replace(schedule, late=3)
