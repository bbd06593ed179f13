"""What the device tests run in processes of their own."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import cupy

from lab import catalog
from lab.gpu import driver
from lab.gpu.device import machine
from lab.gpu.launch import executor
from lab.gpu.probes import kernel
from lab.problems import Linear
from lab.verify import verify
from tests.strategies import fitted, variants


def hang(_: Any) -> Iterator[str]:
    """Start a kernel that never ends, say so, and wait for it."""
    flag = cupy.zeros(1, cupy.uint32)
    kernel("hang")((1,), (1,), (flag,))
    yield "running"
    driver.synchronize(cupy.cuda.get_current_stream().ptr)


def illegal_address(_: Any) -> None:
    """Read where nothing is."""
    out = cupy.zeros(1, cupy.uint32)
    kernel("read4")((1,), (32,), (cupy.uint64(2**46), cupy.uint64(1024), out))
    driver.synchronize(cupy.cuda.get_current_stream().ptr)


def check_all(_: Any = None) -> list[str]:
    """The kernels that fail a small check."""
    target, wrong = machine(), []
    for kernel_ in catalog.kernels():
        if not kernel_.solves.runs_on(target.arch) or kernel_.solves.problem is not Linear:
            continue
        problem = fitted(kernel_, replace(variants(kernel_)[0], m=3, n=40, k=264))
        found = verify(kernel_, problem, kernel_.best_guess(problem, target), target, executor(target))
        if not found.passed:
            wrong.append(kernel_.name)
    return wrong


if __name__ == "__main__":
    assert not check_all()
