"""A worker answers, reports what went wrong in a sentence, and leaves no process behind."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lab.gpu import worker
from sim.errors import EnvironmentFailure, InputError, KernelError
from tests.lab.gpu import chores

PATIENCE_S = 60.0  # far above what any of these takes


def are_gone(folder: Path) -> bool:
    """Whether the processes that a chore named die soon: the kernel takes its time after a kill."""
    pids = [int(pid) for pid in (folder / "pids").read_text().split()]
    end = time.monotonic() + PATIENCE_S
    while any(is_alive(pid) for pid in pids) and time.monotonic() < end:
        time.sleep(0.05)
    return not any(is_alive(pid) for pid in pids)


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that is dead but not reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_result_comes_back_and_prints_do_not_disturb_it() -> None:
    assert worker.run(chores.double, {"value": 21}, PATIENCE_S) == {"twice": 42}
    assert worker.run(chores.nothing, None, PATIENCE_S) is None


def test_items_come_one_by_one() -> None:
    assert list(worker.stream(chores.count, 3, PATIENCE_S)) == [0, 1, 2]


def test_the_functions_own_refusal_is_raised_here() -> None:
    with pytest.raises(InputError, match=r"^m must be positive; m = 0$"):
        worker.run(chores.refuse, None, PATIENCE_S)


def test_a_bug_is_no_refusal() -> None:
    with pytest.raises(RuntimeError, match="KeyError: 'oops'"):
        worker.run(chores.fail, None, PATIENCE_S)


def test_what_a_kernels_python_raises_names_its_line() -> None:
    with pytest.raises(KernelError, match=r"^lab/kernels/gemv/gemv_naive\.py:\d+: AttributeError: 'str' object has no"):
        worker.run(chores.plan_badly, "no problem", PATIENCE_S)


def test_a_device_error_is_one_sentence() -> None:
    with pytest.raises(EnvironmentFailure, match=r"^the device failed: cudaErrorIllegalAddress: .* encountered$"):
        worker.run(chores.break_device, None, PATIENCE_S)


def test_a_death_is_one_sentence() -> None:
    with pytest.raises(EnvironmentFailure, match=r"^the worker died \(killed by signal 11\)$"):
        worker.run(chores.die, None, PATIENCE_S)


def test_the_deadline_kills_the_whole_group(tmp_path: Path) -> None:
    began = time.monotonic()
    items = worker.stream(chores.sleep_with_child, str(tmp_path), 5)
    assert next(items) == "asleep"
    with pytest.raises(EnvironmentFailure, match=r"^the worker was killed at its deadline of 5 s$"):
        next(items)
    assert time.monotonic() - began >= 5
    assert are_gone(tmp_path)


def test_an_interrupt_kills_the_whole_group(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.lab.gpu.interrupted", str(tmp_path)]
    root = Path(__file__).parents[3]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=root, text=True) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == "asleep\n"
        program.send_signal(signal.SIGINT)
        program.communicate(timeout=PATIENCE_S)
    assert program.returncode == -signal.SIGINT
    assert are_gone(tmp_path)


def test_leaving_a_stream_early_kills_its_worker(tmp_path: Path) -> None:
    items = worker.stream(chores.sleep_with_child, str(tmp_path), PATIENCE_S)
    assert next(items) == "asleep"
    items.close()  # type: ignore[attr-defined]
    assert are_gone(tmp_path)
