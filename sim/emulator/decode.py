"""PTX instructions to the interpreter's tables: operands to rows, modifiers to numbers."""

import re
import struct
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np

from sim.emulator import decode_memory, decode_scalar, decode_tensor, flow, hazards, isa
from sim.emulator.program import Program
from sim.emulator.ptx import EmulatorError, Entry, Instruction, Module, Variable, parse

MAX_VARIABLES = 64  # module-level variables a kernel may have


@lru_cache(maxsize=64)
def decode(text: str, entry: str, arrays: int) -> Program:
    """Decode one entry of a PTX module for a launch with that many array arguments; raises EmulatorError."""
    module = parse(text)
    return Decoder(module, module.entry(entry), arrays).program()


class Decoder:
    """The state of decoding one entry: rows given to registers, constants, pool and code so far."""

    def __init__(self, module: Module, entry: Entry, arrays: int) -> None:
        self.entry, self.arrays = entry, arrays
        self.code: list[list[int]] = []
        self.pool: list[int] = []
        self.constants: dict[int, int] = {0: 0}
        self.rows = {name: i for i, name in enumerate(isa.SPECIAL)}
        self.rows["_"] = len(isa.SPECIAL)  # a sink
        self.predicates = {"true": 0, "_": 1}
        self.instruction: Instruction
        self.source_index = 0
        self.offsets: dict[str, int] = {}
        self.variables = self._used_variables(module)
        self.shared = self._lay_out("shared")
        self.local = self._lay_out("local")
        self.parameter_bytes = self._lay_out_parameters()
        self.shared_widths: set[int] = set()
        self.global_widths: set[int] = set()
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
            self.rows[name] = len(self.rows)
        return self.rows[name]

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
            return self.constant(self.offsets[name] + int(offset or 0))
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
            self.predicates[name] = len(self.predicates)
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
        offset = int(match.group(2) or "0", 0)
        return self.value(match.group(1), "b64"), offset

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
        blocks = flow.Blocks(self.entry)
        order = blocks.layout()
        new_position: dict[int, int] = {}
        for old in order:
            if old < 0:
                self.instruction = Instruction("bra", (), "", self.entry.instructions[~old].location, 0)
                self.source_index = ~old
                self.branches.append((len(self.code), ~old))
                self.emit(isa.BRA, f1=1)
                continue
            new_position[old] = len(self.code)
            self.instruction = self.entry.instructions[old]
            self.source_index = old
            before = len(self.code)
            self._one()
            for row in self.code[before:]:
                row[isa.CLASS] = class_of(row)
                row[isa.WIDE] = self._lanes_needed(row)
        end = len(self.code)
        if end >= hazards.MAX_CODE:
            raise EmulatorError(f"{self.entry.name} has {end} instructions; the limit is {hazards.MAX_CODE}")
        self.instruction = Instruction("exit", (), "", self.entry.instructions[-1].location, 0)
        self.source_index = len(self.entry.instructions) - 1
        self.emit(isa.EXIT)
        new_position[len(self.entry.instructions)] = end
        for position, old in self.branches:
            self.code[position][isa.F0] = new_position[old]
        for old, position in new_position.items():
            if old < len(self.entry.instructions) and self.code[position][isa.OP] in isa.WARP_WIDE:
                if self.code[position][isa.GUARD]:
                    self.code[position][isa.JOIN] = position + 1
                else:
                    ahead = (p for j in blocks.joins(old) if (p := new_position[j]) > position)
                    self.code[position][isa.JOIN] = next(ahead, 0)
        for start, olds in self.tables:
            self.pool[start : start + len(olds)] = [new_position[old] for old in olds]
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
            name=self.entry.name,
            code=code,
            pool=np.array(self.pool or [0], np.int64),
            constants=np.array(list(self.constants), np.uint64),
            registers=len(self.rows),
            predicates=len(self.predicates),
            parameters=tuple(self.entry.parameters),
            parameter_offsets=tuple(self.offsets[p.name] for p in self.entry.parameters),
            parameter_bytes=self.parameter_bytes,
            variables=self.variables,
            shared=self.shared,
            local=self.local,
            shared_granule=min(self.shared_widths, default=16),
            global_granule=min(self.global_widths, default=16),
            uses_mbarrier=isa.MBAR_INIT in ops,
            uses_bulk_groups=isa.BULK_COMMIT in ops,
            uses_cp_async=isa.CP_ASYNC in ops,
            uses_wgmma=isa.WGMMA in ops,
            synchronises=synchronises,
            scoped=synchronises and scoped,
            source=tuple(self.entry.instructions),
        )

    def _one(self) -> None:
        parts = self.instruction.parts
        handler: Callable[[Decoder, tuple[str, ...], tuple[str, ...]], Any] | None = None
        for table in (decode_scalar.HANDLERS, decode_memory.HANDLERS, decode_tensor.HANDLERS):
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

    def _used_variables(self, module: Module) -> tuple[Variable, ...]:
        text = " ".join(operand for i in self.entry.instructions for operand in i.operands)
        words = set(re.findall(r"[\w$%.]+", text))
        for name, variable in module.variables.items():
            if variable.space == "shared" and name in words:
                self.entry.variables.setdefault(name, variable)
        used = [v for n, v in module.variables.items() if v.space in ("global", "const") and n in words]
        if len(used) > MAX_VARIABLES:
            raise EmulatorError(f"{self.entry.name} uses {len(used)} module variables; the limit is {MAX_VARIABLES}")
        for i, variable in enumerate(used):
            self.offsets[variable.name] = (self.arrays + i + 1) << isa.ARRAY_SHIFT
        return tuple(used)

    def _lay_out(self, space: str) -> int:
        at = 0
        variables = [v for v in self.entry.variables.values() if v.space == space]
        for variable in sorted(variables, key=lambda v: v.size == 0):
            at = -(-at // variable.align) * variable.align
            self.offsets[variable.name] = at
            at += variable.size
        return at

    def _lay_out_parameters(self) -> int:
        at = 0
        for parameter in self.entry.parameters:
            at = -(-at // parameter.align) * parameter.align
            self.offsets[parameter.name] = at
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
