"""Rows in parts: a CTA has some 16-byte vectors of one row, as kernels divide work that treats each element alone."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from lab.kernel import require_choice, require_grid_y, require_threads
from sim.machine import Machine

LANES = 32
SIZE = 2  # bytes of an element
REQUEST = LANES * 16 // SIZE  # elements of a warp's load


@dataclass(frozen=True)
class Schedule:
    """How much of a row of n elements a CTA has."""

    warps: int
    vectors: int  # 16-byte loads of a lane from each array
    late: int = 2  # 0: the launch behind begins at once, 1: when that ahead has ended, 2: likewise, but for one token

    def __post_init__(self) -> None:
        require_choice(self, "warps", (1, 2, 4, 8))
        require_choice(self, "vectors", (1, 2, 4, 8))
        require_choice(self, "late", (0, 1, 2))

    @property
    def threads(self) -> int:
        return LANES * self.warps

    @property
    def columns(self) -> int:
        """Elements of a CTA."""
        return self.warps * self.vectors * REQUEST

    def parts(self, n: int) -> int:
        """CTAs of a row."""
        return -(-n // self.columns)

    def fits(self, problem: Any, machine: Machine) -> None:
        require_threads(1, self.threads, machine)
        require_grid_y(self.parts(problem.n), f"parts of {self.columns:,} elements of a row", machine)


def candidates(problem: Any, machine: Machine) -> Iterator[Schedule]:
    """Few rows: small parts, on many SMs; many: a row in as few CTAs as it fills."""
    found = [Schedule(warps, vectors) for warps in (1, 2, 4, 8) for vectors in (1, 2, 4, 8)]
    legal = [s for s in found if s.parts(problem.n) <= machine.max_grid[1]]
    useful = [s for s in legal if s.columns < 2 * problem.n] or legal[:1]
    few = problem.m <= machine.sms
    yield from sorted(useful, key=lambda s: s.columns if few else (abs(s.columns - problem.n), s.vectors))


def requests(n: int) -> list[tuple[int, int]]:
    """(first byte, bytes) of each warp request for a row of n elements."""
    return [(SIZE * at, SIZE * min(REQUEST, n - at)) for at in range(0, n, REQUEST)]
