"""Hypothesis strategies for problems and schedules, for any kernel of the catalog."""

from dataclasses import fields, replace
from typing import Any

from hypothesis import assume
from hypothesis import strategies as st

from lab.kernel import Kernel
from lab.problems import Linear
from sim.errors import ScheduleError
from sim.machine import H100

# Off-tile on purpose: primes, one off powers of two, one, and tile multiples.
EXTENTS = st.one_of(
    st.integers(1, 40),
    st.sampled_from([63, 64, 65, 127, 128, 129, 191, 255, 256, 257, 300, 384]),
)
DEPTHS = st.one_of(st.integers(1, 80), st.sampled_from([128, 192, 255, 256, 264, 320, 513, 1000, 1024]))


@st.composite
def linear_problems(draw: st.DrawFn, kernel: Kernel) -> Linear:
    """A ragged problem that the kernel takes."""
    multiple = kernel.solves.multiple_of

    def extent(name: str, values: st.SearchStrategy[int]) -> int:
        divisor = multiple.get(name, 1)
        return -(-draw(values) // divisor) * divisor

    return Linear(
        m=extent("m", EXTENTS),
        n=extent("n", EXTENTS),
        k=extent("k", DEPTHS),
        weights=draw(st.sampled_from(kernel.solves.weights)),
    )


@st.composite
def schedules(draw: st.DrawFn, kernel: Kernel, problem: Linear) -> Any:
    """A legal schedule: a candidate, with up to two fields exchanged for values of other candidates or near ones."""
    candidates = list(kernel.module.candidates(problem, H100))
    schedule = draw(st.sampled_from(candidates))
    for _ in range(draw(st.integers(0, 2))):
        name = draw(st.sampled_from([f.name for f in fields(schedule)]))
        seen = {getattr(c, name) for c in candidates}
        near = {v for s in seen if isinstance(s, int) for v in (s - 1, s + 1, s * 2, s // 2) if v > 0}
        value = draw(st.sampled_from(sorted(seen | near)))
        try:
            changed = replace(schedule, **{name: value})
            changed.fits(problem, H100)
        except ScheduleError:
            continue
        schedule = changed
    assume(schedule is not None)
    return schedule
