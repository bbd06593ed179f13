"""Decoding of exchanges between lanes and of control flow."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sim.emulator import flow, isa

if TYPE_CHECKING:
    from collections.abc import Callable

    from sim.emulator.decode import Decoder

Parts = tuple[str, ...]


def _shfl(d: Decoder, parts: Parts, operands: Parts) -> None:
    if parts[0] != "sync" or parts[1] not in ("up", "down", "bfly", "idx"):
        raise d.fail()
    to, _, p = operands[0].partition("|")
    b, c, members = (d.value(o, "b32") for o in operands[2:])
    d.emit(isa.SHFL, d=d.register(to), a=d.value(operands[1], "b32"), b=b, c=c, f1=members,
           f0=("up", "down", "bfly", "idx").index(parts[1]), f2=d.predicate(p) if p else 2)  # fmt: skip


def _vote(d: Decoder, parts: Parts, operands: Parts) -> None:
    kind = next((p for p in parts if p in ("all", "any", "uni", "ballot")), None)
    if "sync" not in parts or kind is None:
        raise d.fail()
    ballot = kind == "ballot"
    d.emit(isa.VOTE, d=d.register(operands[0]) if ballot else d.predicate(operands[0]), a=d.predicate(operands[1]),
           b=d.value(operands[2], "b32"), f0=("all", "any", "uni", "ballot").index(kind))  # fmt: skip


def _redux(d: Decoder, parts: Parts, operands: Parts) -> None:
    kinds = {"add": isa.A_ADD, "min": isa.A_MIN, "max": isa.A_MAX, "and": isa.A_AND, "or": isa.A_OR, "xor": isa.A_XOR}
    if parts[0] != "sync" or parts[1] not in kinds or parts[-1] not in ("u32", "s32", "b32"):
        raise d.fail()
    d.emit(isa.REDUX, d=d.register(operands[0]), a=d.value(operands[1], "b32"), b=d.value(operands[2], "b32"),
           f0=kinds[parts[1]], f1=int(parts[-1] == "s32"))  # fmt: skip


def _match(d: Decoder, parts: Parts, operands: Parts) -> None:
    if parts[0] not in ("any", "all") or parts[1] != "sync":
        raise d.fail()
    to, _, p = operands[0].partition("|")
    d.emit(isa.MATCH, d=d.register(to), a=d.value(operands[1], parts[-1]), b=d.value(operands[2], "b32"),
           f0=int(parts[0] == "all"), f2=d.predicate(p) if p else 2)  # fmt: skip


def _elect(d: Decoder, _parts: Parts, operands: Parts) -> None:
    to, _, p = operands[0].partition("|")
    d.emit(isa.ELECT, d=d.register(to), a=d.predicate(p), b=d.value(operands[1], "b32"))


def _activemask(d: Decoder, _parts: Parts, operands: Parts) -> None:
    d.emit(isa.ACTIVEMASK, d=d.register(operands[0]))


def _bra(d: Decoder, _parts: Parts, _operands: Parts) -> None:
    d.branches.append((len(d.code), flow.targets(d.entry, d.instruction)[0]))
    d.emit(isa.BRA)


def _brx(d: Decoder, _parts: Parts, operands: Parts) -> None:
    olds = flow.targets(d.entry, d.instruction)
    start, count = d.pooled([0] * len(olds))
    d.tables.append((start, olds))
    d.emit(isa.BRX, a=d.value(operands[0], "u32"), pool=start, count=count)


def _plain(op: int) -> Callable[[Decoder, Parts, Parts], None]:
    def handle(d: Decoder, _parts: Parts, _operands: Parts) -> None:
        d.emit(op)

    return handle


HANDLERS: dict[str, Callable[[Decoder, Parts, Parts], None]] = {
    "shfl": _shfl,
    "vote": _vote,
    "redux": _redux,
    "match": _match,
    "elect": _elect,
    "activemask": _activemask,
    "bra": _bra,
    "brx": _brx,
    "exit": _plain(isa.EXIT),
    "trap": _plain(isa.TRAP),
    "nanosleep": _plain(isa.NOP),
    "pmevent": _plain(isa.NOP),
}
