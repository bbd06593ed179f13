"""What a user would call instead of the lab's kernels: cuBLAS through PyTorch, on the arrays of a bench."""

from collections.abc import Callable
from typing import Any

import cupy
import torch

from lab.gpu.bench import Arrays, Peer
from lab.gpu.timing import Call
from lab.problems import Linear

_TORCH = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def linear_peers(problem: Linear) -> dict[str, Peer]:
    """Peers of a linear layer whose weights PyTorch multiplies without a copy; the better one counts."""
    if problem.weights not in _TORCH:
        return {}
    return {"cublas": cublas} | ({"cublas_mv": cublas_mv} if problem.m == 1 else {})


def cublas(problem: Linear, arrays: Arrays) -> Call:
    """`torch.mm`, which `torch.nn.functional.linear` calls."""
    x, w, y = (as_torch(arrays[name], problem.weights) for name in ("x", "w", "y"))
    w_transposed = w.t()
    return _on_this_stream(lambda: torch.mm(x, w_transposed, out=y))


def cublas_mv(problem: Linear, arrays: Arrays) -> Call:
    """`torch.mv`, for one row of x."""
    x, w, y = (as_torch(arrays[name], problem.weights) for name in ("x", "w", "y"))
    row, out = x[0], y[0]
    return _on_this_stream(lambda: torch.mv(w, row, out=out))


def as_torch(array: Any, format_name: str) -> torch.Tensor:
    """A CuPy array of storage bits as a tensor of that format, over the same memory."""
    plain = array if array.dtype == cupy.float32 else array.view(cupy.int16)
    return torch.from_dlpack(plain).view(_TORCH[format_name])


def _on_this_stream(work: Callable[[], Any]) -> Call:
    """Work of PyTorch's on the CuPy stream that is current now, where the timing events are."""
    stream = torch.cuda.ExternalStream(cupy.cuda.get_current_stream().ptr)

    def call() -> None:
        with torch.cuda.stream(stream):
            work()

    return call
