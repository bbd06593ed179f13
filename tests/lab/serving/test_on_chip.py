"""The loop on the simulated chip: the tokens of each request are those of its own run, however steps were made up."""

from collections.abc import Sequence as Sized
from functools import lru_cache
from typing import Any

import numpy as np
import pytest

from lab.inference import chip as chips
from lab.inference.layers import Forward
from lab.inference.step import Step, StepCache
from lab.inference.step_input import Chunk, Layout
from lab.inference.step_weights import random
from lab.problems import Model
from lab.serving.clock import VirtualClock
from lab.serving.engine import Engine, serve
from lab.serving.executor import Powered, Timeline
from lab.serving.on_chip import ChipExecutor, PredictedStopwatch
from lab.serving.policy import Policy
from lab.serving.request import Request, Sequence
from lab.serving.scheduler import Scheduler
from lab.serving.times import StepTimes
from sim.formats import decode
from sim.machine import H100

MODEL = Model(2, 256, q_heads=4, kv_heads=2, head_dim=64, ffn=512, vocab=512)
CHIP = chips.simulated(H100)
WEIGHTS = random(MODEL, 512, CHIP)
# Steps of other sizes add in another order and round to bf16 in each of ten layers; of the largest logit.
CLOSE = 2.0**-4


def served(requests: Sized[Request], policy: Policy) -> tuple[list[Sequence], Scheduler]:
    scheduler = Scheduler(policy)
    times = StepTimes(MODEL, H100, policy.buckets)
    executor = ChipExecutor(WEIGHTS, scheduler, CHIP, PredictedStopwatch(Timeline(Powered(times))))
    return serve(Engine(scheduler, executor, VirtualClock(), lambda *_: None), requests), scheduler


@lru_cache
def scores(tokens: tuple[int, ...]) -> np.ndarray:
    """Logits after a sequence, computed at once by itself."""
    pages = -(-len(tokens) // 64)
    forward = Forward(WEIGHTS.config, WEIGHTS.matrices, 1 + pages)
    step = Step(WEIGHTS, StepCache(forward, CHIP), forward, Layout(1, len(tokens), pages), CHIP)
    step.input.fill([Chunk(tokens, 0, range(1, 1 + pages))])
    step.run()
    return decode(step.arrays["logits"], "bf16")[0]


def require_right(sequences: Sized[Sequence]) -> None:
    """Each token is the likeliest after those before it, or as likely within the bound."""
    for s in sequences:
        assert len(s.sampled) == s.request.max_tokens
        for i, token in enumerate(s.sampled):
            logits = scores((*s.request.prompt, *s.sampled[:i]))
            assert logits[token] >= logits.max() - 2 * CLOSE * np.abs(logits).max()


def requests(count: int, length: int, tokens: int, **more: Any) -> list[Request]:
    return [Request(i, tuple((j * 7 + i * 31) % 512 for j in range(length)), tokens, **more) for i in range(count)]


def test_batches_chunks_and_forks_give_the_tokens_of_one_request_alone() -> None:
    shared = tuple(j * 5 % 512 for j in range(70))
    asked = [*requests(2, 100, 4), Request(2, shared, 4), Request(3, shared, 4, fork_of=2), Request(4, shared, 2)]
    sequences, scheduler = served(asked, Policy(max_rows=4, max_tokens=48, pages=16, max_length=256))
    require_right(sequences)
    assert sequences[2].sampled == sequences[3].sampled
    assert not scheduler.busy


@pytest.mark.parametrize("preemption", ["recompute", "swap"])
def test_preempted_requests_go_on_where_they_were(preemption: str) -> None:
    policy = Policy(max_rows=4, max_tokens=128, pages=6, host_pages=8, max_length=256, preemption=preemption)
    sequences, scheduler = served(requests(3, 60, 12), policy)
    assert scheduler.preemptions
    require_right(sequences)


def test_sampled_tokens_follow_from_seed_and_place_alone() -> None:
    from lab.problems.sampling import Settings

    asked = requests(3, 40, 6, settings=Settings(temperature=1.0, seed=5))
    first, _ = served(asked, Policy(max_rows=4, max_tokens=64, pages=16, max_length=128))
    alone, _ = served(asked[1:2], Policy(max_rows=4, max_tokens=64, pages=16, max_length=128))
    assert first[1].sampled[0] == alone[0].sampled[0]
    assert len({tuple(s.sampled) for s in first}) == 3


def test_steps_whose_tokens_are_all_of_the_step_before_are_one_graph_with_their_copies(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    apart: list[int] = []
    replay = Step.replay
    monkeypatch.setattr(Step, "replay", lambda self: (apart.append(self.layout.tokens), replay(self))[1])
    sequences, _ = served(requests(3, 20, 12), Policy(max_rows=4, max_tokens=64, pages=16, max_length=128))
    assert apart == [64, 4], "the prompts, and a first step in the bucket of all that follow"
    require_right(sequences)
