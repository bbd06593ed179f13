"""Arrays of other programs: what NumPy, PyTorch and CuPy call an element type, and where an array lies.

Element types are judged here and nowhere else: a name that is not in `FORMATS_OF`, or the wrong byte order, is refused.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from math import prod
from typing import Any, NamedTuple, Protocol

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from lab.gpu.parameters import ALIGNMENT, dense_strides, device_of
from sim.errors import InputError
from sim.formats import FORMATS, decode, storage_of

# Formats by the names that NumPy, ml_dtypes, CuPy and PyTorch give element types. Unsigned integers carry bits.
FORMATS_OF = {
    "float32": "fp32",
    "float16": "fp16",
    "bfloat16": "bf16",
    "float8_e4m3fn": "fp8",
    "uint16": "bf16",
    "uint8": "fp8",
}
INDEX = "int32"  # of lengths, starts and page numbers
_CARRIERS = {1: ("uint8", "int8"), 2: ("uint16", "int16", "float16")}  # element types of packed arrays, by their bytes
_DTYPES = {"fp32": np.dtype(np.float32), "fp16": np.dtype(np.float16), "bf16": np.dtype(ml_dtypes.bfloat16)} | {
    "fp8": np.dtype(ml_dtypes.float8_e4m3fn)
}

_SWAPPED = ">" if sys.byteorder == "little" else "<"  # how the array interface marks the other byte order


class View(NamedTuple):
    """An array as a kernel sees it: its address, shape and format, and the number of its GPU, None on the host.

    `pitch` is how many elements lie from one row of its last two axes to the next, 0 where it is dense.
    """

    pointer: int
    shape: tuple[int, ...]
    format: str
    device: int | None = None
    pitch: int = 0


class Library(Protocol):
    """How one library's arrays are looked at."""

    def describe(self, array: Any, name: str, packed: str = "", written: bool = False, rows: bool = False) -> View:
        """An array as a kernel sees it; raises InputError where no kernel can take it, or write to it.

        `packed` is the format of arrays whose element type only carries bits, or INDEX. With `rows` those of the last
        two axes need not lie one behind another, if they are evenly apart.
        """

    def empty(self, like: Any, shape: tuple[int, ...], form: str) -> Any:
        """An array beside `like` for results in a format, of its element type where that has this format."""

    def columns(self, array: Any, order: Any) -> Any:
        """A new array[..., order], made on the library's current stream."""

    def number(self, value: float, name: str, device: int | None, count: int = 1) -> tuple[Any, View]:
        """So many float32 of this value, where the library's arrays lie, and how a kernel sees them."""

    def place(self, array: Any) -> tuple[int, int]:
        """(the number of its GPU, the CUstream address of the library's current stream there), in few instructions."""

    def identity(self, *arrays: Any) -> tuple[Any, ...]:
        """What a call depends on of each array: address, shape, type of elements, strides where it is not dense."""


def library_of(array: Any) -> Library:
    """The library whose array this is."""
    return NUMPY if isinstance(array, np.ndarray) else TORCH if _is_torch(array) else CUDA


def element_of(array: Any, name: str) -> str:
    """NumPy's name of an array's element type; raises InputError for another byte order than this machine's."""
    dtype = getattr(array, "dtype", None)
    if dtype is None:
        dtype = getattr(array, "__cuda_array_interface__", {}).get("typestr", _type_name(array))
        with suppress(TypeError):  # it stays the text that NumPy does not understand
            dtype = np.dtype(dtype)
    if isinstance(dtype, np.dtype):
        if not dtype.isnative:
            raise InputError(f"{name} must be in this machine's byte order; its elements are {dtype.str}")
        return dtype.name
    return str(dtype).removeprefix("torch.")


