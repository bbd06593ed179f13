"""The right result of attention, and how far from it a right kernel's may be."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lab.problems._linear_reference import PROMOTION, TAIL, truncation
from lab.problems.protocol import UNIT, Arrays, Estimate
from sim.formats import FORMATS, decode

if TYPE_CHECKING:
    from lab.problems.attention import Attention

SCORE_ROUNDINGS = 8  # of a score beside its dot product: scaled, its maximum subtracted (two scores' size), dequantised
WEIGHT_ROUNDINGS = 8  # of a weight: ex2.approx has 2 ulp (PTX ISA, ex2), an ulp being up to two rounding units
SPLITS = 64  # partial results that may be joined, each with a factor and a sum of its own
QUERY_SHIFT = 4  # powers of two by which queries are made smaller, at most, where they become fp16
BLOCK = 16  # keys of a block, at least, after which the maximum may have moved
FEW_QUERIES = 16  # of a decode step, of which no kernel multiplies as fp8
LEAST_WEIGHT = 2.0**4  # what the largest weight is at least where weights are fp8
QUERY_LOST = 2.0**-17  # of a query's largest element: half of e4m3's smallest, where that one is at least 2^7


def reference(problem: Attention, arrays: Arrays, rows: slice) -> dict[str, Estimate]:
    """y [rows, q_heads, value_dim] and, where asked for, lse [rows, q_heads].

    With u = 2^-24 a score is off by at most e = (head_dim + 8 + 2 keys / 16) u scale sum |q||k|, its largest over the
    keys seen: of its own dot product, and of the maxima that were subtracted from it, one after another, each rounded
    when it was scaled. So a weight is off by a factor of exp(2 e) (its own score and the base that it is relative to);
    it is then rounded to the activations' format, and all of them are added in any order: bound = u_out |y| +
    (2 expm1(2 e) + u_activations + (2 keys + 8 + 64) u) sum p |v|. Weights may be relative to any score of their row
    that is below its maximum, by as much as a kernel likes: all scale alike, and the largest is 1 or more. So where a
    weight is too small for the format, it is off by at most half of its smallest value, beside a sum of 1 or more:
    + smallest / 2 sum |v| / sum of weights. The logarithm of their sum is off by 2 e + (keys + 8) u, and rounded.
    Beside an fp8 cache weights and queries are fp16, in which e4m3 is exact, queries 2^4 times smaller so that they are
    finite: e grows by 2^4 smallest / 2 scale sum |k|. Or both are the sum of two terms in e4m3, which have eight bits
    together, as bf16 has, as far as the second is no smaller than e4m3's smallest: 2^-17 of the largest of a query, and
    2^-13 of weights relative to at least 2^4. Queries in e4m3 are exact, and weights one term.
    Tensor cores cut sums of e4m3 products, those along head_dim and those of the weights of a block (see
    _linear_reference.truncation): of queries in fp8, or of more queries than a decode step has. What is cut of scores
    and rounded of weights by so much has random signs beside those of v: by Hoeffding's inequality it stays within 8
    sqrt(sum p^2 v^2), where that is less than sum p |v|.
    """
    p = problem
    chosen = np.arange(p.rows)[rows]
    y = Estimate(*np.zeros((2, len(chosen), p.q_heads, p.value_dim)))
    lse = Estimate(np.full((len(chosen), p.q_heads), -np.inf), np.zeros((len(chosen), p.q_heads)))

    def fill(b: int) -> None:
        sequence = p.sequences[b]
        at = np.nonzero((chosen >= sequence.q_start) & (chosen < sequence.q_start + sequence.q_len))[0]
        if at.size == 0 or sequence.kv_len == 0:
            return
        first, end = (ends[chosen[at] - sequence.q_start] for ends in p.visible(sequence))
        key = np.arange(sequence.kv_len)
        seen = (key >= first[:, None]) & (key < end[:, None])
        q = decode(arrays["q"][chosen[at], : p.q_heads], p.activations).astype(np.float64)
        with ThreadPoolExecutor() as pool:
            groups = pool.map(partial(_group, p, arrays, q, *_keys(p, arrays, b), seen), range(p.kv_heads))
            for kv_head, (*of_y, value, error) in enumerate(groups):
                heads = slice(kv_head * p.group, (kv_head + 1) * p.group)
                y.value[at, heads], y.error[at, heads] = of_y
                lse.value[at, heads], lse.error[at, heads] = value, error

    with ThreadPoolExecutor() as pool:
        list(pool.map(fill, range(p.batch)))
    found = {"y": y.stored(p.output)}
    return {**found, "lse": lse.stored("fp32")} if p.lse else found


def _keys(problem: Attention, arrays: Arrays, b: int) -> tuple[NDArray, NDArray]:
    """(k, v) of one sequence as stored bits, [kv_len, kv_heads, head_dim] and [..., value_dim]."""
    p, sequence = problem, problem.sequences[b]
    if not p.page:
        here = slice(sequence.kv_start, sequence.kv_start + sequence.kv_len), slice(p.kv_heads)
        k = arrays["k"][here]
        return k, k[..., : p.latent] if p.latent else arrays["v"][here]
    token = np.arange(sequence.kv_len)
    page, slot = arrays["block_table"][b, token // p.page], token % p.page
    if p.latent:
        k = arrays["cache"][page, slot][:, None]
        return k, k[..., : p.latent]
    both = arrays["cache"][page, :, :, slot]
    return both[:, 0], both[:, 1]


class Precision(NamedTuple):
    """What becomes of weights and queries: `unit` and `smallest` as of a format, `lost` of each query's elements.

    Products are of as many `terms` of fp8; 0: they are of float32 sums.
    """

    unit: float
    smallest: float
    lost: NDArray | float = 0.0
    terms: int = 0


def _precision(problem: Attention, queries: NDArray) -> Precision:
    """Of queries [m, head_dim] before their scale."""
    p, fp8 = problem, FORMATS["fp8"]
    if p.kv != "fp8":
        return Precision(FORMATS[p.activations].unit_roundoff, FORMATS[p.activations].smallest)
    smallest = fp8.smallest / LEAST_WEIGHT
    if p.activations == "fp8":
        return Precision(fp8.unit_roundoff, smallest, terms=1)
    two = fp8.unit_roundoff**2 + 2 * FORMATS["fp16"].unit_roundoff  # a weight is fp16 when its first term is taken off
    lost = 2**QUERY_SHIFT * FORMATS["fp16"].smallest / 2 + QUERY_LOST * np.abs(queries).max(axis=1, keepdims=True)
    return Precision(two, smallest, lost, terms=2 if p.q_len > FEW_QUERIES else 0)


def _group(
    problem: Attention, arrays: Arrays, q: NDArray, k: NDArray, v: NDArray, seen: NDArray[np.bool_], kv_head: int
) -> tuple[NDArray, NDArray, NDArray, NDArray]:
    """(y, error, lse, error) of the query heads that share a KV head; k and v of one sequence, all heads, as bits."""
    p = problem
    queries = q[:, kv_head * p.group : (kv_head + 1) * p.group].reshape(-1, p.head_dim)
    keys, values = (decode(bits[:, kv_head], p.kv).astype(np.float64) for bits in (k, v))
    precision = _precision(p, queries)
    if p.kv == "fp8":
        keys = keys * arrays["k_scale"][kv_head]
        values = values * arrays["k_scale" if p.latent else "v_scale"][kv_head]
    if p.activations == "fp8":
        queries = queries * arrays["q_scale"][kv_head]
    found = _rows(queries, keys, values, np.repeat(seen, p.group, axis=0), p.score_scale, precision)
    y, error, lse, lse_error = (part.reshape(len(q), p.group, *part.shape[1:]) for part in found)
    return y, error, lse, lse_error


def _rows(
    q: NDArray, k: NDArray, v: NDArray, seen: NDArray[np.bool_], scale: float, precision: Precision
) -> tuple[NDArray, NDArray, NDArray, NDArray]:
    """(y, error, lse, error) of queries [m, head_dim] against keys of which each sees some."""
    scores = np.where(seen, scale * (q @ k.T), -np.inf)
    largest = scores.max(axis=1, keepdims=True)
    shifted = np.where(np.isneginf(largest), 0.0, largest)  # a row that sees nothing
    weights = np.exp(scores - shifted)
    total = weights.sum(axis=1, keepdims=True)
    with np.errstate(divide="ignore"):
        lse = shifted + np.log(total)
    weights = np.divide(weights, total, out=np.zeros_like(weights), where=total != 0)
    sizes = np.where(seen, np.abs(q) @ np.abs(k).T, 0.0).max(axis=1, keepdims=True)
    keys = seen.sum(axis=1, keepdims=True)
    e = (q.shape[1] + SCORE_ROUNDINGS + 2 * keys / BLOCK) * UNIT * scale * sizes
    e = e + precision.lost * scale * np.where(seen, np.abs(k).sum(axis=1), 0.0).max(axis=1, keepdims=True)
    relative = 2 * np.expm1(2 * e) + (2 * keys + WEIGHT_ROUNDINGS + SPLITS) * UNIT
    small = np.divide(precision.smallest / 2, total, out=np.zeros_like(total), where=total != 0) * (seen @ np.abs(v))
    y, sizes = weights @ v, weights @ np.abs(v)
    error, cut = relative * sizes + small, 0.0
    if precision.terms:
        cut = scale * np.where(seen, _cut_scores(q, k, precision.terms), 0.0).max(axis=1, keepdims=True)
        spread = np.minimum(sizes, TAIL * np.sqrt(weights**2 @ v**2))
        error += (precision.unit + np.expm1(2 * cut)) * spread + np.expm1(2 * cut) * np.abs(y)
        error += precision.terms * truncation(weights, np.ascontiguousarray(v.T), PROMOTION)
    else:
        error += precision.unit * sizes
    lse_error = np.where(np.isneginf(lse), 0.0, 2 * (e + cut) + (keys + WEIGHT_ROUNDINGS) * UNIT)
    return y, error, lse[:, 0], lse_error[:, 0]


def _cut_scores(q: NDArray, k: NDArray, terms: int) -> NDArray:
    """What tensor cores may cut of q k^T, one term of q after another, each 2^4 times smaller than the one before."""
    parts = np.hstack([q * FORMATS["fp8"].unit_roundoff ** term for term in range(terms)])
    return truncation(parts, np.hstack([k] * terms), parts.shape[1])
