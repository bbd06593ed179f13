"""What a kernel printed: C formats with the arguments that vprintf was given."""

import re
import struct
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from sim.emulator import isa
from sim.emulator import tables as t

_CONVERSION = re.compile(r"%([-+ #0]*)(\*|\d+)?(?:\.(\*|\d+))?(hh|h|ll|l|z|j|t|L)?([diouxXcsfFeEgGaAp%])")
_LONGEST = 4096  # bytes of a string


def text_at(tables: t.Tables, address: int) -> str:
    """The C string at a global address."""
    array, offset = (address >> isa.ARRAY_SHIFT) - 1, address & ((1 << isa.ARRAY_SHIFT) - 1)
    if not 0 <= array < len(tables[t.ARRAYS]):
        return "?"
    row = tables[t.ARRAYS][array]
    first = int(row[t.A_FLAT]) + offset
    data = tables[t.G8][first : min(int(row[t.A_FLAT] + row[t.A_BYTES]), first + _LONGEST)].tobytes()
    return data.split(b"\0")[0].decode(errors="replace")


def lines(tables: t.Tables) -> Iterator[str]:
    """Each call of printf, in the order of the interleaving."""
    count = int(tables[t.CFG][t.PRINT_COUNT])
    for row in tables[t.PRINTS][: min(count, t.MAX_PRINTS)]:
        yield _formatted(text_at(tables, int(row[t.P_FORMAT])), row[t.P_DATA :], tables)
    if count > t.MAX_PRINTS:
        yield f"... and {count - t.MAX_PRINTS} more"


def _formatted(form: str, words: NDArray[np.int64], tables: t.Tables) -> str:
    data, at = words.tobytes(), 0

    def take(kind: str, width: int) -> int | float:
        nonlocal at
        at = -(-at // width) * width
        if at + width > len(data):
            return 0
        (value,) = struct.unpack_from(kind, data, at)
        at += width
        return value  # type: ignore[no-any-return]

    def convert(match: re.Match[str]) -> str:
        flags, width, precision, size, kind = match.groups()
        if kind == "%":
            return "%"
        width = str(take("<i", 4)) if width == "*" else width or ""
        precision = str(take("<i", 4)) if precision == "*" else precision
        how = f"%{flags}{width}" + (f".{precision}" if precision is not None else "")
        if kind in "fFeEgGaA":
            return (how + ("f" if kind in "aA" else kind)) % take("<d", 8)
        if kind == "s":
            return (how + "s") % text_at(tables, int(take("<q", 8)))
        if kind == "p":
            return f"{take('<Q', 8):#x}"
        wide = size in ("l", "ll", "z", "j", "t")
        signed = kind in "di"
        letter = ("q" if signed else "Q") if wide else ("i" if signed else "I")
        value = int(take(f"<{letter}", 8 if wide else 4))
        return (how + "c") % chr(value & 0xFF) if kind == "c" else (how + ("d" if kind in "diu" else kind)) % value

    return _CONVERSION.sub(convert, form)
