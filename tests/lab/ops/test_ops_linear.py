"""lab.linear on NumPy arrays runs the simulated chip; arrays that do not belong together are one sentence."""

from functools import partial
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lab
from lab import catalog
from lab.execute import plan
from lab.ops import kept, linear
from lab.ops.arrays import CUDA, TORCH, View, format_of
from lab.ops.calls import Calls, one_device, remember
from lab.ops.kept import Kept, finder, keep
from lab.ops.linear import LinearRequest, problem_of
from lab.problems import Linear
from sim.errors import InputError
from sim.machine import H100
from tests.strategies import compare_y

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
    assert compare_y(Linear(m, n, 8 * k), inputs, y.view(np.uint16)).passed


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
        (X, W[:0], None, "n must be from 1"),
        (X[:, :0].copy(), W[:, :0].copy(), None, "k must be from 1"),
        (X.astype(np.float32), W, None, "w in bf16 needs x in bf16; x is in fp32"),
        (X, W.astype(np.float64), None, "w must be in one of .*; it is in float64"),
        (X, W.tolist(), None, "w must be a NumPy array as the first is, not builtins.list"),
        (X.tolist(), W, None, "x must be an array on the GPU, or all arrays NumPy's"),
        (X, W, np.empty((4, 31), BF16), r"out must be \[4, 32\] in bf16; it is \[4, 31\]"),
        (X, W, np.empty((4, 32), np.float16), "no kernel takes this problem .* takes output bf16"),
        (X, X, X[:2, :].reshape(-1)[:16].reshape(4, 4), "out must not overlap x"),
    ],
)
def test_other_arrays_are_refused(x: Any, w: Any, out: Any, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        lab.linear(x, w, out)


def test_a_problem_that_no_kernel_takes_names_the_reason_of_each_kernel_for_such_problems() -> None:
    with pytest.raises(InputError, match="no kernel takes this problem on the H100 SXM 80 GB") as caught:
        plan(Linear(1, 8, 64, "fp8", activations="fp32"), H100)
    for kernel in catalog.kernels():
        assert (kernel.name in str(caught.value)) == (kernel.solves.problem is Linear)


FP8 = ml_dtypes.float8_e4m3fn
ONE, ROWS, COLUMNS = np.full(1, 0.5, np.float32), np.full(4, 0.5, np.float32), np.full(32, 2, np.float32)


def request(*, output: str = "", swiglu: bool = False, accumulate: str = "", **arrays: Any) -> Linear:
    """The problem that a call with these arrays poses."""
    kinds = tuple((name, array.shape, format_of(array, name)) for name, array in arrays.items())
    return problem_of(LinearRequest(kinds, output, swiglu, accumulate))


def test_operands_say_what_the_problem_is() -> None:
    x, w = X.astype(FP8), W.astype(FP8)
    residual = np.zeros((4, 32), BF16)
    assert request(x=X, w=W, residual=residual) == Linear(4, 32, 64, epilogue="residual")
    assert request(x=X.reshape(2, 2, 64), w=W, residual=residual.reshape(2, 2, 32)).residual
    assert request(x=X, w=W, swiglu=True).columns == 16
    assert request(x=x, w=w) == Linear(4, 32, 64, "fp8", "fp8")
    assert request(x=x, w=w, accumulate="float32").accumulate == "float32"
    assert request(x=x, w=w, x_scale=ONE, w_scale=ONE).scales == "tensor"
    assert request(x=x, w=w, x_scale=ONE.reshape(()), w_scale=ONE).scales == "tensor"
    assert request(x=x, w=w, x_scale=ROWS, w_scale=COLUMNS).scales == "row"
    assert request(x=x, w=w, x_scale=ROWS.reshape(4, 1), w_scale=COLUMNS.reshape(1, 32)).scales == "row"
    assert request(x=x[:1], w=w, x_scale=ONE, w_scale=COLUMNS).scales == "row"
    assert request(x=x, w=w, x_scale=ONE, w_scale=COLUMNS).scales == "channel"
    wide, tall = np.zeros((2, 2, 200), FP8), np.zeros((300, 200), FP8)
    blocks = {"x_scale": np.ones((2, 2, 2), np.float32), "w_scale": np.ones((3, 2), np.float32)}
    assert request(x=wide, w=tall, **blocks) == Linear(4, 300, 200, "fp8", "fp8", scales="block")
    assert request(x=X, w=w, w_scale=COLUMNS) == Linear(4, 32, 64, "fp8", scales="row")
    small = request(x=x, w=w, x_scale=ONE, w_scale=ONE, y_scale=ONE, output="fp8")
    assert small == Linear(4, 32, 64, "fp8", "fp8", "fp8", scales="tensor")
    assert request(x=x, w=w, x_scale=ONE, w_scale=ONE, y_scale=ONE, y=np.zeros((4, 32), FP8)) == small
    assert request(x=X, w=W, y=np.zeros((4, 32), np.uint8)).output == "fp8"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"residual": np.zeros((4, 31), BF16)}, r"residual must be \[4, 32\] in bf16; it is \[4, 31\] in bf16"),
        ({"residual": np.zeros((4, 32), np.float32)}, "residual must be .* in bf16; it is .* in fp32"),
        ({"residual": np.zeros((4, 16), BF16), "swiglu": True}, "with a residual or with swiglu, not with both"),
        ({"w": W.astype(FP8), "x_scale": ONE}, "x_scale has no place here: x is in bf16"),
        ({"x_scale": ONE}, "scales are for fp8 weights"),
        ({"x": X.astype(FP8), "w": W.astype(FP8), "x_scale": ONE}, "w_scale must be given where other scales are"),
        (
            {"x": X.astype(FP8), "w": W.astype(FP8), "x_scale": ROWS, "w_scale": ONE},
            "x_scale is .4. for 4 rows",
        ),
        ({"x": X.astype(FP8), "w": W.astype(FP8), "y_scale": ONE}, "y_scale has no place here"),
        (
            {"x": X.astype(FP8), "w": W.astype(FP8), "x_scale": ONE.astype(BF16), "w_scale": ONE},
            "x_scale must be .* fp32",
        ),
        ({"x": X.astype(FP8)}, "w in bf16 needs x in bf16; x is in fp8"),
        ({"y": np.zeros((4, 32), BF16), "output": "fp8"}, "out is in bf16 and output asks for fp8"),
        ({"output": "fp9"}, "unknown format 'fp9'"),
        ({"accumulate": "slow"}, "accumulate is float32, fast; got 'slow'"),
        ({"swiglu": True, "w": W[:31]}, "swiglu halves the rows of w, so n is even; n = 31"),
        ({"swiglu": True, "y": np.zeros((4, 32), BF16)}, r"out must be \[4, 16\] in bf16; it is \[4, 32\]"),
    ],
)
def test_operands_that_do_not_belong_together_are_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        request(**{"x": X, "w": W, **changes})


