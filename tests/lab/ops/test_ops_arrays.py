"""What libraries call an element type, judged alike for all; arrays that no kernel can take are one sentence each."""

from math import prod
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lab
from lab.ops import arrays
from lab.ops.arrays import CUDA, FORMATS_OF, NUMPY, TORCH, View, format_of, is_number, library_of, pitch_of, single
from sim import int4
from sim.errors import InputError
from sim.formats import FORMATS, encode

BF16, FP8 = np.dtype(ml_dtypes.bfloat16), np.dtype(ml_dtypes.float8_e4m3fn)
KNOWN = [np.dtype(t) for t in (np.float32, np.float16, np.uint16, np.uint8)] + [BF16, FP8]
UNKNOWN = [
    *(np.dtype(t) for t in "?bhilqILQdgFDGOSUVMm"),
    np.dtype([("a", np.float32)]),
    np.dtype(ml_dtypes.float8_e5m2),
    np.dtype(ml_dtypes.float8_e4m3),
    np.dtype(ml_dtypes.int4),
]


@pytest.mark.parametrize("dtype", KNOWN, ids=str)
def test_a_known_type_has_a_format_of_its_size(dtype: np.dtype) -> None:
    form = NUMPY.describe(np.zeros((2, 3), dtype), "x").format
    assert FORMATS[form].storage.itemsize == dtype.itemsize
    assert form == format_of(tensor(dtype=f"torch.{dtype.name}"), "x") == format_of(device_array(dtype=dtype), "x")


@pytest.mark.parametrize("dtype", UNKNOWN, ids=str)
def test_any_other_type_is_refused(dtype: np.dtype) -> None:
    for array in (np.zeros((2, 3), dtype), tensor(dtype=f"torch.{dtype.name}"), device_array(dtype=dtype)):
        with pytest.raises(InputError, match=r"x must be in one of float32, .*; it is in "):
            library_of(array).describe(array, "x")


@pytest.mark.parametrize("dtype", [np.dtype(t) for t in (">f4", ">f2", ">u2")], ids=str)
def test_the_other_byte_order_is_refused_wherever_an_array_can_stand(dtype: np.dtype) -> None:
    own = dtype.newbyteorder("=")
    x, w, out = np.zeros((1, 64), own), np.zeros((8, 64), own), np.zeros((1, 8), own)
    refused = "must be in this machine's byte order; its elements are >"
    for name, call in {
        "x": lambda: lab.linear(x.astype(dtype), w),
        "w": lambda: lab.linear(x, w.astype(dtype)),
        "out": lambda: lab.linear(x, w, out=out.astype(dtype)),
        "residual": lambda: lab.linear(x, w, residual=out.astype(dtype)),
        "weights to pack": lambda: lab.pack(w.astype(dtype), 64),
    }.items():
        with pytest.raises(InputError, match=f"^{name} {refused}"):
            call()
    with pytest.raises(InputError, match=f"^w {refused}"):
        CUDA.describe(device_array(typestr=dtype.str, dtype="uint16"), "w")


@pytest.mark.parametrize("dtype", [np.float32, BF16, FP8])
def test_an_output_that_cannot_be_written_is_refused(dtype: Any) -> None:
    x, w, out = np.zeros((1, 64), dtype), np.zeros((16, 64), dtype), np.zeros((1, 16), dtype)
    for fixed in (out, x, w):
        fixed.flags.writeable = False
    with pytest.raises(InputError, match=r"^out is read-only$"):
        lab.linear(x, w, out=out)
    NUMPY.describe(x, "x")  # what is only read may be read-only
    with pytest.raises(InputError, match=r"^out is read-only$"):
        CUDA.describe(device_array(read_only=True), "out", written=True)


def test_masked_arrays_are_refused() -> None:
    x = np.ma.masked_array(np.ones((1, 64), np.float32), np.eye(1, 64))
    with pytest.raises(InputError, match="x is masked"):
        lab.linear(x, np.ones((8, 64), np.float32))


def device_array(pointer: int = 256, read_only: bool = False, strides: Any = None, **changes: Any) -> Any:
    dtype = changes.get("dtype", np.dtype(np.uint16))
    typestr = changes.get("typestr", getattr(dtype, "str", "<u2"))
    interface = {"shape": (4, 64), "typestr": typestr, "data": (pointer, read_only), "strides": strides, "version": 3}
    return SimpleNamespace(__cuda_array_interface__=interface, dtype=dtype)


