"""Hypothesis strategies for problems and schedules, for any kernel of the catalog."""

from contextlib import suppress
from dataclasses import fields, replace
from itertools import product
from typing import Any

from hypothesis import assume
from hypothesis import strategies as st

from lab.kernel import Kernel
from lab.problems import Problem
from lab.verify import Check, compare
from sim.errors import InputError, ScheduleError
from sim.machine import H100

# Off-tile on purpose: primes, one off powers of two, one, and tile multiples.
EXTENTS = st.one_of(
    st.integers(1, 40),
    st.sampled_from([63, 64, 65, 127, 128, 129, 191, 255, 256, 257, 300, 384]),
)
DEPTHS = st.one_of(st.integers(1, 80), st.sampled_from([128, 192, 255, 256, 264, 320, 513, 1000, 1024]))


def variants(kernel: Kernel) -> list[Any]:
    """A tiny problem for every combination of formats and options that a kernel takes, the usual ones first."""
    found = []
    solves = kernel.solves
    for form in solves.formats:
        tiny = solves.problem.tiny(form, solves.alike)
        values = [(getattr(tiny, name), *solves.options.get(name, ())) for name in tiny.OPTIONS]
        for chosen in product(*values):
            with suppress(InputError):  # not every combination means something
                found.append(fitted(kernel, replace(tiny, **dict(zip(tiny.OPTIONS, chosen, strict=True)))))
    return found


def plain_variants(kernel: Kernel) -> list[Any]:
    """Those variants that differ in at most one option from what their format and activations imply."""

    def unusual(form: Any) -> int:
        usual = replace(form.usual(), activations=form.activations)
        return sum(getattr(form, name) != getattr(usual, name) for name in form.OPTIONS)

    return [form for form in variants(kernel) if unusual(form) <= 1]


def fitted(kernel: Kernel, problem: Any) -> Any:
    """The problem with its extents rounded up to what a kernel takes."""
    rounded = {name: -(-getattr(problem, name) // by) * by for name, by in kernel.solves.multiples(problem).items()}
    return replace(problem, **rounded)


@st.composite
def problems(draw: st.DrawFn, kernel: Kernel) -> Any:
    """A ragged problem that the kernel takes."""
    form = draw(st.sampled_from(variants(kernel)))
    extents = {name: draw(DEPTHS if name == "k" else EXTENTS) for name in form.EXTENTS}
    try:
        return fitted(kernel, replace(form, **extents))
    except InputError:  # an extent that must be even
        return fitted(kernel, replace(form, **{name: 2 * extent for name, extent in extents.items()}))


def compare_y(problem: Problem, inputs: dict[str, Any], y: Any) -> Check:
    """The one output of a problem beside its reference for these inputs."""
    return compare(problem, problem.reference(inputs), {"y": y})


@st.composite
def schedules(draw: st.DrawFn, kernel: Kernel, problem: Problem) -> Any:
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
