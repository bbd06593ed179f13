"""mma.sp on the GPU: the metadata lanes and places that the emulator's tests assume are those of the hardware."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.emulator.sparse import FORMS, Form, draw, emulate, kernel_text, sums_of

SEEDS = 4


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize(
    ("form", "selector"), [(form, selector) for form in FORMS for selector in range(form.selectors)], ids=str
)
def test_the_hardware_reads_the_metadata_of_the_lanes_that_the_emulator_reads(
    form: Form, selector: int, ordered: bool, cupy: Any, tmp_path: Path
) -> None:
    path = tmp_path / "k.ptx"
    kind = {"f16": np.float16, "f32": np.float32, "s32": np.int32}[form.sums]
    for seed in range(SEEDS):
        drawn = draw(form, seed, ordered)
        registers = drawn.registers(selector)
        path.write_text(kernel_text(form, registers.shape[1], selector, ordered))
        found = cupy.zeros((32, 4), kind)
        cupy.RawModule(path=str(path)).get_function("k")((1,), (32,), (cupy.asarray(registers), found))
        np.testing.assert_array_equal(found.get(), sums_of(drawn.expected))
        emulated = emulate(form, registers, selector, drawn.expected, ordered)
        assert emulated.passed
        np.testing.assert_array_equal(found.get(), emulated.outputs["d"])
