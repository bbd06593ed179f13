"""What the worker tests run in a child process."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lab.kernels.gemv import gemv_naive
from sim.errors import InputError


def double(argument: Any) -> Any:
    print("this goes to standard error")
    return {"twice": 2 * argument["value"]}


def count(argument: int) -> Iterator[int]:
    yield from range(argument)


def nothing(_: Any) -> None:
    pass


def refuse(_: Any) -> None:
    raise InputError("m must be positive; m = 0")


def fail(_: Any) -> None:
    raise KeyError("oops")


def plan_badly(problem: Any) -> Any:
    return gemv_naive.launch(problem, None, None)


class CUDARuntimeError(RuntimeError):
    """Named as CuPy's."""


def break_device(_: Any) -> None:
    raise CUDARuntimeError("cudaErrorIllegalAddress: an illegal memory access was encountered\nmore")


def die(_: Any) -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def sleep_with_child(folder: str) -> Iterator[str]:
    """Start a grandchild, say so, and sleep."""
    grandchild = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    Path(folder, "pids").write_text(f"{os.getpid()} {grandchild.pid}")
    yield "asleep"
    time.sleep(600)
