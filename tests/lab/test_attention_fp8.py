"""Prefill attention multiplied as fp8: order of turned values, terms of queries, who solves what."""

from dataclasses import replace

import numpy as np
import pytest

from lab import catalog
from lab.check_ptx import check_ptx
from lab.choice import choose
from lab.problems import Attention
from lab.ptx_executor import Emulator
from lab.verify import compare, guarded_outputs, simulator, verify, workspaces
from sim.errors import InputError, ScheduleError
from sim.formats import decode, encode
from sim.machine import H100, H200
from tests.emulator.cases import CHIP

KERNEL = catalog.get("attention_fp8")
ONE_TERM = Attention(2, 6, 2, 128, 70, 300, kv="fp8", activations="fp8", lse=True, q_lens=(70, 5), kv_lens=(300, 131))
TWO_TERMS = replace(ONE_TERM, activations="bf16")
BOTH = pytest.mark.parametrize("problem", [ONE_TERM, TWO_TERMS], ids=["one", "two"])


def emulated(problem: Attention, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    launches = KERNEL.launches(problem, KERNEL.best_guess(problem, CHIP), CHIP)
    outputs = {name: inside for name, (_, inside) in guarded_outputs(launches).items()}
    Emulator(CHIP)(launches, {**inputs, **workspaces(launches), **outputs})
    return outputs


@BOTH
@pytest.mark.parametrize("changed", [{"turners": 1}, {"turners": 2, "stages": 2}, {"overlap": 0, "slack": 0}])
def test_every_schedule_is_right_and_counts_what_theory_says(problem: Attention, changed: dict[str, int]) -> None:
    schedule = replace(KERNEL.best_guess(problem, CHIP), **changed)
    found = check_ptx(KERNEL, problem, schedule, CHIP)
    assert found.passed, found
    assert verify(KERNEL, problem, schedule, CHIP, simulator(KERNEL, CHIP)).passed


@BOTH
def test_the_bound_notices_values_of_other_keys(problem: Attention) -> None:
    inputs = problem.draw(np.random.default_rng(0))
    wrong = {**inputs, "v": inputs["v"].copy()}
    wrong["v"][[2, 8]] = inputs["v"][[8, 2]]  # as they would be if keys were not in the order of the weights
    assert compare(problem, problem.reference(inputs), emulated(problem, inputs)).passed
    assert not compare(problem, problem.reference(inputs), emulated(problem, wrong)).passed


def test_bf16_queries_cost_two_products_each() -> None:
    counts = [KERNEL.module.theory(p, KERNEL.best_guess(p, H100), H100) for p in (ONE_TERM, TWO_TERMS)]
    assert counts[1].mma_flops == 2 * (counts[0].mma_flops or 0)
    assert counts[1].flops == counts[0].flops


def test_bf16_queries_are_kept_whole_however_large_they_are() -> None:
    """Powers of two that the scale of the scores takes back change no bit."""
    problem = Attention(1, 1, 1, 128, 17, 140, kv="fp8", scale=2.0**-4)
    inputs = problem.draw(np.random.default_rng(1))
    usual = emulated(problem, inputs)["y"]
    for power in (-60, 40):
        large = encode(decode(inputs["q"], "bf16") * np.float32(2.0**power), "bf16")
        other = replace(problem, scale=2.0 ** (-4 - power))
        np.testing.assert_array_equal(emulated(other, {**inputs, "q": large})["y"], usual)


def test_a_query_that_is_not_finite_makes_no_other_so() -> None:
    problem = Attention(1, 1, 1, 128, 17, 140, kv="fp8", causal=False)
    inputs = problem.draw(np.random.default_rng(2))
    for row, special in ((3, np.inf), (11, np.nan)):
        inputs["q"][row, 0, 5] = encode(np.array([special]), "bf16")[0]
    found = np.isfinite(decode(emulated(problem, inputs)["y"], "bf16")).all(axis=(1, 2))
    assert np.flatnonzero(~found).tolist() == [3, 11]


def test_prompts_are_multiplied_as_fp8_and_single_tokens_are_not() -> None:
    def chosen(q_len: int, **other: str) -> str:
        return choose(Attention(1, 32, 8, 128, q_len, 8192, kv="fp8", **other), H200)[0].name

    assert chosen(512) == chosen(8192) == chosen(512, activations="fp8") == chosen(1, activations="fp8") == KERNEL.name
    assert chosen(1) == chosen(8) == "attention_split_kv"


def test_what_has_no_room_or_no_meaning_is_refused() -> None:
    with pytest.raises(ScheduleError, match="two terms of weights leave no registers for an overlap; overlap = 1"):
        replace(KERNEL.best_guess(TWO_TERMS, H100), overlap=1).fits(TWO_TERMS, H100)
    with pytest.raises(InputError, match="takes head_dim 128 with kv in fp8, not 64"):
        KERNEL.require(replace(ONE_TERM, head_dim=64))
    with pytest.raises(InputError, match="activations are in fp32, fp16 or bf16, not fp8"):
        Attention(1, 1, 1, 128, 1, 1, activations="fp8")
