"""fp16, bf16 and fp8 through the device headers in the emulator: wgmma against NumPy, conversions bit for bit."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from lab.compile import compile_source
from sim.emulator import run
from sim.formats import FORMATS, decode, encode
from sim.launch import Array, Launch, Role
from sim.machine import H100

FOLDER = Path(__file__).parent
NARROW = ("bf16", "fp16", "fp8")
ROW = 128  # bytes along k


def execute(stem: str, header: str, arguments: tuple[Array, ...], arrays: dict[str, NDArray], ctas: int = 1) -> None:
    """Run the .cu of that name, CTAs of 128 threads; raises AssertionError on a hazard."""
    text = f"#pragma once\n#include <ptx/types.cuh>\nnamespace schedule {{\n{header}\n}}\n"
    ptx = compile_source(FOLDER / f"{stem}.cu", text, H100, "ptx").path.read_text()
    launch = Launch(stem, stem, None, None, (ctas, 1, 1), (128, 1, 1), arguments)
    assert run(ptx, launch, arrays, H100, seed=0).hazards == ()


@pytest.mark.parametrize("n", [32, 96, 256])
@pytest.mark.parametrize("name", NARROW)
@pytest.mark.parametrize("whole", [True, False], ids=["integers", "normal"])
def test_wgmma_of_each_format_is_the_product(name: str, n: int, whole: bool) -> None:
    size = FORMATS[name].storage.itemsize
    k = ROW // size
    rng = np.random.default_rng(n)
    drawn = [rng.integers(-8, 9, (rows, k)) if whole else rng.standard_normal((rows, k)) for rows in (64, n)]
    a, b = (encode(values, name) for values in drawn)
    y = np.full((128, n // 2), np.nan, np.float32)
    arguments = (
        Array("a", Role.IN, a.shape, name),
        Array("b", Role.IN, b.shape, name),
        Array("y", Role.OUT, y.shape, "fp32"),
    )
    execute("wgmma_product", f"using element = {name};\nconstexpr int n = {n};", arguments, {"a": a, "b": b, "y": y})

    left, right = (decode(bits, name).astype(np.float64) for bits in (a, b))
    thread, i = np.arange(128)[:, None], np.arange(n // 2)[None, :]
    rows = thread // 32 * 16 + thread % 32 // 4 + 8 * (i // 2 % 2)  # PTX ISA 9.7.15.5.1, the fragment of D
    columns = i // 4 * 8 + thread % 4 * 2 + i % 2
    expected = (left @ right.T)[rows, columns]
    bound = 0 if whole else k * 2.0**-24 * (np.abs(left) @ np.abs(right).T)[rows, columns]
    assert (np.abs(y - expected) <= bound).all()


@pytest.mark.parametrize("name", NARROW)
def test_conversions_are_those_of_the_formats(name: str) -> None:
    storage = FORMATS[name].storage
    bits = np.arange(2 ** min(FORMATS[name].bits, 12)).astype(storage) * (1 if storage.itemsize == 1 else 16)
    rng = np.random.default_rng(3)
    values = (rng.standard_normal(bits.size) * 2.0 ** rng.integers(-20, 20, bits.size)).astype(np.float32)
    values[:6] = (0, -0.0, np.inf, -np.inf, np.nan, 448)
    arrays = {
        "bits": bits,
        "values": values,
        "widened": np.zeros(bits.size, np.float32),
        "rounded": np.zeros(bits.size, storage),
        "pairs": np.zeros(2 * bits.size, storage),
    }
    forms = {"bits": name, "values": "fp32", "widened": "fp32", "rounded": name, "pairs": name}
    roles = {"bits": Role.IN, "values": Role.IN}
    arguments = tuple(Array(a, roles.get(a, Role.OUT), arrays[a].shape, forms[a]) for a in arrays)
    execute("converted", f"using element = {name};", arguments, arrays, bits.size // 128)

    widened = decode(bits, name)
    same = arrays["widened"].view(np.uint32) == widened.view(np.uint32)
    assert (same | (np.isnan(widened) & np.isnan(arrays["widened"]))).all()
    for value, rounded in (
        (values, arrays["rounded"]),
        (values, arrays["pairs"][0::2]),
        (-values, arrays["pairs"][1::2]),
    ):
        nan = np.isnan(value)
        assert np.array_equal(rounded[~nan], encode(value[~nan], name))
        assert np.isnan(decode(rounded[nan], name)).all()
