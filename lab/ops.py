"""The front door for other programs: `linear(x, w)` on the arrays they have, where those arrays are.

CuPy and PyTorch arrays stay on the GPU, are not copied, and the work is enqueued on the caller's current stream; NumPy
arrays are computed on the simulated chip. The kernel and its schedule are chosen by predicted time, once for a shape.
"""

import sys
from functools import lru_cache
from math import prod
from threading import Lock
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from lab import catalog
from lab.gpu.parameters import ALIGNMENT, dense_strides
from lab.kernel import Kernel
from lab.problems import Linear
from lab.verify import simulator, workspaces
from sim.errors import InputError, ScheduleError
from sim.formats import FORMATS
from sim.launch import Launch
from sim.machine import H100, Machine

if TYPE_CHECKING:
    from lab.gpu.launch import Prepared

# Formats by the names that NumPy, ml_dtypes, CuPy and PyTorch give element types. 16-bit unsigned integers carry bf16.
_FORMATS = {
    "float32": "fp32",
    "float16": "fp16",
    "bfloat16": "bf16",
    "uint16": "bf16",
    "float8_e4m3fn": "fp8",
}


class Operand(NamedTuple):
    """An array as a kernel sees it: where it is, its shape, its format."""

    pointer: int
    shape: tuple[int, ...]
    format: str


class Plan(NamedTuple):
    """A kernel made ready for one shape, with its workspaces; the lock keeps two threads from binding at once."""

    prepared: "Prepared"
    workspaces: dict[str, Any]
    lock: Lock


def linear(x: Any, w: Any, out: Any = None, stream: int | None = None) -> Any:
    """y[..., n] = x[..., k] @ w[n, k].T, as `torch.nn.functional.linear` without a bias.

    x, w and out are all CuPy arrays, all PyTorch CUDA tensors or all NumPy arrays, dense and row-major; x and w are
    float32, float16 or bfloat16 (uint16 bits in NumPy and CuPy count as bfloat16), w may be float8_e4m3fn beside
    bfloat16 x. On the GPU arrays start at multiples of 16 bytes, nothing is copied, and the work runs on `stream` (a
    CUstream address) or on the current stream of PyTorch for its tensors, of CuPy otherwise, also while a graph is
    captured. No gradient flows. Returns out, which is made in x's type where it is None. Raises InputError in one
    sentence for anything else, NoDeviceError where the GPU cannot run a kernel for it.
    """
    if isinstance(x, np.ndarray):
        return _on_simulator(x, w, out)
    describe = _describe_torch if _is_torch(x) else _describe_interface
    a, b = describe(x, "x"), describe(w, "w")
    problem = _problem(a.shape, a.format, b.shape, b.format)
    if out is None:
        out = _empty_like(x, (*a.shape[:-1], b.shape[0]))
    y = describe(out, "out")
    _require_output(y, a, b, problem)
    if stream is None:
        stream = _current_stream(x)
    plan = _plan(problem, stream)
    with plan.lock:
        plan.prepared.bind({"x": a.pointer, "w": b.pointer, "y": y.pointer})(stream)
    return out


def choose(problem: Linear, machine: Machine) -> tuple[Kernel, Any, tuple[Launch, ...]]:
    """The kernel, schedule and launches of the smallest predicted time on a machine.

    Each kernel enters with its best guess. Raises InputError, with each kernel's reason, where none takes the problem.
    """
    found, reasons = [], []
    for kernel in catalog.kernels():
        if not kernel.solves.runs_on(machine.arch):
            reasons.append(f"{kernel.name} needs {kernel.solves.arch}")
            continue
        try:
            schedule = kernel.best_guess(problem, machine)
            launches = kernel.launches(problem, schedule, machine)
        except (InputError, ScheduleError) as refusal:
            reasons.append(str(refusal))
            continue
        us = kernel.predicted_us(problem, schedule, launches, machine)
        found.append((us, kernel, schedule, launches))
    if not found:
        raise InputError(f"no kernel takes this problem on the {machine.title}: {'; '.join(reasons)}")
    _, kernel, schedule, launches = min(found, key=lambda candidate: candidate[0])
    return kernel, schedule, launches


@lru_cache(maxsize=4096)
def _problem(x_shape: tuple[int, ...], x_format: str, w_shape: tuple[int, ...], w_format: str) -> Linear:
    if len(w_shape) != 2 or not x_shape:
        raise InputError(f"x must be [..., k] and w [n, k]; x is {list(x_shape)} and w is {list(w_shape)}")
    n, k = w_shape
    if x_shape[-1] != k:
        raise InputError(f"x [..., k] and w [n, k] must share k; x is {list(x_shape)} and w is {list(w_shape)}")
    problem = Linear(prod(x_shape[:-1]), n, k, w_format)
    if problem.activations != x_format:
        raise InputError(f"w in {w_format} needs x in {problem.activations}; x is in {x_format}")
    return problem


