"""The right result of attention, and how far from it a right kernel's may be."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lab.problems.protocol import UNIT, Arrays, Estimate
from sim.formats import FORMATS, Format, decode

if TYPE_CHECKING:
    from lab.problems.attention import Attention

SCORE_ROUNDINGS = 8  # of a score beside its dot product: scaled, its maximum subtracted (two scores' size), dequantised
WEIGHT_ROUNDINGS = 8  # of a weight: ex2.approx has 2 ulp (PTX ISA, ex2), an ulp being up to two rounding units
SPLITS = 64  # partial results that may be joined, each with a factor and a sum of its own
QUERY_SHIFT = 4  # powers of two by which queries are made smaller, at most, where they become fp16
BLOCK = 16  # keys of a block, at least, after which the maximum may have moved


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
    finite: e grows by 2^4 smallest / 2 scale sum |k|.
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


def _group(
    problem: Attention, arrays: Arrays, q: NDArray, k: NDArray, v: NDArray, seen: NDArray[np.bool_], kv_head: int
) -> tuple[NDArray, NDArray, NDArray, NDArray]:
    """(y, error, lse, error) of the query heads that share a KV head; k and v of one sequence, all heads, as bits."""
    p = problem
    queries = q[:, kv_head * p.group : (kv_head + 1) * p.group].reshape(-1, p.head_dim)
    keys, values = (decode(bits[:, kv_head], p.kv).astype(np.float64) for bits in (k, v))
    form, lost = FORMATS[p.activations], 0.0
    if p.kv == "fp8":
        keys = keys * arrays["k_scale"][kv_head]
        values = values * arrays["k_scale" if p.latent else "v_scale"][kv_head]
        form = FORMATS["fp16"]
        lost = 2**QUERY_SHIFT * form.smallest / 2
    found = _rows(queries, keys, values, np.repeat(seen, p.group, axis=0), p.score_scale, form, lost)
    y, error, lse, lse_error = (part.reshape(len(q), p.group, *part.shape[1:]) for part in found)
    return y, error, lse, lse_error


def _rows(
    q: NDArray, k: NDArray, v: NDArray, seen: NDArray[np.bool_], scale: float, form: Format, lost: float
) -> tuple[NDArray, NDArray, NDArray, NDArray]:
    """(y, error, lse, error) of queries [m, head_dim] against keys of which each sees some.

    Weights are multiplied in the format `form`, queries may be off by `lost`.
    """
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
    e = e + lost * scale * np.where(seen, np.abs(k).sum(axis=1), 0.0).max(axis=1, keepdims=True)
    relative = 2 * np.expm1(2 * e) + form.unit_roundoff + (2 * keys + WEIGHT_ROUNDINGS + SPLITS) * UNIT
    small = np.divide(form.smallest / 2, total, out=np.zeros_like(total), where=total != 0) * (seen @ np.abs(v))
    lse_error = np.where(np.isneginf(lse), 0.0, 2 * e + (keys + WEIGHT_ROUNDINGS) * UNIT)
    return weights @ v, relative * (weights @ np.abs(v)) + small, lse[:, 0], lse_error[:, 0]
