"""Attention in tiles: scores of which a mask hides some, and the softmax of one block of keys after another.

A tile's row sees the columns from its `start` to its `end`, which is excluded. The running maximum and sum of each row
are Milakov and Gimelshein's (arXiv 1805.02867).
"""

import numpy as np

from sim.jit import njit
from sim.tiles.arithmetic import count_exp
from sim.tiles.elements import (
    BF16,
    FP16,
    bf16_of_float,
    float_of_bf16,
    float_of_fp8,
    float_of_fp16,
    fp8_of_float,
    fp16_of_float,
)

_LN_2 = np.float32(0.6931471805599453)


@njit(cache=True)
def seen_pairs(start, end, columns):
    """How many (row, column) pairs of a tile with so many columns are seen."""
    total = 0
    for row in range(start.size):
        total += max(min(end[row], columns) - max(start[row], 0), 0)
    return total


@njit(cache=True)
def take_scores(count, scores, start, end, scale, slack, maximum, total, decay, further, element, numerics):
    """Scores [rows, columns] become weights 2^(scale (score - maximum)), rounded to `element`s; `scale` has log2(e).

    A row's maximum moves to the largest score that it has seen where the scaled one is more than `slack` larger;
    `decay` is what that makes of earlier weights, of whose sum `total` becomes the new one. A row that saw nothing has
    the maximum -inf. `further` exponentials a row are counted beside its columns': the decay's, by every thread that
    computes it. Only counts where not `numerics`.
    """
    rows, columns = scores.shape
    count_exp(count, rows * (columns + further))
    if not numerics:
        return
    for row in range(rows):
        _take_row(scores[row], start[row], end[row], scale, slack, maximum, total, decay, row)
        _round(scores[row], element)


@njit(cache=True)
def _take_row(scores, start, end, scale, slack, maximum, total, decay, row):
    before = maximum[row]
    largest = max(before, _hide(scores, start, end))
    if largest * scale > before * scale + slack:
        maximum[row] = largest
    base = np.float32(0) if maximum[row] == -np.inf else maximum[row] * scale
    decay[row] = np.exp2(before * scale - base)
    total[row] = total[row] * decay[row] + _weigh(scores, scale, base)


@njit(cache=True)
def take_scores_by_powers(count, scores, start, end, scale, headroom, slack, exponent, total, decay, element, numerics):
    """As `take_scores`, but weights are 2^(scale score - exponent), each row's exponent being a whole number.

    So decays are powers of two, which are exact and no exponentials. An exponent moves to the least that leaves the
    largest weight at most 2^headroom, where that has become more than 2^(headroom + slack).
    """
    rows, columns = scores.shape
    count_exp(count, rows * columns)
    if not numerics:
        return
    for row in range(rows):
        of_row, before = scores[row], exponent[row]
        largest = _hide(of_row, start[row], end[row]) * scale - headroom
        if largest > before + slack:
            exponent[row] = np.ceil(largest)
        decay[row] = power_of_two(before, exponent[row])
        base = np.float32(0) if exponent[row] == -np.inf else exponent[row]
        total[row] = total[row] * decay[row] + _weigh(of_row, scale, base)
        _round(of_row, element)


@njit(cache=True)
def power_of_two(before, now):
    """2^(before - now), what sums relative to 2^before are times where they become relative to 2^now."""
    return np.float32(1) if before == now else np.exp2(before - now)


@njit(cache=True)
def _hide(scores, start, end):
    """A row sees its columns from `start` to `end` alone; returns the largest score among them."""
    largest = np.float32(-np.inf)
    for column in range(scores.size):
        if not start <= column < end:
            scores[column] = -np.inf
        largest = max(largest, scores[column])
    return largest


@njit(cache=True)
def _weigh(scores, scale, base):
    """A row's scores become weights; returns their sum."""
    added = np.float32(0)
    for column in range(scores.size):
        scores[column] = np.exp2(scores[column] * scale - base)
        added += scores[column]
    return added


@njit(cache=True)
def rescale(y, decay):
    """The rows of y, each times its decay."""
    for row in range(y.shape[0]):
        for column in range(y.shape[1]):
            y[row, column] *= decay[row]


@njit(cache=True)
def normalise(y, total):
    """The rows of y, each divided by the sum of its weights; zeros where that is 0."""
    for row in range(y.shape[0]):
        inverse = np.float32(1) / total[row] if total[row] > 0 else np.float32(0)
        for column in range(y.shape[1]):
            y[row, column] *= inverse


@njit(cache=True)
def round_to_fp8(weights, scale, terms):
    """Each of [rows, columns] times `scale` becomes a sum of so many e4m3 terms, each the nearest to what is left."""
    for row in range(weights.shape[0]):
        for column in range(weights.shape[1]):
            left, rounded = weights[row, column] * scale, np.float32(0)
            for _ in range(terms):
                term = float_of_fp8(fp8_of_float(left))
                left -= term
                rounded += term
            weights[row, column] = rounded / scale


@njit(cache=True, inline="always")
def log_sum_exp(maximum, total, scale):
    """The natural logarithm of the sum of a row's exponentials; -inf where it saw nothing."""
    if total > 0:
        return (maximum * scale + np.log2(total)) * _LN_2
    return np.float32(-np.inf)


@njit(cache=True)
def _round(row, element):
    """A row of floats to the nearest values of a format; the format is chosen once."""
    if element == BF16:
        for i in range(row.size):
            row[i] = float_of_bf16(bf16_of_float(row[i]))
    elif element == FP16:
        for i in range(row.size):
            row[i] = float_of_fp16(fp16_of_float(row[i]))
