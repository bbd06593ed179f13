"""Every deliberately wrong kernel is caught under its right name on every seed, and its mended twin is clean."""

from collections import defaultdict

import pytest

from sim.emulator import run
from sim.emulator.mutants import mutants
from sim.machine import H100
from tests.wrong.kernels import FOLDER, WRONG, WrongKernel

KERNELS = [pytest.param(kernel, id=kernel.name) for kernel in WRONG]


def hazards(kernel: WrongKernel, fixed: bool, seed: int) -> list[str]:
    ptx = kernel.compile(fixed, H100).read_text()
    return [hazard.kind for hazard in run(ptx, kernel.launch, kernel.draw(seed), H100, seed=seed, check=True).hazards]


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_wrong_kernel_is_caught_on_every_seed(kernel: WrongKernel, seeds: int) -> None:
    missed = {seed: found for seed in range(seeds) if kernel.hazard not in (found := hazards(kernel, False, seed))}
    assert not missed


@pytest.mark.parametrize("kernel", KERNELS)
def test_its_mended_twin_is_clean_on_every_seed(kernel: WrongKernel, seeds: int) -> None:
    alarms = {seed: found for seed in range(seeds) if (found := hazards(kernel, True, seed))}
    assert not alarms


@pytest.mark.parametrize("kernel", [k for k in KERNELS if "atomic" not in k.values[0].source.read_text()])
def test_whose_writes_are_read_is_the_same_in_every_interleaving(kernel: WrongKernel, seeds: int) -> None:
    ptx = kernel.compile(True, H100).read_text()
    found = {run(ptx, kernel.launch, kernel.draw(0), H100, seed=seed).reads for seed in range(seeds)}
    assert len(found) == 1


def test_every_file_is_described() -> None:
    assert {kernel.name for kernel in WRONG} == {path.stem for path in FOLDER.glob("*.cu")}


def test_every_ordering_instruction_is_missed_where_it_is_dropped() -> None:
    """A mutant counts as harmless where the emulator sees no difference, so it must see one for each instruction."""
    caught: dict[str, bool] = defaultdict(bool)
    for kernel in WRONG:
        ptx = kernel.compile(True, H100).read_text()
        for mutant in mutants(ptx, kernel.name, 128, lambda _: False):
            if mutant.change.startswith("drop "):
                opcode = mutant.change.split(".shared")[0]
                done = run(mutant.ptx, kernel.launch, kernel.draw(0), H100, seed=0, max_steps=100_000)
                caught[opcode] |= bool(done.hazards)
    assert len(caught) > 12
    assert [opcode for opcode, seen in caught.items() if not seen] == []
