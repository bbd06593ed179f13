"""The three kernels that docs/your-kernel.md walks through: clean as they are, and caught where one line is missing."""

from pathlib import Path

import pytest

import lab
from lab.emulation.file import Description, described
from sim.folders import ROOT

FOLDER = ROOT / "docs" / "kernels"
NAMES = sorted(path.stem for path in FOLDER.glob("*.py"))


def emulated(said: Description, source: str | Path) -> lab.emulation.Check:
    return lab.emulate(
        source, said.entry, said.launch, [*said.includes, FOLDER], seeds=20, reference=said.reference, folder=FOLDER
    )


@pytest.mark.parametrize("name", NAMES)
def test_it_is_clean_and_right(name: str) -> None:
    said = described(FOLDER / f"{name}.py")
    check = emulated(said, said.source)
    assert check.passed, [found.hazard.message for found in check.hazards]
    assert check.differences
    assert check.seeds == 20


@pytest.mark.parametrize(
    ("name", "line", "kind"),
    [
        ("reduction", "        __syncthreads();\n", "race on shared memory"),
        ("gemm", "        __syncthreads();\n        for", "race on shared memory"),
        ("pipeline", "            __syncwarp();\n", "missing __syncwarp"),
        ("pipeline", "            ptx::mbarrier::wait(ring.full[stage], lap & 1);\n", "access before TMA arrival"),
    ],
)
def test_a_line_less_and_it_is_caught(name: str, line: str, kind: str) -> None:
    said = described(FOLDER / f"{name}.py")
    text = (FOLDER / said.source).read_text()
    assert text.count(line) == 1
    assert kind in {found.kind for found in emulated(said, text.replace(line, "for" * line.endswith("for"))).hazards}


def test_the_page_shows_the_description_as_it_is() -> None:
    assert (FOLDER / "reduction.py").read_text() in (ROOT / "docs" / "your-kernel.md").read_text()
