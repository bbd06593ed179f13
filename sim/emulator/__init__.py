"""The PTX emulator: executes the PTX that NVRTC emits on the CPU, warp by warp, and finds its hazards.

`run` executes one launch. PTX text is parsed (ptx.py), laid out so that a warp reconverges (flow.py), decoded to tables
of numbers (decode.py) and interpreted by Numba code (interpret.py) over tables of machine state (tables.py). What is
modelled and what is not stands in the modules: numerics in fpu.py and tensor.py, happens-before in hazards.py.
"""

from sim.emulator.decode import decode
from sim.emulator.image import Buffer, Image, Map
from sim.emulator.ptx import EmulatorError
from sim.emulator.report import Access, Emulation, Event, Hazard, Line, Statistics, to_chrome_trace
from sim.emulator.run import execute, interpreter, run

__all__ = [
    "Access",
    "Buffer",
    "Emulation",
    "EmulatorError",
    "Event",
    "Hazard",
    "Image",
    "Line",
    "Map",
    "Statistics",
    "decode",
    "execute",
    "interpreter",
    "run",
    "to_chrome_trace",
]