def close(y: Any, expected: Any) -> bool:
    """Within a rounding of bf16, and for small sums of the sums' own."""
    return np.allclose(y.astype(np.float64), expected, rtol=2.0**-7, atol=2.0**-7)


def test_epilogues_on_the_simulated_chip() -> None:
    x, w = drawn(9, 64, 128, seed=1)
    residual = drawn(9, 1, 64, seed=2)[0]
    products = x.astype(np.float64) @ w.astype(np.float64).T
    assert close(lab.linear(x, w, residual=residual), products + residual.astype(np.float64))
    gate, up = products[:, :32], products[:, 32:]
    assert close(lab.linear(x, w, swiglu=True), gate / (1 + np.exp(-gate)) * up)


def test_scales_on_the_simulated_chip() -> None:
    rng = np.random.default_rng(1)
    x, w = rng.standard_normal((5, 128)).astype(FP8), rng.standard_normal((48, 128)).astype(FP8)
    x_scale, w_scale = rng.uniform(0.5, 2, 5).astype(np.float32), rng.uniform(0.5, 2, 48).astype(np.float32)
    y = lab.linear(x, w, x_scale=x_scale, w_scale=w_scale)
    assert y.dtype == BF16
    products = x.astype(np.float64) @ w.astype(np.float64).T
    assert close(y, products * x_scale[:, None].astype(np.float64) * w_scale)


@pytest.mark.parametrize(("x_scale", "w_scale"), [(0.5, 4), (np.float32(0.5), np.int64(4)), (BF16(0.5), np.float64(4))])
def test_numbers_are_scales_of_whole_tensors(x_scale: Any, w_scale: Any) -> None:
    x, w = (array.astype(FP8) for array in (X, W))
    expected = lab.linear(x, w, x_scale=np.full(1, 0.5, np.float32), w_scale=np.full(1, 4, np.float32))
    assert np.array_equal(lab.linear(x, w, x_scale=x_scale, w_scale=w_scale), expected)


def test_a_number_stands_for_no_scales_of_the_rows_of_w() -> None:
    x, w = (array.astype(FP8) for array in (X, W))
    with pytest.raises(InputError, match=r"x_scale is \[4\] for 4 rows and w_scale is \[1\] for 32 rows"):
        lab.linear(x, w, x_scale=ROWS, w_scale=1.0)


