"""What two GPUs do, with both on one card: rungs of a hand-over, a step of two ranks, engines at work."""

from functools import partial
from typing import Any

import numpy as np
import pytest

from experiments.running import tensor_parallel
from experiments.running.tensor_parallel import TwoRanks
from experiments.running.transfer_rungs import NCCL, RUNGS, climb
from experiments.running.two_gpus import _timed
from lab.inference import chip as chips
from lab.problems import Model
from lab.problems.transfer import Transfer
from sim.formats import decode
from sim.machine import Machine

MODEL = Model(2, 256, q_heads=4, kv_heads=2, head_dim=64, ffn=512, vocab=512)


@pytest.mark.usefixtures("cupy")
def test_every_rung_brings_every_page(chip: Machine) -> None:
    found = list(climb(Transfer(70, 4096, pool=100), chip, (0, 0), partial(_timed, rounds=2)))
    assert [one.rung for one in found] == list(RUNGS)
    assert all(one.right for one in found)
    assert [one.rung for one in found if one.us is None] == [NCCL]
    assert "both devices are the same one" in found[-1].why


def test_two_ranks_find_the_same_bits_step_after_step(chip: Machine, cupy: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(tensor_parallel, "CONTEXT", 128)
    gpu = chips.gpu(chip)
    ranks = TwoRanks(MODEL, (gpu, gpu))
    before: list[np.ndarray] = []
    for _ in range(20):
        ranks.replay()
        cupy.cuda.Device().synchronize()
        one, other = ranks.logits()
        np.testing.assert_array_equal(one, other)
        assert np.isfinite(decode(one, "bf16")).all()
        assert one.any()
        before.append(one)
    np.testing.assert_array_equal(before[0], before[-1])
