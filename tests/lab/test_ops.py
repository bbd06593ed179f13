"""lab.linear on NumPy arrays runs the simulated chip; every array that cannot be taken is refused in one sentence."""

from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lab
from lab import catalog, ops
from lab.problems import Linear
from lab.verify import compare
from sim.errors import InputError
from sim.formats import FORMATS
from sim.machine import A100, H100
from sim.predict import predict_us

BF16 = ml_dtypes.bfloat16


def drawn(m: int, n: int, k: int, seed: int = 0) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((m, k)).astype(BF16), rng.standard_normal((n, k)).astype(BF16)


@settings(max_examples=15)
@given(st.integers(1, 9), st.integers(1, 40), st.integers(1, 40), st.integers(0, 99))
def test_the_result_is_right_in_the_type_of_x(m: int, n: int, k: int, seed: int) -> None:
    x, w = drawn(m, n, 8 * k, seed)
    y = lab.linear(x, w)
    assert (y.shape, y.dtype) == ((m, n), x.dtype)
    inputs = {"x": x.view(np.uint16), "w": w.view(np.uint16)}
    assert compare(Linear(m, n, 8 * k), inputs, y.view(np.uint16)).passed


def test_leading_dimensions_stay_and_out_is_filled() -> None:
    x, w = drawn(6, 24, 64)
    out = np.full((2, 3, 24), np.nan, BF16)
    assert lab.linear(x.reshape(2, 3, 64), w, out=out) is out
    assert np.array_equal(out.reshape(6, 24).view(np.uint16), lab.linear(x, w).view(np.uint16))
    assert lab.linear(x[0], w).shape == (24,)


def test_uint16_bits_are_bfloat16() -> None:
    x, w = drawn(2, 16, 64)
    y = lab.linear(x.view(np.uint16), w.view(np.uint16))
    assert y.dtype == np.uint16
    assert np.array_equal(y, lab.linear(x, w).view(np.uint16))


X, W = drawn(4, 32, 64)


@pytest.mark.parametrize(
    ("x", "w", "out", "sentence"),
    [
        (X[:, ::2], W, None, "x must be dense and row-major"),
        (X, W.T, None, "w must be dense and row-major"),
        (X, W[:, :32].copy(), None, "must share k"),
        (X, W[0], None, r"x must be \[..., k\] and w \[n, k\]"),
        (X[:0], W, None, "m must be from 1"),
        (X.astype(np.float32), W, None, "w in bf16 needs x in bf16; x is in fp32"),
        (X, W.astype(np.float64), None, "w must be in one of .*; it is in float64"),
        (X, W.tolist(), None, "w must be a NumPy array as x is, not builtins.list"),
        (X.tolist(), W, None, "x must be an array on the GPU, or all arrays NumPy's"),
        (X, W, np.empty((4, 31), BF16), r"out must be \[4, 32\] in bf16; it is \[4, 31\]"),
        (X, W, np.empty((4, 32), np.float32), "in bf16; it is .* in fp32"),
        (X, X, X[:2, :].reshape(-1)[:16].reshape(4, 4), "out must not overlap x"),
    ],
)
def test_other_arrays_are_refused(x: Any, w: Any, out: Any, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        ops.linear(x, w, out)


def test_a_problem_that_no_kernel_takes_names_each_kernels_reason() -> None:
    formats = {name for kernel in catalog.kernels() for name in kernel.solves.weights}
    missing = next(name for name in FORMATS if name not in formats)
    with pytest.raises(InputError, match="no kernel takes this problem on the H100 SXM 80 GB") as caught:
        ops.choose(Linear(1, 8, 64, missing), H100)
    assert all(kernel.name in str(caught.value) for kernel in catalog.kernels())


def device_array(pointer: int = 256, strides: Any = None, dtype: str = "uint16") -> Any:
    interface = {"shape": (4, 64), "typestr": "<u2", "data": (pointer, False), "strides": strides, "version": 3}
    return SimpleNamespace(__cuda_array_interface__=interface, dtype=dtype)


@pytest.mark.parametrize(
    ("array", "sentence"),
    [
        (device_array(258), "x must start at a multiple of 16 B; it starts at 0x102"),
        (device_array(strides=(256, 2)), "x must be dense and row-major"),
        (device_array(dtype="int64"), "x must be in one of"),
    ],
)
def test_device_arrays_are_described_without_a_device(array: Any, sentence: str) -> None:
    assert ops._describe_interface(device_array(strides=(128, 2)), "x") == ops.Operand(256, (4, 64), "bf16")
    with pytest.raises(InputError, match=sentence):
        ops._describe_interface(array, "x")


def tensor(**changes: Any) -> Any:
    facts = {"cuda": True, "device": 0, "dense": True, "pointer": 256, "dtype": "torch.bfloat16", **changes}
    return SimpleNamespace(
        is_cuda=facts["cuda"],
        shape=(4, 64),
        dtype=facts["dtype"],
        get_device=lambda: facts["device"],
        is_contiguous=lambda: facts["dense"],
        data_ptr=lambda: facts["pointer"],
    )


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"cuda": False}, "w is on the CPU"),
        ({"device": 1}, "w is on GPU 1; only GPU 0 is used"),
        ({"dense": False}, "w must be dense"),
        ({"pointer": 8}, "w must start at a multiple of 16 B"),
        ({"dtype": "torch.int32"}, "w must be in one of .*; it is in int32"),
    ],
)
def test_tensors_are_described_without_pytorch(changes: dict[str, Any], sentence: str) -> None:
    assert ops._describe_torch(tensor(), "w") == ops.Operand(256, (4, 64), "bf16")
    with pytest.raises(InputError, match=sentence):
        ops._describe_torch(tensor(**changes), "w")


@pytest.mark.parametrize("m", [1, 4096])
def test_the_choice_has_the_smallest_predicted_time(m: int) -> None:
    problem = Linear(m, 4096, 4096)

    def predicted(kernel: Any, machine: Any) -> float:
        schedule = kernel.best_guess(problem, machine)
        ctas = sum(launch.ctas for launch in kernel.launches(problem, schedule, machine))
        return predict_us(kernel.module.theory(problem, schedule, machine), "bf16", machine, ctas)

    for machine in (A100, H100):
        chosen, _, launches = ops.choose(problem, machine)
        assert launches
        assert chosen.solves.runs_on(machine.arch)
        running = [k for k in catalog.kernels() if k.solves.runs_on(machine.arch)]
        able = [k for k in running if not k.solves.refusal(problem)]
        assert predicted(chosen, machine) == min(predicted(k, machine) for k in able)
