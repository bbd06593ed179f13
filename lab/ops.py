"""The front door for other programs: `linear(x, w)` on the arrays they have, where those arrays are.

CuPy and PyTorch arrays stay on the GPU, are not copied, and the work is enqueued on the caller's current stream; NumPy
arrays are computed on the simulated chip. The kernel and its schedule are chosen once for a shape: lab/choice.py.
"""

import sys
from collections.abc import Callable
from functools import lru_cache, partial
from math import prod
from threading import Lock
from typing import TYPE_CHECKING, Any, NamedTuple

import ml_dtypes
import numpy as np

from lab.choice import choose
from lab.gpu.parameters import ALIGNMENT, dense_strides
from lab.kernel import Kernel
from lab.problems import Linear
from lab.verify import simulator, workspaces
from lab.weights import Int4Weights
from sim.errors import InputError
from sim.formats import FORMATS
from sim.launch import Launch
from sim.machine import H100

if TYPE_CHECKING:
    from lab.gpu.launch import Prepared

# Formats by the names that NumPy, ml_dtypes, CuPy and PyTorch give element types. Unsigned integers carry bf16 and fp8.
_FORMATS = {
    "float32": "fp32",
    "float16": "fp16",
    "bfloat16": "bf16",
    "float8_e4m3fn": "fp8",
    "uint16": "bf16",
    "uint8": "fp8",
}
_DTYPES = {"fp32": np.dtype(np.float32), "fp16": np.dtype(np.float16), "bf16": np.dtype(ml_dtypes.bfloat16)} | {
    "fp8": np.dtype(ml_dtypes.float8_e4m3fn)
}
MOST_READY = 4096  # plans that repeated calls find at once
_SPOKEN = {"y": "out"}  # what a caller calls an operand, where that is not its name


class Operand(NamedTuple):
    """An array as a kernel sees it: where it is, its shape, its format."""

    pointer: int
    shape: tuple[int, ...]
    format: str


class Plan(NamedTuple):
    """A kernel made ready for one request, with its workspaces; the lock keeps two threads from binding at once.

    `nbytes` are those of each operand.
    """

    problem: Linear
    prepared: "Prepared"
    workspaces: dict[str, Any]
    lock: Lock
    nbytes: dict[str, int]


class Request(NamedTuple):
    """All that decides how a call runs; a plan is found by it. `kinds` are the name, shape and format of each array.

    `matrix` and `offset` are the shape of int4 weights, which their packed arrays do not tell, and how they are offset.
    """

    kinds: tuple[tuple[str, tuple[int, ...], str], ...]
    output: str  # "" for that of out, or the usual one
    swiglu: bool
    accumulate: str
    matrix: tuple[int, int] | None = None
    offset: str = "min"


