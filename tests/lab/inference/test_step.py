"""A whole step: against float32 arithmetic layer by layer, in parts against itself, its counts against theory."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lab.choice import best_guesses
from lab.inference import chip as chips
from lab.inference.layers import Forward
from lab.inference.step import Step, StepCache, planned, require_kernels, step_us
from lab.inference.step_input import PAGE, Chunk, Layout, StepInput
from lab.inference.step_weights import StepWeights, config_of, matrices_of, random
from lab.problems import Attention, Model
from lab.problems.sampling import Settings
from sim.counts import disagreements
from sim.errors import InputError
from sim.formats import decode
from sim.machine import A100, H100, H200, Machine

MODEL = Model(2, 128, q_heads=4, kv_heads=2, head_dim=64, ffn=256, vocab=512)
CHIP = chips.simulated(H100)
TOKENS = np.arange(100) * 37 % 512


class Session:
    """A model with a cache, and a step for each layout."""

    def __init__(self, model: Model, pool: int = 9) -> None:
        self.weights: StepWeights = random(model, 256, CHIP)
        self.forward = Forward(self.weights.config, self.weights.matrices, pool, model.kv)
        self.cache = StepCache(self.forward, CHIP)

    def step(self, layout: Layout, *chunks: Chunk) -> Step:
        step = Step(self.weights, self.cache, self.forward, layout, CHIP)
        step.input.fill(chunks)
        self.counts = step.run()
        return step


def logits(step: Step) -> NDArray[np.float32]:
    return decode(step.arrays["logits"], "bf16")


@pytest.mark.parametrize("form", ["bf16", "fp8", "int4_g32"])
def test_every_call_is_right_on_the_inputs_that_it_had(form: str) -> None:
    """Each call's outputs are within its own problem's bound of the reference, which only sees its inputs."""
    session = Session(replace(MODEL, weights=form))
    step = session.step(Layout(2, 8, 1), Chunk(TOKENS[:5], 0, [3]), Chunk(TOKENS[5:8], 0, [1]))
    solved = step.solved(step.input.q_lens, step.input.kv_lens)
    for (problem, arrays), (_, actual) in zip(step.calls, solved, strict=True):
        own = {name: step.arrays[array] for name, array in arrays.items()}
        again = {name: own[name].copy() for name in problem.outputs}
        step.plans[problem].bind({**own, **again}, None).run()
        inputs = {name: own[name].reshape(operand.shape) for name, operand in problem.inputs.items()}
        expected = actual.reference(inputs)
        for name, estimate in expected.items():
            found, stored = again[name][: len(estimate.value)], problem.outputs[name].format
            found = found if stored == "int32" else decode(found, stored)
            there = ~np.isnan(estimate.value)
            assert (np.abs(found - estimate.value)[there] <= estimate.error[there]).all(), (problem, name)


@pytest.mark.parametrize(("form", "kv"), [("bf16", "bf16"), ("fp8", "bf16"), ("int4_g32", "bf16"), ("bf16", "fp8")])
def test_counts_of_a_step_are_those_of_theory(form: str, kv: str) -> None:
    session = Session(replace(MODEL, weights=form, kv=kv))
    step = session.step(Layout(3, 3, 2), Chunk(TOKENS[:1], 0, [3]), Chunk(TOKENS[:1], 70, [1, 5]))
    assert disagreements(session.counts, step.theory(step.input.q_lens, step.input.kv_lens)) == {}
    assert session.counts.flops


@settings(max_examples=8, deadline=None)
@given(cut=st.integers(1, 79))
def test_a_prompt_in_two_chunks_is_the_prompt_at_once(cut: int) -> None:
    pages = [4, 2]
    whole = logits(Session(MODEL).step(Layout(1, 80, 2), Chunk(TOKENS[:80], 0, pages)))[0]
    session = Session(MODEL)
    session.step(Layout(1, cut, 2), Chunk(TOKENS[:cut], 0, pages))
    parts = logits(session.step(Layout(1, 80 - cut, 2), Chunk(TOKENS[cut:80], cut, pages)))[0]
    # The same sums in another order, each layer's rounded to bf16: a few units of bf16 of the largest.
    assert np.abs(parts - whole).max() <= 2.0**-4 * np.abs(whole).max()


def test_sequences_of_a_step_do_not_see_each_other_and_buckets_may_be_too_large() -> None:
    first, second = Chunk(TOKENS[:5], 0, [3]), Chunk(TOKENS[20:29], 0, [7, 1])
    alone = [Session(MODEL).step(Layout(1, len(c.tokens), 2), c) for c in (first, second)]
    both = Session(MODEL).step(Layout(4, 40, 3), first, second)
    for row, step in enumerate(alone):
        assert np.abs(logits(both)[row] - logits(step)[0]).max() <= 2.0**-4 * np.abs(logits(step)).max()


def test_a_graph_serves_every_step_of_its_bucket() -> None:
    session = Session(MODEL)
    step = session.step(Layout(1, 1, 2), Chunk(TOKENS[:1], 0, [3, 1]))
    for i in range(1, 66):
        step.input.fill([Chunk(TOKENS[i : i + 1], i, [3, 1])])
        step.run()
    whole = Session(MODEL).step(Layout(1, 66, 2), Chunk(TOKENS[:66], 0, [3, 1]))
    assert np.abs(logits(step)[0] - logits(whole)[0]).max() <= 2.0**-4 * np.abs(logits(whole)).max()


def test_decode_is_planned_with_launches_that_overlap_and_is_predicted_without_weights() -> None:
    layout = Layout(16, 16, 32)
    forward = Forward(random(MODEL, 64, CHIP).config, random(MODEL, 64, CHIP).matrices, 513)
    for problem in {call.problem for call in forward.calls(layout)}:
        if isinstance(problem, Attention):
            assert all(launch.dependent for launch in planned(problem, H100).launches)
    one, many = (step_us(MODEL, [(1, 2048)] * batch, H100) for batch in (1, 64))
    assert 0 < one < many


def test_attention_of_a_step_leaves_the_sms_the_l1_that_matrices_need() -> None:
    """The deepest rings that fit a CTA, which attention alone is guessed to have, do not."""
    asked = Attention(4, 32, 8, 128, 1, 3000, page=64, settled=True)
    deepest = min(best_guesses(asked, H200), key=lambda guess: guess.us).launches[0]
    (found,) = planned(asked, H200).launches
    assert found.shared_bytes + H200.reserved_shared_bytes <= 196 * 1024 < deepest.shared_bytes
    assert (found.kernel, found.dependent) == (deepest.kernel, True)


@pytest.mark.parametrize(
    ("changes", "machine", "says"),
    [
        ({"head_dim": 16}, H100, r"no kernel for its rope_append on the H100.*: rope_append takes head_dim 128 or 64"),
        ({"vocab": 513}, H100, "no kernel for its sampling on the H100.*needs n to be a multiple of 8"),
        ({}, A100, "on the A100"),
    ],
)
def test_a_model_without_kernels_is_refused_in_a_sentence(changes: dict, machine: Machine, says: str) -> None:
    model = replace(MODEL, **changes)
    forward = Forward(config_of(model, 64), matrices_of(model), 2)
    with pytest.raises(InputError, match=says):
        require_kernels(forward, machine)


def test_what_does_not_fit_a_bucket_is_refused() -> None:
    block = StepInput(Layout(1, 4, 1))
    for chunk in (Chunk(TOKENS[:5], 0, [1]), Chunk(TOKENS[:1], PAGE, [1]), Chunk([], 0, [1])):
        with pytest.raises(InputError, match="do not fit"):
            block.fill([chunk])
    with pytest.raises(InputError, match="a step has 1 row or more"):
        Layout(2, 1, 1)
    with pytest.raises(InputError, match="temperature must be from"):
        block.fill([Chunk([1], 0, [1], Settings(-1.0))])


def test_an_input_that_follows_is_one_that_is_filled_anew() -> None:
    layout, pages, how = Layout(1, 1, 3), [7, 2, 5], Settings(0.8, 40, 0.95, seed=3)
    ahead = StepInput(layout).fill([Chunk([0], 62, pages)])
    for draw, start in enumerate(range(63, 66)):  # over the end of a page
        ahead.follow(start, how.drawn(draw))
        anew = StepInput(layout).fill([Chunk([0], start, pages, how.drawn(draw))])
        np.testing.assert_array_equal(ahead.block, anew.block)
        assert ahead.chunks == anew.chunks
