"""Wrong and right kernels on a GPU under compute-sanitizer: `python -m tests.wrong.on_gpu` keeps a record of each.

`python -m tests.wrong.on_gpu NAME` only launches that kernel once, for a sanitizer that watches.
"""

import re
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import cupy

from lab import catalog
from lab.gpu import device
from lab.gpu.launch import Ready, executor
from lab.record import Record, append, folder, provenance
from lab.verify import verify
from sim.machine import H100
from tests.emulator.cases import Case, cases
from tests.wrong.kernels import WRONG, WrongKernel

TOOLS = ("memcheck", "racecheck", "synccheck", "initcheck")
DEADLINE = 30  # seconds; a kernel that waits for ever is stopped then
AT_ONCE = 12  # sanitizers side by side: most of their time is the host's
_SUMMARY = re.compile(r"(?:ERROR|RACECHECK) SUMMARY: (\d+)")
_COMPLAINT = re.compile(r"========= (?:Error: |Warning: )?(?!COMPUTE)(\S.*)")


def launch_wrong(kernel: WrongKernel) -> None:
    ready = Ready(kernel.launch, kernel.compile(False, H100, "cubin"))
    arrays = {name: cupy.asarray(array) for name, array in kernel.draw(0).items()}
    for name, array in arrays.items():
        ready.parameters.point(name, array.data.ptr)
    ready(cupy.cuda.get_current_stream().ptr)
    cupy.cuda.get_current_stream().synchronize()


def launch_right(case: Case) -> None:
    found = verify(case.kernel, case.problem, case.schedule, case.machine, executor(H100))
    if not found.passed:
        raise RuntimeError(f"{case.kernel.name} is wrong: {found.check}")


# What can be launched, by name: the emulator's word on it, and how.
SUBJECTS: dict[str, tuple[str, Callable[[], None]]] = {
    **{k.name: (k.hazard, partial(launch_wrong, k)) for k in WRONG},
    **{f"right: {c}": ("clean", partial(launch_right, c)) for kernel in catalog.kernels() for c in cases(kernel)},
}


def verdict(tool: str, name: str) -> str:
    """What a sanitizer says of one launch: its first complaint, "clean", or "hangs"."""
    command = ["compute-sanitizer", "--tool", tool, sys.executable, "-m", "tests.wrong.on_gpu", name]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE, check=False)
    except subprocess.TimeoutExpired:
        return "hangs"
    errors = _SUMMARY.search(done.stdout)
    if errors and errors[1] != "0":
        complaint = _COMPLAINT.search(done.stdout)
        return complaint[1] if complaint else f"{errors[1]} errors"
    return "clean" if done.returncode == 0 else (done.stderr.strip().splitlines() or ["failed"])[-1]


def main() -> None:
    if len(sys.argv) == 2:
        SUBJECTS[sys.argv[1]][1]()
        return
    device.require_device()
    card, origin = device.card(), provenance()
    with ThreadPoolExecutor(AT_ONCE) as pool:
        asked = {name: {tool: pool.submit(verdict, tool, name) for tool in TOOLS} for name in SUBJECTS}
        for name, answers in asked.items():
            said = {tool: answer.result() for tool, answer in answers.items()}
            row = Record(
                **origin,
                on="gpu",
                machine=H100.name,
                card=card.name,
                driver=card.driver,
                experiment="sanitizer",
                metrics={"subject": name, "emulator": SUBJECTS[name][0], **said},
            )
            append(row, folder() / "sanitizer.jsonl")
            print(name, "|", SUBJECTS[name][0], "|", said, flush=True)


if __name__ == "__main__":
    main()
