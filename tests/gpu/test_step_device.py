"""A whole step on the GPU: the tokens and logits of the simulated chip, the same bits with launches that overlap.

And with every length that a graph is replayed with, ten thousand times.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from lab.inference import chip as chips
from lab.inference.layers import Forward
from lab.inference.sessions import StepRunner
from lab.inference.step import Step, StepCache
from lab.inference.step_input import Chunk, Layout
from lab.inference.step_weights import StepWeights, random
from lab.problems import Model
from lab.problems.sampling import Settings
from sim.formats import decode
from sim.machine import Machine

MODEL = Model(2, 256, q_heads=4, kv_heads=2, head_dim=64, ffn=512, vocab=512)
TOKENS = np.arange(100) * 7 % 512
REPLAYS = 10_000
GUARD = 4096  # bytes before and behind every array
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


class Guarded:
    """Makes the arrays of another module, each between bands of bytes that nobody may write."""

    def __init__(self, xp: Any) -> None:
        self._xp, self._whole = xp, []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._xp, name)

    def zeros(self, shape: Any, dtype: Any) -> Any:
        nbytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        whole = self._xp.full(nbytes + 2 * GUARD, 0xA5, np.uint8)
        self._whole.append(whole)
        inside = whole[GUARD : GUARD + nbytes]
        inside[:] = 0
        return inside.view(dtype).reshape(shape)

    def intact(self) -> bool:
        bands = (band for whole in self._whole for band in (whole[:GUARD], whole[-GUARD:]))
        return all(bool((band == 0xA5).all()) for band in bands)


@pytest.mark.usefixtures("cupy")
def test_a_graph_is_replayed_with_every_length_and_writes_nothing_else(chip: Machine) -> None:
    gpu = chips.gpu(chip)
    guarded = replace(gpu, xp=Guarded(gpu.xp))
    weights = random(MODEL, 256, gpu)
    forward, layout = Forward(weights.config, weights.matrices, 9), Layout(2, 2, 2)
    cache = StepCache(forward, guarded)
    step, plain = (Step(weights, cache, forward, layout, guarded, dependent) for dependent in (True, False))
    places, most = ([3, 1], [5, 2]), layout.capacity
    for i in range(REPLAYS):
        at = (i % most, i * 7 % most)
        step.input.fill([Chunk([i % 512], start, pages) for start, pages in zip(at, places, strict=True)])
        step.run()
        if i % 997 == 0:
            found = [gpu.read(step.arrays[name]) for name in ("logits", "token")]
            plain.input.fill(step.input.chunks)
            plain.run()
            for ours, expected in zip(found, ("logits", "token"), strict=True):
                np.testing.assert_array_equal(ours, gpu.read(plain.arrays[expected]))
    gpu.read(step.arrays["token"])
    assert guarded.xp.intact()


@pytest.mark.usefixtures("cupy")
def test_tokens_that_the_host_has_not_seen_yet_are_those_it_would_have_sent(chip: Machine) -> None:
    gpu = chips.gpu(chip)
    runner = StepRunner(random(MODEL, 256, gpu), gpu)
    settings = Settings(0.9, 20, 0.95, seed=3)
    ahead, behind = runner.session(200), runner.session(200)
    for session in (ahead, behind):
        session.start(TOKENS[:50].tolist(), settings)
    found, expected = [], [behind.finish()]
    for draw in range(1, 60):
        ahead.follow(settings._replace(draw=draw))
        found.append(ahead.finish())
        behind.start([expected[-1]], settings._replace(draw=draw))
        expected.append(behind.finish())
    assert [*found, ahead.finish()] == expected
