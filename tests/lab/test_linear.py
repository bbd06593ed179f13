"""Linear layers: the reference against loops, bounds that hold and that can fail, what is refused."""

from collections.abc import Mapping
from dataclasses import replace
from math import exp
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from lab.problems import Linear
from lab.verify import Check, compare_output
from sim import int4
from sim.errors import InputError
from sim.formats import FORMATS, decode, encode

FORMS = ("fp32", "bf16", "fp16", "fp8")
SCALED = {"fp8": ("none", "tensor", "row")}  # and scales of channels, where x is fp8 too


@st.composite
def problems(draw: st.DrawFn) -> Linear:
    """Any combination of formats, scales and epilogue that means something."""
    weights = draw(st.sampled_from((*FORMS, "int4_g32", "int4_g64", "int4_g128")))
    activations = draw(st.sampled_from(["", *FORMS]))
    epilogue = draw(st.sampled_from(["none", "residual", "swiglu", "norm"]))
    return Linear(
        draw(st.integers(1, 6)),
        draw(st.integers(1, 6)) * (2 if epilogue == "swiglu" else 1),
        draw(st.integers(1, 200)),
        weights,
        activations,
        draw(st.sampled_from(["", *(form for form in FORMS if (form, epilogue) != ("fp8", "norm"))])),
        draw(st.sampled_from(SCALED.get(weights, ("none",)) + ("channel",) * (weights == activations == "fp8"))),
        draw(st.sampled_from(["float32", "fast"])) if activations == "fp8" else "float32",
        epilogue,
        draw(st.sampled_from(["min", "zero"])) if weights.startswith("int4") else "min",
        prologue=draw(st.sampled_from(["none", "norm"])),
        eps=draw(st.sampled_from([1e-5, 0.5])),
    )


def compare_y(problem: Linear, arrays: Mapping[str, NDArray], y: NDArray) -> Check:
    """One output beside its reference."""
    return compare_output(problem.reference(arrays)["y"], y, problem.output)


def by_loops(p: Linear, arrays: Mapping[str, NDArray]) -> NDArray[np.float64]:
    """y in Python floats, one element after the other, from the definition."""
    values = {
        n: decode(arrays[n], form).astype(np.float64) for n, (_, form, *_) in p.inputs.items() if "int4" not in form
    }
    if p.group:
        del values["w_scale"]
        values["w"] = int4.unpack(arrays["w"], arrays["w_scale"], p.n, p.k, p.group, p.zero_points).values

    def scale(name: str, i: int) -> float:
        return float(values[name][i if len(values[name]) > 1 else 0]) if name in values else 1.0

    def sum_of(i: int, j: int) -> float:
        total = sum(float(a) * float(b) for a, b in zip(values["x"][i], values["w"][j], strict=True))
        root = (sum(map(float, values["squares"][i])) / p.k + p.eps) ** 0.5 if p.rooted else 1.0
        return total * scale("x_scale", i) * scale("w_scale", j) / root

    y = np.empty((p.m, p.columns))
    for i in range(p.m):
        for j in range(p.columns):
            y[i, j] = sum_of(i, j)
            if p.swiglu:
                y[i, j] *= sum_of(i, p.columns + j) / (1 + exp(-y[i, j]))
            if p.residual or p.summed:
                y[i, j] += values["residual"][i, j]
            if p.summed:
                y[i, j] *= values["norm"][j]
    if "y_scale" in values:
        y /= values["y_scale"]
    return np.clip(y, -448, 448) if p.output == "fp8" else y


@given(problem=problems(), seed=st.integers(0, 99))
def test_the_reference_is_the_definition_and_its_rounding_passes(problem: Linear, seed: int) -> None:
    arrays = problem.draw(np.random.default_rng(seed))
    y = by_loops(problem, arrays)
    reference, bound = problem.reference(arrays)["y"]
    assert np.allclose(reference, y, rtol=1e-9, atol=1e-12)
    assert (bound > 0).all()
    assert compare_y(problem, arrays, encode(y, problem.output)).passed


