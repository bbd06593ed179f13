"""Sequences that go on before their tokens are seen: the same tokens, on the simulated chip as by the reference."""

from pathlib import Path

import pytest

from lab import inference
from lab.inference import chip as chips
from lab.inference.sessions import Runner, StepRunner
from lab.inference.step_weights import random
from lab.problems import Model
from lab.problems.sampling import Settings
from sim.machine import H200

SETTINGS = Settings(0.9, 20, 0.95, seed=3)
PROMPT = [3, 1, 4, 1, 5, 9, 2, 6]


@pytest.fixture(scope="module", params=["steps", "reference"])
def runner(request: pytest.FixtureRequest, tiny_path: Path) -> Runner:
    if request.param == "reference":
        return inference.load(tiny_path, on="reference").runner
    chip = chips.simulated(H200)
    model = Model(2, 256, q_heads=4, kv_heads=2, head_dim=64, ffn=512, vocab=512)
    return StepRunner(random(model, 128, chip), chip)


def test_a_token_that_nobody_has_seen_is_followed_by_the_same_ones(runner: Runner) -> None:
    ahead, behind = runner.session(32), runner.session(32)
    for session in (ahead, behind):
        session.start(PROMPT, SETTINGS)
    found, expected = [], [behind.finish()]
    for draw in range(1, 16):
        ahead.follow(SETTINGS.drawn(draw))
        found.append(ahead.finish())
        behind.start([expected[-1]], SETTINGS.drawn(draw))
        expected.append(behind.finish())
    assert [*found, ahead.finish()] == expected
    assert len(set(expected)) > 4
    assert [one.tokens for one in ahead.passes()] == [len(PROMPT), *[1] * 15]
