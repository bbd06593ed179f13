"""A decoded kernel: tables of numbers that the interpreter executes, and how to find the source line again."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sim.emulator.isa import SOURCE
from sim.emulator.ptx import Instruction, Variable


@dataclass(frozen=True)
class Program:
    """One entry, decoded: `code` is [instructions, COLUMNS], `constants` the values of the constant rows.

    `registers` counts register rows a warp has (special registers first), `predicates` its predicate registers.
    `shared` and `local` are bytes of static shared memory a CTA and of local memory a thread. `shared_granule` and
    `global_granule` are the widths in bytes of the narrowest access to each, in which races are tracked.
    """

    name: str
    code: NDArray[np.int64]
    start: int  # position of the kernel's first instruction
    functions: int  # where in the pool the positions stand that function pointers mean
    pool: NDArray[np.int64]
    constants: NDArray[np.uint64]
    registers: int
    predicates: int
    parameters: tuple[Variable, ...]
    parameter_offsets: tuple[int, ...]
    parameter_bytes: int
    variables: tuple[Variable, ...]  # module-level memory, in the order of its array numbers after the launch's arrays
    shared: int
    local: int
    shared_granule: int
    global_granule: int
    uses_mbarrier: bool
    uses_bulk_groups: bool
    uses_cp_async: bool
    uses_wgmma: bool
    uses_heap: bool
    uses_grid: bool  # reads where the workspace of a cooperative grid lies
    synchronises: bool  # uses atomics or strong accesses, through which CTAs can meet
    scoped: bool  # some of them, or of its fences, at the scope of a CTA or a cluster
    source: tuple[Instruction, ...]

    def where(self, position: int) -> Instruction:
        """The PTX instruction at a position of `code`."""
        return self.source[int(self.code[position, SOURCE])]
