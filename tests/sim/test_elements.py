"""Elements in compiled code against ml_dtypes: every bit pattern, and floats around every tie."""

from collections.abc import Callable

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from sim.formats import decode, encode
from sim.tiles import elements

NARROW = {
    "bf16": (elements.float_of_bf16, elements.bf16_of_float, np.uint16, ml_dtypes.bfloat16, 0x7FFF),
    "fp16": (elements.float_of_fp16, elements.fp16_of_float, np.uint16, np.float16, 0x7FFF),
    "fp8": (elements.float_of_fp8, elements.fp8_of_float, np.uint8, ml_dtypes.float8_e4m3fn, 0x7F),
}


@pytest.mark.parametrize("name", NARROW)
def test_every_bit_pattern_is_the_float_of_ml_dtypes(name: str) -> None:
    widen, _, storage, dtype, _ = NARROW[name]
    bits = np.arange(2 ** (8 * np.dtype(storage).itemsize), dtype=np.uint32).astype(storage)
    ours = np.array([widen(b) for b in bits], np.float32)
    theirs = bits.view(dtype).astype(np.float32)
    nan = np.isnan(theirs)
    assert np.array_equal(np.isnan(ours), nan)
    assert np.array_equal(ours[~nan].view(np.uint32), theirs[~nan].view(np.uint32))  # the sign of zero included


@pytest.mark.parametrize("name", NARROW)
def test_floats_round_as_ml_dtypes_rounds_and_as_the_chip_saturates(name: str) -> None:
    _, narrow, storage, dtype, nan_bits = NARROW[name]
    values = floats()
    ours = narrowed(narrow, values, storage)
    nan = np.isnan(values)
    assert (ours[nan] == nan_bits).all()
    kept = np.clip(values[~nan], -448, 448) if name == "fp8" else values[~nan]
    with np.errstate(over="ignore"):
        assert np.array_equal(ours[~nan], kept.astype(dtype).view(storage))
    assert np.array_equal(ours[~nan], encode(values[~nan], name))


@pytest.mark.parametrize("name", NARROW)
def test_ties_between_neighbours_go_to_the_even_one(name: str) -> None:
    _, narrow, storage, _, _ = NARROW[name]
    top = {"bf16": 0x7F7F, "fp16": 0x7BFF, "fp8": 0x7E}[name]
    low = np.arange(top, dtype=np.uint32).astype(storage)
    below, above = (decode(bits.astype(storage), name).astype(np.float64) for bits in (low, low + 1))
    ties = ((below + above) / 2).astype(np.float32)
    assert np.array_equal(ties, (below + above) / 2), "a tie has one bit more, which float32 holds"
    assert np.array_equal(narrowed(narrow, ties, storage), low + low % 2)
    assert np.array_equal(narrowed(narrow, np.nextafter(ties, np.float32(0)), storage), low)
    assert np.array_equal(narrowed(narrow, np.nextafter(ties, np.float32(np.inf)), storage), low + 1)


def floats() -> NDArray[np.float32]:
    """Every exponent and sign with significands around ties and carries; subnormals, infinities and NaN included."""
    ties = [1 << bit for bit in range(23)]
    near = {t + d for t in [0, *ties] for d in (-1, 0, 1)} | {(1 << 23) - t for t in ties} | {0x180000, 0x17FFFF}
    low = np.array(sorted(near & set(range(1 << 23))), np.uint32)
    return (np.arange(512, dtype=np.uint32)[:, None] << np.uint32(23) | low).reshape(-1).view(np.float32)


def narrowed(narrow: Callable[[np.float32], int], values: NDArray[np.float32], storage: type) -> NDArray:
    return np.array([narrow(v) for v in values], storage)
