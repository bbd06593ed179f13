"""Decoding of what no single operation does: carries, packed comparisons, dot products, tests of numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sim.emulator import isa

if TYPE_CHECKING:
    from collections.abc import Callable

    from sim.emulator.decode import Decoder

Parts = tuple[str, ...]

_FLOATS = {"f16x2": isa.F16, "bf16x2": isa.BF16, "f16": isa.F16, "bf16": isa.BF16}
_BOOLEANS = {"and": isa.AND_THEN, "or": isa.OR_THEN, "xor": isa.XOR_THEN}


def carry(d: Decoder) -> int:
    """The row of the condition code."""
    if "@carry" not in d.rows:
        d.rows["@carry"] = d.temporary()
    return d.rows["@carry"]


def extended(d: Decoder, parts: Parts, operands: Parts) -> None:
    """add, sub and mad with a carry in (addc ...) or out (.cc)."""
    root = d.instruction.opcode.split(".", 1)[0]
    kind, name = parts[-1], root.removesuffix("c")
    width, takes, gives = int(kind[1:]), root.endswith("c"), "cc" in parts
    a, b = d.value(operands[1], kind), d.value(operands[2], kind)
    if name == "mad":
        product = d.temporary()
        op = isa.MUL if "lo" in parts else isa.MUL_HI if width == 32 else isa.MUL_HI64
        d.emit(op, d=product, a=a, b=b, f0=64 - width, f1=int(kind[0] == "s"), f2=64 - width)
        a, b = product, d.value(operands[3], kind)
    op = isa.SUB if name == "sub" else isa.ADD
    total, out = d.temporary(), d.temporary()
    d.emit(op, d=total, a=a, b=b)
    if gives:
        _carry_out(d, op, total, a, b, out, width)
    if takes:
        more = d.temporary()
        d.emit(op, d=more, a=total, b=carry(d))
        if gives and width == 64:
            second = d.temporary()
            _carry_out(d, op, more, total, carry(d), second, width)
            d.emit(isa.OR, d=out, a=out, b=second)
        elif gives:
            _carry_out(d, op, more, a, b, out, width)
        total = more
    d.emit(isa.MOV, d=d.register(operands[0]), a=total, f2=64 - width)
    if gives:
        d.emit(isa.MOV, d=carry(d), a=out)


def _carry_out(d: Decoder, op: int, total: int, a: int, b: int, out: int, width: int) -> None:
    """1 where a sum or difference left its width, in the row `out`."""
    if width == 32:
        d.emit(isa.SHR, d=out, a=total, b=d.constant(32))
        d.emit(isa.AND, d=out, a=out, b=d.constant(1))
        return
    flag = d.flag()
    x, y = (total, a) if op == isa.ADD else (a, b)
    d.emit(isa.SETP, d=flag, a=x, b=y, c=0, f0=isa.LT, f1=isa.UNSIGNED, f2=0, f3=0, pool=2)
    d.emit(isa.SELP, d=out, a=d.constant(1), b=d.constant(0), c=flag)


def packed_compare(d: Decoder, parts: Parts, operands: Parts, results: tuple[int, int]) -> None:
    """setp of packed halves: predicate operands for the low and for the high one."""
    kind = parts[-1]
    then = next((_BOOLEANS[p] for p in parts[1:-1] if p in _BOOLEANS), 0)
    sources = [d.value(o, "b32") for o in operands[1:3]]
    for half, result in enumerate(results):
        pair = [_half(d, source, half) for source in sources]
        d.emit(isa.SETP, d=result, a=pair[0], b=pair[1], c=d.predicate(operands[3]) if then else 0,
               f0=isa.COMPARISONS[parts[0]], f1=_FLOATS[kind], f2=0, f3=then, pool=2)  # fmt: skip


def _half(d: Decoder, source: int, half: int) -> int:
    row = d.temporary()
    d.emit(isa.BFE, d=row, a=source, b=d.constant(16 * half), c=d.constant(16), f0=32, f2=32)
    return row


def packed_set(d: Decoder, parts: Parts, operands: Parts) -> None:
    """set of halves, packed or not: ones, or the number 1, where the comparison holds."""
    target, kind = parts[-2], parts[-1]
    true = {"f16": 0x3C00, "f16x2": 0x3C00, "bf16": 0x3F80, "bf16x2": 0x3F80}.get(target, 0xFFFF)
    flags = d.flag(), d.flag()
    packed_compare(d, (*parts[:-2], kind), operands, flags)
    to = d.register(operands[0])
    if target in ("u32", "s32") and kind in ("f16", "bf16"):
        d.emit(isa.SELP, d=to, a=d.constant(0xFFFFFFFF), b=d.constant(0), c=flags[0])
        return
    low, high = d.temporary(), d.temporary()
    d.emit(isa.SELP, d=low, a=d.constant(true), b=d.constant(0), c=flags[0])
    if not kind.endswith("x2"):
        d.emit(isa.MOV, d=to, a=low)
        return
    d.emit(isa.SELP, d=high, a=d.constant(true << 16), b=d.constant(0), c=flags[1])
    d.emit(isa.OR, d=to, a=low, b=high)


def _dot(d: Decoder, parts: Parts, operands: Parts) -> None:
    """dp4a and dp2a."""
    root = d.instruction.opcode.split(".", 1)[0]
    a_kind, b_kind = parts[-2:]
    halves = root == "dp2a"
    flags = int(a_kind[0] == "s") + 2 * int(b_kind[0] == "s") + 4 * halves + 8 * int("hi" in parts)
    a, b, c = (d.value(o, "b32") for o in operands[1:4])
    d.emit(isa.DP4A, d=d.register(operands[0]), a=a, b=b, c=c, f0=32, f2=32, f3=flags)


def _isspacep(d: Decoder, parts: Parts, operands: Parts) -> None:
    window = {"global": 0, "shared": 1, "local": 2, "param": 4}.get(parts[0].split("::")[0], 8)
    row = d.temporary()
    d.emit(isa.SHR, d=row, a=d.value(operands[1]), b=d.constant(56))
    d.emit(isa.SETP, d=d.predicate(operands[0]), a=row, b=d.constant(window), c=0, f0=isa.EQ, f1=isa.UNSIGNED, f2=0,
           f3=0, pool=2)  # fmt: skip


def _testp(d: Decoder, parts: Parts, operands: Parts) -> None:
    """Tests of a float by its bits without the sign, beside those of the smallest normal number and of infinity."""
    kind = parts[-1]
    wide = kind == "f64"
    infinity, normal = (0x7FF0000000000000, 0x0010000000000000) if wide else (0x7F800000, 0x00800000)
    tests = {"finite": [(isa.LT, infinity)], "infinite": [(isa.EQ, infinity)], "number": [(isa.LE, infinity)],
             "notanumber": [(isa.GT, infinity)], "normal": [(isa.GE, normal), (isa.LT, infinity)],
             "subnormal": [(isa.LT, normal), (isa.GT, 0)]}  # fmt: skip
    row, to = d.temporary(), d.predicate(operands[0])
    keep = d.constant((1 << (63 if wide else 31)) - 1)
    d.emit(isa.AND, d=row, a=d.value(operands[1], kind), b=keep)
    for i, (comparison, bound) in enumerate(tests[parts[0]]):
        d.emit(isa.SETP, d=to, a=row, b=d.constant(bound), c=to if i else 0, f0=comparison, f1=isa.UNSIGNED, f2=0,
               f3=isa.AND_THEN if i else 0, pool=2)  # fmt: skip


def _bmsk(d: Decoder, parts: Parts, operands: Parts) -> None:
    """bmsk: so many ones from a position on."""
    kept = [d.temporary(), d.temporary()]
    for row, operand in zip(kept, operands[1:], strict=True):
        if parts[0] == "wrap":
            d.emit(isa.AND, d=row, a=d.value(operand, "b32"), b=d.constant(31))
        else:
            d.emit(isa.MIN, d=row, a=d.value(operand, "b32"), b=d.constant(32), f0=32, f2=32)
    ones = d.temporary()
    d.emit(isa.SHL, d=ones, a=d.constant(1), b=kept[1])
    d.emit(isa.SUB, d=ones, a=ones, b=d.constant(1))
    d.emit(isa.SHL, d=d.register(operands[0]), a=ones, b=kept[0], f2=32)


def _mul24(d: Decoder, parts: Parts, operands: Parts) -> None:
    """mul24 and mad24: the product of the low 24 bits."""
    kind = parts[-1]
    rows = []
    for operand in operands[1:3]:
        rows.append(d.temporary())
        d.emit(isa.BFE, d=rows[-1], a=d.value(operand, kind), b=d.constant(0), c=d.constant(24), f0=32,
               f1=int(kind[0] == "s"), f2=32)  # fmt: skip
    product = d.temporary()
    d.emit(isa.MUL, d=product, a=rows[0], b=rows[1], f0=32, f1=int(kind[0] == "s"))
    if "hi" in parts:
        d.emit(isa.SHR, d=product, a=product, b=d.constant(16))
    if len(operands) > 3:
        d.emit(isa.ADD, d=product, a=product, b=d.value(operands[3], kind))
    d.emit(isa.MOV, d=d.register(operands[0]), a=product, f2=32)


HANDLERS: dict[str, Callable[[Decoder, Parts, Parts], None]] = {
    "addc": extended,
    "subc": extended,
    "madc": extended,
    "dp4a": _dot,
    "dp2a": _dot,
    "isspacep": _isspacep,
    "testp": _testp,
    "bmsk": _bmsk,
    "mul24": _mul24,
    "mad24": _mul24,
}
