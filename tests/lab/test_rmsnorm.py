"""RMSNorm: its reference is the definition, its new residual has one right value, special values go through."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lab import catalog
from lab.problems.protocol import SPECIALS
from lab.problems.rmsnorm import RMSNorm
from lab.verify import compare, simulator, verify
from sim.errors import InputError
from sim.formats import decode, encode
from sim.machine import H100

KERNEL = catalog.get("rmsnorm")


@given(m=st.integers(1, 9), n=st.integers(1, 40), residual=st.booleans(), seed=st.integers(0, 99))
def test_the_reference_is_the_definition(m: int, n: int, residual: bool, seed: int) -> None:
    problem = RMSNorm(m, n, residual=residual)
    arrays = problem.draw(np.random.default_rng(seed))
    values = {name: decode(bits, "bf16").astype(float) for name, bits in arrays.items()}
    total = values["x"] + values["residual"] if residual else values["x"]
    total = decode(encode(total.astype(np.float32), "bf16"), "bf16").astype(float)
    found = problem.reference(arrays)
    for row in range(m):
        root = np.sqrt(sum(h * h for h in total[row]) / n + problem.eps)
        np.testing.assert_allclose(found["y"].value[row], total[row] / root * values["weight"], rtol=1e-12)
    if residual:
        np.testing.assert_array_equal(found["total"].value, total)
        assert not found["total"].error.any()


@pytest.mark.parametrize("special", SPECIALS)
def test_special_values_go_through_the_kernel_as_through_the_reference(special: str) -> None:
    problem = RMSNorm(40, 512)
    inputs = problem.draw(np.random.default_rng(0), special)
    schedule = KERNEL.best_guess(problem, H100)
    outputs = {name: np.zeros(operand.shape, operand.storage) for name, operand in problem.outputs.items()}
    simulator(KERNEL, H100)(KERNEL.launches(problem, schedule, H100), {**inputs, **outputs})
    found = compare(problem, problem.reference(inputs), outputs)
    assert found.passed, found


@settings(max_examples=20)
@given(name=st.sampled_from(["y", "total"]), row=st.integers(0, 2), column=st.integers(0, 63))
def test_one_wrong_element_of_either_output_is_found(name: str, row: int, column: int) -> None:
    problem = RMSNorm(3, 64)
    execute = simulator(KERNEL, H100)

    def wrong(launches, arrays):
        counts = execute(launches, arrays)
        arrays[name][row, column] ^= 0x0200
        return counts

    found = verify(KERNEL, problem, KERNEL.best_guess(problem, H100), H100, wrong)
    assert not found.passed
    assert (found.check.mismatched, found.check.first_mismatch) == (name, (row, column))


def test_what_means_nothing_is_refused() -> None:
    with pytest.raises(InputError, match="activations are in fp32, fp16 or bf16, not fp8"):
        RMSNorm(1, 8, "fp8")
    with pytest.raises(InputError, match="eps must be between 0 and 1"):
        RMSNorm(1, 8, eps=0)
    with pytest.raises(InputError, match="n must be from 1 to"):
        RMSNorm(1, 0)
