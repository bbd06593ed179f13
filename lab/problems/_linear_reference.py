"""The right result of a linear layer, and how far from it a right kernel's may be.

Errors are carried along beside the values, first order and upper bounds throughout.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lab.problems.protocol import RSQRT_ROUNDINGS, SQUARES, UNIT, Estimate
from sim import int4
from sim.formats import FP8_MAX, decode

if TYPE_CHECKING:
    from lab.problems.linear import Linear

FLOAT64_FLOPS = 2**34  # up to here references are computed in float64, above in float32

SLOPE = 1.1  # the largest derivative of silu(g) = g / (1 + exp(-g))
FADED = 2.0**-118  # |silu(g)| is below it where exp(-g) overflows float32

TRUNCATION = 2.0**-13  # of the largest term: what an fp8 wgmma keeps of each
FP8_STEP = 32  # products along k in one fp8 wgmma
PROMOTION = 128  # along k: the longest partial sum of fp8 products that may stay in the tensor cores
AT_ONCE = 512  # rows of w that a thread multiplies: whole blocks of them
BLOCK = 128  # along k, and of rows of w, that share a scale
CACHED_ROWS = 64  # of y that are walked along k together, so that they stay in the host's cache
GROUP_ROUNDINGS = 4  # of a term, beside one for each product: scaled, added, a zero point's product
TAIL = 8.0  # Hoeffding's deviation: exceeded with probability 2 exp(-TAIL^2 / 2) = 2.5e-14


def reference(problem: Linear, arrays: Mapping[str, NDArray], rows: slice) -> dict[str, Estimate]:
    """Each output and its bound for the chosen rows of x; y is clamped to 448 where it leaves in fp8."""
    p = problem
    dtype: Any = np.float64 if p.flops <= FLOAT64_FLOPS else np.float32
    x = decode(arrays["x"][rows], p.activations).astype(dtype)
    if p.ordered:
        x = x[:, arrays["order"]]
    if p.block_scales:
        x *= np.repeat(arrays["x_scale"][rows].astype(dtype), BLOCK, axis=1)[:, : p.k]
    groups = int4.unpack(arrays["w"], arrays["w_scale"], p.n, p.k, p.group, p.zero_points) if p.group else None

    def part(first: int) -> Estimate:
        of_w = slice(first, first + AT_ONCE)
        if groups:
            return _group_sums(p, x, groups.of_rows(of_w))
        w = decode(arrays["w"][of_w], p.weights).astype(dtype)
        if p.block_scales:
            scale = arrays["w_scale"][first // BLOCK : -(-(first + len(w)) // BLOCK)].astype(dtype)
            w *= np.repeat(np.repeat(scale, BLOCK, axis=0), BLOCK, axis=1)[: len(w), : p.k]
        return _sums(p, x, w)

    alone = os.environ.get("OPENBLAS_NUM_THREADS") == "1"  # else each product has all cores, and two would share them
    with ThreadPoolExecutor(None if alone else 1) as pool:
        parts = list(pool.map(part, range(0, p.n, AT_ONCE)))
    y = Estimate(*(np.concatenate(each, axis=1) for each in zip(*parts, strict=True)))
    if p.scaled and not p.block_scales:
        x_scale = arrays["x_scale"].astype(dtype)[rows if p.x_row_scales else slice(1)] if "x_scale" in arrays else 1
        scale = np.reshape(x_scale, (-1, 1)) * arrays["w_scale"].astype(dtype)
        y = y.scaled(scale).rounded(2)  # of the product of the scales, and with the sum
    if p.rooted:
        y = _rooted(p, y, arrays["squares"][rows].astype(dtype))
    if p.swiglu:
        y = swiglu(Estimate(*(part[:, : p.columns] for part in y)), Estimate(*(part[:, p.columns :] for part in y)))
    if p.residual or p.summed:
        residual = decode(arrays["residual"][rows], p.inputs["residual"].format).astype(dtype)
        y = Estimate(y.value + residual, y.error).rounded(1)
    if "y_scale" in p.inputs:
        y = y.scaled(1 / arrays["y_scale"].astype(dtype)).rounded(3)  # a reciprocal to an ulp, and a product
    if p.output == "fp8":
        y = Estimate(np.clip(y.value, -FP8_MAX, FP8_MAX), y.error)
    stored = y.stored(p.output)
    return _summed(p, stored, decode(arrays["norm"], p.output).astype(dtype)) if p.summed else {"y": stored}


def _rooted(problem: Linear, y: Estimate, squares: NDArray) -> Estimate:
    """y times the inverse root of the mean that these squares make.

    Their sum, of nothing negative, is off by a rounding for each, the mean and eps bring four; the root halves these.
    It is approximate, and multiplied twice: by a scale, and with y.
    """
    root = 1 / np.sqrt(squares.sum(axis=1, keepdims=True) / problem.k + problem.eps)
    return y.scaled(root).rounded((squares.shape[1] + 4) / 2 + RSQRT_ROUNDINGS + 2)


def _summed(problem: Linear, total: Estimate, norm: NDArray) -> dict[str, Estimate]:
    """total, what a norm's weights make of it, and sums of its squares: of total as it is stored, whatever that is."""
    parts = -(-problem.n // SQUARES)
    beyond = ((0, 0), (0, parts * SQUARES - problem.n))
    error = total.error * (2 * np.abs(total.value) + total.error)
    value, error = (np.pad(of, beyond).reshape(-1, parts, SQUARES).sum(axis=2) for of in (total.value**2, error))
    y = total.scaled(norm).rounded(1).stored(problem.output)
    return {"y": y, "total": total, "total_squares": Estimate(value, error).rounded(SQUARES + 1)}


def _sums(problem: Linear, x: NDArray, w: NDArray) -> Estimate:
    """x @ w.T and what summing in float32, or in the tensor cores where both are fp8, may do to it.

    Where blocks have scales, these are in x and w: their product is rounded, and with it each block's sum.
    """
    roundings = problem.k + (GROUP_ROUNDINGS if problem.block_scales else 0)
    error = roundings * UNIT * (np.abs(x) @ np.abs(w).T)
    if problem.activations == problem.weights == "fp8":
        error += truncation(x, w, problem.k if problem.fast else PROMOTION)
    return Estimate(x @ w.T, error)


def _group_sums(problem: Linear, x: NDArray, w: int4.Groups) -> Estimate:
    """x @ w.T where groups of w are summed before they are scaled: scale (x q) + min sum(x), in float32.

    Each of the two terms is rounded at most once for each product, once for each group and twice when it is scaled and
    added, k + 2 in all beside the last group's; they may cancel, so the bound is that of their absolute values.
    q may be summed with a bias that the group's offset takes away, (min - bias scale) sum(x). Inside the group both
    sums then have a term bias scale |x| more, rounded once for each product of either, in the offset, and when added.
    """
    scale, offset = w.each(np.abs(w.scale)), w.each(np.abs(w.offset))
    size = scale * (w.q + offset) if w.zero_points else scale * w.q + offset
    bias = (2 * problem.group + GROUP_ROUNDINGS) * int4.BIAS * scale
    roundings = (problem.k + GROUP_ROUNDINGS) * size + bias
    exact = w.each(w.scale).astype(x.dtype), w.each(w.offset).astype(x.dtype)
    values = exact[0] * (w.q - exact[1]) if w.zero_points else exact[0] * w.q + exact[1]
    return Estimate(x @ values.T, UNIT * (np.abs(x) @ roundings.astype(x.dtype).T))


def truncation(x: NDArray, w: NDArray, promotion: int) -> NDArray:
    """Error of fp8 sums whose partial sums of `promotion` products along k stay in the tensor cores.

    An fp8 wgmma shifts its 32 products and the sum so far to the largest exponent among them and keeps 13 bits of
    fraction of each, and of the result (DeepSeek-V3 Technical Report, 3.3.2; Xie et al., "MMA-Sim", 2025). In step t
    everything cut is thus below 2^-13 M_t each, where M_t^2 <= sum so far^2 + the squares of the products. Let V be
    the sum of these over the T steps, the partial sums those of the data. What is cut of products has their random
    signs, so by Hoeffding's inequality it stays within 8 sqrt(32 V), but for one element in 4e13; sum and result are
    always cut towards zero, together at most 2 sqrt(T V) (Cauchy-Schwarz). This holds for inputs of random sign only.
    """
    steps = range(0, x.shape[1], FP8_STEP)
    columns = np.ascontiguousarray(w.T, np.float32)
    squares = np.empty((x.shape[0], w.shape[0]), np.float32)
    for top in range(0, x.shape[0], CACHED_ROWS):
        part = x[top : top + CACHED_ROWS].astype(np.float32)
        total = np.matmul(part * part, columns * columns, out=squares[top : top + CACHED_ROWS])
        partial, product = np.zeros_like(total), np.empty_like(total)
        for at in steps:
            if at % promotion == 0:
                partial[:] = 0
            partial += np.matmul(part[:, at : at + FP8_STEP], columns[at : at + FP8_STEP], out=product)
            total += np.multiply(partial, partial, out=product)
    factor = TAIL * FP8_STEP**0.5 + 2 * len(steps) ** 0.5
    cut: NDArray = TRUNCATION * factor * np.sqrt(squares)
    return cut


def swiglu(gate: Estimate, up: Estimate) -> Estimate:
    """silu(gate) * up with the fast exponential and division.

    exp(x) has 2 + 1.173 |x| ulp and the division 2 (CUDA C++ Programming Guide, intrinsic functions), an ulp being up
    to two rounding units, and 1 + exp(-gate) is rounded once.
    """
    g = np.abs(gate.value) + gate.error
    with np.errstate(over="ignore"):
        silu = gate.value / (1 + np.exp(-gate.value))
    own = (9 + 2.4 * g) * UNIT * (np.abs(silu) + SLOPE * gate.error)
    error = SLOPE * gate.error + own + FADED
    return Estimate(silu * up.value, error * (np.abs(up.value) + up.error) + np.abs(silu) * up.error).rounded(1)
