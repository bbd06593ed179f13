"""The driver's launch as compiled code calls it, for calls that are repeated; Numba is loaded when one is made.

From Python by way of Numba it costs the host 2.9 us, through cuda.bindings or ctypes 3.9 (one H200, 4be2dbde).
"""

import ctypes
from functools import cache
from typing import Any

from numba import njit, types

from lab.gpu import driver


@cache
def launcher() -> Any:
    """cuLaunchKernelEx of a CUlaunchConfig, a CUfunction and parameters by their addresses; it gives the status.

    Raises NoDeviceError where there is no driver. Other threads run while it does.
    """
    driver.api()
    entry = ctypes.CDLL("libcuda.so.1").cuLaunchKernelEx
    entry.argtypes, entry.restype = [ctypes.c_int64] * 4, ctypes.c_int

    def launch(config: int, function: int, parameters: int) -> Any:
        return entry(config, function, parameters, 0)

    return njit(types.int32(types.int64, types.int64, types.int64), nogil=True)(launch)
