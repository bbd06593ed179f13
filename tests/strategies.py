"""What tests of every kernel share: the kernels, how much of them a run takes, strategies for problems and schedules.

A kernel's tests may take 12 s of a core in `make test`, its compilation included; breadth is for `make deep`, which
runs the same tests and more of each. So a test of every kernel is written in one of these ways:

    @each_kernel
    @examples(20)  # drawn examples; twenty times as many in `make deep`
    @given(data=st.data())
    def test_what_holds_for_any_problem(kernel: Kernel, data: st.DataObject) -> None: ...

    @each_kernel
    def test_of_some_schedules(kernel: Kernel, every: bool) -> None:  # a fixture: False, in `make deep` also True
        for schedule in some(kernel.module.candidates(problem, H100), every): ...  # the best guess and two drawn ones

    @each_kernel
    def test_in_the_emulator(kernel: Kernel, seeds: int) -> None: ...  # a fixture: 3, in `make deep` also 50

A parameter that is for `make deep` alone is marked so: `pytest.param(value, marks=pytest.mark.deep)`.
"""

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import fields, replace
from itertools import product
from random import Random
from typing import Any

import pytest
from hypothesis import assume, settings
from hypothesis import strategies as st

from lab import catalog
from lab.emulation.source import cuda_headers
from lab.kernel import Kernel
from lab.problems import Attention, Problem
from lab.verify import Check, compare
from sim.errors import InputError, ScheduleError
from sim.machine import H100

# Off-tile on purpose: primes, one off powers of two, one, and tile multiples.
EXTENTS = st.one_of(
    st.integers(1, 40),
    st.sampled_from([63, 64, 65, 127, 128, 129, 191, 255, 256, 257, 300, 384]),
)
DEPTHS = st.one_of(st.integers(1, 80), st.sampled_from([128, 192, 255, 256, 264, 320, 513, 1000, 1024]))

each_kernel = pytest.mark.parametrize("kernel", [pytest.param(kernel, id=kernel.name) for kernel in catalog.kernels()])


