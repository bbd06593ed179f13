"""Decoding of calls, returns and the functions of CUDA's device runtime."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sim.emulator import isa
from sim.emulator.linking import Call, call_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from sim.emulator.decode import Decoder

Parts = tuple[str, ...]


def begin(d: Decoder) -> None:
    """The first instruction of a function: it keeps where to return to."""
    d.rows["@return"] = d.temporary()
    if d.frame.saved >= 0:  # its registers lie side by side
        for name, kind in d.entry.registers.items():
            if kind == "pred":
                d.predicate(name)
            else:
                d.register(name)
    d.emit(isa.MOV, d=d.rows["@return"], a=isa.LINK_ROW)


def leave(d: Decoder) -> None:
    """What ends the text of a function or of the kernel."""
    if d.is_kernel:
        d.emit(isa.EXIT)
    else:
        d.emit(isa.RET, a=d.rows["@return"])


def _call(d: Decoder, _parts: Parts, _operands: Parts) -> None:
    call = call_of(d.instruction)
    if call.target in _RUNTIME:
        _RUNTIME[call.target](d, call)
        return
    saves = d.linked.saves(d.entry.name, call)
    if saves:
        _registers(d, isa.SPILL)
    d.emit(isa.ADD, d=isa.FRAME_ROW, a=isa.FRAME_ROW, b=d.constant(d.frame.size))
    if call.target in d.entry.registers:
        d.emit(isa.CALL_INDIRECT, a=d.register(call.target))
    else:
        d.calls.append((len(d.code), call.target))
        d.emit(isa.CALL)
    d.emit(isa.SUB, d=isa.FRAME_ROW, a=isa.FRAME_ROW, b=d.constant(d.frame.size))
    if saves:
        _registers(d, isa.FILL)


def _registers(d: Decoder, op: int) -> None:
    """Keep the function's registers in its frame, or take them back."""
    rows = [r for name, r in d.rows.items() if name in d.entry.registers or name == "@return"]
    flags = [p for name, p in d.predicates.items() if name in d.entry.registers]
    start, count = d.pooled(rows + flags)
    d.emit(op, a=isa.FRAME_ROW, f0=d.frame.saved, f1=len(rows), pool=start, count=count)


def _passed(d: Decoder, name: str, width: int) -> int:
    """A row with the value that a call passes in a variable."""
    row = d.temporary()
    start, count = d.pooled([row])
    base, offset = d.address(f"[{name}]")
    d.emit(isa.LD, a=base, f0=offset, f1=isa.LOCAL, f2=width, f3=2 * (64 - 8 * width), c=0, pool=start, count=count)
    return row


def _result(d: Decoder, call: Call, row: int, width: int) -> None:
    if call.results:
        start, count = d.pooled([row])
        base, offset = d.address(f"[{call.results[0]}]")
        d.emit(isa.ST, a=base, f0=offset, f1=isa.LOCAL, f2=width, c=0, pool=start, count=count)


def _print(d: Decoder, call: Call) -> None:
    text, values = (_passed(d, name, 8) for name in call.arguments)
    d.emit(isa.PRINT, a=text, b=values)
    _result(d, call, d.constant(0), 4)


def _assert(d: Decoder, call: Call) -> None:
    d.emit(isa.ASSERT, a=_passed(d, call.arguments[0], 8), b=_passed(d, call.arguments[2], 4))


def _malloc(d: Decoder, call: Call) -> None:
    d.uses_heap = True
    row = d.temporary()
    d.emit(isa.MALLOC, d=row, a=_passed(d, call.arguments[0], 8))
    _result(d, call, row, 8)


def _free(d: Decoder, _call: Call) -> None:
    d.emit(isa.NOP)


def _return(d: Decoder, _parts: Parts, _operands: Parts) -> None:
    leave(d)


_RUNTIME: dict[str, Callable[[Decoder, Call], None]] = {
    "vprintf": _print,
    "__assertfail": _assert,
    "malloc": _malloc,
    "free": _free,
}
HANDLERS: dict[str, Callable[[Decoder, Parts, Parts], None]] = {"call": _call, "ret": _return}