def linear(
    x: Any,
    w: Any,
    out: Any = None,
    stream: int | None = None,
    *,
    residual: Any = None,
    swiglu: bool = False,
    x_scale: Any = None,
    w_scale: Any = None,
    y_scale: Any = None,
    output: str = "",
    accumulate: str = "",
) -> Any:
    """y[..., n] = x[..., k] @ w[n, k].T, as `torch.nn.functional.linear` without a bias, and what may follow it.

    Arrays are all CuPy's, all PyTorch CUDA tensors or all NumPy's, dense and row-major. x and w are float32, float16 or
    bfloat16 (uint16 bits in NumPy and CuPy count as bfloat16); beside bfloat16 x, w may be `lab.Int4Weights` or
    float8_e4m3fn (or uint8 bits), which may, with or without scales, also stand beside x of its own type. `residual`,
    in y's shape, is added; `swiglu` takes w in two halves of its rows, gate and up, and makes y[..., n / 2] =
    silu(gate) * up. `x_scale` and `w_scale` are float32, one element each or one for each row; `y_scale`, one element,
    divides an fp8 y. y has the type of `out`, else the format `output` (such as "fp8"), else x's type, or bfloat16
    where x is fp8. Products of fp8 are summed in the few bits that the tensor cores keep, with `accumulate="float32"`
    in float32.

    On the GPU arrays start at multiples of 16 bytes, nothing is copied, and the work runs on `stream` (a CUstream
    address) or on the current stream of PyTorch for its tensors, of CuPy otherwise, also while a graph is captured. No
    gradient flows. Returns out, which is made where it is None. Raises InputError in one sentence for anything else,
    NoDeviceError where the GPU cannot run a kernel for it.
    """
    plain = residual is x_scale is w_scale is y_scale is None and not (swiglu or output or accumulate)
    if plain and out is not None and _repeated(x, w, out, stream):
        return out
    on_host = isinstance(x, np.ndarray)
    describe = _describe_numpy if on_host else _describe_torch if _is_torch(x) else _describe_interface
    packed = isinstance(w, Int4Weights)
    arrays = {"x": x, "w": w.w, "w_scale": w.w_scale} if packed else {"x": x, "w": w}
    further = (("residual", residual), ("x_scale", x_scale), ("w_scale", w_scale), ("y_scale", y_scale), ("y", out))
    for name, array in further:
        if array is not None:
            if packed and name == "w_scale":
                raise InputError("int4 weights have scales of their own; w_scale has no place beside them")
            arrays[name] = array
    known = {"w": w.format, "w_scale": "fp16"} if packed else {}
    operands = {name: describe(array, _SPOKEN.get(name, name), known.get(name)) for name, array in arrays.items()}
    kinds = tuple([(name, shape, form) for name, (_, shape, form) in operands.items()])
    request = Request(kinds, output, swiglu, accumulate, *((w.shape, w.offset) if packed else ()))
    problem = _problem(request)
    if out is None:
        out = arrays["y"] = _empty(x, (*operands["x"].shape[:-1], problem.columns), problem.output)
        operands["y"] = describe(out, "out")
    _require_apart(operands)
    if on_host:
        _simulate(problem, arrays)
        return out
    if stream is None:
        stream = _current_stream(x)
    plan = _plan(request, stream)
    if plain:
        if len(_ready) >= MOST_READY:
            _ready.clear()
        _ready[_key(x, w, out, stream)] = Ready(plan, _torch_address if _is_torch(x) else _cupy_address)
    with plan.lock:
        plan.prepared.bind({name: operand.pointer for name, operand in operands.items()})(stream)
    return out


class Ready(NamedTuple):
    """A plan that plain calls on arrays of the same shapes and types find at once; `address` tells where such lie."""

    plan: Plan
    address: Callable[[Any], int]


_ready: dict[Any, Ready] = {}  # by what `_key` says of the arrays


def _key(x: Any, w: Any, out: Any, stream: int) -> Any:
    return x.shape, x.dtype, w.shape, w.dtype, out.shape, out.dtype, stream


def _repeated(x: Any, w: Any, out: Any, stream: int | None) -> bool:
    """Run a call that differs from an earlier one in addresses alone; False where that is not so, or not sure.

    What was checked of shapes and types is not checked again: a small layer's call is to cost the host little. Types of
    elements tell the libraries apart.
    """
    try:
        if stream is None:
            stream = _streams[type(x)]()
        plan, address = _ready[_key(x, w, out, stream)]
        arrays = {"x": x, "w": w.w, "w_scale": w.w_scale} if type(w) is Int4Weights else {"x": x, "w": w}
        pointers = {name: address(array) for name, array in arrays.items()}
        start = pointers["y"] = address(out)
    except (AttributeError, KeyError, TypeError):
        return False
    end = start + plan.nbytes["y"]
    for name, at in pointers.items():
        if not at or at % ALIGNMENT or (name != "y" and at < end and start < at + plan.nbytes[name]):
            return False
    with plan.lock:
        plan.prepared.bind(pointers)(stream)
    return True


def _torch_address(tensor: Any) -> int:
    """Where a dense tensor on GPU 0 lies; 0 for any other."""
    return int(tensor.data_ptr()) if tensor.get_device() == 0 and tensor.is_contiguous() else 0


def _cupy_address(array: Any) -> int:
    """Where a dense CuPy array lies; 0 for any other."""
    return int(array.data.ptr) if array.flags.c_contiguous else 0


