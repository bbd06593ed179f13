"""The wrong kernels on a GPU under compute-sanitizer: `python -m tests.wrong.on_gpu` prints one JSON line a kernel.

`python -m tests.wrong.on_gpu NAME wrong|fixed` only launches that kernel once, for a sanitizer that watches.
"""

import json
import re
import subprocess
import sys
from ctypes import c_void_p

import cupy

from lab.gpu import driver
from lab.gpu.launch import _Ready
from sim.machine import H100
from tests.wrong.kernels import WRONG, WrongKernel

TOOLS = ("memcheck", "racecheck", "synccheck", "initcheck")
DEADLINE = 60  # seconds; a kernel that waits for ever is stopped then


def launch(kernel: WrongKernel, fixed: bool) -> None:
    ready = _Ready(kernel.launch, kernel.compile(fixed, H100, "cubin"))
    arrays = {name: cupy.asarray(array) for name, array in kernel.draw(0).items()}
    for name, array in arrays.items():
        ready.parameters.point(name, array.data.ptr)
    ready.config.stream = cupy.cuda.get_current_stream().ptr
    call = (ready.config_address, ready.function, ready.parameters.address, None)
    driver.call("cuLaunchKernelEx", *(c_void_p(pointer) for pointer in call))
    cupy.cuda.get_current_stream().synchronize()


def verdict(tool: str, name: str, which: str) -> str:
    """What a sanitizer says of one launch: its first complaint, "clean", or "hangs"."""
    command = ["compute-sanitizer", "--tool", tool, sys.executable, "-m", "tests.wrong.on_gpu", name, which]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE, check=False)
    except subprocess.TimeoutExpired:
        return "hangs"
    errors = re.search(r"(?:ERROR|RACECHECK) SUMMARY: (\d+)", done.stdout)
    if errors and errors[1] != "0":
        complaint = re.search(r"========= (?:Error: |Warning: )?(?!COMPUTE)(\S.*)", done.stdout)
        return complaint[1] if complaint else f"{errors[1]} errors"
    return "clean" if done.returncode == 0 else (done.stderr.strip().splitlines() or ["failed"])[-1]


def main() -> None:
    if len(sys.argv) == 3:
        launch(next(k for k in WRONG if k.name == sys.argv[1]), sys.argv[2] == "fixed")
        return
    for kernel in WRONG:
        said = {which: {tool: verdict(tool, kernel.name, which) for tool in TOOLS} for which in ("wrong", "fixed")}
        print(json.dumps({"kernel": kernel.name, "emulator": kernel.hazard, **said}), flush=True)


if __name__ == "__main__":
    main()
