"""Small problems that are hard on a kernel, found by its contract alone: for the emulator, where every step costs.

A ring wraps three times, a persistent CTA takes two tiles or more, there are two clusters or more, splits exceed one,
and every dimension is ragged, as far as the kernel's schedule has such things.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from functools import cache
from typing import Any

import numpy as np

from lab.kernel import Kernel
from lab.problems import Attention, Linear, Problem
from lab.ptx_executor import Emulator
from sim.errors import ScheduleError
from sim.formats import format_named
from sim.machine import H100, Machine
from tests.strategies import fitted, plain_variants

CHIP = replace(H100, sms=4, gpcs=(4,))  # few SMs, so that a persistent CTA has more than one tile
LAPS = 3  # of a ring
DEPTH = 384  # of a step along k where no tile says so
FEW, MANY = 3, 1027  # rows, for which kernels propose schedules: the few ask for splits, the many for clusters


def results(kernel: Kernel, problem: Linear, schedule: Any, seeds: int) -> set[bytes]:
    """The different outputs of a kernel on the same inputs, over so many interleavings of its warps."""
    launches = kernel.launches(problem, schedule, CHIP)
    inputs = problem.draw(np.random.default_rng(0))
    found = set()
    for seed in range(seeds):
        y = np.zeros((problem.m, problem.n), np.uint16)
        Emulator(CHIP, seed=seed)(launches, {**inputs, "y": y})
        found.add(y.tobytes())
    return found


@dataclass(frozen=True)
class Case:
    """A kernel with a problem and a schedule."""

    kernel: Kernel
    problem: Problem
    schedule: Any
    machine: Machine = CHIP

    def __str__(self) -> str:
        sizes = ",".join(f"{f.name}={getattr(self.schedule, f.name)}" for f in fields(self.schedule))
        p, usual = self.problem, self.problem.usual()
        forms = [str(v) for v in p.as_dict().values() if isinstance(v, str) and v != p.kind]
        forms += [
            f"{name}={v}" for name in p.OPTIONS if (v := getattr(p, name)) != getattr(usual, name) and v not in forms
        ]
        return f"{self.kernel.name}-{'-'.join(forms)}-{sizes}"


def cases(kernel: Kernel) -> list[Case]:
    """The smallest schedule of a kernel, the smallest with clusters and with splits; then its problem's variants."""
    first, *others = _forms(kernel)
    found = [Case(kernel, _problem(kernel, first, s), s) for s in _telling(kernel, first)]
    for form in others:
        schedule = _telling(kernel, form)[-1]
        found.append(Case(kernel, _problem(kernel, form, schedule), schedule))
    return found


@cache
def hardest(kernel: Kernel) -> Case:
    """The case of a kernel's usual formats with clusters or splits, if it has them."""
    form = _forms(kernel)[0]
    schedule = _telling(kernel, form)[-1]
    return Case(kernel, _problem(kernel, form, schedule), schedule)


def _telling(kernel: Kernel, form: Problem) -> list[Any]:
    """The smallest schedule, the smallest with clusters, the smallest with splits."""
    schedules = sorted(_schedules(kernel, form), key=_size)
    clustered = [s for s in schedules if 1 < getattr(s, "cluster", 1) <= CHIP.sms // 2]  # two clusters at once
    split = [s for s in schedules if _splits(s) > 1]
    return list(dict.fromkeys((*schedules[:1], *clustered[:1], *split[:1])))


@cache
def _forms(kernel: Kernel) -> list[Problem]:
    """Some problem for each variant that the kernel takes."""
    if kernel.solves.problem is Linear:
        return [fitted(kernel, replace(form, m=FEW, n=200, k=1208)) for form in plain_variants(kernel)]
    if kernel.solves.problem is not Attention:
        extents = dict.fromkeys(kernel.solves.problem.EXTENTS, 200)
        return [fitted(kernel, replace(form, **{**extents, "m": FEW})) for form in plain_variants(kernel)]
    return list(dict.fromkeys(fitted(kernel, _ragged(kernel, form)) for form in plain_variants(kernel)))


def _ragged(kernel: Kernel, form: Attention) -> Attention:
    """Sequences of two tiles and of one, with more keys than queries and fewer; their keys end inside a block.

    A kernel of few queries, which divides all sequences among its CTAs, gets more, so that one of these has several and
    shares a long one with another; some have no query, so that there are more sequences than lanes of a warp.
    """
    most, heads = kernel.solves.at_most.get("q_len", 70), 1 if form.latent else 2
    q_len = min(70, most)
    q_lens, kv_lens = (q_len, q_len // 2, q_len), (290, 130, 17)
    if most < 70:
        q_lens = (q_len // 2, q_len, 1, q_len, *[0] * 28, q_len, q_len, 1, q_len, 1)
        kv_lens = (130, 17, 150, 290, *[33] * 28, 0, 3, 64, 33, 9)
    lengths = {"q_len": q_len, "q_lens": q_lens, "kv_len": 290, "kv_lens": kv_lens}
    window = 30 if form.window else 0
    return replace(form, batch=len(q_lens), q_heads=2 * heads, kv_heads=heads, window=window, **lengths)


def _schedules(kernel: Kernel, form: Problem) -> Iterator[Any]:
    """The candidates for some problem, with the shortest ring that is legal."""
    forms = [fitted(kernel, replace(form, m=rows)) for rows in (FEW, MANY)] if isinstance(form, Linear) else [form]
    for schedule in (schedule for form in forms for schedule in kernel.module.candidates(form, CHIP)):
        for stages in range(2, getattr(schedule, "stages", 0)):
            try:
                schedule = replace(schedule, stages=stages)
                break
            except ScheduleError:
                continue
        yield schedule


def _size(schedule: Any) -> tuple[bool, int, int]:
    """Two warpgroups or more first, for they can get in each other's way; then small tiles."""
    threads = getattr(schedule, "threads", 0)
    return threads < 256, getattr(schedule, "block_m", 1) * getattr(schedule, "block_n", 1), threads


def step_of(schedule: Any, form: Linear) -> int:
    """Elements along k of a step of a schedule's ring."""
    nbytes = getattr(schedule, "step_bytes", 0)
    return nbytes * 8 // format_named(form.weights).bits or getattr(schedule, "block_k", DEPTH)


def _splits(schedule: Any) -> int:
    return max((getattr(schedule, f.name) for f in fields(schedule) if f.name.startswith("split")), default=1)


def _problem(kernel: Kernel, form: Problem, schedule: Any) -> Problem:
    """A problem of two to three ragged tiles each way, deep enough for the ring, split."""
    if not isinstance(form, Linear):
        return form
    tall = getattr(schedule, "block_m", 1) * getattr(schedule, "cluster", 1)
    deep = LAPS * getattr(schedule, "stages", 1) * step_of(schedule, form) * _splits(schedule)
    m, n, k = 2 * tall + min((tall + 1) // 2, 37), getattr(schedule, "block_n", 1) + 36, deep + 51
    return fitted(kernel, replace(form, m=m, n=n + (form.swiglu and n % 2), k=k))