@lru_cache(maxsize=4096)
def _problem(request: Request) -> Linear:
    """The problem of a request; raises InputError where its arrays do not belong together."""
    kinds = {name: (shape, form) for name, shape, form in request.kinds}
    (x_shape, x_format), (w_shape, w_format) = kinds["x"], kinds["w"]
    w_shape = request.matrix or w_shape
    if len(w_shape) != 2 or not x_shape:
        raise InputError(f"x must be [..., k] and w [n, k]; x is {list(x_shape)} and w is {list(w_shape)}")
    m, (n, k) = prod(x_shape[:-1]), w_shape
    if x_shape[-1] != k:
        raise InputError(f"x [..., k] and w [n, k] must share k; x is {list(x_shape)} and w is {list(w_shape)}")
    if request.swiglu and "residual" in kinds:
        raise InputError("a linear layer ends with a residual or with swiglu, not with both")
    output = kinds["y"][1] if "y" in kinds else request.output
    if request.output not in ("", output):
        raise InputError(f"out is in {output} and output asks for {request.output}")
    problem = Linear(
        m,
        n,
        k,
        weights=w_format,
        activations="fp8" if x_format == w_format == "fp8" else "",
        output=output,
        scales="none" if request.matrix else _scales({n: prod(shape) for n, (shape, _) in kinds.items()}, m, n),
        accumulate=request.accumulate,
        epilogue="swiglu" if request.swiglu else "residual" if "residual" in kinds else "none",
        offset=request.offset,
    )
    if problem.activations != x_format:
        raise InputError(f"w in {w_format} needs x in {problem.activations}; x is in {x_format}")
    y_shape = (*x_shape[:-1], problem.columns)
    wanted = {**{name: o[:2] for name, o in problem.inputs.items()}, "y": (y_shape, problem.output)}
    if unwanted := [name for name in kinds if name not in wanted]:
        raise InputError(f"{unwanted[0]} has no place here: x is in {x_format}, w in {w_format}, y in {problem.output}")
    if missing := [name for name in problem.inputs if name not in kinds]:
        raise InputError(f"{missing[0]} must be given where other scales are")
    for name in kinds.keys() - {"x", "w"}:
        have, (shape, form) = kinds[name], wanted[name]
        if name == "residual":
            shape = y_shape
        fits = prod(have[0]) == prod(shape) if name.endswith("scale") else have[0] == shape
        if not fits or have[1] != form:
            spoken = _SPOKEN.get(name, name)
            raise InputError(f"{spoken} must be {list(shape)} in {form}; it is {list(have[0])} in {have[1]}")
    return problem


def _scales(sizes: dict[str, int], m: int, n: int) -> str:
    """Whether the scales are of whole tensors or of rows; raises InputError where they are neither."""
    given = {name: (sizes[name], rows) for name, rows in (("x_scale", m), ("w_scale", n)) if name in sizes}
    if not given:
        return "none"
    if all(size == 1 for size, _ in given.values()):
        return "tensor"
    if all(size == rows for size, rows in given.values()):
        return "row"
    have = " and ".join(f"{name} has {size:,} for {rows:,} rows" for name, (size, rows) in given.items())
    raise InputError(f"scales have one element each, or one for each row; {have}")


def _require_apart(operands: dict[str, Operand]) -> None:
    """Raise InputError where y overlaps what is still read while it is written."""
    start, shape, form = operands["y"]
    end = start + _nbytes(shape, form)
    for name, (pointer, shape, form) in operands.items():
        if pointer < end and start < pointer + _nbytes(shape, form) and name != "y":
            raise InputError(f"out must not overlap {name}, which is still read while out is written")


@lru_cache(maxsize=4096)
def _nbytes(shape: tuple[int, ...], form: str) -> int:
    return FORMATS[form].storage.itemsize * prod(shape)


@lru_cache(maxsize=1024)
def _plan(request: Request, _stream: int) -> Plan:
    """One plan a request and stream: two streams must not share a workspace."""
    from lab.gpu.device import machine  # loaded on first use: the simulated chip needs no GPU library
    from lab.gpu.launch import Prepared, device_workspaces

    problem, target = _problem(request), machine()
    _, _, launches = choose(problem, target)
    prepared = Prepared(launches, target)
    scratch = device_workspaces(launches)
    prepared.bind({name: array.data.ptr for name, array in scratch.items()})
    described = {**problem.inputs, **problem.outputs}
    return Plan(problem, prepared, scratch, Lock(), {name: operand.nbytes for name, operand in described.items()})


@lru_cache(maxsize=1024)
def _simulated(problem: Linear) -> tuple[Kernel, tuple[Launch, ...]]:
    kernel, _, launches = choose(problem, H100)
    return kernel, launches