def test_scales_of_blocks_on_the_simulated_chip() -> None:
    rng = np.random.default_rng(2)
    x, w = rng.standard_normal((2, 3, 256)).astype(FP8), rng.standard_normal((160, 256)).astype(FP8)
    x_scale = rng.uniform(0.5, 2, (2, 3, 2)).astype(np.float32)
    w_scale = rng.uniform(0.5, 2, (2, 2)).astype(np.float32)
    y = lab.linear(x, w, x_scale=x_scale, w_scale=w_scale, accumulate="float32")
    scaled = x.astype(np.float64) * np.repeat(x_scale, 128, axis=2)
    expected = scaled @ (w.astype(np.float64) * np.repeat(np.repeat(w_scale, 128, axis=0), 128, axis=1)[:160]).T
    assert close(y, expected)
    with pytest.raises(InputError, match="one for each block of 128; x_scale is"):
        lab.linear(x, w, x_scale=np.ones((6, 1), np.float32), w_scale=w_scale)


@pytest.mark.parametrize("lead", [(0,), (2, 0), (0, 3)])
@pytest.mark.parametrize("given", [False, True])
def test_no_rows_of_x_make_no_rows_of_y(lead: tuple[int, ...], given: bool) -> None:
    x = np.zeros((*lead, 64), BF16)
    out = np.empty((*lead, 32), BF16) if given else None
    y = lab.linear(x, W, out=out)
    assert (y.shape, y.dtype) == ((*lead, 32), BF16)
    assert out is None or y is out
    assert lab.linear(x, W, swiglu=True).shape == (*lead, 16)
    assert lab.linear(x, W, residual=np.zeros((*lead, 32), BF16)).shape == (*lead, 32)
    fp8, scales = x.astype(FP8), np.ones(0, np.float32)
    assert lab.linear(fp8, W.astype(FP8), x_scale=scales, w_scale=COLUMNS).shape == (*lead, 32)


