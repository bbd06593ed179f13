"""PTX instructions to the interpreter's tables: operands to rows, modifiers to numbers."""

import re
import struct
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np

from sim.emulator import (
    decode_calls,
    decode_lanes,
    decode_memory,
    decode_scalar,
    decode_tensor,
    decode_wide,
    decode_wmma,
    flow,
    hazards,
    isa,
    linking,
)
from sim.emulator.program import Program
from sim.emulator.ptx import EmulatorError, Entry, Instruction, Location, Module, Variable, parse


@lru_cache(maxsize=64)
def decode(text: str, entry: str, arrays: int) -> Program:
    """Decode one entry of a PTX module for a launch with that many arrays; raises EmulatorError."""
    module = _parsed(text)
    return Decoder(module, module.entry(entry), arrays).program()


@lru_cache(maxsize=4)
def _parsed(text: str) -> Module:
    return parse(text)


# A CTA's first bytes of shared memory, where a kernel asks for them: cooperative groups of several warps use them.
_RESERVED = 1024
_RESERVED_SHARED = {
    "%reserved_smem_offset_begin": 0,
    "%reserved_smem_offset_end": _RESERVED,
    "%reserved_smem_offset_cap": _RESERVED,
    "%reserved_smem_offset_0": 0,
    "%reserved_smem_offset_1": 0,
}
_HANDLERS = [
    module.HANDLERS
    for module in (decode_scalar, decode_lanes, decode_memory, decode_tensor, decode_calls, decode_wide, decode_wmma)
]


