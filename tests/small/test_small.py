"""Over 20 interleavings no right kernel is said to be wrong, and no wrong one escapes under its hazard's name."""

import re
from typing import Any

import pytest

import lab
from lab.emulation import Check
from sim.folders import ROOT
from tests.small import Small, barriers, calls, copies, grids, lanes
from tests.strategies import require_header

ALL = [k for module in (barriers, lanes, grids, copies, calls) for k in module.KERNELS]
SEEDS = 20
QUICK = 6  # one in so many in `make test`


def sampled(cases: list[Any]) -> list[Any]:
    return [pytest.param(*c, id=i, marks=() if n % QUICK == 0 else pytest.mark.deep) for n, (i, c) in enumerate(cases)]


RIGHT = sampled([(kernel.name, (kernel,)) for kernel in ALL])
WRONG = sampled([(f"{k.name}-{i}", (k, i)) for k in ALL for i in range(len(k.wrong))])


def emulated(kernel: Small, edit: int | None) -> Check:
    for header in re.findall(r"#include <(.*?)>", kernel.before):
        require_header(header)
    return lab.emulate(kernel.source(edit), "k", kernel.launch, [ROOT], seeds=SEEDS, deadline_s=120)


@pytest.mark.parametrize("kernel", RIGHT)
def test_a_right_kernel_is_clean(kernel: Small) -> None:
    check = emulated(kernel, None)
    assert not check.truncated
    assert {found.kind for found in check.hazards} <= set(kernel.kinds), [f.hazard.message for f in check.hazards]


@pytest.mark.parametrize(("kernel", "edit"), WRONG)
def test_a_wrong_kernel_is_caught_under_its_name(kernel: Small, edit: int) -> None:
    met = {found.kind: found.hazard.message for found in emulated(kernel, edit).hazards}
    assert kernel.wrong[edit][2] in met, met


def test_there_are_enough() -> None:
    assert len(RIGHT) >= 60
    assert len(WRONG) >= 140
