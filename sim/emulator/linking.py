"""A kernel with the functions it calls: their order in the code, their frames in local memory, which call themselves.

A frame holds a function's parameters and results, its local variables, room for its registers where it can be called
again before it returns, and last what it passes to the functions it calls: that is where their frames begin.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from sim.emulator.ptx import EmulatorError, Entry, Instruction, Module, Variable, split_operands

BUILTINS = ("vprintf", "__assertfail", "malloc", "free")  # of CUDA's device runtime
_ALIGN = 16  # bytes, of every parameter in a frame
_RECURSION = 1 << 13  # bytes of local memory that functions which call themselves may take beside all others
_WORD = re.compile(r"[%$\w]+(?:@\d+)?")


@dataclass(frozen=True)
class Call:
    """A call: variables that hold the results and the arguments, and a function's name or a register."""

    results: tuple[str, ...]
    target: str
    arguments: tuple[str, ...]


@dataclass
class Frame:
    """Offsets of a function's variables from where its frame begins; what it calls begins at `size`."""

    offsets: dict[str, int] = field(default_factory=dict)
    saved: int = -1  # where registers are kept during a call that may come back, or -1
    size: int = 0


def call_of(instruction: Instruction) -> Call:
    """The parts of a call."""
    parts = list(instruction.operands)
    results = _listed(parts.pop(0)) if parts[0].startswith("(") else ()
    target = parts.pop(0)
    arguments = _listed(parts.pop(0)) if parts and parts[0].startswith("(") else ()
    return Call(results, target, arguments)


def _listed(text: str) -> tuple[str, ...]:
    return tuple(split_operands(text.strip("() ")))


def is_call(instruction: Instruction) -> bool:
    return instruction.opcode.split(".", 1)[0] == "call"


class Linked:
    """What a kernel needs of its module."""

    def __init__(self, module: Module, kernel: Entry) -> None:
        self.module = module
        self.variables: dict[str, Variable] = {}  # module-level ones in use, by name
        self.addresses: list[str] = []  # functions whose address is taken; a function pointer is an index here
        self.words: set[str] = set()  # all names in use
        self._calls: dict[str, set[str]] = {}
        self._indirect: set[str] = set()
        units = {kernel.name: kernel}
        left = [kernel]
        while left:
            for entry in self._visit(left.pop()):
                if entry.name not in units:
                    units[entry.name] = entry
                    left.append(entry)
        for caller in self._indirect:
            self._calls[caller] |= set(self.addresses)
        self.cycles = {name for name in units if self._reaches(name, name)}
        self.order = self._callees_first(kernel.name)
        self.units = {name: units[name] for name in self.order}
        self.frames = {name: self._frame(unit, name == kernel.name) for name, unit in self.units.items()}
        self.stack = self._depth(kernel.name) + (_RECURSION if self.cycles else 0)

    def saves(self, caller: str, call: Call) -> bool:
        """Whether a call may come back to its caller before it returns."""
        targets = self.addresses if call.target.startswith("%") else [call.target]
        return caller in self.cycles and any(t == caller or self._reaches(t, caller) for t in targets)

    def _visit(self, entry: Entry) -> Iterator[Entry]:
        """The functions that one mentions."""
        called = self._calls.setdefault(entry.name, set())
        words: set[str] = set()
        for instruction in entry.instructions:
            if not is_call(instruction):
                words.update(w for operand in instruction.operands for w in _WORD.findall(operand))
                continue
            call = call_of(instruction)
            if call.target in BUILTINS:
                continue
            if call.target in entry.registers:
                self._indirect.add(entry.name)
                continue
            function = self.module.functions.get(call.target)
            if not function or not function.is_defined:
                where = f"{instruction.location}: `{instruction.opcode} {call.target}`"
                raise EmulatorError(f"{where} calls a function that the PTX does not define")
            called.add(call.target)
            yield function.entry
        self.words |= words
        yield from self._mentioned(words)

    def _mentioned(self, words: set[str]) -> Iterator[Entry]:
        """Variables among the words, what their values point at, and functions whose address is taken."""
        for word in sorted(words):
            if word in self.module.variables and word not in self.variables:
                variable = self.module.variables[word]
                self.variables[word] = variable
                yield from self._mentioned({name for _, name, _ in variable.references})
            elif word in self.module.functions and word not in self.addresses:
                function = self.module.functions[word]
                if function.is_defined:
                    self.addresses.append(word)
                    yield function.entry

    def _reaches(self, start: str, goal: str) -> bool:
        seen, left = set(), [start]
        while left:
            for name in self._calls.get(left.pop(), ()):
                if name == goal:
                    return True
                if name not in seen:
                    seen.add(name)
                    left.append(name)
        return False

    def _callees_first(self, kernel: str) -> list[str]:
        order: list[str] = []
        seen = {kernel}
        work = [(kernel, iter(sorted({*self._calls[kernel], *self.addresses})))]
        while work:
            name, rest = work[-1]
            for callee in rest:
                if callee not in seen:
                    seen.add(callee)
                    work.append((callee, iter(sorted(self._calls[callee]))))
                    break
            else:
                order.append(name)
                work.pop()
        return order

    def _frame(self, unit: Entry, is_kernel: bool) -> Frame:
        frame = Frame()
        at = 0
        if not is_kernel:
            for variable in (*unit.parameters, *unit.results):
                frame.offsets[variable.name] = at
                at = _up(at + variable.size, _ALIGN)
        for variable in unit.variables.values():
            if variable.space == "local":
                at = _up(at, variable.align)
                frame.offsets[variable.name] = at
                at += variable.size
        if unit.name in self.cycles:
            frame.saved = at = _up(at, 8)
            at += 8 * (len(unit.registers) + 1)
        frame.size = _up(at, _ALIGN)
        for instruction in unit.instructions:
            if is_call(instruction):
                call, passed = call_of(instruction), frame.size
                for name in (*call.arguments, *call.results):
                    if name in unit.variables:
                        frame.offsets[name] = passed
                        passed = _up(passed + unit.variables[name].size, _ALIGN)
        return frame

    def _depth(self, name: str, above: frozenset[str] = frozenset()) -> int:
        """Bytes of local memory from where a function's frame begins; the most that it and its callees take."""
        frame, unit = self.frames[name], self.units[name]
        passed = max(
            (frame.offsets[v.name] + v.size for v in unit.variables.values() if v.name in frame.offsets), default=0
        )
        below = [self._depth(c, above | {name}) for c in self._calls[name] if c not in above and c != name]
        return max(passed, frame.size + max(below, default=0))


def _up(value: int, align: int) -> int:
    return -(-value // align) * align
