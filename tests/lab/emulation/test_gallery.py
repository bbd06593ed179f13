"""The gallery's kernels: each has the fault that its page names, and none with the line that was missing."""

import pytest

import lab
from experiments.tables import hazards
from experiments.tables.hazards import FOLDER
from lab.emulation.file import described

NAMES = sorted(path.stem for path in FOLDER.glob("*.py"))


@pytest.mark.parametrize("name", NAMES)
def test_it_has_its_fault_and_nothing_else_once_mended(name: str) -> None:
    said, finds = described(FOLDER / f"{name}.py"), hazards.said(FOLDER / f"{name}.py")["FINDS"]
    for defines in ({}, {"FIXED": "1"}):
        check = lab.emulate(said.source, said.entry, said.launch, [], defines, seeds=5, reference=said.reference)
        kinds = {found.kind for found in check.hazards}
        assert (finds in kinds, check.passed) == (not defines, bool(defines)), (defines, kinds)
