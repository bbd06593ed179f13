"""Wrong kernels and right ones: what the emulator says of them, and what compute-sanitizer says on a GPU."""

from experiments import markdown
from lab.record import Archive

_CLEAN = "clean"


def table(past: Archive) -> str:
    """What the emulator and each tool of compute-sanitizer say of the newest wrong and right kernels."""
    found = past.newest_run(experiment="sanitizer")
    if not found:
        return "No records yet: `python -m tests.wrong.on_gpu` makes them."
    said = [{name: str(value) for name, value in r.metrics.items()} for r in found]
    tools = [name for name in said[0] if name not in ("subject", "emulator")]
    rows = [[f"`{s['subject']}`", s["emulator"], *(_brief(s[tool]) for tool in tools)] for s in said]
    wrong = [s for s in said if s["emulator"] != _CLEAN]
    silent = [s for s in wrong if all(s[tool] == _CLEAN for tool in tools)]
    right = [s for s in said if s["emulator"] == _CLEAN]
    loud = [s["subject"] for s in right if any(s[tool] != _CLEAN for tool in tools)]
    cells = markdown.table(["kernel", "emulator", *tools], rows)
    return (
        f"{cells}\n\nOf {len(wrong)} wrong kernels, which the emulator all names, compute-sanitizer is silent on "
        f"{len(silent)}. Of {len(right)} runs of right kernels it complains of "
        f"{len(loud) or 'none'}. Run on {found[0].source}."
    )


def _brief(text: str) -> str:
    """The first words of a tool's complaint, without addresses and files."""
    words = text.split(": ")[-1] if "CUDARuntimeError" in text else text.split(" at ")[0].split(" of size")[0]
    return "-" if text == _CLEAN else words