def examples(few: int) -> settings:
    """So many drawn examples of a test; more where the profile of settings is that of `make deep`."""
    return settings(max_examples=few * settings.default.max_examples // 100)


def some(values: Iterable[Any], every: bool, drawn: int = 2) -> list[Any]:
    """The first value and so many drawn ones, the same in each run; or every value."""
    first, *others = values
    return [first, *(others if every else Random(0).sample(others, min(drawn, len(others))))]


def require_header(name: str) -> None:
    """Skip the test where CUDA's header of that name is not installed."""
    if not any((folder / name).exists() for folder in cuda_headers()):
        pytest.skip(f"needs {name}: the extra cuda-headers")


def variants(kernel: Kernel) -> list[Any]:
    """A tiny problem for every combination of formats and options that a kernel takes, the usual ones first."""
    found = []
    solves = kernel.solves
    for form in solves.formats:
        tiny = solves.problem.tiny(form, solves.alike)
        values = solves.values(tiny)
        for chosen in product(*values.values()):
            with suppress(InputError):  # not every combination means something
                found.append(fitted(kernel, replace(tiny, **dict(zip(values, chosen, strict=True)))))
    return found


def plain_variants(kernel: Kernel) -> list[Any]:
    """Those variants that differ in at most one option from what their format and activations imply, or it requires."""

    def unusual(form: Any) -> int:
        usual = replace(form.usual(), activations=form.activations)
        taken = {name: (getattr(usual, name),) for name in form.OPTIONS} | dict(kernel.solves.required)
        return sum(getattr(form, name) != values[0] for name, values in taken.items())

    return [form for form in variants(kernel) if unusual(form) <= 1]


def fitted(kernel: Kernel, problem: Any) -> Any:
    """The problem with its extents rounded up to what a kernel takes."""
    rounded = {name: -(-getattr(problem, name) // by) * by for name, by in kernel.solves.multiples(problem).items()}
    return replace(problem, **rounded)


@st.composite
def problems(draw: st.DrawFn, kernel: Kernel) -> Any:
    """A ragged problem that the kernel takes."""
    form = draw(st.sampled_from(variants(kernel)))
    if isinstance(form, Attention):
        return draw(_attentions(kernel, form))
    extents = {name: draw(DEPTHS if name == "k" else EXTENTS) for name in form.EXTENTS}
    try:
        return fitted(kernel, replace(form, **extents))
    except InputError:  # an extent that must be even
        return fitted(kernel, replace(form, **{name: 2 * extent for name, extent in extents.items()}))


@st.composite
def _attentions(draw: st.DrawFn, kernel: Kernel, form: Attention) -> Attention:
    """Ragged batches: lengths from 0, groups of any size, fewer keys than queries among them, arrays of any size."""
    batch, kv_heads = draw(st.integers(1, 3)), 1 if form.latent else draw(st.sampled_from([1, 2]))
    q_len = draw(st.integers(1, min(kernel.solves.at_most.get("q_len", 150), 150)))
    kv_len = draw(st.one_of(st.integers(1, 40), st.sampled_from([63, 64, 65, 127, 128, 129, 300])))
    group = draw(st.sampled_from([1, 3, 4, 8]))
    q_lens, kv_lens = (
        tuple(draw(st.integers(0, most)) for _ in range(batch)) if draw(st.booleans()) else ()
        for most in (q_len, kv_len)
    )
    columns = -(-kv_len // form.page) if form.page else 0
    least = 2 if form.page else max(1, sum(kv_lens))
    room = {
        "q_rows": (max(1, sum(q_lens)), batch * q_len + 3),
        "pool": (least, 4 + batch * (columns or kv_len)),
        "row_pages": (columns, columns + 3) if form.page else (0, 0),
    }
    return replace(
        form,
        **{name: draw(st.one_of(st.just(0), st.integers(*ends))) for name, ends in room.items()},
        scale=draw(st.sampled_from([0.0, 0.05])),
        batch=batch,
        kv_heads=kv_heads,
        q_heads=kv_heads * group,
        q_len=q_len,
        kv_len=kv_len,
        q_lens=q_lens,
        kv_lens=kv_lens,
        window=draw(st.integers(1, 200)) if form.window else 0,
        order=draw(st.sampled_from(["shuffled", "sequential"])),
    )


LARGE = {"m": 65_535, "n": 2**17, "k": 2**15, "batch": 512, "q_len": 2**17, "kv_len": 2**20}  # as models ask for


@st.composite
def large_problems(draw: st.DrawFn, kernel: Kernel) -> Any:
    """A problem of any size that models ask for, small extents as likely as large ones."""
    form = draw(st.sampled_from(variants(kernel)))
    if isinstance(form, Attention):
        kv_heads = 1 if form.latent else draw(st.integers(1, 16))
        form = replace(form, kv_heads=kv_heads, q_heads=kv_heads * draw(st.integers(1, 8)))
    extents = {}
    for name in form.EXTENTS:
        if name in LARGE:
            most = min(LARGE[name], kernel.solves.at_most.get(name, LARGE[name]))
            extents[name] = draw(st.integers(1, min(most, 2 ** draw(st.integers(0, most.bit_length())))))
    if getattr(form, "swiglu", False):
        extents["n"] *= 2
    return fitted(kernel, replace(form, **extents))


SMALL = {"m": 200, "n": 136, "k": 264, "batch": 2, "q_heads": 4, "kv_heads": 1, "q_len": 3, "kv_len": 100}


def small(kernel: Kernel) -> Any:
    """One problem of the usual kind that the kernel takes."""
    form = variants(kernel)[0]
    return fitted(kernel, replace(form, **{name: SMALL[name] for name in form.EXTENTS}))


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
