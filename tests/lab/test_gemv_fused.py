"""gemv_fused: right however its warps run, with every prologue and epilogue; norm and gate as problems of their own."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab import catalog
from lab.check_ptx import check_ptx
from lab.kernels.gemv.gemv_fused import Schedule
from lab.problems import Linear
from lab.problems.rmsnorm import RMSNorm
from lab.problems.swiglu import SwiGLU
from sim.formats import decode, encode
from tests.emulator.cases import CHIP, results
from tests.strategies import examples

KERNEL = catalog.get("gemv_fused")

HARD = (
    (Linear(1, 96, 576, norm=True), Schedule(1, 4, 1, 2, 3, 1)),  # a ring that goes round, columns left over
    (Linear(5, 64, 192, epilogue="residual"), Schedule(2, 2, 2, 2, 3, 1)),  # a token alone in its block
    (Linear(3, 128, 320, norm=True, epilogue="swiglu"), Schedule(4, 2, 1, 3, 2, 1)),  # gate and values in turn
    (Linear(2, 64, 320, "fp8", scales="row", norm=True, epilogue="swiglu"), Schedule(2, 2, 1, 2, 1, 1)),
    (Linear(1, 64, 192, "fp8", scales="tensor", epilogue="residual"), Schedule(1, 2, 1, 4, 4, 1)),
    (Linear(2, 64, 448, "int4_g128", norm=True), Schedule(2, 2, 1, 2, 2, 1)),  # half a packet, half a group
    (Linear(1, 64, 448, "int4_g32", offset="zero", epilogue="swiglu"), Schedule(1, 2, 1, 2, 2, 1)),
    (Linear(1, 32, 64), Schedule(1, 8, 2, 2, 5, 1)),  # less than a packet a warp, CTAs without work
)


@pytest.mark.parametrize(("problem", "schedule"), HARD, ids=str)
def test_the_ptx_is_right_however_the_warps_run(problem: Linear, schedule: Schedule) -> None:
    found = check_ptx(KERNEL, problem, schedule, CHIP, seeds=3)
    assert found.hazards == ()
    assert all(v.check.passed and v.disagreements == {} for v in found.verifications)


def test_the_order_of_the_sum_is_fixed() -> None:
    problem, schedule = HARD[0]
    assert len(results(KERNEL, problem, schedule, seeds=4)) == 1


@examples(20)
@given(m=st.integers(1, 4), halves=st.integers(1, 3), k=st.integers(1, 5), seed=st.integers(0, 2**32 - 1))
def test_norm_and_gate_are_those_of_the_problems_of_their_own(m: int, halves: int, k: int, seed: int) -> None:
    """Where each of three estimates is rounded as it leaves, the difference is within what these allow."""
    fused = Linear(m, 64 * halves, 64 * k, norm=True, epilogue="swiglu", eps=1e-4)
    arrays = fused.draw(np.random.default_rng(seed))
    norm = RMSNorm(m, fused.k, residual=False, eps=fused.eps)
    normed = norm.reference({"x": arrays["x"], "weight": arrays["norm"]})["y"].value
    plain = replace(fused, norm=False, epilogue="none", output="fp32")
    x = encode(normed.astype(np.float32), "bf16")
    both = plain.reference({"x": x, "w": arrays["w"]})["y"]
    gated = SwiGLU(m, fused.columns).reference({"gate_up": encode(both.value.astype(np.float32), "bf16")})["y"].value
    found = fused.reference(arrays)["y"]
    w = np.abs(decode(arrays["w"], "bf16"))
    of_x = 2.0**-8 * np.abs(normed) @ w.T + 2.0**-8 * np.abs(both.value)  # x, and the sums, in bf16
    gate, up = of_x[:, : fused.columns], of_x[:, fused.columns :]
    value = np.abs(both.value)
    allowed = 1.1 * gate * (value[:, fused.columns :] + up) + value[:, : fused.columns] * up
    assert (np.abs(found.value - gated) <= allowed + 2.0**-8 * np.abs(gated) + 2.0**-20).all()
