"""Weights on their way to a chip: what arrives is what was written, however threads and copies take turns."""

import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lab.inference import staging
from lab.inference.chip import simulated
from lab.inference.mapped import Mapped
from lab.inference.staging import Staging
from sim.errors import InputError
from sim.machine import H200

PARTS = 3 * staging.SLOTS + 1


class Mark:
    """A GPU's, whose copies are made as late as anyone may wait for them."""

    def __init__(self, queue: list[Callable[[], None]]) -> None:
        self._queue, self._upto = queue, 0

    def set(self) -> None:
        self._upto = len(self._queue)

    def wait(self) -> None:
        for at in range(self._upto):
            self._queue[at]()
            self._queue[at] = lambda: None


def gpu() -> tuple[Any, list[Callable[[], None]]]:
    queue: list[Callable[[], None]] = []
    chip = SimpleNamespace(
        device=0,
        host=np.zeros,
        mark=lambda: Mark(queue),
        copy=lambda to, source: queue.append(lambda: np.copyto(to, source)),
    )
    return chip, queue


def fill(number: int) -> Callable[[NDArray[np.uint16]], None]:
    def write(to: NDArray[np.uint16]) -> None:
        time.sleep(0.002 * (number % 3))  # threads end in another order than they began
        to[...] = number

    return write


@pytest.mark.parametrize("on", ["sim", "gpu"])
def test_every_part_arrives_in_its_place(on: str) -> None:
    chip, queue = gpu() if on == "gpu" else (simulated(H200), [])
    there = np.zeros((PARTS, 5, 7), np.uint16)
    with Staging(chip) as way:
        for number, part in enumerate(there):
            way.send(part, fill(number))
    for copy in queue:
        copy()
    assert (there == np.arange(PARTS)[:, None, None]).all()


def test_what_a_thread_finds_wrong_is_raised() -> None:
    def refuse(to: NDArray[np.uint16]) -> None:
        raise InputError(f"{to.size} wrong words")

    def send(error: Exception | None) -> None:
        with Staging(gpu()[0]) as way:
            way.send(np.zeros(3, np.uint16), refuse)
            if error:
                raise error

    with pytest.raises(InputError, match="3 wrong words"):
        send(None)
    with pytest.raises(KeyError):  # an error of the body is not covered up
        send(KeyError())


def test_bytes_are_those_of_the_file_also_when_their_memory_was_given_back(tmp_path: Any) -> None:
    path = tmp_path / "file"
    content = np.arange(300_001, dtype=np.uint32).view(np.uint8)
    path.write_bytes(content.tobytes())
    mapped = Mapped(path)
    part = np.zeros((3, 5), np.uint16)
    mapped.read(1_000_000, part)
    np.testing.assert_array_equal(part.reshape(-1).view(np.uint8), content[1_000_000:1_000_030])
    with pytest.raises(OSError, match="the file has become shorter"):
        mapped.read(len(content) - 29, part)
    for start, stop in ((0, 10), (70_000, 900_000), (0, len(content)), (5, 5)):
        mapped.leave(start, stop)
        np.testing.assert_array_equal(mapped.data, content)
