"""Small kernels, right and wrong by one edit, by which the emulator's judgement is measured.

Each is a body over the same parameters: x, 256 inputs; y, 256 outputs; z, 64 zeros that it reads and writes; n = 40. `t` is
the thread's index. An edit replaces one place of the right body and names the hazard that must then be met.
"""

from dataclasses import dataclass, field

import numpy as np

import lab

SHARED, GLOBAL, LANES = "race on shared memory", "race on global memory", "race between lanes"
EQUAL, SCOPE, READER = "same value written twice", "race by scope", "fence at the writer alone"
DIVERGENT, MASK, DEADLOCK = "divergent barrier", "illegal member mask", "deadlock"
OUTSIDE, UNALIGNED, NULL, UNSET = "out of bounds", "misaligned", "null pointer", "uninitialised output"
INPUT, UNTOLD = "input written", "missing __syncwarp"


@dataclass(frozen=True)
class Small:
    """A right kernel, and edits (old, new, hazard) that break it; `before` is what stands above it."""

    name: str
    body: str
    wrong: tuple[tuple[str, str, str], ...] = ()
    grid: int = 1
    block: int = 64
    cluster: int = 1
    shared: int = 0
    before: str = ""
    kinds: tuple[str, ...] = field(default=())  # hazards that the right kernel may have

    def source(self, edit: int | None = None) -> str:
        """The right kernel, or the one with that edit."""
        body = self.body
        if edit is not None:
            old, new, _ = self.wrong[edit]
            if body.count(old) != 1:
                raise ValueError(f"{self.name}: {old!r} stands {body.count(old)} times in the body")
            body = body.replace(old, new)
        parameters = "const int* x, int* y, int* z, int n"
        head = f'{self.before}\nextern "C" __global__ void k({parameters}) {{\nconst int t = threadIdx.x;'
        return f"{head}\n{body}\n}}\n"

    def launch(self, rng: np.random.Generator) -> lab.Launch:
        x = lab.In("x", rng.permutation(256).astype(np.int32))
        arrays = [x, lab.Out("y", 256, "int32"), lab.InOut("z", np.zeros(64, np.int32))]
        return lab.Launch(self.grid, self.block, [*arrays, np.int32(40)], self.shared, self.cluster)