def format_of(array: Any, name: str, packed: str = "") -> str:
    """The format of an array's elements; raises InputError for any that no kernel knows."""
    element = element_of(array, name)
    legal = tuple(FORMATS_OF)
    if packed:
        legal = (INDEX,) if packed == INDEX else _CARRIERS[FORMATS[packed].storage.itemsize]
    if element not in legal:
        one_of = "one of " if len(legal) > 1 else ""
        raise InputError(f"{name} must be in {one_of}{', '.join(legal)}; it is in {element}")
    return packed or FORMATS_OF[element]


def is_number(value: Any) -> bool:
    """Whether it is a real number: Python's, or a scalar of NumPy's or of ml_dtypes."""
    if isinstance(value, np.generic) and value.dtype.name in FORMATS_OF:
        return True
    return isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)


def single(value: Any, name: str) -> np.float32:
    """A number in float32; raises InputError where it becomes infinite or zero there."""
    try:
        with np.errstate(over="ignore", under="ignore"):
            rounded, exact = np.float32(value), float(value)
    except OverflowError:
        rounded, exact = np.float32(np.inf), 1.0
    if np.isinf(rounded) != np.isinf(exact) or (rounded == 0) != (exact == 0):
        raise InputError(f"{name} must be a number that float32 has; it is {value!r:.40}")
    return rounded


def host_floats(array: Any) -> NDArray[np.float32]:
    """A float matrix of any library as float32 on the host; uint16 bits count as bfloat16.

    Raises InputError for element types other than float32, float16 and bfloat16.
    """
    element = element_of(array, "weights to pack")
    if isinstance(array, np.ma.MaskedArray):
        raise InputError("weights to pack are masked; all of an array is packed: fill it first")
    if FORMATS_OF.get(element) not in ("fp32", "fp16", "bf16"):
        raise InputError(f"weights to pack are in float32, float16 or bfloat16; these are in {element}")
    if _is_torch(array):
        if str(array.layout) != "torch.strided":
            raise InputError(f"the matrix to pack must be dense; its layout is {array.layout}")
        _require_data(array, "the matrix to pack")
        here = array.detach().cpu().resolve_neg()  # which NumPy does not know
        found: Any = here.numpy() if element == "uint16" else here.float().numpy()
    elif isinstance(array, np.ndarray | np.generic):
        found = array
    else:
        with _on_gpu_of(array) as cupy:
            found = cupy.asarray(array).get()
    if found.dtype.name in ("bfloat16", "uint16"):
        found = decode(found.view(np.uint16), "bf16")
    return np.ascontiguousarray(found, np.float32)


def beside(array: NDArray, like: Any) -> Any:
    """A copy of a NumPy array in the library and on the device of `like`, itself where that is None or NumPy's."""
    if like is None or isinstance(like, np.ndarray):
        return array
    if _is_torch(like):
        signed = array.view(np.int16) if array.dtype == np.uint16 else array  # PyTorch has few unsigned types
        return sys.modules["torch"].from_numpy(signed).to(like.device)
    with _on_gpu_of(like) as cupy:
        return cupy.asarray(array)


class _NumPy:
    """Arrays on the host, for the simulated chip."""

    def describe(self, array: Any, name: str, packed: str = "", written: bool = False, rows: bool = False) -> View:
        if not isinstance(array, np.ndarray):
            raise InputError(f"{name} must be a NumPy array as the first is, not {_type_name(array)}")
        if isinstance(array, np.ma.MaskedArray):
            raise InputError(f"{name} is masked; kernels take all of an array: fill it first")
        form = format_of(array, name, packed)
        pitch = 0 if array.flags.c_contiguous else pitch_of(array.shape, array.strides, array.itemsize, name, rows)
        if written and not array.flags.writeable:
            raise InputError(f"{name} is read-only")
        return View(array.__array_interface__["data"][0], array.shape, form, pitch=pitch)

    def empty(self, like: Any, shape: tuple[int, ...], form: str) -> Any:
        if FORMATS_OF[like.dtype.name] == form:
            return np.empty(shape, like.dtype)
        return np.empty(shape, FORMATS[form].storage if like.dtype.name.startswith("uint") else _DTYPES[form])

    def columns(self, array: Any, order: Any) -> Any:
        return np.take(array, order, axis=-1)

    def number(self, value: float, name: str, device: int | None, count: int = 1) -> tuple[Any, View]:  # noqa: ARG002
        array = np.full(count, single(value, name))
        return array, self.describe(array, name)

    def place(self, array: Any) -> tuple[int, int]:  # noqa: ARG002
        raise TypeError("the host has no GPU and no stream")

    def identity(self, *arrays: Any) -> tuple[Any, ...]:  # noqa: ARG002
        raise TypeError("nothing of a call on the host is kept")


