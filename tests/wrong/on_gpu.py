"""Wrong and right kernels on a GPU under compute-sanitizer: `python -m tests.wrong.on_gpu` keeps a record of each.

`python -m tests.wrong.on_gpu --left` leaves out what has a record of such a card; with names it only launches each of
those kernels once, for a sanitizer that watches.
"""

import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed

import cupy

from lab import catalog
from lab.gpu import device
from lab.gpu.launch import Ready, executor
from lab.record import Record, append, archive, folder, provenance
from lab.verify import verify
from sim.machine import H100
from tests.emulator.cases import Case, hardest
from tests.wrong.kernels import WRONG, WrongKernel

TOOLS = ("memcheck", "racecheck", "synccheck", "initcheck")
RIGHT = "right: "
DEADLINE = 30  # seconds; a kernel that waits for ever is stopped then
AT_ONCE = 16  # sanitizers side by side: most of their time is the host's
TOGETHER = 6  # right kernels in one process, of which no complaint is expected
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


def verdict(tool: str, names: tuple[str, ...]) -> str:
    """What a sanitizer says of launches in one process: its first complaint, "clean", or "hangs"."""
    command = ["compute-sanitizer", "--tool", tool, sys.executable, "-m", "tests.wrong.on_gpu", *names]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE * len(names), check=False)
    except subprocess.TimeoutExpired:
        return "hangs"
    errors = _SUMMARY.search(done.stdout)
    if errors and errors[1] != "0":
        complaint = _COMPLAINT.search(done.stdout)
        return complaint[1] if complaint else f"{errors[1]} errors"
    return "clean" if done.returncode == 0 else (done.stderr.strip().splitlines() or ["failed"])[-1]


def judged(names: list[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Each name with what every tool says of it, as they come.

    Wrong kernels run one in a process. Right ones share processes, and run alone where a tool complains of several.
    """
    right = [name for name in names if name.startswith(RIGHT)]
    groups = [(name,) for name in names if name not in right]
    groups += [tuple(right[i : i + TOGETHER]) for i in range(0, len(right), TOGETHER)]
    said: dict[str, dict[str, str]] = {name: {} for name in names}
    with ThreadPoolExecutor(AT_ONCE) as pool:
        while groups:
            asked = {pool.submit(verdict, tool, group): (tool, group) for group in groups for tool in TOOLS}
            alone = dict.fromkeys((name,) for group in groups if len(group) > 1 for name in group)
            complained = set()
            for answer in as_completed(asked):
                tool, group = asked[answer]
                if len(group) > 1 and answer.result() != "clean":
                    complained |= {(name,) for name in group}
                for name in group:
                    said[name][tool] = answer.result()
                    if len(said[name]) == len(TOOLS) and (name,) not in complained:
                        yield name, said[name]
            groups = [one for one in alone if one in complained]
            for (name,) in groups:
                said[name].clear()


def main() -> None:
    left = sys.argv[1:] == ["--left"]
    if sys.argv[1:] and not left:
        for name in sys.argv[1:]:
            launch(name)
        return
    device.require_device()
    card, machine, origin = device.card(), device.machine(), provenance()
    known = archive().where(experiment="sanitizer", machine=machine.name).records if left else ()
    there = {str(record.metrics["subject"]) for record in known}
    hazards = names()
    for name, said in judged([name for name in hazards if name not in there]):
        row = Record(
            **origin,
            on="gpu",
            machine=machine.name,
            card=card.name,
            driver=card.driver,
            experiment="sanitizer",
            metrics={"subject": name, "emulator": hazards[name], **said},
        )
        append(row, folder() / "sanitizer.jsonl")
        print(name, "|", hazards[name], "|", said, flush=True)


if __name__ == "__main__":
    main()
