"""Two ranks that share a model's layers find what the whole model finds, and the same bits as each other."""

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lab.inference import chip as chips
from lab.inference.layers import Forward
from lab.inference.parallel_step import ParallelStep
from lab.inference.step import Step, StepCache
from lab.inference.step_input import Chunk, Layout
from lab.inference.step_weights import StepWeights, random
from lab.problems import Model
from sim.errors import InputError
from sim.formats import decode
from sim.machine import H100

MODEL = Model(2, 128, q_heads=4, kv_heads=2, head_dim=64, ffn=256, vocab=512)
CHIP, LAYOUT = chips.simulated(H100), Layout(2, 8, 1)
CHUNKS = (Chunk(np.arange(5) * 37 % 512, 0, [3]), Chunk(np.arange(3) * 91 % 512, 0, [1]))


def part(whole: StepWeights, rank: int, ranks: int = 2) -> StepWeights:
    """A rank's rows of qkv and gate_up, and columns of output and down."""
    c = whole.config.shard(ranks)

    def rows(w: NDArray, sections: list[int]) -> NDArray:
        starts = np.cumsum([0, *sections])
        found = [np.split(w[a:b], ranks)[rank] for a, b in pairwise(starts)]
        return np.ascontiguousarray(np.concatenate(found))

    def columns(w: NDArray) -> NDArray:
        return np.ascontiguousarray(np.split(w, ranks, axis=1)[rank])

    arrays, matrices = dict(whole.arrays), dict(whole.matrices)
    for i in range(c.layers):
        heads = [h * c.head_dim * ranks for h in (c.q_heads, c.kv_heads, c.kv_heads)]
        cut: dict[str, Any] = {
            "qkv": lambda w, heads=heads: rows(w, heads),
            "gate_up": lambda w: rows(w, [c.ffn * ranks] * 2),
            "output": columns,
            "down": columns,
        }
        for name, of in cut.items():
            key = f"layers.{i}.{name}"
            arrays[f"{key}.w"] = of(arrays[f"{key}.w"])
            n, k = arrays[f"{key}.w"].shape
            matrices[key] = replace(matrices[key], n=n, k=k)
    return StepWeights(c, matrices, arrays)


def step(weights: StepWeights, layout: Layout = LAYOUT) -> Step:
    forward = Forward(weights.config, weights.matrices, 9)
    found = Step(weights, StepCache(forward, CHIP), forward, layout, CHIP)
    if layout != LAYOUT:
        return found
    found.input.fill(CHUNKS)
    return found


def test_two_ranks_find_what_the_whole_model_finds() -> None:
    weights = random(MODEL, 256, CHIP)
    whole, ranks = step(weights), [step(part(weights, rank)) for rank in range(2)]
    whole.run()
    expected = decode(whole.arrays["logits"], "bf16")
    first, second = ParallelStep(ranks).run()
    np.testing.assert_array_equal(first, second)
    # Each of 2 layers x 2 branches is rounded to bf16 three times more, at 2^-9 of its size each.
    off = np.linalg.norm(decode(first, "bf16") - expected) / np.linalg.norm(expected)
    assert off <= 2 * MODEL.layers * 3 * 2.0**-9
    ranks[0].run()
    alone = np.linalg.norm(decode(ranks[0].arrays["logits"], "bf16") - expected) / np.linalg.norm(expected)
    assert alone > 2 * MODEL.layers * 3 * 2.0**-9


def test_ranks_have_one_layout() -> None:
    with pytest.raises(InputError, match="a step is of 2 ranks"):
        ParallelStep([step(random(MODEL, 256, CHIP))])


def test_ranks_do_not_join_what_is_summed_between() -> None:
    joined = step(random(MODEL, 256, CHIP), Layout(1, 1, 1))
    with pytest.raises(InputError, match="joins no launches: make it of a Forward with joins=False"):
        ParallelStep([joined, joined])
