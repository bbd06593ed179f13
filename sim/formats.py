"""Number formats: sizes, rounding units, bit layouts."""

from dataclasses import dataclass
from functools import cache

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from sim.errors import InputError


@dataclass(frozen=True)
class Format:
    """How one number is stored: `bits` an element, plus `group_bytes` of scale and offset for every `group` along k.

    `storage` is the NumPy type that carries the bits in memory; 4-bit elements are packed as sim/int4.py says.
    `unit_roundoff` is half a unit in the last place relative to the value (Higham, "Accuracy and Stability", 2.1);
    `smallest` is the smallest positive value, the spacing of subnormals.
    """

    name: str
    bits: int
    storage: np.dtype
    unit_roundoff: float
    smallest: float
    group: int = 0
    group_bytes: int = 0

    def nbytes(self, rows: int, columns: int) -> int:
        """Bytes of a row-major [rows, columns] matrix, its scales included; each row is packed by itself."""
        row = (columns * self.bits + 7) // 8
        if self.group:
            row += -(-columns // self.group) * self.group_bytes
        return rows * row


_FLOATS = (
    Format("fp32", 32, np.dtype(np.float32), 2.0**-24, 2.0**-149),
    Format("fp16", 16, np.dtype(np.uint16), 2.0**-11, 2.0**-24),
    Format("bf16", 16, np.dtype(np.uint16), 2.0**-8, 2.0**-133),
    Format("fp8", 8, np.dtype(np.uint8), 2.0**-4, 2.0**-9),  # e4m3fn
)
_INT4 = tuple(Format(f"int4_g{group}", 4, np.dtype(np.uint8), 2.0**-4, 1.0, group, 4) for group in (32, 64, 128))
FORMATS = {f.name: f for f in _FLOATS + _INT4}

_ML_DTYPES = {
    "fp16": np.dtype(np.float16),
    "bf16": np.dtype(ml_dtypes.bfloat16),
    "fp8": np.dtype(ml_dtypes.float8_e4m3fn),
}
FP8_MAX = 448.0  # the largest finite e4m3fn value (OCP 8-bit floating point, 5.1)


def format_named(name: str) -> Format:
    """The format of that name; raises InputError and lists the known ones otherwise."""
    if name not in FORMATS:
        raise InputError(f"unknown format {name!r}; known formats: {', '.join(FORMATS)}")
    return FORMATS[name]


def storage_of(name: str) -> np.dtype:
    """The NumPy type that carries the bits of a format, or that is called so, such as "int32"."""
    return FORMATS[name].storage if name in FORMATS else np.dtype(name)


def encode(values: NDArray, name: str) -> NDArray:
    """Round float values to a format's bits, to nearest even; fp8 saturates at 448 as PTX `satfinite` does."""
    if name == "fp32":
        return np.ascontiguousarray(values, np.float32)
    values = np.asarray(values, np.float32)
    if name == "fp8":
        values = np.clip(values, -FP8_MAX, FP8_MAX)
    with np.errstate(over="ignore", invalid="ignore"):  # fp16 overflows to infinity and NaN stays NaN, as on the chip
        return values.astype(_ML_DTYPES[name]).view(FORMATS[name].storage)


def decode(bits: NDArray, name: str) -> NDArray[np.float32]:
    """The float32 values that a format's bits stand for; exact."""
    if name == "fp32":
        return np.asarray(bits, np.float32)
    if name == "bf16":
        widened: NDArray[np.float32] = (np.asarray(bits, np.uint16).astype(np.uint32) << 16).view(np.float32)
        return widened
    looked_up: NDArray[np.float32] = decode_table(name)[bits]
    return looked_up


@cache
def decode_table(name: str) -> NDArray[np.float32]:
    """float32 value of every bit pattern of an 8-bit or 16-bit format."""
    storage = FORMATS[name].storage
    patterns = np.arange(2 ** (8 * storage.itemsize), dtype=np.uint32).astype(storage)
    table: NDArray[np.float32] = patterns.view(_ML_DTYPES[name]).astype(np.float32)
    return table