class _OnDevice:
    """What the libraries of GPU arrays share: numbers become constants that stay on the GPU for good."""

    def number(self, value: float, name: str, device: int | None, count: int = 1) -> tuple[Any, View]:
        from lab.gpu.launch import constant  # loaded on first use: the simulated chip needs no GPU library

        array = constant(float(single(value, name)), device, count)
        return array, View(array.data.ptr, (count,), "fp32", device)


class _Torch(_OnDevice):
    """PyTorch tensors on a GPU."""

    def describe(
        self,
        array: Any,
        name: str,
        packed: str = "",
        written: bool = False,  # noqa: ARG002
        rows: bool = False,
    ) -> View:
        if not _is_torch(array):
            raise InputError(f"{name} must be a PyTorch tensor as the first is, not {_type_name(array)}")
        form = format_of(array, name, packed)
        if array.device.type == "cpu":
            raise InputError(f"{name} is on the CPU; move it to the GPU, or pass NumPy arrays to the simulated chip")
        pointer = _require_data(array, name)
        if not array.is_cuda:
            raise InputError(f"{name} is on {array.device}; kernels run on CUDA devices")
        if str(array.layout) != "torch.strided":
            raise InputError(f"{name} must be dense and row-major; its layout is {array.layout}")
        shape = tuple(array.shape)
        pitch = 0 if array.is_contiguous() else pitch_of(shape, array.stride(), 1, name, rows)
        return _aligned(View(pointer, shape, form, array.get_device(), pitch), name)

    def empty(self, like: Any, shape: tuple[int, ...], form: str) -> Any:
        if FORMATS_OF[str(like.dtype).removeprefix("torch.")] == form:
            return like.new_empty(shape)
        return like.new_empty(shape, dtype=getattr(sys.modules["torch"], _DTYPES[form].name))

    def columns(self, array: Any, order: Any) -> Any:
        return array.index_select(-1, order)

    def place(self, array: Any) -> tuple[int, int]:
        device = array.get_device()
        return device, raw_stream()(device)

    def identity(self, *arrays: Any) -> tuple[Any, ...]:
        return tuple([(a.data_ptr(), a.shape, a.dtype, a.is_contiguous() or a.stride()) for a in arrays])


class _Cuda(_OnDevice):
    """CuPy's arrays, and all others with `__cuda_array_interface__`."""

    def describe(self, array: Any, name: str, packed: str = "", written: bool = False, rows: bool = False) -> View:
        interface = getattr(array, "__cuda_array_interface__", None)
        if interface is None or _is_torch(array):
            raise InputError(f"{name} must be an array on the GPU, or all arrays NumPy's; it is {_type_name(array)}")
        if interface["typestr"].startswith(_SWAPPED):
            raise InputError(f"{name} must be in this machine's byte order; its elements are {interface['typestr']}")
        form = format_of(array, name, packed)
        (pointer, read_only), shape = interface["data"], tuple(interface["shape"])
        strides = interface.get("strides")
        itemsize = storage_of(form).itemsize
        dense = strides is None or tuple(strides) == dense_strides(shape, itemsize)
        pitch = 0 if dense else pitch_of(shape, strides, itemsize, name, rows)
        if written and read_only:
            raise InputError(f"{name} is read-only")
        return _aligned(View(pointer, shape, form, _gpu_of(array), pitch), name)

    def empty(self, like: Any, shape: tuple[int, ...], form: str) -> Any:
        same = FORMATS_OF[element_of(like, "x")] == form
        with _on_gpu_of(like) as cupy:
            return cupy.empty(shape, like.dtype if same else FORMATS[form].storage)

    def columns(self, array: Any, order: Any) -> Any:
        with _on_gpu_of(array) as cupy:
            return cupy.take(cupy.asarray(array), order, axis=-1)

    def place(self, array: Any) -> tuple[int, int]:
        device = array.data.device_id
        return device, _cupy().cuda.get_current_stream(device).ptr

    def identity(self, *arrays: Any) -> tuple[Any, ...]:
        return tuple([(a.data.ptr, a.shape, a.dtype, a.strides) for a in arrays])