@pytest.mark.parametrize(
    ("w", "out", "sentence"),
    [
        (W[:, :32].copy(), None, "must share k"),
        (W.astype(np.float16), None, "w in fp16 needs x in fp16; x is in bf16"),
        (W, np.empty((0, 31), BF16), r"out must be \[0, 32\] in bf16; it is \[0, 31\]"),
        (W, np.empty((1, 32), BF16), r"out must be \[0, 32\] in bf16; it is \[1, 32\]"),
    ],
)
def test_without_rows_the_rest_is_still_checked(w: Any, out: Any, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        lab.linear(X[:0], w, out=out)


class Tensor:
    """It looks like PyTorch's, on a GPU, as far as a repeated call looks."""

    def __init__(
        self, shape: tuple[int, ...], pointer: int, dense: bool = True, device: int = 0, dtype: str = "torch.bfloat16"
    ) -> None:
        self.shape, self.dtype = shape, dtype
        self.pointer, self.dense, self.device = pointer, dense, device

    def data_ptr(self) -> int:
        return self.pointer

    def is_contiguous(self) -> bool:
        return self.dense

    def stride(self) -> tuple[int, ...]:
        return (self.shape[-1] if self.dense else 1, 1)

    def get_device(self) -> int:
        return self.device


def cupy_like(pointer: int, shape: tuple[int, ...], dense: bool = True, dtype: str = "uint16") -> Any:
    """It looks like CuPy's, as far as a repeated call looks."""
    data = SimpleNamespace(ptr=pointer, device_id=0)
    return SimpleNamespace(data=data, shape=shape, dtype=np.dtype(dtype), _c_contiguous=dense)


@pytest.fixture
def nothing_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """No call is kept, and PyTorch's current stream on GPU d is 7 + d."""
    monkeypatch.setattr(kept, "raw_stream", lambda: lambda device: 7 + device)
    monkeypatch.setitem(kept._FIND, TORCH, kept._find_torch.__wrapped__)
    for name in ("_kept_beside", "_finders", "_libraries"):
        monkeypatch.setattr(linear, name, {})
    kept._OF_TORCH.clear()


@pytest.mark.usefixtures("nothing_kept")
def test_a_repeated_call_runs_at_once_and_what_differs_goes_the_long_way(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []
    x, w, y = Tensor((4, 64), 1 << 12), Tensor((32, 64), 1 << 16), Tensor((4, 32), 1 << 20)

    def long_way(array: Any) -> Any:
        raise LookupError(array)

    monkeypatch.setattr(linear, "library_of", long_way)
    linear._keep(TORCH, x, w, y, 7, partial(ran.append, "again"))
    same = Tensor(x.shape, x.pointer), Tensor(w.shape, w.pointer), Tensor(y.shape, y.pointer)
    assert lab.linear(x, w, out=y) is y
    assert lab.linear(*same, stream=7) is same[2]
    assert ran == ["again"] * 2
    others = (
        (Tensor((2, 128), 1 << 12), w, y),
        (Tensor((4, 64), 1 << 12, dense=False), w, y),
        (Tensor((4, 64), (1 << 12) + 16), w, y),
        (Tensor((4, 64), 1 << 12, device=1), w, y),
        (Tensor((4, 64), 1 << 12, dtype="torch.float16"), w, y),
        (x, Tensor((32, 64), 1 << 17), y),
        (x, Tensor((64, 32), 1 << 16), y),
        (x, Tensor((32, 64), 1 << 16, dense=False), y),
        (x, w, Tensor((4, 32), 1 << 21)),
        (x, w, Tensor((4, 32), 1 << 20, dtype="torch.float16")),
        (x, w, Tensor((128,), 1 << 20)),
        (np.zeros((4, 64)), w, y),
        (x, lab.pack(np.zeros((32, 64), np.float32), 32), y),  # its arrays are NumPy's
    )
    for other in others:
        with pytest.raises(LookupError):
            lab.linear(other[0], other[1], out=other[2])
    with pytest.raises(LookupError):
        lab.linear(x, w, out=y, stream=8)
    assert ran == ["again"] * 2


@pytest.mark.usefixtures("nothing_kept")
def test_one_buffer_serves_many_sizes() -> None:
    ran: list[int] = []
    w = Tensor((32, 64), 1 << 16)
    for rows in (4, 8):
        linear._keep(TORCH, Tensor((rows, 64), 16), w, Tensor((rows, 32), 32), 7, partial(ran.append, rows))
    for rows in (4, 8, 4):
        lab.linear(Tensor((rows, 64), 16), w, out=Tensor((rows, 32), 32), stream=7)
    assert ran == [4, 8, 4]


@pytest.mark.parametrize("place", range(3))
@pytest.mark.parametrize(
    "other",
    [
        cupy_like(1 << 13, (64, 64)),
        cupy_like(1 << 12, (32, 128)),
        cupy_like(1 << 12, (64, 64), dense=False),
        cupy_like(1 << 12, (64, 64), dtype="float16"),
    ],
)
def test_a_kept_call_of_cupy_arrays_tells_apart_what_it_depends_on(place: int, other: Any) -> None:
    calls: Kept = {}
    arrays = [cupy_like(1 << 12, (64, 64)) for _ in range(3)]
    keep(CUDA, *arrays, 7, int, calls)
    assert finder(CUDA)(*arrays, 7, calls) is int
    with pytest.raises(KeyError):
        finder(CUDA)(*arrays, 8, calls)
    arrays[place] = other
    with pytest.raises(KeyError):
        finder(CUDA)(*arrays, 7, calls)


@pytest.mark.usefixtures("nothing_kept")
def test_a_kept_call_on_int4_weights_knows_their_scales_and_their_order() -> None:
    def weights(scale: int, order: int = 0, zero_points: bool = False) -> lab.Int4Weights:
        packed = lab.pack(np.zeros((32, 128), np.float32), 32)
        arrays = {"w": packed.w, "w_scale": packed.w_scale} | (
            {"order": np.arange(128, dtype=np.int32)} if order else {}
        )
        fake = lab.Int4Weights(**arrays, shape=(32, 128), group=32, zero_points=zero_points)
        for name, pointer in (("w", 1 << 16), ("w_scale", scale), ("order", order)):
            if getattr(fake, name) is not None:
                object.__setattr__(fake, name, Tensor(getattr(fake, name).shape, pointer))
        return fake

    x, y, ran = Tensor((4, 128), 16), Tensor((4, 32), 32), []
    linear._keep(TORCH, x, weights(1 << 18, 1 << 19), y, 7, partial(ran.append, "again"))
    lab.linear(x, weights(1 << 18, 1 << 19), out=y, stream=7)
    assert ran == ["again"]
    for other in (
        weights(1 << 17, 1 << 19),
        weights(1 << 18, 1 << 20),
        weights(1 << 18),
        weights(1 << 18, 1 << 19, True),
    ):
        with pytest.raises(KeyError):
            linear._finders[lab.Int4Weights](x, other, y, 7)


@given(st.integers(1, 9), st.integers(1, 50))
def test_what_is_remembered_is_found_and_has_an_end(most: int, calls: int) -> None:
    ready: Calls = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lab.ops.calls.MOST_READY", most)
        for key in range(calls):
            call = partial(int, key)
            remember(ready, key, call)
            assert ready[key] is call
            assert len(ready) <= most


def test_arrays_of_two_gpus_are_refused() -> None:
    described = {"x": View(16, (4, 64), "bf16", 1), "w": View(16, (32, 64), "bf16", 0)}
    with pytest.raises(InputError, match="w is on GPU 0 and x on GPU 1"):
        one_device(described)
