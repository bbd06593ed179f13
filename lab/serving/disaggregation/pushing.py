"""A cache in one piece of memory that others push into, its flags, and what pushes: the same on every chip."""

from collections import deque
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lab import catalog
from lab.execute import Bound, plan
from lab.inference.chip import Chip
from lab.inference.layers import Forward
from lab.inference.step import StepCache
from lab.inference.step_weights import StepWeights
from lab.problems.transfer import Transfer
from lab.serving.disaggregation.link import KERNEL
from lab.serving.policy import Policy

FLAG_WORDS = 4  # from one flag to the next: kernels take addresses of whole vectors
UNIT, UNIT_BYTES = "bf16", 2  # that a page is counted in, whatever lies there
UNDER_WAY = 4  # pushes that may wait for their turn


class Pool:
    """The pages of all layers, one layer after another, behind a flag for each page of a table.

    Who writes the pages of an offer sets the flag of the first one to the offer's epoch.
    """

    def __init__(self, forward: Forward, memory: Any) -> None:
        self.layers, self.pages = forward.config.layers, forward.pool
        self._forward = forward
        flags = self._flag_bytes(forward)
        self.flags = memory[:flags].view(np.int32).reshape(-1, FLAG_WORDS)[: self.pages]
        self.rows = memory[flags:].view(np.uint16).reshape(self.layers * self.pages, -1)

    @classmethod
    def nbytes(cls, forward: Forward) -> int:
        """Bytes of a pool."""
        return cls._flag_bytes(forward) + forward.config.layers * forward.cache().nbytes

    @staticmethod
    def _flag_bytes(forward: Forward) -> int:
        return -(-forward.pool * FLAG_WORDS * 4 // 256) * 256

    def flag(self, page: int) -> Any:
        """The one word that is set when an offer's pages, of which this is the first, have been written."""
        return self.flags[page, :1]

    def cache(self, chip: Chip) -> StepCache:
        """These pages as steps use them."""
        operand, pages = self._forward.cache(), self.pages
        layers = [self.rows[i * pages : (i + 1) * pages] for i in range(self.layers)]
        return StepCache(self._forward, chip, [x.view(operand.storage).reshape(operand.shape) for x in layers])


def forward_of(weights: StepWeights, policy: Policy) -> Forward:
    """What steps of a model are, over a cache of a policy's pages."""
    return Forward(weights.config, weights.matrices, policy.pages)


class Flags:
    """The flags of a pool as they were a little while ago; asking brings them nearer, and waits for nothing."""

    def __init__(self, pool: Pool, chip: Chip) -> None:
        self._coming = chip.host((pool.pages, FLAG_WORDS), np.dtype(np.int32))
        self._copy, self._stream = chip.copying(self._coming, pool.flags), chip.urgent()
        self._mark = None if chip.device is None else chip.mark()
        self._asked = False
        self._known = np.zeros(pool.pages, np.int32)

    def look(self) -> NDArray[np.int32]:
        """Each page's flag."""
        if self._asked and (self._mark is None or self._mark.passed):
            self._known, self._asked = self._coming[:, 0].copy(), False
        if not self._asked:
            self._copy(self._stream)
            if self._mark:
                self._mark.set(self._stream)
            self._asked = True
        return self._known


class _Tables:
    """The epoch of a push and which rows go where, on the host and on the chip."""

    def __init__(self, chip: Chip, most: int) -> None:
        self._most = -(-most // 4) * 4
        self._host = chip.host((4 + 2 * self._most,), np.dtype(np.int32))
        self._there = chip.xp.zeros(len(self._host), np.int32)
        self._send = chip.copying(self._there, self._host)
        self.mark = None if chip.device is None else chip.mark()
        self.used = False

    def fill(self, epoch: int, rows: NDArray, to_rows: NDArray, stream: int | None) -> dict[str, Any]:
        """Send them; returns where the kernel finds them."""
        if self.used and self.mark:
            self.mark.wait()
        m, second = len(rows), 4 + self._most
        self._host[0] = epoch
        self._host[4 : 4 + m], self._host[second : second + m] = rows, to_rows
        self._send(stream)
        self.used = True
        there = self._there
        return {"epoch": there[:1], "from_rows": there[4 : 4 + m], "to_rows": there[second : second + m]}


class Pusher:
    """Stores pages of a chip's own pool into others, one push after another, beside whatever the chip computes.

    All pools have as many pages. `most` are those of one push.
    """

    def __init__(self, chip: Chip, pool: Pool, targets: Sequence[Pool], most: int) -> None:
        self._chip, self._pool, self._targets = chip, pool, list(targets)
        self._stream = chip.urgent()
        self._tables = deque(_Tables(chip, most * pool.layers) for _ in range(UNDER_WAY))
        self._bound = lru_cache(maxsize=256)(self._bind)

    def push(self, pages: Sequence[int], target: int, to: Sequence[int], epoch: int) -> Any:
        """Let pages, which are computed, be written to those of a target, and then the epoch to its flag.

        Returns a mark behind it: None where it is over already.
        """
        pool, into = self._pool, self._targets[target]
        first = np.arange(pool.layers)[:, None] * pool.pages
        rows, to_rows = ((first + np.array(some)).ravel() for some in (pages, to))
        tables = self._tables[0]
        self._tables.rotate(-1)
        arrays = tables.fill(epoch, rows, to_rows, self._stream)
        arrays |= {"source": pool.rows, "target": into.rows, "flag": into.flag(to[0])}
        self._bound(len(rows)).bind(arrays).run(self._stream)
        if tables.mark:
            tables.mark.set(self._stream)
        return tables.mark

    def _bind(self, rows: int) -> Bound:
        """The push of so many rows, whose arrays are bound when it is called for."""
        places, n = self._pool.rows.shape
        problem = Transfer(rows, n, UNIT, pool=places)
        return plan(problem, self._chip.machine, kernel=catalog.get(KERNEL)).bind({}, self._chip.device)
