"""Hypothesis strategies for problems and schedules, for any kernel of the catalog."""

from contextlib import suppress
from dataclasses import fields, replace
from itertools import product
from typing import Any

from hypothesis import assume
from hypothesis import strategies as st

from lab.kernel import OPTIONS, Kernel
from lab.problems import Linear
from sim.errors import InputError, ScheduleError
from sim.machine import H100

# Off-tile on purpose: primes, one off powers of two, one, and tile multiples.
EXTENTS = st.one_of(
    st.integers(1, 40),
    st.sampled_from([63, 64, 65, 127, 128, 129, 191, 255, 256, 257, 300, 384]),
)
DEPTHS = st.one_of(st.integers(1, 80), st.sampled_from([128, 192, 255, 256, 264, 320, 513, 1000, 1024]))


def variants(kernel: Kernel) -> list[Linear]:
    """A tiny problem for every combination of formats and options that a kernel takes, the usual ones first."""
    found = []
    solves = kernel.solves
    for weights in solves.weights:
        usual = Linear(1, 2, 1, weights, activations=weights if solves.alike else "")
        values = [(getattr(usual, name), *solves.options.get(name, ())) for name in OPTIONS]
        for chosen in product(*values):
            with suppress(InputError):  # not every combination means something
                found.append(fitted(kernel, replace(usual, **dict(zip(OPTIONS, chosen, strict=True)))))
    return found


def plain_variants(kernel: Kernel) -> list[Linear]:
    """Those variants that differ in at most one option from what their weights imply."""

    def unusual(form: Linear) -> int:
        usual = Linear(form.m, form.n, form.k, form.weights, form.activations)
        return sum(getattr(form, name) != getattr(usual, name) for name in OPTIONS)

    return [form for form in variants(kernel) if unusual(form) <= 1]


def fitted(kernel: Kernel, problem: Linear) -> Linear:
    """The problem with its extents rounded up to what a kernel takes."""
    rounded = {name: -(-getattr(problem, name) // by) * by for name, by in kernel.solves.multiples(problem).items()}
    return replace(problem, **rounded)


@st.composite
def linear_problems(draw: st.DrawFn, kernel: Kernel) -> Linear:
    """A ragged problem that the kernel takes."""
    form = draw(st.sampled_from(variants(kernel)))
    n = draw(EXTENTS)
    return fitted(kernel, replace(form, m=draw(EXTENTS), n=n + (form.swiglu and n % 2), k=draw(DEPTHS)))


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
