"""Arrays of a bench as PyTorch's tensors, and PyTorch's work on the stream that is timed."""

from collections.abc import Callable
from typing import Any

import cupy
import torch

from lab.gpu.timing import Call

FORMATS = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32, "fp8": torch.float8_e4m3fn}


def as_torch(array: Any, format_name: str) -> torch.Tensor:
    """A CuPy array of storage bits as a tensor of that format, over the same memory."""
    signed = {"uint16": "int16"}.get(
        array.dtype.name
    )  # DLPack has no unsigned 16-bit integers that every PyTorch takes
    return torch.from_dlpack(array.view(signed) if signed else array).view(FORMATS[format_name])


def on_this_stream(work: Callable[[], Any]) -> Call:
    """Work of PyTorch's on the CuPy stream that is current now, where the timing events are."""
    stream = torch.cuda.ExternalStream(cupy.cuda.get_current_stream().ptr)

    def call() -> None:
        with torch.cuda.stream(stream):
            work()

    return call
