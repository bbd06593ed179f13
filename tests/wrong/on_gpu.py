"""Wrong and right kernels on a GPU under compute-sanitizer: `python -m tests.wrong.on_gpu` keeps a record of each.

`python -m tests.wrong.on_gpu NAME` only launches that kernel once, for a sanitizer that watches.
"""

import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import cupy

from lab import catalog
from lab.gpu import device
from lab.gpu.launch import Ready, executor
from lab.record import Record, append, folder, provenance
from lab.verify import verify
from sim.machine import H100
from tests.emulator.cases import Case, hardest
from tests.wrong.kernels import WRONG, WrongKernel

TOOLS = ("memcheck", "racecheck", "synccheck", "initcheck")
RIGHT = "right: "
DEADLINE = 30  # seconds; a kernel that waits for ever is stopped then
AT_ONCE = 16  # sanitizers side by side: most of their time is the host's
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


def names() -> dict[str, str]:
    """What can be launched, by name: the emulator's word on it."""
    return {k.name: k.hazard for k in WRONG} | {f"{RIGHT}{name}": "clean" for name in catalog.names()}


def launch(name: str) -> None:
    """Launch a wrong kernel, or the hardest case of a right one, once."""
    if name.startswith(RIGHT):
        launch_right(hardest(catalog.get(name.removeprefix(RIGHT))))
    else:
        launch_wrong(next(kernel for kernel in WRONG if kernel.name == name))


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
        launch(sys.argv[1])
        return
    device.require_device()
    card, machine, origin = device.card(), device.machine(), provenance()
    with ThreadPoolExecutor(AT_ONCE) as pool:
        asked = {name: {tool: pool.submit(verdict, tool, name) for tool in TOOLS} for name in names()}
        for name, answers in asked.items():
            said = {tool: answer.result() for tool, answer in answers.items()}
            row = Record(
                **origin,
                on="gpu",
                machine=machine.name,
                card=card.name,
                driver=card.driver,
                experiment="sanitizer",
                metrics={"subject": name, "emulator": names()[name], **said},
            )
            append(row, folder() / "sanitizer.jsonl")
            print(name, "|", names()[name], "|", said, flush=True)


if __name__ == "__main__":
    main()
