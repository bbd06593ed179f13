"""A function in a process of its own, with a deadline: a kernel that hangs or breaks the device takes only that down.

The child gets its task as JSON on standard input and answers in JSON lines on a pipe of its own, so what it prints
disturbs nobody. It leads a process group, which is killed as a whole at the deadline, on Ctrl-C and on any error here.
"""

import ctypes
import importlib
import os
import select
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any

import msgspec

from lab.errors import kernel_error
from sim import errors
from sim.errors import EnvironmentFailure, LabError

_REAP_S = 10.0  # how long a killed process may take to leave the driver
_DIE_WITH_PARENT = 1  # prctl PR_SET_PDEATHSIG


class Task(msgspec.Struct):
    """What the child is asked to do, and where it finds its modules."""

    function: str  # "module:name"
    argument: Any
    path: list[str]


class Reply(msgspec.Struct, omit_defaults=True):
    """One line of the child: an item, or its end: `error` names a class of sim.errors, "" means that all went well."""

    item: Any = None
    error: str | None = None
    message: str = ""


def run(function: Callable[[Any], Any], argument: Any, deadline_s: float) -> Any:
    """`function(argument)` in a child process: what it returns, as plain JSON values.

    Raises EnvironmentFailure past the deadline, where the device failed or the child died, and the LabError that the
    function raised. `function` must be importable and its argument and result must be JSON.
    """
    (result,) = _items(function, argument, deadline_s)
    return result


def stream(function: Callable[[Any], Iterable[Any]], argument: Any, deadline_s: float) -> Iterator[Any]:
    """The items of a generator function as the child yields them; otherwise as `run`."""
    return _items(function, argument, deadline_s)


def environment() -> dict[str, str]:
    """This process's environment, with its module path, for a child that is a Python.

    References there are computed by threads of our own: those of OpenBLAS beside them would be far too many.
    """
    paths = os.pathsep.join(p for p in sys.path if p)
    return {"OPENBLAS_NUM_THREADS": "1", **os.environ, "PYTHONPATH": paths}


def _items(function: Callable[[Any], Any], argument: Any, deadline_s: float) -> Iterator[Any]:
    task = msgspec.json.encode(Task(_name_of(function), argument, sys.path))
    answers, answering = os.pipe()
    child = subprocess.Popen(
        [sys.executable, "-m", "lab.gpu.worker", str(answering)],
        stdin=subprocess.PIPE,
        stdout=sys.stderr.fileno() if _has_descriptor(sys.stderr) else subprocess.DEVNULL,
        pass_fds=(answering,),
        start_new_session=True,
        env=environment(),
    )
    os.close(answering)
    end = time.monotonic() + deadline_s
    try:
        with suppress(BrokenPipeError):
            assert child.stdin is not None
            child.stdin.write(task)
            child.stdin.close()
        for line in _lines(answers, end):
            reply = msgspec.json.decode(line, type=Reply)
            if reply.error is None:
                yield reply.item
            elif reply.error:
                raise _error(reply)
            else:
                return
        if time.monotonic() >= end:
            raise EnvironmentFailure(f"the worker was killed at its deadline of {deadline_s:g} s")
        raise EnvironmentFailure(f"the worker died ({_last_words(child)})")
    finally:
        os.close(answers)
        _kill(child)


def _lines(descriptor: int, end: float) -> Iterator[bytes]:
    """Whole lines from a pipe until it closes or the time is up."""
    pending = b""
    while (left := end - time.monotonic()) > 0:
        ready, _, _ = select.select([descriptor], [], [], left)
        if not ready:
            return
        data = os.read(descriptor, 1 << 16)
        if not data:
            return
        *lines, pending = (pending + data).split(b"\n")
        yield from lines


def _kill(child: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    with suppress(subprocess.TimeoutExpired):
        child.wait(_REAP_S)


def _last_words(child: subprocess.Popen[bytes]) -> str:
    try:
        status = child.wait(_REAP_S)
    except subprocess.TimeoutExpired:
        return "it closed its pipe and went on"
    return f"killed by signal {-status}" if status < 0 else f"exit status {status}"


def _error(reply: Reply) -> Exception:
    kind = getattr(errors, reply.error or "", None)
    if isinstance(kind, type) and issubclass(kind, LabError):
        return kind(reply.message)
    return RuntimeError(f"the worker failed: {reply.message}")


def _name_of(function: Callable[..., Any]) -> str:
    module = function.__module__
    if module == "__main__":
        spec = getattr(sys.modules["__main__"], "__spec__", None)
        if spec is None:
            raise ValueError("a function of a script cannot run in a worker; put it in a module")
        module = spec.name
    return f"{module}:{function.__qualname__}"


def _has_descriptor(file: Any) -> bool:
    try:
        file.fileno()
    except (AttributeError, OSError, ValueError):
        return False
    return True


def serve(answering: int) -> None:
    """The child: run the task on standard input and answer on the pipe."""
    ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
    task = msgspec.json.decode(sys.stdin.buffer.read(), type=Task)
    sys.path[:] = task.path

    def answer(reply: Reply) -> None:
        line = msgspec.json.encode(reply) + b"\n"
        while line:
            line = line[os.write(answering, line) :]

    try:
        module, _, name = task.function.partition(":")
        result = getattr(importlib.import_module(module), name)(task.argument)
        for item in result if isinstance(result, Iterator) else (result,):
            answer(Reply(item=msgspec.to_builtins(item)))
        answer(Reply(error=""))
    except LabError as error:
        answer(Reply(error=type(error).__name__, message=str(error)))
    except Exception as error:
        if _is_device_error(error):
            answer(Reply(error="EnvironmentFailure", message=f"the device failed: {_first_line(error)}"))
        elif authors := kernel_error(error):
            answer(Reply(error=type(authors).__name__, message=str(authors)))
        else:
            traceback.print_exc()
            answer(Reply(error="bug", message=f"{type(error).__name__}: {error}"))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # a broken device can hang the libraries' own clean-up


def _is_device_error(error: Exception) -> bool:
    """Whether CuPy or PyTorch raised it for the device's sake."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    known = {"CUDARuntimeError", "CUDADriverError", "CUBLASError", "OutOfMemoryError", "AcceleratorError"}
    return bool(kinds & known) or "CUDA error" in str(error)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


if __name__ == "__main__":
    serve(int(sys.argv[1]))