def _require_output(y: Operand, x: Operand, w: Operand, problem: Linear) -> None:
    shape = (*x.shape[:-1], problem.n)
    if y.shape != shape or y.format != problem.output:
        raise InputError(f"out must be {list(shape)} in {problem.output}; it is {list(y.shape)} in {y.format}")
    size = FORMATS[y.format].storage.itemsize * problem.m * problem.n
    for name, other in (("x", x), ("w", w)):
        other_size = FORMATS[other.format].storage.itemsize * prod(other.shape)
        if y.pointer < other.pointer + other_size and other.pointer < y.pointer + size:
            raise InputError(f"out must not overlap {name}, which is still read while out is written")


@lru_cache(maxsize=1024)
def _plan(problem: Linear, _stream: int) -> Plan:
    """One plan a problem and stream: two streams must not share a workspace."""
    from lab.gpu.device import machine  # loaded on first use: the simulated chip needs no GPU library
    from lab.gpu.launch import Prepared, device_workspaces

    target = machine()
    _, _, launches = choose(problem, target)
    prepared = Prepared(launches, target)
    scratch = device_workspaces(launches)
    prepared.bind({name: array.data.ptr for name, array in scratch.items()})
    return Plan(prepared, scratch, Lock())


@lru_cache(maxsize=1024)
def _simulated(problem: Linear) -> tuple[Kernel, tuple[Launch, ...]]:
    kernel, _, launches = choose(problem, H100)
    return kernel, launches


def _on_simulator(x: NDArray, w: Any, out: Any) -> NDArray:
    a, b = _describe_numpy(x, "x"), _describe_numpy(w, "w")
    problem = _problem(a.shape, a.format, b.shape, b.format)
    if out is None:
        out = np.empty((*a.shape[:-1], problem.n), x.dtype)
    _require_output(_describe_numpy(out, "out"), a, b, problem)
    kernel, launches = _simulated(problem)
    shapes = {"x": (x, a.format, problem.k), "w": (w, b.format, problem.k), "y": (out, a.format, problem.n)}
    bits = {name: array.view(FORMATS[form].storage).reshape(-1, last) for name, (array, form, last) in shapes.items()}
    simulator(kernel, H100)(launches, {**bits, **workspaces(launches)})
    return cast(NDArray, out)


def _describe_numpy(array: Any, name: str) -> Operand:
    if not isinstance(array, np.ndarray):
        raise InputError(f"{name} must be a NumPy array as x is, not {_type_name(array)}")
    _require_dense(array.flags.c_contiguous, name)
    return Operand(array.__array_interface__["data"][0], array.shape, _format(array.dtype.name, name))


def _describe_torch(tensor: Any, name: str) -> Operand:
    if not _is_torch(tensor):
        raise InputError(f"{name} must be a PyTorch tensor as x is, not {_type_name(tensor)}")
    if not tensor.is_cuda:
        raise InputError(f"{name} is on the CPU; move it to the GPU, or pass NumPy arrays to the simulated chip")
    if tensor.get_device() != 0:
        raise InputError(
            f"{name} is on GPU {tensor.get_device()}; only GPU 0 is used (CUDA_VISIBLE_DEVICES chooses it)"
        )
    _require_dense(tensor.is_contiguous(), name)
    return _aligned(Operand(tensor.data_ptr(), tuple(tensor.shape), _format(str(tensor.dtype)[6:], name)), name)


def _describe_interface(array: Any, name: str) -> Operand:
    interface = getattr(array, "__cuda_array_interface__", None)
    if interface is None or _is_torch(array):
        raise InputError(f"{name} must be an array on the GPU, or all arrays NumPy's; it is {_type_name(array)}")
    shape, strides = interface["shape"], interface.get("strides")
    kind = str(getattr(array, "dtype", "")) or np.dtype(interface["typestr"]).name
    operand = Operand(interface["data"][0], shape, _format(kind, name))
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


def _empty_like(x: Any, shape: tuple[int, ...]) -> Any:
    if _is_torch(x):
        return x.new_empty(shape)
    import cupy  # loaded on first use: the simulated chip needs no GPU library

    return cupy.empty(shape, x.dtype)


def _current_stream(x: Any) -> int:
    if _is_torch(x):
        return int(sys.modules["torch"].cuda.current_stream().cuda_stream)
    import cupy  # loaded on first use: the simulated chip needs no GPU library

    return int(cupy.cuda.get_current_stream().ptr)