@pytest.fixture
def second_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every address is in the memory of GPU 1."""
    monkeypatch.setattr(arrays, "device_of", lambda _: 1)


@pytest.mark.usefixtures("second_gpu")
@pytest.mark.parametrize(
    ("array", "sentence"),
    [
        (device_array(258), "x must start at a multiple of 16 B; it starts at 0x102"),
        (device_array(strides=(256, 2)), "x must be dense and row-major"),
        (np.zeros((4, 64), np.uint16), "x must be an array on the GPU, or all arrays NumPy's; it is numpy.ndarray"),
    ],
)
def test_device_arrays_are_described_without_a_device(array: Any, sentence: str) -> None:
    assert CUDA.describe(device_array(strides=(128, 2)), "x") == View(256, (4, 64), "bf16", 1)
    assert CUDA.describe(device_array(0), "x").device is None  # without elements it lies nowhere
    with pytest.raises(InputError, match=sentence):
        CUDA.describe(array, "x")


def tensor(**changes: Any) -> Any:
    facts = {"where": "cuda", "device": 1, "dense": True, "pointer": 256, "dtype": "torch.bfloat16", **changes}

    def data_ptr() -> Any:
        if facts["pointer"] is None:
            raise RuntimeError("Cannot access data pointer of Tensor")
        return facts["pointer"]

    return SimpleNamespace(
        is_cuda=facts["where"] == "cuda",
        device=SimpleNamespace(type=facts["where"]),
        shape=(4, 64),
        dtype=facts["dtype"],
        layout=facts.get("layout", "torch.strided"),
        get_device=lambda: facts["device"],
        is_contiguous=lambda: facts["dense"],
        stride=lambda: (64 if facts["dense"] else 128, 1),
        data_ptr=data_ptr,
        numel=lambda: 256,
    )


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"where": "cpu"}, "w is on the CPU"),
        ({"where": "xpu"}, "w is on .*; kernels run on CUDA devices"),
        ({"where": "meta", "pointer": 0}, "w is a tensor without data; where only shapes are traced, call torch.ops"),
        ({"pointer": None}, "w is a tensor without data"),
        ({"layout": "torch.sparse_csr"}, "w must be dense and row-major; its layout is torch.sparse_csr"),
        ({"dense": False}, "w must be dense"),
        ({"pointer": 8}, "w must start at a multiple of 16 B"),
    ],
)
def test_tensors_are_described_without_pytorch(changes: dict[str, Any], sentence: str) -> None:
    assert TORCH.describe(tensor(), "w") == View(256, (4, 64), "bf16", 1)
    with pytest.raises(InputError, match=sentence):
        TORCH.describe(tensor(**changes), "w")


@pytest.mark.parametrize(
    ("x", "form", "dtype"),
    [
        (BF16, "bf16", BF16),
        (BF16, "fp8", FP8),
        (FP8, "bf16", BF16),
        (np.uint16, "fp8", np.uint8),
        (np.uint8, "bf16", np.uint16),
        (np.float32, "fp32", np.float32),
    ],
)
def test_results_are_made_in_the_kind_of_types_that_x_has(x: Any, form: str, dtype: Any) -> None:
    assert NUMPY.empty(np.zeros((4, 64), x), (2, 3), form).dtype == dtype


@given(st.floats(width=32))
def test_a_float32_stays_what_it_is(value: float) -> None:
    assert is_number(value)
    assert single(value, "x_scale").tobytes() == np.float32(value).tobytes()


@pytest.mark.parametrize("value", [1e39, -1e300, 1e-46, 10**400, -(10**400)])
def test_a_number_that_float32_does_not_have_is_refused(value: Any) -> None:
    with pytest.raises(InputError, match="x_scale must be a number that float32 has; it is "):
        single(value, "x_scale")


def test_an_array_that_only_has_an_interface_is_known_by_it() -> None:
    for typestr, form in (("<f4", "fp32"), ("<u2", "bf16")):
        array = device_array(typestr=typestr)
        del array.dtype
        assert format_of(array, "x") == form
    array.__cuda_array_interface__["typestr"] = "<f1"
    with pytest.raises(InputError, match="it is in <f1"):
        format_of(array, "x")


@pytest.mark.parametrize("value", [True, np.bool_(True), 1j, np.complex64(1), "1", b"1", None, [1.0]])
def test_what_is_no_number_is_none(value: Any) -> None:
    assert not is_number(value)


@pytest.mark.parametrize("element", ["float32", "float16", "bfloat16", "uint16"])
def test_every_library_packs_the_same_types_to_the_same_bits(element: str) -> None:
    values = np.random.default_rng(0).standard_normal((16, 64)).astype(np.float32)
    bits = encode(values, FORMATS_OF[element])
    dtype = {"bfloat16": BF16, "uint16": np.uint16}.get(element, np.dtype(element))
    packed = lab.pack(bits.view(dtype), 64)
    whole = SimpleNamespace(numpy=lambda: bits if element == "uint16" else bits.view(dtype).astype(np.float32))
    whole.float = whole.resolve_neg = lambda: whole
    there = tensor(dtype=f"torch.{element}")
    there.detach = lambda: SimpleNamespace(cpu=lambda: whole)
    assert np.array_equal(
        int4.quantise(arrays.host_floats(there), 64).q, int4.unpack(packed.w, packed.w_scale, 16, 64, 64).q
    )


@pytest.mark.parametrize("element", ["uint8", "int32", "bool", "complex64", "float64", "float8_e4m3fn", "int16"])
def test_no_library_packs_other_types(element: str) -> None:
    dtype = {"float8_e4m3fn": FP8}.get(element, np.dtype(element) if element != "float8_e4m3fn" else None)
    for array in (np.ones((16, 64), dtype), tensor(dtype=f"torch.{element}"), device_array(dtype=dtype)):
        with pytest.raises(InputError, match=f"float32, float16 or bfloat16; these are in {element}"):
            lab.pack(array, 64)


@pytest.mark.parametrize("shape", [(0, 64), (16, 0), (0, 0)])
def test_weights_without_rows_or_columns_are_refused(shape: tuple[int, int]) -> None:
    with pytest.raises(InputError, match=r"weights to pack are \[n, k\], n and k at least 1; these are \["):
        lab.pack(np.zeros(shape, np.float32), 64)


@pytest.mark.parametrize(("w", "w_scale"), [(np.float32, np.uint16), (np.uint8, np.float32), (np.uint16, np.uint16)])
def test_packed_weights_of_other_types_are_refused(w: Any, w_scale: Any) -> None:
    packed = lab.pack(np.ones((16, 64), np.float32), 64)
    with pytest.raises(InputError, match=r"packed w(_scale)? must be in one of "):
        lab.Int4Weights(packed.w.astype(w), packed.w_scale.astype(w_scale), packed.shape, packed.group)


@given(
    shape=st.lists(st.integers(1, 3), min_size=2, max_size=4),
    cuts=st.lists(st.tuples(st.integers(0, 2), st.sampled_from([1, 1, 2]), st.sampled_from([1, 1, -1])), min_size=4),
)
def test_a_pitch_leads_from_each_row_to_the_next_or_there_is_none(
    shape: list[int], cuts: list[tuple[int, int, int]]
) -> None:
    view = np.arange(prod(3 * extent for extent in shape)).reshape([3 * extent for extent in shape])
    for axis, (extent, (start, step, order)) in enumerate(zip(shape, cuts, strict=False)):
        here = [slice(None)] * axis
        view = view[(*here, slice(start, start + step * extent, step))][(*here, slice(None, None, order))]
    rows = view.reshape(-1, prod(shape[-2:]))
    starts, row = rows[:, :1], np.arange(rows.shape[1])
    apart = np.diff(starts[:, 0])
    even = (rows == starts + row).all() and (apart == apart[:1]).all() and (apart >= row.size).all()
    if even:
        assert pitch_of(view.shape, view.strides, view.itemsize, "x", rows=True) == next(iter(apart), 0)
    for allowed in {False, not even}:
        if len(apart) or not even:
            with pytest.raises(InputError, match="x must be dense"):
                pitch_of(view.shape, view.strides, view.itemsize, "x", rows=allowed)