NUMPY, TORCH, CUDA = _NumPy(), _Torch(), _Cuda()


@cache
def _cupy() -> Any:
    import cupy  # loaded on first use: the simulated chip needs no GPU library

    return cupy


@cache
def raw_stream() -> Callable[[int], int]:
    """What gives the current CUstream of a GPU as PyTorch knows it; a Stream object would cost a microsecond."""
    found: Callable[[int], int] = sys.modules["torch"]._C._cuda_getCurrentRawStream
    return found


def _gpu_of(array: Any) -> int | None:
    """The number of the GPU that an array lies on; None where it has no elements, so lies nowhere."""
    pointer = array.__cuda_array_interface__["data"][0]
    return device_of(pointer) if pointer else None


@contextmanager
def _on_gpu_of(array: Any) -> Iterator[Any]:
    """CuPy, with the GPU of an array as the current one."""
    cupy = _cupy()
    with cupy.cuda.Device(_gpu_of(array)):
        yield cupy


def _is_torch(array: Any) -> bool:
    return hasattr(array, "data_ptr")


def _type_name(array: Any) -> str:
    return f"{type(array).__module__}.{type(array).__qualname__}"


def _require_data(tensor: Any, name: str) -> int:
    """The address of a tensor; raises InputError for one that only stands for a shape, as tracing makes them."""
    try:
        pointer = int(tensor.data_ptr())
    except RuntimeError:
        pointer = 0
    if not pointer and tensor.numel():
        raise InputError(
            f"{name} is a tensor without data; where only shapes are traced, call torch.ops.lab.linear "
            "or torch.ops.lab.attention"
        )
    return pointer


def pitch_of(shape: tuple[int, ...], strides: Sequence[int], unit: int, name: str, rows: bool) -> int:
    """Elements, of `unit` strides, from one row of the last two axes of an array to the next.

    Raises InputError where rows must lie one behind another, are not dense themselves, or not evenly apart.
    """
    steps = [(extent, stride // unit) for extent, stride in zip(shape, strides, strict=True)]
    pitch, behind = 0, 1  # behind: rows that the axes seen so far have
    for extent, step in reversed(steps[:-2]):
        if extent > 1:
            pitch = pitch or step
            rows &= step == pitch * behind
        behind *= extent
    row = dense_strides(shape[-2:])
    rows &= all(extent == 1 or step == dense for (extent, step), dense in zip(steps[-2:], row, strict=True))
    require_dense(rows and (behind == 1 or pitch >= prod(shape[-2:])), name)
    return pitch


def require_dense(dense: bool, name: str) -> None:
    """Raise InputError where an array is not dense and row-major."""
    if not dense:
        raise InputError(f"{name} must be dense and row-major; it is strided (make a contiguous copy)")


def _aligned(operand: View, name: str) -> View:
    alignment = storage_of(INDEX).itemsize if operand.format == INDEX else ALIGNMENT
    if operand.pointer % alignment:
        raise InputError(f"{name} must start at a multiple of {alignment} B; it starts at {operand.pointer:#x}")
    return operand
