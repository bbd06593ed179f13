"""lab env: what the lab finds here, and what works."""

from typing import Any

from experiments.cli.options import Json
from experiments.cli.output import emit, table
from experiments.cli.waiting import working


def env(as_json: Json = False) -> None:
    """Python, versions, driver, card, folders, and what works here."""
    import shutil

    from experiments.running import backends
    from lab import catalog
    from lab.compile import compile_launch
    from lab.gpu import device
    from lab.problems import Linear
    from lab.record import folder, versions
    from sim.errors import LabError
    from sim.folders import cache_dir
    from sim.machine import H100

    document: dict[str, Any] = {
        "versions": versions(),
        "records": str(folder()),
        "cache": None,
        "card": None,
        "driver": None,
    }
    works: dict[str, str] = {"simulated chip": "yes"}
    try:
        document["cache"] = str(cache_dir())
        kernel, problem = catalog.get("gemv_vectorized"), Linear(1, 8, 8)
        with working("compiling a kernel with NVRTC"):
            compile_launch(kernel.launches(problem, kernel.best_guess(problem, H100), H100)[0], H100)
        works["compiler"] = "yes"
    except LabError as error:
        works["compiler"] = str(error)
    try:
        machine = backends.real_machine()
        document |= {"card": device.card().name, "driver": device.card().driver, "machine": machine.name}
        works["gpu"] = "yes"
    except LabError as error:
        works["gpu"] = str(error)
    works["counters"] = "yes" if shutil.which("ncu") else "ncu is not on PATH"
    emit(document | {"works": works}, as_json, _render)


def _render(document: dict[str, Any]) -> None:
    rows = [[name, version] for name, version in document["versions"].items()]
    rows += [[name, document[name] or "-"] for name in ("card", "driver", "cache", "records")]
    rows += [[f"works: {name}", answer] for name, answer in document["works"].items()]
    table(["", ""], rows, numbers_from=2)
