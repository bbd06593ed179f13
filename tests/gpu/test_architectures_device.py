"""Models of every architecture on the GPU: the logits of the simulated chip, and of the float32 reference."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lab.inference import chip as chips
from lab.inference.checkpoint import open_checkpoint
from lab.inference.model import Llama
from lab.inference.reference import Reference
from lab.inference.sessions import StepRunner
from lab.inference.step_weights import StepWeights
from sim.machine import Machine

CLOSE = 2.0**-4  # of the largest logit: sums in another order, rounded to bf16 in each of a dozen steps
TOKENS = [int(i * 37 % 270) for i in range(90)]


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3", "gguf"])
def test_logits_are_those_of_the_other_chips(tmp_path: Path, chip: Machine, architecture: str) -> None:
    from tests.lab.inference import tiny, tiny_folder

    if architecture == "gguf":
        checkpoint = open_checkpoint(tiny.write(tmp_path / "tiny.gguf"))
    else:
        checkpoint = open_checkpoint(tiny_folder.write(tmp_path / "tiny", architecture))
    llama = Llama(checkpoint, Reference())
    expected = llama.logits(llama.forward(TOKENS, llama.new_cache(len(TOKENS))))
    for where in (chips.simulated(chip), chips.gpu(chip)):
        weights = StepWeights.load(checkpoint.config, checkpoint.file, where)
        found = StepRunner(weights, where).logits(TOKENS)
        assert np.linalg.norm(found - expected) <= CLOSE * np.linalg.norm(expected)


def test_weights_take_no_more_of_the_card_than_their_bytes(tmp_path: Path, chip: Machine, cupy: Any) -> None:
    from tests.lab.inference import tiny_folder

    checkpoint = open_checkpoint(tiny_folder.write(tmp_path / "tiny", "qwen3"))
    pool = cupy.get_default_memory_pool()
    before = pool.used_bytes()
    weights = StepWeights.load(checkpoint.config, checkpoint.file, chips.gpu(chip))
    held = pool.used_bytes() - before
    assert weights.nbytes <= held <= 1.05 * weights.nbytes + 512 * len(weights.arrays)  # which the pool rounds up to
