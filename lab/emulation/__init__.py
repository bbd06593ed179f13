"""The emulator as a tool for anyone's kernels: describe a launch, emulate it, read what was found.

    import lab
    check = lab.emulate("saxpy.cu", "saxpy<256>", launch)

`launch(rng)` returns a lab.Launch. docs/emulator.md walks through three kernels.
"""

from lab.emulation.check import Check, emulate
from lab.emulation.description import In, InOut, Launch, Out, Struct, TensorMap

__all__ = ["Check", "In", "InOut", "Launch", "Out", "Struct", "TensorMap", "emulate"]
