"""A cache in one piece of memory that others push into, its flags, and what pushes: the same on every chip."""

from collections import deque
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lab import catalog
from lab.execute import Bound, plan
from lab.inference.chip import Chip
from lab.inference.layers import Forward
from lab.inference.step import StepCache
from lab.inference.step_input import NULL_PAGE
from lab.inference.step_weights import StepWeights
from lab.problems.transfer import Transfer
from lab.serving.disaggregation.link import KERNEL
from lab.serving.policy import Policy
from lab.serving.step import CHUNKS

FLAG_WORDS = 4  # from one flag to the next: kernels take addresses of whole vectors
UNIT, UNIT_BYTES = "bf16", 2  # that a page is counted in, whatever lies there
UNDER_WAY = 2 * CHUNKS  # pushes that may wait for their turn: those of two steps


class Pool:
    """The pages of all layers, one layer after another, behind a flag for each page of a table.

    Who writes the pages of an offer sets the flag of the first one to the offer's epoch. The null page's is nobody's.
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

    def layer(self, layer: int) -> Any:
        """The rows of one."""
        return self.rows[layer * self.pages : (layer + 1) * self.pages]

    def flag(self, page: int) -> Any:
        """The one word that is set when an offer's pages, of which this is the first, have been written."""
        return self.flags[page, :1]

    def cache(self, chip: Chip) -> StepCache:
        """These pages as steps use them."""
        operand = self._forward.cache()
        layers = [self.layer(i).view(operand.storage).reshape(operand.shape) for i in range(self.layers)]
        return StepCache(self._forward, chip, layers)


def forward_of(weights: StepWeights, policy: Policy) -> Forward:
    """What steps of a model are, over a cache of a policy's pages."""
    return Forward(weights.config, weights.matrices, policy.pages)


class Flags:
    """The flags of a pool as the host sees them, whatever its chip computes meanwhile."""

    def __init__(self, pool: Pool, chip: Chip) -> None:
        self._found = chip.host((pool.pages, FLAG_WORDS), np.dtype(np.int32))
        self._copy, self._stream = chip.copying(self._found, pool.flags), chip.urgent()
        self._mark = None if chip.device is None else chip.mark()

    def look(self) -> NDArray[np.int32]:
        """Each page's flag now; waits as long as a copy of them takes, beside the steps."""
        self._copy(self._stream)
        if self._mark:
            self._mark.set(self._stream)
            self._mark.wait()
        return self._found[:, 0]


class _Tables:
    """The epoch of a push and which rows go where, on the host and on the chip."""

    def __init__(self, chip: Chip, most: int) -> None:
        self._most = -(-most // 4) * 4
        self._host = chip.host((4 + 2 * self._most,), np.dtype(np.int32))
        self._there = chip.xp.zeros(len(self._host), np.int32)
        self._send = chip.copying(self._there, self._host)
        self.mark = None if chip.device is None else chip.mark()
        self.used = False

    def wait(self) -> None:
        """Return when the newest push of these is over."""
        if self.used and self.mark:
            self.mark.wait()

    def fill(self, epoch: int, rows: NDArray, to_rows: NDArray, stream: int | None) -> dict[str, Any]:
        """Send them; returns where the kernel finds them."""
        self.wait()
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
        self._bound = lru_cache(maxsize=512)(self._bind)

    def push(self, pages: Sequence[int], target: int, to: Sequence[int], epoch: int) -> Any:
        """Let pages, which are computed, be written to those of a target, and then the epoch to its flag.

        Returns a mark behind it: None where it is over already.
        """
        pool, into = self._pool, self._targets[target]
        first = np.arange(pool.layers)[:, None] * pool.pages
        rows, to_rows = ((first + np.array(some)).ravel() for some in (pages, to))
        tables, arrays = self._filled(epoch, rows, to_rows)
        arrays |= {"source": pool.rows, "target": into.rows, "flag": into.flag(to[0])}
        self._bound(len(rows), len(pool.rows)).bind(arrays).run(self._stream)
        return self._marked(tables)

    def by_layers(self, pages: Sequence[int], target: int, to: Sequence[int], epoch: int, flag: int) -> Iterator[Any]:
        """Likewise a layer each time that it is asked for one, which is then computed by what was enqueued so far.

        The epoch comes with the last one, to the flag of the page `flag`. Gives the mark behind each.
        """
        pool, into = self._pool, self._targets[target]
        tables, arrays = self._filled(epoch, np.array(pages), np.array(to))
        bound, computed = self._bound(len(pages), pool.pages), self._chip.mark() if self._stream else None
        for layer in range(pool.layers):
            if computed and self._stream:
                computed.set()
                computed.hold(self._stream)
            arrays |= {"source": pool.layer(layer), "target": into.layer(layer)}
            arrays["flag"] = into.flag(flag if layer == pool.layers - 1 else NULL_PAGE)
            bound.bind(arrays).run(self._stream)
            yield self._marked(tables)

    def finish(self) -> None:
        """Return when nothing is under way."""
        for tables in self._tables:
            tables.wait()

    def _filled(self, epoch: int, rows: NDArray, to_rows: NDArray) -> tuple[_Tables, dict[str, Any]]:
        tables = self._tables[0]
        self._tables.rotate(-1)
        return tables, tables.fill(epoch, rows, to_rows, self._stream)

    def _marked(self, tables: _Tables) -> Any:
        if tables.mark:
            tables.mark.set(self._stream)
        return tables.mark

    def _bind(self, rows: int, places: int) -> Bound:
        """The push of so many rows between pools of so many, whose arrays are bound when it is called for."""
        problem = Transfer(rows, self._pool.rows.shape[1], UNIT, pool=places)
        return plan(problem, self._chip.machine, kernel=catalog.get(KERNEL)).bind({}, self._chip.device)
