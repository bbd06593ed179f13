"""Decoding of wmma: loads and stores as ordinary accesses of each lane's elements, the product as one instruction.

How a fragment lies in registers is not specified; fragments.py says how it does here.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from sim.emulator import fragments, isa

if TYPE_CHECKING:
    from collections.abc import Callable

    from sim.emulator.decode import Decoder

Parts = tuple[str, ...]

FORMATS = {"f16": isa.F16, "bf16": isa.BF16, "tf32": isa.TF32, "f32": isa.F32, "f64": isa.F64, "s8": isa.S8,
           "u8": isa.U8, "s4": isa.S4, "u4": isa.U4, "s32": isa.S32, "e4m3": isa.E4M3, "e5m2": isa.E5M2}  # fmt: skip
_BYTES = {"f16": 2, "bf16": 2, "tf32": 4, "f32": 4, "f64": 8, "s8": 1, "u8": 1, "s32": 4}
_SPACES = {"global": isa.GLOBAL, "shared": isa.SHARED}


def names(text: str) -> list[str]:
    return [n.strip() for n in text.strip("{}").split(",")]


def shape_of(d: Decoder, parts: Parts) -> tuple[int, int, int]:
    for part in parts:
        if match := re.fullmatch(r"m(\d+)n(\d+)k(\d+)", part):
            m, n, k = map(int, match.groups())
            return m, n, k
    raise d.fail("has no shape")


def saturate(parts: Parts) -> int:
    return fragments.SATURATE * ("satfinite" in parts)


def emit_product(d: Decoder, fields: dict[str, int], operands: Parts, kinds: tuple[str, ...], flags: int) -> None:
    """The pool of fragments.mma: counts of D, A, B and C, formats of D and C, flags, their rows, that of metadata."""
    rows = [[d.register(n) for n in names(operands[0])]]
    rows += [
        [d.value(n, "b64" if kind == "f64" else "b32") for n in names(o)]
        for o, kind in zip(operands[1:4], kinds[1:], strict=True)
    ]
    sizes = [len(part) for part in rows]
    if flags & fragments.SPARSE:
        rows.append([d.value(operands[4], "b32")])
    start, count = d.pooled([*sizes, FORMATS[kinds[0]], FORMATS[kinds[3]], flags, *(r for part in rows for r in part)])
    d.emit(isa.MMA, d=1, f1=FORMATS[kinds[1]], f3=FORMATS[kinds[2]], pool=start, count=count, **fields)


def _wmma(d: Decoder, parts: Parts, operands: Parts) -> None:
    m, n, k = shape_of(d, parts)
    if parts[0] == "mma":
        kinds = [p for p in parts if p in FORMATS]
        if "xor" in parts or "and" in parts or not kinds:
            raise d.fail()
        if len(kinds) == 2:  # of D and C; the others are f16
            kinds = [kinds[0], "f16", "f16", kinds[1]]
        emit_product(d, {"f0": k, "f2": 256 * m + n}, operands, tuple(kinds), fragments.OPAQUE | saturate(parts))
        return
    which, kind = parts[1], parts[-1]
    if kind not in _BYTES:
        raise d.fail(f"has the type .{kind}, which is not supported")
    rows, columns = {"a": (m, k), "b": (k, n), "c": (m, n), "d": (m, n)}[which]
    store = parts[0] == "store"
    where, fragment = operands[0 if store else 1], names(operands[1 if store else 0])
    size, default = _BYTES[kind], columns if "row" in parts else rows
    stride = d.value(operands[2], "u32") if len(operands) > 2 else d.constant(default)
    base, offset = d.address(where)
    space = next((_SPACES[p.split("::")[0]] for p in parts if p.split("::")[0] in _SPACES), isa.GENERIC)
    per, row_major = max(4 // size, 1), "row" in parts
    slots = len(fragment) * per
    moved = -(-rows * columns // 32) if store else slots  # what repeats is stored once
    lane = _Lane(d, base, stride, slots, (rows, columns), size, row_major)
    d.track(space, size * per if row_major else size)
    for i, name in enumerate(fragment[: -(-moved // per)]):
        register = d.register(name)
        if row_major or per == 1:
            _access(d, store, register, lane.address(i * per), offset, space, size * per)
            continue
        parts_of = [d.temporary() for _ in range(per)]
        for e, part in enumerate(parts_of):
            if store:
                d.emit(isa.SHR, d=part, a=register, b=d.constant(e * 32 // per), f0=32, f2=32)
            _access(d, store, part, lane.address(i * per + e), offset, space, size)
        if not store:
            start, count = d.pooled(parts_of)
            d.emit(isa.PACK, d=register, f0=32 // per, pool=start, count=count)


class _Lane:
    """The addresses of a lane's slots of a fragment: slot j holds element `lane` * slots + j of the matrix."""

    def __init__(
        self, d: Decoder, base: int, stride: int, slots: int, extent: tuple[int, int], size: int, row_major: bool
    ) -> None:
        rows, columns = extent
        self._d, self._stride, self._size, self._row_major, self._columns = d, stride, size, row_major, columns
        element, row, column, at = (d.temporary() for _ in range(4))
        d.emit(isa.MUL, d=element, a=isa.S_LANE, b=d.constant(slots), f2=32)
        d.emit(isa.AND, d=element, a=element, b=d.constant(rows * columns - 1), f2=32)
        d.emit(isa.SHR, d=row, a=element, b=d.constant(columns.bit_length() - 1), f0=32, f2=32)
        d.emit(isa.AND, d=column, a=element, b=d.constant(columns - 1), f2=32)
        slow, fast = (row, column) if row_major else (column, row)
        d.emit(isa.MAD, d=at, a=slow, b=stride, c=fast)
        d.emit(isa.MAD, d=at, a=at, b=d.constant(size), c=base)
        self._first = at
        self._strided: dict[int, int] = {0: at}

    def address(self, j: int) -> tuple[int, int]:
        """(row, offset) of the address of slot j: so many rows and columns beyond slot 0."""
        row, column = divmod(j, self._columns)
        strides, elements = (row, column) if self._row_major else (column, row)
        if strides not in self._strided:
            to = self._strided[strides] = self._d.temporary()
            step = self._d.constant(strides * self._size)
            self._d.emit(isa.MAD, d=to, a=self._stride, b=step, c=self._first)
        return self._strided[strides], elements * self._size


def _access(
    d: Decoder, store: bool, register: int, where: tuple[int, int], offset: int, space: int, width: int
) -> None:
    """Load or store a register of a fragment, or an element of one."""
    start, count = d.pooled([register])
    fields = {"a": where[0], "f0": offset + where[1], "f1": space, "f2": width, "c": 0, "pool": start, "count": count}
    if store:
        d.emit(isa.ST, **fields)
    else:
        d.emit(isa.LD, f3=2 * (64 - 8 * width), **fields)


HANDLERS: dict[str, Callable[[Decoder, Parts, Parts], None]] = {"wmma": _wmma}