class Decoder:
    """The state of decoding a kernel and what it calls: rows given to registers, constants, pool and code so far.

    `entry`, `rows`, `predicates`, `offsets` and `frame` are those of the function that is being decoded.
    """

    def __init__(self, module: Module, kernel: Entry, arrays: int) -> None:
        self.kernel, self.arrays = kernel, arrays
        self.linked = linking.Linked(module, kernel)
        self.code: list[list[int]] = []
        self.pool: list[int] = []
        self.constants: dict[int, int] = {0: 0}
        self.source: list[Instruction] = []
        self.source_index = 0
        self.row_count, self.predicate_count = isa.RESERVED_ROWS, 2
        self.instruction: Instruction
        self.shared_widths: set[int] = set()
        self.global_widths: set[int] = set()
        self.starts: dict[str, int] = {}  # position of each function
        self.calls: list[tuple[int, str]] = []  # (code position, function)
        self.variables = self._place_variables()
        self.parameter_bytes = self._lay_out_parameters()
        self.uses_heap = self.uses_grid = False
        self._enter(kernel)

    def _enter(self, unit: Entry) -> None:
        """Turn to another function."""
        self.entry = unit
        self.rows = {name: i for i, name in enumerate(isa.SPECIAL)}
        self.rows |= {"_": isa.SINK_ROW, "@frame": isa.FRAME_ROW, "@link": isa.LINK_ROW}
        self.predicates = {"true": 0, "_": 1}
        self.frame = self.linked.frames[unit.name]
        self.is_kernel = unit is self.kernel
        self.offsets = dict(self.places)
        if self.is_kernel:
            self.offsets |= self.frame.offsets
        self.branches: list[tuple[int, int]] = []  # (code position, old position)
        self.tables: list[tuple[int, list[int]]] = []  # (pool start, old positions)

    # Operands

    def fail(self, what: str = "is not supported") -> EmulatorError:
        return EmulatorError(f"{self.instruction.location}: `{str(self.instruction)[:120]}` {what}")

    def register(self, name: str) -> int:
        """The row of a register or special register."""
        if name not in self.rows:
            if name not in self.entry.registers:
                raise self.fail(f"reads {name}, which is no register")
            self.rows[name] = self.temporary(1 + (self.entry.registers[name] == "b128"))
        self.uses_grid |= name.startswith("%envreg")
        return self.rows[name]

    def track(self, space: int, width: int) -> None:
        """Races are told apart at least to the width of this access."""
        if space in (isa.SHARED, isa.GENERIC):
            self.shared_widths.add(min(width, 16))
        if space in (isa.GLOBAL, isa.GENERIC):
            self.global_widths.add(min(width, 16))

    def temporary(self, count: int = 1) -> int:
        """The first of some fresh rows."""
        self.row_count += count
        return self.row_count - count

    def flag(self) -> int:
        """A fresh predicate, as an operand."""
        self.predicate_count += 1
        return 2 * (self.predicate_count - 1)

    def width(self, name: str) -> int:
        """Bits of a register."""
        kind = self.entry.registers.get(name, "b64")
        return int(kind[1:]) if kind[1:].isdigit() else 1

    def constant(self, value: int) -> int:
        value %= 1 << 64
        return ~self.constants.setdefault(value, len(self.constants))

    def value(self, text: str, kind: str = "b64") -> int:
        """The row of a source operand: register, special register, number or address of a variable."""
        if text in self.entry.registers or text in self.rows:
            return self.register(text)
        number = number_of(text, kind)
        if number is not None:
            return self.constant(number)
        name, _, offset = text.partition("+")
        if name in self.offsets:
            return self.constant(self.offsets[name] + int(offset or "0", 0))
        if name in self.frame.offsets:
            row = self.temporary()
            self.emit(
                isa.ADD, d=row, a=isa.FRAME_ROW, b=self.constant(self.frame.offsets[name] + int(offset or "0", 0))
            )
            return row
        if text in self.linked.addresses:
            return self.constant(isa.FUNCTION_WINDOW + self.linked.addresses.index(text))
        if text in _RESERVED_SHARED:
            return self.constant(_RESERVED_SHARED[text])
        if text.startswith("WARP_SZ"):
            return self.constant(32)
        raise self.fail(f"has the unknown operand {text}")

    def predicate(self, text: str) -> int:
        """2 index + negation of a predicate operand."""
        name = text.lstrip("!")
        if name in ("1", "-1", "0"):
            return 0 if (name != "0") != text.startswith("!") else 1
        if name not in self.predicates:
            if self.entry.registers.get(name) != "pred":
                raise self.fail(f"uses {name} as a predicate")
            self.predicates[name] = self.flag() >> 1
        return 2 * self.predicates[name] + text.startswith("!")

    def rows_of(self, text: str, kind: str = "b64") -> list[int]:
        """The rows of a vector operand {a, b, ...} or of a single one."""
        names = [part.strip() for part in text.strip("{}").split(",")]
        return [self.value(name, kind) for name in names]

    def pooled(self, rows: list[int]) -> tuple[int, int]:
        start = len(self.pool)
        self.pool.extend(rows)
        return start, len(rows)

    def address(self, text: str) -> tuple[int, int]:
        """(row, offset) of an address operand [base + offset]."""
        inside = text.strip("[] ")
        match = re.fullmatch(r"([^+]+?)\s*(?:\+\s*(-?\w+))?", inside)
        if not match:
            raise self.fail(f"has the address {text}")
        name, offset = match.group(1), int(match.group(2) or "0", 0)
        if name in self.frame.offsets and not self.is_kernel:
            return isa.FRAME_ROW, self.frame.offsets[name] + offset
        return self.value(name, "b64"), offset

    def space(self, operand: str, space: int) -> int:
        """The space of an address: what a call passes lies in local memory."""
        name = operand.strip("[] ").split("+")[0].strip()
        return isa.LOCAL if space == isa.PARAM and name in self.frame.offsets else space

    def emit(self, op: int, /, **fields: int) -> list[int]:
        """Append one decoded instruction; fields by lower-case column name."""
        row = [0] * isa.COLUMNS
        row[isa.OP] = op
        row[isa.SOURCE] = self.source_index
        row[isa.D] = row[isa.A] = row[isa.B] = row[isa.C] = -1  # the constant 0
        for name, value in fields.items():
            row[getattr(isa, name.upper())] = value
        if self.instruction.guard:
            row[isa.GUARD] = self.predicate(self.instruction.guard) + 2
        self.code.append(row)
        return row

    # The whole

    def program(self) -> Program:
        for name, unit in self.linked.units.items():
            self._enter(unit)
            self.starts[name] = len(self.code)
            self._unit(unit)
        if len(self.code) > hazards.MAX_CODE:
            raise EmulatorError(
                f"{self.kernel.name} has {len(self.code)} instructions; the limit is {hazards.MAX_CODE}"
            )
        for position, name in self.calls:
            self.code[position][isa.F0] = self.starts[name]
        functions, _ = self.pooled([self.starts[name] for name in self.linked.addresses])
        code = np.array(self.code, np.int64)
        ops = set(code[:, isa.OP].tolist())
        synchronises = any(
            row[isa.OP] in (isa.LD, isa.ST, isa.ATOM) and row[isa.F1] in (isa.GLOBAL, isa.GENERIC, isa.SHARED)
            and (row[isa.OP] == isa.ATOM or row[isa.C] & (isa.ACQUIRE | isa.RELEASE | isa.STRONG))
            for row in self.code
        )  # fmt: skip
        narrow = isa.SCOPE_CTA | isa.SCOPE_CLUSTER
        scoped = any(
            (row[isa.OP] in (isa.LD, isa.ST, isa.ATOM) and row[isa.C] & narrow)
            or (row[isa.OP] == isa.FENCE and row[isa.F0] & isa.FENCE_SCOPE and row[isa.F1] < hazards.GPU)
            for row in self.code
        )
        return Program(
            name=self.kernel.name,
            code=code,
            start=self.starts[self.kernel.name],
            functions=functions,
            pool=np.array(self.pool or [0], np.int64),
            constants=np.array(list(self.constants), np.uint64),
            registers=self.row_count,
            predicates=self.predicate_count,
            parameters=tuple(self.kernel.parameters),
            parameter_offsets=tuple(self.places[p.name] for p in self.kernel.parameters),
            parameter_bytes=self.parameter_bytes,
            variables=self.variables,
            shared=self.shared,
            local=self.linked.stack,
            shared_granule=min(self.shared_widths, default=16),
            global_granule=min(self.global_widths, default=16),
            uses_mbarrier=isa.MBAR_INIT in ops,
            uses_bulk_groups=isa.BULK_COMMIT in ops,
            uses_cp_async=isa.CP_ASYNC in ops,
            uses_wgmma=isa.WGMMA in ops,
            uses_heap=self.uses_heap,
            uses_grid=self.uses_grid,
            synchronises=synchronises,
            scoped=synchronises and scoped,
            source=tuple(self.source),
        )

    def _unit(self, unit: Entry) -> None:
        """Decode one function behind the others."""
        blocks = flow.Blocks(unit)
        first = len(self.source)
        self.source.extend(unit.instructions)
        new_position: dict[int, int] = {}
        if not self.is_kernel:
            self.instruction = unit.instructions[0]
            decode_calls.begin(self)
        for old in blocks.layout():
            if old < 0:
                self.instruction = Instruction("bra", (), "", unit.instructions[~old].location, 0)
                self.source_index = first + ~old
                self.branches.append((len(self.code), ~old))
                self.emit(isa.BRA, f1=1)
                continue
            new_position[old] = len(self.code)
            self.instruction = unit.instructions[old]
            self.source_index = first + old
            before = len(self.code)
            self._one()
            for row in self.code[before:]:
                row[isa.CLASS] = class_of(row)
                row[isa.WIDE] = self._lanes_needed(row)
        end = len(self.code)
        location = unit.instructions[-1].location if unit.instructions else Location("?", 0)
        self.instruction = Instruction("exit", (), "", location, 0)
        self.source_index = first + max(len(unit.instructions) - 1, 0)
        if not unit.instructions:
            self.source.append(self.instruction)
        decode_calls.leave(self)
        new_position[len(unit.instructions)] = end
        for position, old in self.branches:
            self.code[position][isa.F0] = new_position[old]
        for start, olds in self.tables:
            self.pool[start : start + len(olds)] = [new_position[old] for old in olds]
        for old, position in new_position.items():
            if position < end and self.code[position][isa.OP] in isa.WARP_WIDE:
                if self.code[position][isa.GUARD]:
                    self.code[position][isa.JOIN] = position + 1
                else:
                    ahead = (p for j in blocks.joins(old) if (p := new_position[j]) > position)
                    self.code[position][isa.JOIN] = next(ahead, 0)

    def _one(self) -> None:
        parts = self.instruction.parts
        handler: Callable[[Decoder, tuple[str, ...], tuple[str, ...]], Any] | None = None
        for table in _HANDLERS:
            handler = handler or table.get(parts[0])
        if handler is None:
            raise self.fail()
        handler(self, parts[1:], self.instruction.operands)

    def _lanes_needed(self, row: list[int]) -> int:
        """Which lanes an instruction waits for, as column WIDE says it."""
        op = row[isa.OP]
        if op in (isa.SHFL, isa.VOTE, isa.REDUX, isa.MATCH, isa.ELECT):
            members = row[isa.F1] if op == isa.SHFL else row[isa.B]
            full = members < 0 and list(self.constants)[~members] & 0xFFFFFFFF == 0xFFFFFFFF
            return isa.ALL_LANES if full else members + 1 if members >= 0 else members
        return isa.ALL_LANES if op in isa.WARP_WIDE and op != isa.WARP_SYNC else 0

    def _place_variables(self) -> tuple[Variable, ...]:
        """Give module variables and shared memory their places; the used module variables, with addresses in them."""
        self.places: dict[str, int] = {}
        module = [v for v in self.linked.variables.values() if v.space in ("global", "const")]
        for i, variable in enumerate(module):
            self.places[variable.name] = (self.arrays + i + 1) << isa.ARRAY_SHIFT
        own = [v for unit in self.linked.units.values() for v in unit.variables.values() if v.space == "shared"]
        shared = own + [v for v in self.linked.variables.values() if v.space == "shared"]
        self.shared = _RESERVED if self.linked.words & _RESERVED_SHARED.keys() else 0
        for variable in sorted(shared, key=lambda v: v.size == 0):
            self.shared = -(-self.shared // variable.align) * variable.align
            self.places[variable.name] = self.shared
            self.shared += variable.size
        return tuple(replace(v, data=self._with_addresses(v)) for v in module)

    def _with_addresses(self, variable: Variable) -> bytes:
        data = bytearray(variable.data)
        for offset, name, added in variable.references:
            if name in self.linked.addresses:
                value = isa.FUNCTION_WINDOW + self.linked.addresses.index(name)
            elif name in self.places:
                value = self.places[name] + added
            else:
                raise EmulatorError(
                    f"the initial value of {variable.name} is the address of {name}, which is not there"
                )
            width = min(8, len(data) - offset)
            data[offset : offset + width] = value.to_bytes(8, "little")[:width]
        return bytes(data)

    def _lay_out_parameters(self) -> int:
        at = 0
        for parameter in self.kernel.parameters:
            at = -(-at // parameter.align) * parameter.align
            self.places[parameter.name] = at
            at += parameter.size
        return at


def number_of(text: str, kind: str) -> int | None:
    """The bits of an immediate for an operand of that type, or None where `text` is no number."""
    if re.fullmatch(r"0[fF][0-9a-fA-F]{8}", text):
        bits = int(text[2:], 16)
        return _bits64(struct.unpack("<f", struct.pack("<I", bits))[0]) if kind == "f64" else bits
    if re.fullmatch(r"0[dD][0-9a-fA-F]{16}", text):
        bits = int(text[2:], 16)
        return _bits32(struct.unpack("<d", struct.pack("<Q", bits))[0]) if kind == "f32" else bits
    if re.fullmatch(r"-?\d+\.\d*(?:[eE][-+]?\d+)?|-?\d+[eE][-+]?\d+", text):
        return _bits64(float(text)) if kind == "f64" else _bits32(float(text))
    if re.fullmatch(r"-?(0[xX][0-9a-fA-F]+|0[bB][01]+|\d+)U?", text):
        sign, digits = (-1, text[1:]) if text.startswith("-") else (1, text)
        digits = digits.rstrip("U")
        octal = len(digits) > 1 and digits[0] == "0" and digits[1].isdigit()
        number = sign * (int(digits, 8) if octal else int(digits, 0))
        if kind in ("f32", "f64"):
            return _bits64(float(number)) if kind == "f64" else _bits32(float(number))
        width = int(kind[1:]) if kind[1:].isdigit() else 64
        return number % (1 << width)
    return None


def _bits32(value: float) -> int:
    return int(struct.unpack("<I", struct.pack("<f", value))[0])


def _bits64(value: float) -> int:
    return int(struct.unpack("<Q", struct.pack("<d", value))[0])


def class_of(row: list[int]) -> int:
    """The statistics class of a decoded instruction."""
    op = row[isa.OP]
    if op < isa.INTEGER_END:
        return 2 if op in (isa.CVT_INT, isa.CVTA_TO, isa.CVTA_FROM) else 0
    if op < isa.FLOAT_END:
        return 2 if op >= isa.CVT_F2F else 1
    if op in (isa.SHFL, isa.VOTE, isa.REDUX, isa.MATCH, isa.ELECT, isa.ACTIVEMASK):
        return 4
    if op < isa.BRA:
        return 3
    if op < isa.LD:
        return 5
    if op < isa.BAR_SYNC:
        if op in (isa.LDMATRIX, isa.STMATRIX) or row[isa.F1] == isa.SHARED:
            return 7
        return 6 if op in (isa.LD, isa.ST, isa.ATOM) and row[isa.F1] in (isa.GLOBAL, isa.GENERIC) else 8
    if op < isa.TMA_LOAD:
        return 10 if op in (isa.MBAR_INIT, isa.MBAR_INVAL, isa.MBAR_ARRIVE, isa.MBAR_EXPECT, isa.MBAR_WAIT) else 9
    return 11 if op <= isa.BULK_WAIT or op in (isa.BULK_DSMEM, isa.STORE_ASYNC) else 12
