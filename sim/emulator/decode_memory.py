"""Decoding of memory, synchronisation and asynchronous copies."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from sim.emulator import hazards, isa

if TYPE_CHECKING:
    from collections.abc import Callable

    from sim.emulator.decode import Decoder

Parts = tuple[str, ...]

_SPACES = {"global": isa.GLOBAL, "shared": isa.SHARED, "local": isa.LOCAL, "param": isa.PARAM, "const": isa.CONST}
_SEMANTICS = {
    "acquire": isa.ACQUIRE | isa.STRONG,
    "release": isa.RELEASE | isa.STRONG,
    "acq_rel": isa.ACQUIRE | isa.RELEASE | isa.STRONG,
    "relaxed": isa.STRONG,
    "volatile": isa.STRONG,
    "mmio": isa.STRONG,
}
_SCOPES = {"cta": isa.SCOPE_CTA, "cluster": isa.SCOPE_CLUSTER}
_ATOMS = {"add": isa.A_ADD, "min": isa.A_MIN, "max": isa.A_MAX, "and": isa.A_AND, "or": isa.A_OR, "xor": isa.A_XOR,
          "exch": isa.A_EXCH, "cas": isa.A_CAS, "inc": isa.A_INC, "dec": isa.A_DEC}  # fmt: skip
_ATOM_KINDS = {"f32": isa.F32, "f64": isa.F64, "f16": isa.F16, "bf16": isa.BF16, "f16x2": isa.F16, "bf16x2": isa.BF16}


def _space(parts: Parts) -> int:
    return next((_SPACES[p.split("::")[0]] for p in parts if p.split("::")[0] in _SPACES), isa.GENERIC)


def _semantics(parts: Parts, default: int = 0) -> int:
    order = next((_SEMANTICS[p] for p in parts if p in _SEMANTICS), default)
    return order | (_SCOPES.get(next((p for p in parts if p in _SCOPES), ""), 0) if order else 0)


def _element(d: Decoder, kind: str) -> int:
    if kind == "b128":
        return 8  # two of them
    if kind[0] not in "busf" or kind[1:] not in ("8", "16", "32", "64"):
        raise d.fail(f"has the type .{kind}, which is not supported")
    return int(kind[1:]) // 8


def _halves(rows: list[int], parts: Parts) -> list[int]:
    """The rows of registers; one of 128 bits has two."""
    return [r + i for r in rows for i in range(2)] if parts[-1] == "b128" else rows


def _vector(parts: Parts) -> int:
    return next((int(p[1:]) for p in parts if p in ("v2", "v4", "v8")), 1)


def _ld(d: Decoder, parts: Parts, operands: Parts) -> None:
    space, width = d.space(operands[1], _space(parts)), _element(d, parts[-1])
    rows = [d.register(n.strip()) for n in operands[0].strip("{}").split(",")]
    start, count = d.pooled(_halves(rows, parts))
    if count != _vector(parts) * (1 + (parts[-1] == "b128")):
        raise d.fail("has a vector of another length")
    d.track(space, width * count)
    base, offset = d.address(operands[1])
    name = operands[0].strip("{} ").split(",")[0].strip()
    d.emit(isa.LD, a=base, f0=offset, f1=space, f2=width, f3=int(parts[-1][0] == "s") + 2 * (64 - d.width(name)),
           c=_semantics(parts), pool=start, count=count)  # fmt: skip


def _st(d: Decoder, parts: Parts, operands: Parts) -> None:
    if parts[0] == "bulk":
        raise d.fail()
    if parts[0] == "async":
        _st_async(d, parts, operands)
        return
    space, width = d.space(operands[0], _space(parts)), _element(d, parts[-1])
    start, count = d.pooled(_halves(d.rows_of(operands[1], parts[-1]), parts))
    if count != _vector(parts) * (1 + (parts[-1] == "b128")):
        raise d.fail("has a vector of another length")
    d.track(space, width * count)
    base, offset = d.address(operands[0])
    d.emit(isa.ST, a=base, f0=offset, f1=space, f2=width, c=_semantics(parts), pool=start, count=count)


def _st_async(d: Decoder, parts: Parts, operands: Parts) -> None:
    width = _element(d, parts[-1])
    start, count = d.pooled(d.rows_of(operands[1], parts[-1]))
    if count != _vector(parts) or "mbarrier::complete_tx::bytes" not in parts or width < 4:
        raise d.fail()
    d.track(isa.SHARED, width * count)
    base, offset = d.address(operands[0])
    barrier, barrier_offset = d.address(operands[2])
    d.emit(isa.STORE_ASYNC, a=base, f0=offset, c=barrier, f2=barrier_offset, f3=width, pool=start, count=count)


def _atom(d: Decoder, parts: Parts, operands: Parts) -> None:
    kind = parts[-1] if parts[-1] != "noftz" else parts[-2]
    op = next((_ATOMS[p] for p in parts if p in _ATOMS), None)
    if op is None:
        raise d.fail()
    vector = _vector(parts)
    packed = kind.endswith("x2")
    whole = kind == "b128"  # as two halves that are compared together
    vector = 2 if whole else vector
    width = 8 if whole else 4 if packed else int(re.sub(r"\D", "", kind)) // 8
    returns = d.instruction.opcode.startswith("atom")
    where = operands[1] if returns else operands[0]
    sources = operands[2:] if returns else operands[1:]
    base, offset = d.address(where)
    rows = [
        r
        for o in sources[: 2 if op == isa.A_CAS else 1]
        for r in _halves(d.rows_of(o, "b32" if packed else kind), parts)
    ]
    to = [d.register(n.strip()) for n in operands[0].strip("{}").split(",")] if returns else [d.rows["_"]]
    to = _halves(to, parts) if to[0] != d.rows["_"] else to * vector
    start, count = d.pooled(to + rows)
    space = _space(parts)
    d.track(space, width)
    number = _ATOM_KINDS.get(kind, isa.SIGNED if kind[0] == "s" else isa.UNSIGNED)
    flags = int(packed) + 2 * int(returns) + 4 * int(whole)
    d.emit(isa.ATOM, a=base, f0=offset, f1=space, f2=width, f3=op, b=number, d=flags, c=_semantics(parts, isa.STRONG),
           pool=start, count=vector)  # fmt: skip
    del count


def _cp(d: Decoder, parts: Parts, operands: Parts) -> None:
    text = ".".join(parts)
    if text.startswith("async.bulk"):
        _bulk(d, parts[2:], operands)
    elif text.startswith("async.commit_group"):
        d.emit(isa.CP_ASYNC_COMMIT)
    elif text.startswith("async.wait_all"):
        d.emit(isa.CP_ASYNC_WAIT, f0=0, f1=1)
    elif text.startswith("async.wait_group"):
        d.emit(isa.CP_ASYNC_WAIT, f0=int(operands[0], 0))
    elif text.startswith("async.mbarrier.arrive"):
        base, offset = d.address(operands[0])
        d.emit(isa.CP_ASYNC_MBARRIER, a=base, f0=offset, f1=int("noinc" in parts))
    elif text.startswith(("async.ca.shared", "async.cg.shared")):
        to, to_offset = d.address(operands[0])
        source, offset = d.address(operands[1])
        size = int(operands[2], 0)
        filled = [o for o in operands[3:] if d.width(o.lstrip("!")) != 64]
        d.track(isa.SHARED, size)
        d.track(isa.GLOBAL, size)
        nbytes = d.constant(size)
        if filled and d.entry.registers.get(filled[0].lstrip("!")) == "pred":  # the source is ignored where it holds
            nbytes = d.temporary()
            d.emit(isa.SELP, d=nbytes, a=d.constant(0), b=d.constant(size), c=d.predicate(filled[0]))
        elif filled:
            nbytes = d.value(filled[0], "u32")
        d.emit(isa.CP_ASYNC, a=to, f0=to_offset, b=source, f1=offset, f2=size, f3=int(bool(filled)), c=nbytes)
    elif text.startswith("reduce.async.bulk"):
        _bulk(d, ("reduce", *parts[3:]), operands)
    else:
        raise d.fail()


def _bulk(d: Decoder, parts: Parts, operands: Parts) -> None:
    if parts[0] == "commit_group":
        d.emit(isa.BULK_COMMIT)
        return
    if parts[0] == "wait_group":
        d.emit(isa.BULK_WAIT, f0=int(operands[0], 0), f1=int("read" in parts))
        return
    if "prefetch" in parts:
        d.emit(isa.PREFETCH)
        return
    if any(p.startswith(("im2col", "cta_group", "tile::")) for p in parts):
        raise d.fail()
    reduction = 0
    if parts[0] == "reduce":
        reduction = 1 + next(
            (_ATOMS[p] for p in parts if p in ("add", "min", "max", "and", "or", "xor", "inc", "dec")), 0
        )
    tensor = "tensor" in parts
    ways = [p for p in parts if p.split("::")[0] in ("shared", "global")]
    load = ways[0].startswith("shared") and ways[1] == "global"
    if not load and ways[0].startswith("shared"):
        to, to_offset = d.address(operands[0])
        source, offset = d.address(operands[1])
        barrier, barrier_offset = d.address(operands[3])
        start, _ = d.pooled([d.value(operands[2], "u32")])
        d.emit(
            isa.BULK_DSMEM, a=to, f0=to_offset, b=source, f1=offset, c=barrier, f2=barrier_offset, pool=start, count=1
        )
        return
    if tensor:
        dims = int(next(p[0] for p in parts if re.fullmatch(r"[1-5]d", p)))
        where = operands[1] if load else operands[0]
        base, coordinates = _tensor_address(where)
        rows = [d.value(c, "s32") for c in coordinates]
        if len(rows) != dims:
            raise d.fail(f"has {len(rows)} coordinates; {dims} are expected")
        smem, smem_offset = d.address(operands[0] if load else operands[1])
        if load:
            barrier, barrier_offset = d.address(operands[2])
            multicast = "multicast::cluster" in parts
            rows.append(d.value(operands[3], "u16") if multicast else d.constant(0))
            start, count = d.pooled(rows)
            d.emit(isa.TMA_LOAD, a=smem, f0=smem_offset, b=d.value(base), c=barrier, f1=dims, f2=barrier_offset,
                   f3=int(multicast), pool=start, count=count)  # fmt: skip
        else:
            start, count = d.pooled(rows)
            d.emit(
                isa.TMA_STORE, a=smem, f0=smem_offset, b=d.value(base), f1=dims, f3=reduction, pool=start, count=count
            )
        return
    if load:
        to, to_offset = d.address(operands[0])
        source, offset = d.address(operands[1])
        barrier, barrier_offset = d.address(operands[3])
        multicast = "multicast::cluster" in parts
        start, _ = d.pooled([d.value(operands[2], "u32"), d.value(operands[4], "u16") if multicast else d.constant(0)])
        d.emit(isa.BULK_LOAD, a=to, f0=to_offset, b=source, f1=offset, c=barrier, f2=barrier_offset, f3=int(multicast),
               pool=start, count=2)  # fmt: skip
    else:
        to, to_offset = d.address(operands[0])
        source, offset = d.address(operands[1])
        start, _ = d.pooled([d.value(operands[2], "u32")])
        kind = parts[-1]
        element = _ATOM_KINDS.get(kind, isa.SIGNED if kind[0] == "s" else isa.UNSIGNED) if reduction else 0
        d.emit(isa.BULK_STORE, a=source, f0=offset, b=to, f1=to_offset, f2=element, f3=reduction, pool=start, count=1,
               d=int(re.sub(r"\D", "", kind) or 8) // 8 if reduction else 1)  # fmt: skip


def _tensor_address(text: str) -> tuple[str, list[str]]:
    match = re.fullmatch(r"\[\s*([^,]+),\s*\{([^}]*)\}\s*\]", text)
    if not match:
        return text.strip("[] "), []
    return match.group(1).strip(), [c.strip() for c in match.group(2).split(",")]


def _mapa(d: Decoder, parts: Parts, operands: Parts) -> None:
    d.emit(isa.MAPA, d=d.register(operands[0]), a=d.value(operands[1]), b=d.value(operands[2], "u32"),
           f0=int("shared::cluster" not in parts))  # fmt: skip


def _barrier(d: Decoder, parts: Parts, operands: Parts) -> None:
    kinds = [p for p in parts if p not in ("cta", "aligned")]
    if kinds[0] == "warp":
        d.emit(isa.WARP_SYNC, a=d.value(operands[0], "b32"))
    elif kinds[0] == "cluster":
        op = isa.CLUSTER_ARRIVE if kinds[1] == "arrive" else isa.CLUSTER_WAIT
        d.emit(op, f0=int("relaxed" in parts))
    elif kinds[0] in ("sync", "arrive"):
        op = isa.BAR_SYNC if kinds[0] == "sync" else isa.BAR_ARRIVE
        d.emit(op, a=d.value(operands[0], "u32"), b=d.value(operands[1], "u32") if len(operands) > 1 else d.constant(0))
    elif kinds[0] == "red":
        count = operands[2] if len(operands) > 3 else "0"
        predicate = d.predicate(operands[-1])
        to = d.register(operands[0]) if kinds[1] == "popc" else d.predicate(operands[0])
        d.emit(isa.BAR_RED, d=to, a=d.value(operands[1], "u32"), b=d.value(count, "u32"), c=predicate,
               f0=("popc", "and", "or").index(kinds[1]))  # fmt: skip
    else:
        raise d.fail()


def _fence(d: Decoder, parts: Parts, _operands: Parts) -> None:
    if parts[0] == "proxy":
        if parts[1].startswith("async"):
            d.emit(isa.FENCE, f0=isa.FENCE_ASYNC)
        elif parts[1] in ("alias", "tensormap::generic"):
            d.emit(isa.FENCE, f0=0)
        else:
            raise d.fail()
    elif parts[0] == "mbarrier_init":
        d.emit(isa.FENCE, f0=isa.FENCE_MBARRIER)
    else:
        scope = hazards.CTA if "cta" in parts else hazards.CLUSTER if "cluster" in parts else hazards.GPU
        d.emit(isa.FENCE, f0=isa.FENCE_SCOPE, f1=scope)


def _mbarrier(d: Decoder, parts: Parts, operands: Parts) -> None:
    what = parts[0]
    if what == "init":
        base, offset = d.address(operands[0])
        d.emit(isa.MBAR_INIT, a=base, f0=offset, b=d.value(operands[1], "u32"))
    elif what == "inval":
        base, offset = d.address(operands[0])
        d.emit(isa.MBAR_INVAL, a=base, f0=offset)
    elif what in ("arrive", "arrive_drop"):
        returns = operands[0] if not operands[0].startswith("[") else "_"
        rest = operands[1:] if not operands[0].startswith("[") else operands
        base, offset = d.address(rest[0])
        expect = "expect_tx" in parts
        flags = isa.ARRIVE_EXPECT * expect + isa.ARRIVE_REMOTE * ("shared::cluster" in parts)
        flags += isa.ARRIVE_DROP * (what == "arrive_drop") + isa.ARRIVE_RELAXED * ("relaxed" in parts)
        extra = rest[1] if len(rest) > 1 else None
        d.emit(isa.MBAR_ARRIVE, d=d.register(returns), a=base, f0=offset, f1=flags,
               b=d.value(extra, "u32") if extra and not expect else d.constant(1),
               c=d.value(extra, "u32") if extra and expect else d.constant(0))  # fmt: skip
    elif what in ("expect_tx", "complete_tx"):
        base, offset = d.address(operands[0])
        op = isa.MBAR_EXPECT if what == "expect_tx" else isa.MBAR_COMPLETE
        d.emit(op, a=base, f0=offset, c=d.value(operands[1], "u32"))
    elif what in ("test_wait", "try_wait"):
        base, offset = d.address(operands[1])
        d.emit(isa.MBAR_WAIT, d=d.predicate(operands[0]), a=base, f0=offset, b=d.value(operands[2]),
               f1=int("parity" in parts) + 2 * int(what == "try_wait"), f2=int("relaxed" in parts))  # fmt: skip
    else:
        raise d.fail()


def _setmaxnreg(d: Decoder, _parts: Parts, operands: Parts) -> None:
    count = int(operands[0], 0)
    if count % 8 or not 24 <= count <= 256:
        raise d.fail("has a register count that is not a multiple of 8 from 24 to 256")
    d.emit(isa.SETMAXNREG, f0=count)


def _prefetch(d: Decoder, _parts: Parts, _operands: Parts) -> None:
    d.emit(isa.PREFETCH)


def _griddepcontrol(d: Decoder, _parts: Parts, _operands: Parts) -> None:
    d.emit(isa.GRIDDEP)


def _createpolicy(d: Decoder, _parts: Parts, operands: Parts) -> None:
    d.emit(isa.MOV, d=d.register(operands[0]), a=d.constant(0))


HANDLERS: dict[str, Callable[[Decoder, Parts, Parts], None]] = {
    "ld": _ld,
    "ldu": _ld,
    "st": _st,
    "atom": _atom,
    "red": _atom,
    "cp": _cp,
    "mapa": _mapa,
    "bar": _barrier,
    "barrier": _barrier,
    "fence": _fence,
    "membar": _fence,
    "mbarrier": _mbarrier,
    "setmaxnreg": _setmaxnreg,
    "prefetch": _prefetch,
    "prefetchu": _prefetch,
    "discard": _prefetch,
    "applypriority": _prefetch,
    "griddepcontrol": _griddepcontrol,
    "createpolicy": _createpolicy,
}
