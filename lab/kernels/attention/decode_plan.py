"""How decode attention is divided over CTAs, from the lengths of a batch: what decode_plan.cuh finds on the device."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lab.problems import Attention

Ints = NDArray[np.int64]


class CtaPartition(NamedTuple):
    """The units of all sequences in a row, cut into stretches of one length."""

    q_len: Ints  # of each sequence
    kv_len: Ints
    first_unit: Ints  # that any query sees
    units: Ints  # from that one on; none where there is no query
    begin: Ints  # where the sequence begins in the row; its units follow after `overhead`
    upto: Ints
    length: int  # of a stretch
    overhead: int


class Parts(NamedTuple):
    """What the stretches have of the sequences, one part after another: units `lo` to `hi`, counted from token 0."""

    sequence: Ints
    stretch: Ints
    lo: Ints
    hi: Ints
    shared: NDArray[np.bool_]  # with other stretches


def partition_of(problem: Attention, schedule: Any, stretches: int) -> CtaPartition:
    """The partition for a problem; `schedule` is an attention_split_kv.Schedule."""
    q_lens, kv_lens = (np.array([getattr(s, name) for s in problem.sequences]) for name in ("q_len", "kv_len"))
    return divide(q_lens, kv_lens, problem.window, schedule, stretches)


def divide(q_lens: NDArray, kv_lens: NDArray, window: int, schedule: Any, stretches: int) -> CtaPartition:
    """The partition for sequences of these lengths."""
    s = schedule
    q_len, kv_len = q_lens.astype(np.int64), kv_lens.astype(np.int64)
    first = np.maximum(kv_len - q_len + 1 - window, 0) // s.unit if window else np.zeros_like(kv_len)
    units = np.where(q_len > 0, np.maximum(-(-kv_len // s.unit) - first, 0), 0)
    cost = np.where(q_len > 0, np.maximum(s.overhead_units + units, 1), 0)
    upto = np.cumsum(cost)
    length = max(-(-int(upto[-1]) // stretches), s.least_units)
    return CtaPartition(q_len, kv_len, first, units, upto - cost, upto, length, s.overhead_units)


def parts_of(plan: CtaPartition) -> Parts:
    """Every stretch's share of every sequence that has queries; a sequence without keys is one part, of no unit."""
    there = np.nonzero(plan.q_len > 0)[0]
    begin, units = plan.begin[there] + plan.overhead, plan.units[there]
    first = np.where(units > 0, begin, plan.begin[there]) // plan.length
    count = np.where(units > 0, (begin + units - 1) // plan.length - first, 0) + 1
    of, place = enumerated(count)
    stretch = first[of] + place
    lo = np.maximum(stretch * plan.length - begin[of], 0)
    hi = np.maximum(np.minimum((stretch + 1) * plan.length - begin[of], units[of]), lo)
    unit = plan.first_unit[there][of]
    return Parts(there[of], stretch, unit + lo, unit + hi, count[of] > 1)


def enumerated(count: Ints) -> tuple[Ints, Ints]:
    """(i, j): for each i in turn, j from 0 to count[i] - 1."""
    of = np.repeat(np.arange(count.size), count)
    return of, np.arange(of.size) - np.repeat(np.cumsum(count) - count, count)
