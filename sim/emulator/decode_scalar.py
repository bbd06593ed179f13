"""Decoding of arithmetic, conversions and predicates."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sim.emulator import decode_wide, flow, isa

if TYPE_CHECKING:
    from collections.abc import Callable

    from sim.emulator.decode import Decoder

Parts = tuple[str, ...]

_FLOATS = {"f16": isa.F16, "bf16": isa.BF16, "f32": isa.F32, "f64": isa.F64}
_PACKED = {"f16x2": isa.F16, "bf16x2": isa.BF16}
_ROUNDINGS = {"rn": isa.RN, "rz": isa.RZ, "rm": isa.RM, "rp": isa.RP, "rna": isa.RNA}
_ROUNDED = (isa.FADD, isa.FSUB, isa.FMUL, isa.FFMA, isa.FDIV, isa.FSQRT, isa.FRCP)
_TO_INTEGER = {"rni": isa.RN, "rzi": isa.RZ, "rmi": isa.RM, "rpi": isa.RP}
_PERMUTES = ("default", "f4e", "b4e", "rc8", "ecl", "ecr", "rc16")


def _type(d: Decoder, parts: Parts) -> str:
    """The operand type: the last modifier."""
    kind = parts[-1]
    if (
        not (kind[0] in "busf" and kind[1:].isdigit())
        and kind not in _FLOATS
        and kind not in _PACKED
        and kind != "pred"
    ):
        raise d.fail(f"has the type .{kind}, which is not supported")
    return kind


def _only(d: Decoder, parts: Parts, *allowed: str) -> None:
    """Refuse modifiers that change a result and that the emulator does not know."""
    for part in parts:
        if part not in allowed:
            raise d.fail(f"has the modifier .{part}, which is not supported")


def _integer(op: int, arity: int) -> Callable[[Decoder, Parts, Parts], None]:
    def handle(d: Decoder, parts: Parts, operands: Parts) -> None:
        kind = _type(d, parts)
        if kind == "pred":
            _logic(d, parts, operands)
            return
        if "cc" in parts:
            decode_wide.extended(d, parts, operands)
            return
        _only(d, parts[:-1], "wrap", "clamp", *(("sat",) if op in (isa.ADD, isa.SUB) else ()))
        if "sat" in parts:
            _saturated(d, op, operands)
            return
        width = int(kind[1:])
        shift_amount = op in (isa.SHL, isa.SHR)
        kinds = [kind, "u32" if shift_amount else kind, kind]
        sources = [d.value(o, k) for o, k in zip(operands[1:], kinds, strict=False)]
        if len(sources) != arity:
            raise d.fail(f"has {len(sources)} sources; {arity} are expected")
        rows = dict(zip("abc", sources, strict=False))
        narrow = op in (isa.POPC, isa.CLZ)
        d.emit(op, d=d.register(operands[0]), f0=64 - width, f1=int(kind[0] == "s"), f2=32 if narrow else 64 - width,
               f3=int("wrap" in parts), **rows)  # fmt: skip

    return handle


def _saturated(d: Decoder, op: int, operands: Parts) -> None:
    """add.sat.s32 and sub.sat.s32."""
    wide = []
    for operand in operands[1:3]:
        wide.append(d.temporary())
        d.emit(isa.CVT_INT, d=wide[-1], a=d.value(operand, "s32"), f0=32, f1=1, f2=0, f3=2)
    total = d.temporary()
    d.emit(op, d=total, a=wide[0], b=wide[1])
    d.emit(isa.CVT_INT, d=d.register(operands[0]), a=total, f0=0, f1=1, f2=32, f3=1 + 2 + 4 * 32)


def _arithmetic(integer: int, floating: int, arity: int) -> Callable[[Decoder, Parts, Parts], None]:
    whole = _integer(integer, arity)
    real = _float(floating, arity)

    def handle(d: Decoder, parts: Parts, operands: Parts) -> None:
        kind = _type(d, parts)
        (real if kind in _FLOATS or kind in _PACKED else whole)(d, parts, operands)

    return handle


def _float(op: int, arity: int) -> Callable[[Decoder, Parts, Parts], None]:
    def handle(d: Decoder, parts: Parts, operands: Parts) -> None:
        kind = _type(d, parts)
        if kind not in _FLOATS and kind not in _PACKED:
            raise d.fail()
        directed = next((_ROUNDINGS[p] for p in parts if p in ("rz", "rm", "rp")), isa.RN)
        allowed: Parts = (
            ("NaN", "xorsign", "abs") if op in (isa.FMIN, isa.FMAX) else ("relu",) if op == isa.FFMA else ()
        )
        if op in _ROUNDED and kind in ("f32", "f64"):
            allowed += ("rz", "rm", "rp")
        _only(d, parts[:-1], "rn", "approx", "full", "ftz", "sat", *allowed)
        packed = kind in _PACKED
        number = "b32" if packed else {"f32": "f32", "f64": "f64"}.get(kind, "b16")
        sources = [d.value(o, number) for o in operands[1:]]
        if len(sources) != arity:
            raise d.fail(f"has {len(sources)} sources; {arity} are expected")
        flags = int(packed) + 2 * ("NaN" in parts) + 4 * directed + 32 * ("relu" in parts) + 64 * ("xorsign" in parts)
        d.emit(op, d=d.register(operands[0]), f0=_PACKED[kind] if packed else _FLOATS[kind], f1=int("ftz" in parts),
               f2=int("sat" in parts), f3=flags, **dict(zip("abc", sources, strict=False)))  # fmt: skip

    return handle


def _mul(d: Decoder, parts: Parts, operands: Parts) -> None:
    kind = _type(d, parts)
    if kind in _FLOATS or kind in _PACKED:
        _float(isa.FMUL, 2)(d, parts, operands)
        return
    _multiply(d, parts, operands, mad=False)


def _mad(d: Decoder, parts: Parts, operands: Parts) -> None:
    if _type(d, parts) in _FLOATS:
        _float(isa.FFMA, 3)(d, parts, operands)
        return
    _multiply(d, parts, operands, mad=True)


def _multiply(d: Decoder, parts: Parts, operands: Parts, mad: bool) -> None:
    kind, mode = _type(d, parts), parts[0]
    if "cc" in parts:
        decode_wide.extended(d, parts, operands)
        return
    _only(d, parts[:-1], "lo", "hi", "wide")
    width = int(kind[1:])
    out = 2 * width if mode == "wide" else width
    op = isa.MAD if mad else isa.MUL
    if mode == "hi":
        op = isa.MAD_HI if mad else isa.MUL_HI
        if width == 64:
            op = isa.MUL_HI64
            if mad:
                product = d.temporary()
                d.emit(
                    op, d=product, a=d.value(operands[1], kind), b=d.value(operands[2], kind), f1=int(kind[0] == "s")
                )
                d.emit(isa.ADD, d=d.register(operands[0]), a=product, b=d.value(operands[3], kind))
                return
    rows = {"a": d.value(operands[1], kind), "b": d.value(operands[2], kind)}
    if mad:
        rows["c"] = d.value(operands[3], kind[0] + str(out))
    d.emit(op, d=d.register(operands[0]), f0=64 - width, f1=int(kind[0] == "s"), f2=64 - out, **rows)


def _mov(d: Decoder, parts: Parts, operands: Parts) -> None:
    kind = _type(d, parts)
    to, source = operands
    if source.startswith(("%clock", "%globaltimer")):
        d.emit(isa.CLOCK, d=d.register(to))
    elif kind == "b128":
        _mov128(d, to, source)
    elif kind == "pred":
        d.emit(isa.PLOGIC, d=d.predicate(to), a=d.predicate(source), b=0, f0=isa.AND_THEN)
    elif to.startswith("{"):
        names = [n.strip() for n in to.strip("{}").split(",")]
        start, count = d.pooled([d.register(n) for n in names])
        d.emit(isa.UNPACK, a=d.value(source, kind), f0=int(kind[1:]) // count, pool=start, count=count)
    elif source.startswith("{"):
        start, count = d.pooled(d.rows_of(source))
        d.emit(isa.PACK, d=d.register(to), f0=int(kind[1:]) // count, pool=start, count=count)
    else:
        d.emit(isa.MOV, d=d.register(to), a=d.value(source, kind), f2=64 - int(kind[1:]))


def _mov128(d: Decoder, to: str, source: str) -> None:
    """A register of 128 bits is two rows."""
    rows = [d.register(n.strip()) for n in to.strip("{}").split(",")]
    sources = d.rows_of(source)
    rows = [rows[0], rows[0] + 1] if len(rows) == 1 else rows
    sources = [sources[0], sources[0] + 1] if len(sources) == 1 else sources
    for row, value in zip(rows, sources, strict=True):
        d.emit(isa.MOV, d=row, a=value)


def _lop3(d: Decoder, parts: Parts, operands: Parts) -> None:
    _only(d, parts, "b32")
    d.emit(isa.LOP3, d=d.register(operands[0]), a=d.value(operands[1], "b32"), b=d.value(operands[2], "b32"),
           c=d.value(operands[3], "b32"), f3=int(operands[4], 0))  # fmt: skip


def _prmt(d: Decoder, parts: Parts, operands: Parts) -> None:
    mode = parts[1] if len(parts) > 1 else "default"
    if parts[0] != "b32" or mode not in _PERMUTES:
        raise d.fail()
    a, b, c = (d.value(o, "b32") for o in operands[1:])
    d.emit(isa.PRMT, d=d.register(operands[0]), a=a, b=b, c=c, f3=_PERMUTES.index(mode))


def _shf(d: Decoder, parts: Parts, operands: Parts) -> None:
    _only(d, parts, "l", "r", "wrap", "clamp", "b32")
    a, b, c = (d.value(o, "b32") for o in operands[1:])
    op = isa.FUNNEL_L if parts[0] == "l" else isa.FUNNEL_R
    d.emit(op, d=d.register(operands[0]), a=a, b=b, c=c, f3=int("wrap" in parts))


def _bfind(d: Decoder, parts: Parts, operands: Parts) -> None:
    kind = _type(d, parts)
    _only(d, parts[:-1], "shiftamt")
    width = int(kind[1:])
    d.emit(isa.BFIND, d=d.register(operands[0]), a=d.value(operands[1], kind), f0=64 - width, f1=int(kind[0] == "s"),
           f2=32, f3=int("shiftamt" in parts))  # fmt: skip


def _bit_field(d: Decoder, parts: Parts, operands: Parts) -> None:
    kind = _type(d, parts)
    width = int(kind[1:])
    to, *sources = operands
    if len(sources) == 3:
        a, b, c = (d.value(o, k) for o, k in zip(sources, (kind, "u32", "u32"), strict=True))
        d.emit(isa.BFE, d=d.register(to), a=a, b=b, c=c, f0=64 - width, f1=int(kind[0] == "s"), f2=64 - width)
    else:
        a, b, c, e = (d.value(o, k) for o, k in zip(sources, (kind, kind, "u32", "u32"), strict=True))
        d.emit(isa.BFI, d=d.register(to), a=a, b=b, c=c, f0=64 - width, f2=64 - width, f3=e)


def _cvt(d: Decoder, parts: Parts, operands: Parts) -> None:
    target, source = parts[-2], parts[-1]
    mode = parts[:-2]
    names = {**_FLOATS, "e4m3": isa.E4M3, "e5m2": isa.E5M2, "tf32": isa.TF32}
    rounding = next((_ROUNDINGS[p] for p in mode if p in _ROUNDINGS), isa.RN)
    flags = int("ftz" in mode) + 2 * int("sat" in mode) + 4 * int("satfinite" in mode) + 8 * int("relu" in mode)
    if target.endswith("x2") and source == "f32":
        _only(d, mode, "rn", "rz", "satfinite", "relu")
        f = names[target[:-2]]
        d.emit(isa.CVT_PACK, d=d.register(operands[0]), a=d.value(operands[1], "f32"), b=d.value(operands[2], "f32"),
               f0=isa.F32, f1=f, f2=rounding, f3=flags)  # fmt: skip
    elif target in ("e4m3x2", "e5m2x2") and source == "f16x2":
        _only(d, mode, "rn", "satfinite", "relu")
        halves = [d.temporary(), d.temporary()]
        for i, half in enumerate(halves):
            d.emit(isa.BFE, d=half, a=d.value(operands[1], "b32"), b=d.constant(16 * i), c=d.constant(16), f0=32, f2=32)
        d.emit(isa.CVT_PACK, d=d.register(operands[0]), a=halves[1], b=halves[0], f0=isa.F16, f1=names[target[:-2]],
               f2=rounding, f3=flags)  # fmt: skip
    elif target == "f16x2" and source in ("e4m3x2", "e5m2x2"):
        _only(d, mode, "rn", "relu")
        d.emit(isa.CVT_UNPACK8, d=d.register(operands[0]), a=d.value(operands[1]), f0=names[source[:-2]], f3=flags)
    elif target in names and source in names:
        _only(d, mode, *_ROUNDINGS, *_TO_INTEGER, "ftz", "sat", "satfinite", "relu")
        whole = next((_TO_INTEGER[p] for p in mode if p in _TO_INTEGER), None)
        if whole is not None:
            flags |= 16
        d.emit(isa.CVT_F2F, d=d.register(operands[0]), a=d.value(operands[1], source if source[0] == "f" else "b16"),
               f0=names[source], f1=names[target], f2=rounding if whole is None else whole, f3=flags)  # fmt: skip
    elif source in names and target[0] in "us":
        _only(d, mode, *_TO_INTEGER, "ftz", "sat")
        whole = next(_TO_INTEGER[p] for p in mode if p in _TO_INTEGER)
        signed, width = int(target[0] == "s"), int(target[1:])
        d.emit(isa.CVT_F2I, d=d.register(operands[0]), a=d.value(operands[1], source), f0=names[source],
               f1=signed + 2 * width, f2=whole, f3=flags)  # fmt: skip
    elif target in names and source[0] in "us":
        _only(d, mode, "rn", "rz", "rm", "rp", "sat")
        d.emit(isa.CVT_I2F, d=d.register(operands[0]), a=d.value(operands[1], source),
               f0=int(source[0] == "s") + 2 * int(source[1:]), f1=names[target], f2=rounding, f3=flags)  # fmt: skip
    elif target[0] in "usb" and source[0] in "usb" and target[1:].isdigit() and source[1:].isdigit():
        _only(d, mode, "sat")
        wide = max(d.width(operands[0]), int(target[1:])) if target[0] == "s" else int(target[1:])
        d.emit(isa.CVT_INT, d=d.register(operands[0]), a=d.value(operands[1], source), f0=64 - int(source[1:]),
               f1=int(source[0] == "s"), f2=64 - int(target[1:]),
               f3=int("sat" in mode) + 2 * int(target[0] == "s") + 4 * (64 - wide))  # fmt: skip
    else:
        raise d.fail()


def _cvta(d: Decoder, parts: Parts, operands: Parts) -> None:
    to = parts[0] == "to"
    space = (parts[1] if to else parts[0]).split("::")[0]
    window = {
        "global": 0,
        "const": 0,
        "shared": isa.SHARED_WINDOW,
        "local": isa.LOCAL_WINDOW,
        "param": isa.PARAM_WINDOW,
    }
    if space not in window:
        raise d.fail()
    if not window[space]:
        op, other = isa.MOV, -1
    elif to:
        op, other = isa.AND, d.constant(window[space] - 1)
    else:
        op, other = isa.OR, d.constant(window[space])
    d.emit(op, d=d.register(operands[0]), a=d.value(operands[1]), b=other)


def _setp(d: Decoder, parts: Parts, operands: Parts) -> None:
    kind = _type(d, parts)
    if parts[0] not in isa.COMPARISONS:
        raise d.fail()
    if kind in _PACKED:
        p, _, q = operands[0].partition("|")
        decode_wide.packed_compare(d, parts, operands, (d.predicate(p), d.predicate(q) if q else 2))
        return
    booleans = {"and": isa.AND_THEN, "or": isa.OR_THEN, "xor": isa.XOR_THEN}
    _only(d, parts[1:-1], "ftz", *booleans)
    then = next((booleans[p] for p in parts[1:-1] if p in booleans), 0)
    p, _, q = operands[0].partition("|")
    number = kind if kind not in ("f16", "bf16") else "b16"
    d.emit(isa.SETP, d=d.predicate(p), a=d.value(operands[1], number), b=d.value(operands[2], number),
           c=d.predicate(operands[3]) if then else 0, f0=isa.COMPARISONS[parts[0]],
           f1=_FLOATS[kind] if kind in _FLOATS else isa.SIGNED if kind[0] == "s" else isa.UNSIGNED,
           f2=0 if kind in _FLOATS else 64 - int(kind[1:]), f3=then, pool=d.predicate(q) if q else 2)  # fmt: skip


def _set(d: Decoder, parts: Parts, operands: Parts) -> None:
    target, kind = parts[-2], parts[-1]
    if kind in ("f16", "bf16") or kind in _PACKED:
        decode_wide.packed_set(d, parts, operands)
        return
    if target not in ("u32", "s32", "f32"):
        raise d.fail()
    d.entry.registers.setdefault("set@result", "pred")
    _setp(d, (*parts[:-2], kind), ("set@result", *operands[1:]))
    true = d.constant(0x3F800000 if target == "f32" else 0xFFFFFFFF)
    d.emit(isa.SELP, d=d.register(operands[0]), a=true, b=d.constant(0), c=d.predicate("set@result"))


def _selp(d: Decoder, parts: Parts, operands: Parts) -> None:
    kind = _type(d, parts)
    d.emit(isa.SELP, d=d.register(operands[0]), a=d.value(operands[1], kind), b=d.value(operands[2], kind),
           c=d.predicate(operands[3]))  # fmt: skip


def _logic(d: Decoder, _parts: Parts, operands: Parts) -> None:
    kinds = {"and": isa.AND_THEN, "or": isa.OR_THEN, "xor": isa.XOR_THEN}
    root = flow.root(d.instruction)
    if root == "not":
        d.emit(isa.PLOGIC, d=d.predicate(operands[0]), a=d.predicate(operands[1]) ^ 1, b=0, f0=isa.AND_THEN)
    elif root in kinds:
        d.emit(isa.PLOGIC, d=d.predicate(operands[0]), a=d.predicate(operands[1]), b=d.predicate(operands[2]),
               f0=kinds[root])  # fmt: skip
    else:
        raise d.fail()


HANDLERS: dict[str, Callable[[Decoder, Parts, Parts], None]] = {
    "add": _arithmetic(isa.ADD, isa.FADD, 2),
    "sub": _arithmetic(isa.SUB, isa.FSUB, 2),
    "mul": _mul,
    "mad": _mad,
    "fma": _float(isa.FFMA, 3),
    "div": _arithmetic(isa.DIV, isa.FDIV, 2),
    "rem": _integer(isa.REM, 2),
    "min": _arithmetic(isa.MIN, isa.FMIN, 2),
    "max": _arithmetic(isa.MAX, isa.FMAX, 2),
    "abs": _arithmetic(isa.ABS, isa.FABS, 1),
    "neg": _arithmetic(isa.NEG, isa.FNEG, 1),
    "and": _integer(isa.AND, 2),
    "or": _integer(isa.OR, 2),
    "xor": _integer(isa.XOR, 2),
    "not": _integer(isa.NOT, 1),
    "cnot": _integer(isa.CNOT, 1),
    "shl": _integer(isa.SHL, 2),
    "shr": _integer(isa.SHR, 2),
    "popc": _integer(isa.POPC, 1),
    "clz": _integer(isa.CLZ, 1),
    "brev": _integer(isa.BREV, 1),
    "bfind": _bfind,
    "sad": _integer(isa.SAD, 3),
    "bfe": _bit_field,
    "bfi": _bit_field,
    "lop3": _lop3,
    "prmt": _prmt,
    "shf": _shf,
    "sqrt": _float(isa.FSQRT, 1),
    "rcp": _float(isa.FRCP, 1),
    "rsqrt": _float(isa.FRSQRT, 1),
    "ex2": _float(isa.FEX2, 1),
    "lg2": _float(isa.FLG2, 1),
    "sin": _float(isa.FSIN, 1),
    "cos": _float(isa.FCOS, 1),
    "tanh": _float(isa.FTANH, 1),
    "copysign": _float(isa.FCOPYSIGN, 2),
    "mov": _mov,
    "cvt": _cvt,
    "cvta": _cvta,
    "setp": _setp,
    "set": _set,
    "selp": _selp,
}
