"""Parameters in memory, tensor maps in the hardware's terms, and what arrays are refused."""

import ctypes
import itertools
import struct
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab.gpu.parameters import MAP_ALIGNMENT, Parameters, dense_strides, pointer_of, tiled_map
from sim.errors import InputError
from sim.formats import FORMATS
from sim.launch import Array, Launch, Role, Scalar, TensorMap

X = Array("x", Role.IN, (5, 24), "bf16")
Y = Array("y", Role.OUT, (5, 3), "fp32")
MAP = TensorMap("x_map", "x", (5, 24), (24, 1), (2, 8), 128)


def launch_with(*arguments: Any) -> Launch:
    return Launch("k", "k", None, None, (1, 1, 1), (32, 1, 1), arguments)


def at(parameters: Parameters, index: int) -> int:
    return (ctypes.c_uint64 * (index + 1)).from_address(parameters.address)[index]


def test_scalars_pointers_and_maps_lie_where_the_table_says(fake: Any) -> None:
    scalars = (Scalar("m", -5), Scalar("big", 2**40, "int64"), Scalar("scale", 0.5, "float32"))
    parameters = Parameters(launch_with(scalars[0], MAP, X, scalars[1], scalars[2], Y))
    parameters.point("x", 0x1000)
    parameters.point("y", 0x2000)
    assert ctypes.string_at(at(parameters, 0), 4) == struct.pack("<i", -5)
    assert at(parameters, 1) % MAP_ALIGNMENT == 0
    assert ctypes.c_uint64.from_address(at(parameters, 2)).value == 0x1000
    assert ctypes.string_at(at(parameters, 3), 8) == struct.pack("<q", 2**40)
    assert ctypes.string_at(at(parameters, 4), 4) == struct.pack("<f", 0.5)
    assert ctypes.c_uint64.from_address(at(parameters, 5)).value == 0x2000
    (encoded,) = fake.encoded
    assert ctypes.string_at(at(parameters, 1), 128) == bytes([7] * 128)  # what the fake encodes
    assert encoded["pointer"] == 0x1000
    assert (encoded["dimensions"], encoded["strides"], encoded["box"]) == ([24, 5], [48], [8, 2])
    assert (encoded["element"].name, encoded["rank"]) == ("CU_TENSOR_MAP_DATA_TYPE_BFLOAT16", 2)
    assert encoded["steps"] == [1, 1]
    assert [mode.name.removeprefix("CU_TENSOR_MAP_") for mode in encoded["modes"]] == [
        "INTERLEAVE_NONE",
        "SWIZZLE_128B",
        "L2_PROMOTION_NONE",  # rows of 48 B
        "FLOAT_OOB_FILL_NONE",
    ]


def test_moving_an_array_changes_its_map_in_place(fake: Any) -> None:
    parameters = Parameters(launch_with(MAP, X))
    for pointer in (0x1000, 0x3000, 0x5000):
        parameters.point("x", pointer)
    assert [e["pointer"] for e in fake.encoded] == [0x1000]
    assert fake.replaced == [(at(parameters, 0), 0x3000), (at(parameters, 0), 0x5000)]


def test_every_format_and_swizzle_has_a_map(fake: Any) -> None:
    forms = [*FORMATS, "int32", "int64", "uint32", "uint8"]
    for form, swizzle in itertools.product(forms, (0, 32, 64, 128)):
        array, tensor_map = Array("x", Role.IN, (5, 64), form), TensorMap("m", "x", (5, 64), (64, 1), (2, 8), swizzle)
        Parameters(launch_with(tensor_map, array)).point("x", 0x1000)
        sizes = {"UINT8": 1, "UINT16": 2, "FLOAT16": 2, "BFLOAT16": 2, "FLOAT32": 4, "INT32": 4, "UINT32": 4}
        element = fake.encoded[-1]["element"].name.removeprefix("CU_TENSOR_MAP_DATA_TYPE_")
        assert sizes.get(element, 8) == array.storage.itemsize
        assert fake.encoded[-1]["modes"][2].name.endswith("L2_128B" if array.storage.itemsize > 1 else "NONE")


@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.sampled_from(["bf16", "fp32", "fp8", "int32"]))
def test_tiled_maps_reverse_the_order_and_count_bytes(shape: list[int], form: str) -> None:
    array = Array("x", Role.IN, tuple(shape), form)
    tiled = tiled_map(TensorMap("m", "x", tuple(shape), dense_strides(tuple(shape)), tuple(shape)), array)
    assert tiled.dimensions == tuple(reversed(shape))
    size = array.storage.itemsize
    assert len(tiled.strides) == len(shape) - 1
    for stride, inner in zip(tiled.strides, tiled.dimensions, strict=False):
        size *= inner
        assert stride == size


def test_a_map_whose_innermost_stride_is_not_one_is_refused() -> None:
    with pytest.raises(ValueError, match="innermost stride"):
        tiled_map(TensorMap("m", "x", (5, 12), (24, 2), (2, 8)), X)


def interface(shape: tuple[int, ...], typestr: str, pointer: int = 64, strides: Any = None) -> Any:
    described = {"shape": shape, "typestr": typestr, "data": (pointer, False), "strides": strides, "version": 3}
    return SimpleNamespace(__cuda_array_interface__=described)


def test_a_dense_array_gives_its_pointer() -> None:
    assert pointer_of(interface((5, 24), "<u2"), X) == 64
    assert pointer_of(interface((5, 24), "<V2", strides=(48, 2)), X) == 64


@pytest.mark.parametrize(
    ("array", "sentence"),
    [
        (interface((5, 25), "<u2"), "x must hold 240 B; it holds 250 B"),
        (interface((5, 24), "<u2", strides=(96, 4)), "x must be dense and row-major"),
        (interface((5, 24), "<u2", pointer=66), "x must start at a multiple of 16 B"),
    ],
)
def test_other_arrays_are_refused_in_one_sentence(array: Any, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        pointer_of(array, X)
