"""A whole step on the GPU: the tokens and logits of the simulated chip, the same bits with launches that overlap."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from lab.inference import chip as chips
from lab.inference.layers import Forward
from lab.inference.step import Step, StepCache
from lab.inference.step_input import Chunk, Layout
from lab.inference.step_weights import StepWeights, random
from lab.problems import Model
from sim.formats import decode
from sim.machine import Machine

pytestmark = pytest.mark.gpu

MODEL = Model(2, 256, q_heads=4, kv_heads=2, head_dim=64, ffn=512, vocab=512)
TOKENS = np.arange(100) * 7 % 512
CLOSE = 2.0**-4  # of the largest logit: sums in another order, rounded to bf16 in each of ten layers


def logits(weights: StepWeights, chip: chips.Chip, kv: str, dependent: bool = True) -> list[np.ndarray]:
    """After a prompt, and after four more tokens beside a second sequence."""
    forward = Forward(weights.config, weights.matrices, 9, kv)
    cache = StepCache(forward, chip)
    found = []

    def run(step: Step, *chunks: Chunk) -> None:
        step.input.fill(chunks)
        step.run()
        found.append(decode(chip.read(step.arrays["logits"]), "bf16"))

    if kv == "bf16":
        run(Step(weights, cache, forward, Layout(1, 90, 2), chip, dependent), Chunk(TOKENS[:90], 0, [3, 1]))
    step = Step(weights, cache, forward, Layout(2, 2, 2), chip, dependent)
    for i in range(90, 94):
        run(step, Chunk(TOKENS[i : i + 1], i, [3, 1]), Chunk(TOKENS[i - 90 : i - 89], i - 90, [5, 2]))
    return found


@pytest.mark.parametrize(("form", "kv"), [("bf16", "bf16"), ("fp8", "bf16"), ("int4_g32", "bf16"), ("bf16", "fp8")])
@pytest.mark.usefixtures("cupy")
def test_the_gpu_steps_as_the_simulated_chip_does(chip: Machine, form: str, kv: str) -> None:
    simulated, gpu = chips.simulated(chip), chips.gpu(chip)
    weights = random(replace(MODEL, weights=form), 256, simulated)
    there: dict[str, Any] = {name: gpu.xp.asarray(array) for name, array in weights.arrays.items()}
    moved = replace(weights, arrays=there)
    overlapping = logits(moved, gpu, kv)
    for ours, expected in zip(overlapping, logits(weights, simulated, kv), strict=True):
        assert np.abs(ours - expected).max() <= CLOSE * np.abs(expected).max()
    for ours, plain in zip(overlapping, logits(moved, gpu, kv, dependent=False), strict=True):
        np.testing.assert_array_equal(ours, plain)
