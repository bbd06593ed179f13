"""Wrong kernels and right ones: what the emulator says of them, and what compute-sanitizer says on a GPU."""

from experiments import markdown
from lab.record import Archive
from sim.folders import ROOT

_CLEAN = "clean"


def table(past: Archive) -> str:
    """What the emulator and each tool of compute-sanitizer said last of each wrong kernel and of right ones."""
    newest = {str(record.metrics["subject"]): record for record in past.where(experiment="sanitizer").records}
    found = {subject: record for subject, record in newest.items() if _stands(subject)}
    if not found:
        return "No records yet: `python -m tests.wrong.on_gpu` makes them."
    said = {subject: {name: str(v) for name, v in r.metrics.items()} for subject, r in found.items()}
    tools = [name for name in next(iter(said.values())) if name not in ("subject", "emulator")]
    rows = [
        [f"`{subject}`", s["emulator"], *(_brief(s[tool]) for tool in tools), str(found[subject].machine)]
        for subject, s in said.items()
    ]
    wrong = [s for s in said.values() if s["emulator"] != _CLEAN]
    silent = [s for s in wrong if all(s[tool] == _CLEAN for tool in tools)]
    right = [s for s in said.values() if s["emulator"] == _CLEAN]
    loud = [s for s in right if any(s[tool] != _CLEAN for tool in tools)]
    cells = markdown.table(["kernel", "emulator", *tools, "on"], rows)
    sources = ", ".join(dict.fromkeys(record.source for record in found.values()))
    return (
        f"{cells}\n\nOf {len(wrong)} wrong kernels, which the emulator all names, compute-sanitizer is silent on "
        f"{len(silent)}. Of {len(right)} runs of right kernels it complains of {len(loud) or 'none'}. Run on {sources}."
    )


def _stands(subject: str) -> bool:
    """Whether a kernel of the records is still there; what a right one is called depends on its schedule."""
    return subject.startswith("right: ") or (ROOT / "tests" / "wrong" / f"{subject}.cu").exists()


def _brief(text: str) -> str:
    """The first words of a tool's complaint, without addresses and files."""
    words = text.split(": ")[-1] if "CUDARuntimeError" in text else text.split(" at ")[0].split(" of size")[0]
    return "-" if text == _CLEAN else words