def _simulate(problem: Linear, arrays: dict[str, Any]) -> None:
    kernel, launches = _simulated(problem)
    described = {**problem.inputs, **problem.outputs}
    bits = {name: arrays[name].view(operand.storage).reshape(operand.shape) for name, operand in described.items()}
    simulator(kernel, H100)(launches, {**bits, **workspaces(launches)})


def _describe_numpy(array: Any, name: str, known: str | None = None) -> Operand:
    if not isinstance(array, np.ndarray):
        raise InputError(f"{name} must be a NumPy array as x is, not {_type_name(array)}")
    _require_dense(array.flags.c_contiguous, name)
    return Operand(array.__array_interface__["data"][0], array.shape, known or _format(array.dtype.name, name))


def _describe_torch(tensor: Any, name: str, known: str | None = None) -> Operand:
    if not _is_torch(tensor):
        raise InputError(f"{name} must be a PyTorch tensor as x is, not {_type_name(tensor)}")
    if not tensor.is_cuda:
        raise InputError(f"{name} is on the CPU; move it to the GPU, or pass NumPy arrays to the simulated chip")
    if tensor.get_device() != 0:
        raise InputError(
            f"{name} is on GPU {tensor.get_device()}; only GPU 0 is used (CUDA_VISIBLE_DEVICES chooses it)"
        )
    _require_dense(tensor.is_contiguous(), name)
    return _aligned(
        Operand(tensor.data_ptr(), tuple(tensor.shape), known or _format(str(tensor.dtype)[6:], name)), name
    )


def _describe_interface(array: Any, name: str, known: str | None = None) -> Operand:
    interface = getattr(array, "__cuda_array_interface__", None)
    if interface is None or _is_torch(array):
        raise InputError(f"{name} must be an array on the GPU, or all arrays NumPy's; it is {_type_name(array)}")
    shape, strides = interface["shape"], interface.get("strides")
    kind = str(getattr(array, "dtype", "")) or np.dtype(interface["typestr"]).name
    operand = Operand(interface["data"][0], shape, known or _format(kind, name))
    itemsize = FORMATS[operand.format].storage.itemsize
    _require_dense(strides is None or tuple(strides) == dense_strides(shape, itemsize), name)
    return _aligned(operand, name)


def _require_dense(dense: bool, name: str) -> None:
    if not dense:
        raise InputError(f"{name} must be dense and row-major; it is strided (make a contiguous copy)")


def _aligned(operand: Operand, name: str) -> Operand:
    if operand.pointer % ALIGNMENT:
        raise InputError(f"{name} must start at a multiple of {ALIGNMENT} B; it starts at {operand.pointer:#x}")
    return operand


def _format(kind: str, name: str) -> str:
    if kind not in _FORMATS:
        raise InputError(f"{name} must be in one of {', '.join(_FORMATS)}; it is in {kind}")
    return _FORMATS[kind]


def _is_torch(array: Any) -> bool:
    return hasattr(array, "data_ptr")


def _type_name(array: Any) -> str:
    return f"{type(array).__module__}.{type(array).__qualname__}"


def _empty(x: Any, shape: tuple[int, ...], form: str) -> Any:
    """An array beside x for results in a format: in x's own type where that is the format, else in the format's."""
    same = _FORMATS[str(x.dtype).removeprefix("torch.")] == form
    named = next(name for name, known in _FORMATS.items() if known == form)
    if _is_torch(x):
        return x.new_empty(shape, dtype=x.dtype if same else getattr(sys.modules["torch"], named))
    if isinstance(x, np.ndarray):
        own = x.dtype if same else FORMATS[form].storage if x.dtype.name.startswith("uint") else _DTYPES[form]
        return np.empty(shape, own)
    import cupy  # loaded on first use: the simulated chip needs no GPU library

    return cupy.empty(shape, x.dtype if same else FORMATS[form].storage)


_streams: dict[type, Callable[[], int]] = {}  # how the current stream is found, by the type of x


def _current_stream(x: Any) -> int:
    if type(x) not in _streams:
        _streams[type(x)] = _stream_finder(x)
    return _streams[type(x)]()


def _stream_finder(x: Any) -> Callable[[], int]:
    if _is_torch(x):
        return partial(sys.modules["torch"]._C._cuda_getCurrentRawStream, 0)  # a Stream object would cost a microsecond
    import cupy  # loaded on first use: the simulated chip needs no GPU library

    return lambda: int(cupy.cuda.get_current_stream().ptr)
