"""The tile simulator's primitives: counted accesses to memory and counted arithmetic, in Numba.

A kernel's `simulate` walks CTAs, k-steps and tiles in `@njit` code and touches global memory through these primitives
only, so what it counts is what it does. Every primitive takes first `count`, the counter row of the SM that acts, and
where it touches memory `marks`, one byte a 32-byte sector of that array.
"""

from sim.tiles.arithmetic import count_exp, count_fma, dot, fma_tile
from sim.tiles.chip import SimulatedChip
from sim.tiles.elements import BF16, ELEMENT, FP8, FP16, FP32
from sim.tiles.groups import add_groups, in_packed_order, load_groups
from sim.tiles.memory import (
    add_atomically,
    assign,
    load_lanes,
    load_patch,
    load_scattered,
    load_vector,
    store_lanes,
    store_patch,
    store_scattered,
    store_vector,
)
from sim.tiles.softmax import (
    log_sum_exp,
    normalise,
    power_of_two,
    rescale,
    round_to_fp8,
    seen_pairs,
    take_scores,
    take_scores_by_powers,
)
from sim.tiles.tensor import copy_tile, load_tile, mma, mma_useful, store_tile

__all__ = [
    "BF16",
    "ELEMENT",
    "FP8",
    "FP16",
    "FP32",
    "SimulatedChip",
    "add_atomically",
    "add_groups",
    "assign",
    "copy_tile",
    "count_exp",
    "count_fma",
    "dot",
    "fma_tile",
    "in_packed_order",
    "load_groups",
    "load_lanes",
    "load_patch",
    "load_scattered",
    "load_tile",
    "load_vector",
    "log_sum_exp",
    "mma",
    "mma_useful",
    "normalise",
    "power_of_two",
    "rescale",
    "round_to_fp8",
    "seen_pairs",
    "store_lanes",
    "store_patch",
    "store_scattered",
    "store_tile",
    "store_vector",
    "take_scores",
    "take_scores_by_powers",
]
