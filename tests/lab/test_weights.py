"""int4 weights as other programs hand them over: packed where they are, taken by lab.linear, refused."""

from typing import Any

import ml_dtypes
import numpy as np
import pytest

import lab
from lab.ops import calls
from lab.ops import linear as ops_linear
from lab.problems import Linear
from sim import int4
from sim.errors import InputError
from tests.strategies import compare_y

BF16 = ml_dtypes.bfloat16


def activations(m: int, k: int) -> Any:
    return np.random.default_rng(0).standard_normal((m, k)).astype(BF16)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, BF16])
@pytest.mark.parametrize("group", [32, 64, 128])
def test_floats_are_packed_as_they_are_quantised(dtype: Any, group: int) -> None:
    values = np.random.default_rng(1).standard_normal((48, 192)).astype(dtype)
    w = lab.pack(values, group)
    expected = int4.quantise(values.astype(np.float32), group)
    back = int4.unpack(w.w, w.w_scale, *w.shape, w.group)
    assert np.array_equal(back.q, expected.q)
    assert (w.shape, w.format, w.offset) == ((48, 192), f"int4_g{group}", "min")
    if dtype is BF16:
        assert np.array_equal(lab.pack(values.view(np.uint16), group).w, w.w)


@pytest.mark.parametrize(("m", "zero_points"), [(1, False), (3, True), (40, False)])
def test_one_packed_copy_serves_every_batch(m: int, zero_points: bool) -> None:
    problem = Linear(m, 40, 128, "int4_g64", offset="zero" if zero_points else "min")
    drawn = problem.draw(np.random.default_rng(m))
    groups = int4.unpack(drawn["w"], drawn["w_scale"], 40, 128, 64, zero_points)
    w, x = lab.Int4Weights.of(groups), drawn["x"].view(BF16)
    y = lab.linear(x, w)
    assert (y.shape, y.dtype) == ((m, 40), x.dtype)
    assert compare_y(problem, drawn, y.view(np.uint16)).passed
    out = np.empty((m, 40), BF16)
    assert lab.linear(x, w, out=out) is out
    assert np.array_equal(out.view(np.uint16), y.view(np.uint16))


@pytest.mark.parametrize("m", [1, 4, 5, 40])
def test_an_act_order_layer_takes_x_in_its_own_order(m: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Groups of columns that lie apart are those of a matrix that is the same in any order."""
    rng = np.random.default_rng(m)
    n, k, group = 24, 128, 32
    g_idx = rng.permutation(np.arange(k) // group).astype(np.int32)
    qweight = rng.integers(0, 2**32, (k // 8, n), np.uint32).view(np.int32)
    qzeros = rng.integers(0, 2**32, (k // group, n // 8), np.uint32).view(np.int32)
    groups = int4.from_gptq(qweight, qzeros, np.full((k // group, n), 0.25, np.float16), g_idx=g_idx)
    assert groups.order is not None
    asked = []

    def simulated(problem: Linear) -> Any:
        asked.append(problem)
        return calls.simulated(problem)

    monkeypatch.setattr(ops_linear, "simulated", simulated)
    w = lab.Int4Weights.of(groups)
    x = activations(m, k)
    expected = (x.astype(np.float32) @ groups.values.T).astype(np.float64)
    assert np.abs(lab.linear(x, w).astype(np.float64) - expected).max() <= 2.0**-8 * np.abs(expected).max()
    (problem,) = asked
    assert problem.order == ("given" if m <= ops_linear.GATHERED else "same")
    with pytest.raises(InputError, match=r"must share k; x is \[1, 64\] and w is \[24, 128\]"):
        lab.linear(activations(1, 64), w)
    with pytest.raises(InputError, match=r"order is \[128\], a column each; it is \[127\]"):
        lab.Int4Weights(w.w, w.w_scale, w.shape, w.group, True, groups.order[1:])


def test_what_cannot_be_taken_is_refused() -> None:
    values = np.zeros((32, 64), np.float32)
    w = lab.pack(values, 32)
    with pytest.raises(InputError, match="groups are of 32, 64 or 128 columns; got 48"):
        lab.pack(values, 48)
    with pytest.raises(InputError, match=r"weights to pack are \[n, k\], n and k at least 1; these are \[2048\]"):
        lab.pack(values.reshape(-1))
    with pytest.raises(InputError, match="float32, float16 or bfloat16; these are in float64"):
        lab.pack(values.astype(np.float64))
    with pytest.raises(InputError, match="must be finite"):
        lab.pack(np.full((32, 64), np.inf, np.float32))
    with pytest.raises(InputError, match="groups are of 32, 64 or 128 columns; got 0"):
        lab.Int4Weights(w.w, w.w_scale, (32, 64), 0)
    for shape in ((32, 64, 1), (32.0, 64), (-32, -64)):
        with pytest.raises(InputError, match="a shape of two positive integers"):
            lab.Int4Weights(w.w, w.w_scale, shape, 32)
    with pytest.raises(InputError, match=r"n and k at least 1; these are \[1\]"):
        lab.pack(np.float32(1))
    with pytest.raises(InputError, match="are masked"):
        lab.pack(np.ma.masked_array(values, values == 0))
    with pytest.raises(InputError, match=r"packed weights \[65, 64\] are"):
        lab.Int4Weights(w.w, w.w_scale, (65, 64), 32)
    with pytest.raises(InputError, match="int4 weights have scales of their own"):
        lab.linear(activations(1, 64), w, w_scale=np.ones(1, np.float32))
    with pytest.raises(InputError, match=r"must share k; x is \[1, 32\] and w is \[32, 64\]"):
        lab.linear(activations(1, 32), w)
    with pytest.raises(InputError, match="w in int4_g32 needs x in bf16; x is in fp16"):
        lab.linear(activations(1, 64).astype(np.float16), w)


def test_quantising_costs_what_the_format_says() -> None:
    """Against float32 weights: an error of half a step for each weight, of random sign."""
    rng = np.random.default_rng(5)
    values, x = rng.standard_normal((64, 512), np.float32), activations(8, 512)
    y = lab.linear(x, lab.pack(values, 128)).astype(np.float32)
    exact = x.astype(np.float32) @ values.T
    step = np.repeat(int4.quantise(values, 128).scale.astype(np.float32), 128, axis=1)
    expected = np.sqrt((step**2).mean() / 12 / (values**2).mean())  # uniform within half a step
    off = np.linalg.norm(y - exact) / np.linalg.norm(exact)
    assert expected / 1.5 < off < 1.5 * expected