@given(n=st.integers(1, 40), seed=st.integers(0, 99))
def test_two_layers_with_parts_of_a_norm_are_two_layers_and_a_norm(n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    first, second = Linear(2, n, 24, epilogue="norm"), Linear(2, 3, n, prologue="norm")
    given_first, given_second = first.draw(rng), second.draw(rng)
    made = first.reference(given_first)
    alone = Linear(2, n, 24, epilogue="residual").reference(given_first)["y"].value
    assert np.allclose(made["total"].value, alone, rtol=1e-12)
    normed = alone / np.sqrt((alone**2).mean(axis=1, keepdims=True) + second.eps) * decode(given_first["norm"], "bf16")
    expected = normed @ decode(given_second["w"], "bf16").astype(float).T
    found = second.reference(
        {**given_second, "x": encode(made["y"].value, "bf16"), "squares": made["total_squares"].value}
    )["y"].value
    size = np.abs(normed) @ np.abs(decode(given_second["w"], "bf16")).T
    assert (np.abs(found - expected) <= 2.0**-8 * size).all(), "x alone is rounded, to bf16"


@given(problem=problems(), seed=st.integers(0, 99), data=st.data())
def test_rows_are_those_of_the_whole(problem: Linear, seed: int, data: st.DataObject) -> None:
    arrays = problem.draw(np.random.default_rng(seed))
    step = data.draw(st.integers(1, problem.m))
    part, bound = problem.reference(arrays, slice(None, None, step))["y"]
    whole, its_bound = problem.reference(arrays)["y"]
    assert np.allclose(part, whole[::step], rtol=1e-12, atol=1e-12)
    assert np.allclose(bound, its_bound[::step], rtol=1e-5, atol=0)


@given(problem=problems(), seed=st.integers(0, 99), data=st.data())
def test_the_bound_rejects_one_element_that_is_off_by_a_little_more(
    problem: Linear, seed: int, data: st.DataObject
) -> None:
    arrays = problem.draw(np.random.default_rng(seed))
    reference, bound = problem.reference(arrays)["y"]
    at = data.draw(st.integers(0, problem.m - 1)), data.draw(st.integers(0, problem.columns - 1))
    wrong = reference.copy()
    wrong[at] -= np.copysign(2.5 * bound[at] + FORMATS[problem.output].smallest, reference[at])
    found = compare_y(problem, arrays, encode(wrong, problem.output))
    assert not found.passed
    assert found.first_mismatch == at


@pytest.mark.parametrize("accumulate", ["float32", "fast"])
@pytest.mark.parametrize("k", [512, 4096])
def test_a_k_step_that_is_left_out_shows_in_fp8(accumulate: str, k: int) -> None:
    problem = Linear(32, 32, k, "fp8", "fp8", accumulate=accumulate)
    arrays = problem.draw(np.random.default_rng(0))
    x = decode(arrays["x"], "fp8")
    x[:, 128:256] = 0
    y = x @ decode(arrays["w"], "fp8").T
    assert compare_y(problem, arrays, encode(y, "bf16")).mismatches > 0.1 * y.size


@pytest.mark.parametrize("k", [128, 1024, 4096])
@pytest.mark.parametrize("promotion", [128, None])
def test_sums_cut_as_the_tensor_cores_cut_them_keep_the_bound(k: int, promotion: int | None) -> None:
    problem = Linear(16, 16, k, "fp8", "fp8", "fp32", accumulate="float32" if promotion else "fast")
    arrays = problem.draw(np.random.default_rng(k))
    x, w = (decode(arrays[name], "fp8").astype(np.float64) for name in ("x", "w"))
    total, partial = np.zeros((16, 16), np.float32), np.zeros((16, 16))
    for at in range(0, k, 32):
        partial = cut_sum(partial, x[:, None, at : at + 32] * w[None, :, at : at + 32])
        if (at + 32) % (promotion or k) == 0:
            total, partial = total + partial.astype(np.float32), np.zeros((16, 16))
    found = compare_y(problem, arrays, total)
    assert found.passed
    assert found.error > 0.01, "the bound is not out of all proportion"
    if promotion is None and k > 128:
        float32 = compare_y(replace(problem, accumulate="float32"), arrays, total)
        assert float32.error > 2 * found.error


def cut_sum(partial: NDArray[np.float64], products: NDArray[np.float64]) -> NDArray[np.float64]:
    """An fp8 wgmma: every term and the result cut to 13 bits below the largest exponent, towards zero."""
    terms = np.concatenate([partial[..., None], products], axis=-1)
    largest = np.abs(terms).max(axis=-1, keepdims=True)
    quantum = np.exp2(np.floor(np.log2(largest)) - 13)
    total = (np.trunc(terms / quantum) * quantum).sum(axis=-1)
    mantissa, exponent = np.frexp(total)
    kept: NDArray[np.float64] = np.ldexp(np.trunc(np.ldexp(mantissa, 14)), exponent - 14)
    return kept


def test_fp8_outputs_saturate_and_tiny_ones_have_an_absolute_error() -> None:
    problem = Linear(1, 2, 1, "fp8", "fp8", "fp8")
    large = {"x": encode(np.array([[64.0]]), "fp8"), "w": encode(np.array([[64.0], [-64.0]]), "fp8")}
    y, bound = problem.reference(large)["y"]
    assert y.tolist() == [[448, -448]]
    assert compare_y(problem, large, encode(y, "fp8")).passed
    tiny = {"x": encode(np.array([[2.0**-9]]), "fp8"), "w": encode(np.array([[2.0**-2], [0.5]]), "fp8")}
    y, bound = problem.reference(tiny)["y"]
    assert (bound >= 2.0**-10).all()
    assert compare_y(problem, tiny, encode(y, "fp8")).passed


def test_blocks_of_128_by_128_have_scales_of_their_own() -> None:
    problem = Linear(3, 130, 200, "fp8", "fp8", scales="block", accumulate="float32")
    arrays = problem.draw(np.random.default_rng(0))
    assert arrays["x_scale"].shape == (3, 2)
    assert arrays["w_scale"].shape == (2, 2)
    x, w = decode(arrays["x"], "fp8").astype(np.float64), decode(arrays["w"], "fp8").astype(np.float64)
    expected = np.zeros((3, 130))
    for row, column, at in np.ndindex(3, 130, 200):
        scale = float(arrays["x_scale"][row, at // 128]) * float(arrays["w_scale"][column // 128, at // 128])
        expected[row, column] += scale * x[row, at] * w[column, at]
    y, bound = problem.reference(arrays)["y"]
    assert (np.abs(y - expected) <= 1e-12 * np.abs(expected).max()).all()
    assert compare_y(problem, arrays, encode(expected, "bf16")).passed
    arrays["w_scale"][1, 1] *= 2
    assert (np.abs(problem.reference(arrays)["y"].value - y) > bound)[:, 128:].any()


@given(problem=problems())
def test_a_problem_survives_its_dictionary(problem: Linear) -> None:
    words: dict[str, Any] = problem.as_dict()
    assert words.pop("kind") == "linear"
    assert {"m", "n", "k", "weights"} <= words.keys()
    assert Linear(**words) == problem


def test_what_the_weights_imply_is_not_written_down() -> None:
    assert Linear(1, 2, 3).as_dict() == {"kind": "linear", "m": 1, "n": 2, "k": 3, "weights": "bf16"}
    assert "activations" not in Linear(1, 2, 3, "fp16", "fp16", "fp16").as_dict()
    assert Linear(1, 2, 3, "fp8", "fp8").as_dict()["activations"] == "fp8"


@given(problem=problems())
def test_compulsory_bytes_are_each_array_once(problem: Linear) -> None:
    arrays = problem.draw(np.random.default_rng(0))
    assert problem.read_bytes == sum(a.nbytes for a in arrays.values())
    y = problem.m * problem.columns * FORMATS[problem.output].storage.itemsize
    assert problem.write_bytes == (2 * y + problem.m * -(-problem.n // 8) * 4 if problem.summed else y)
    assert problem.bytes["total"] == problem.read_bytes + problem.write_bytes


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"m": 0}, "m must be from 1 to 2,147,483,647; m = 0"),
        ({"k": 2**31}, "k must be from 1 to 2,147,483,647; k = 2,147,483,648"),
        ({"weights": "int3"}, "unknown format 'int3'"),
        ({"activations": "fp4"}, "unknown format 'fp4'"),
        ({"output": "half"}, "unknown format 'half'"),
        ({"scales": "column", "weights": "fp8"}, "scales is none, tensor, row, channel, block; got 'column'"),
        ({"accumulate": "fp16"}, "accumulate is float32, fast; got 'fp16'"),
        ({"epilogue": "gelu"}, "epilogue is none, residual, swiglu, norm; got 'gelu'"),
        (
            {"order": "given", "weights": "int4_g32", "prologue": "norm"},
            "an order goes with neither swiglu nor the parts of a norm",
        ),
        ({"prologue": "gelu"}, "prologue is none, norm; got 'gelu'"),
        ({"prologue": "norm", "eps": 0.0}, r"eps must be between 0 and 1; eps = 0\.0"),
        (
            {"epilogue": "norm", "output": "fp8", "weights": "fp8", "scales": "row"},
            "a norm's sum and product are not in fp8: one scale does not serve both",
        ),
        ({"activations": "int4_g32"}, "activations are in fp32, fp16, bf16 or fp8, not int4_g32"),
        ({"offset": "max", "weights": "int4_g32"}, "offset is min, zero; got 'max'"),
        ({"offset": "zero"}, "zero points are for int4 weights; weights = bf16"),
        ({"scales": "row"}, "scales are for fp8 weights; weights = bf16"),
        ({"scales": "block", "weights": "fp8"}, "scales of blocks are for fp8 activations too; activations = bf16"),
        (
            {"scales": "channel", "weights": "fp8"},
            "scales of channels.* are for fp8 activations too",
        ),
        (
            {"scales": "block", "weights": "fp8", "activations": "fp8", "epilogue": "swiglu"},
            "scales of blocks, which may be gate and up at once, do not go with swiglu",
        ),
        ({"accumulate": "fast"}, "fast accumulation is for fp8 activations; activations = bf16"),
        ({"epilogue": "swiglu", "n": 7}, "swiglu halves the rows of w, so n is even; n = 7"),
    ],
)
def test_what_means_nothing_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Linear(**({"m": 2, "n": 4, "k": 8} | fields))


@pytest.mark.parametrize("m", [1, 100, 3000])
def test_a_part_is_affordable_and_keeps_the_ragged_edge(m: int) -> None:
    problem = Linear(m, 20_011, 8192)
    part = problem.part(1e9)
    assert part.k == problem.k
    assert part.flops <= 1e9 or (part.m <= 256 and part.n <= 256)
    assert (part.n - problem.n) % 128 == 0
    assert part.m == problem.m or (part.m - problem.m) % 128 == 0
    small = Linear(3, 5, 8)
    assert small.part(1e9) == small
