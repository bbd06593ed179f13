"""PTX text to instructions with their source lines; knows the grammar, not what an instruction means."""

import re
from dataclasses import dataclass, field
from pathlib import PurePath

from sim.errors import InputError


class EmulatorError(InputError):
    """The emulator cannot execute this PTX; the message names the instruction and its source line."""


@dataclass(frozen=True)
class Location:
    """A source line and, for inlined code, the line it was inlined at."""

    file: str
    line: int
    inlined_at: "Location | None" = None

    def __str__(self) -> str:
        """The line in the kernel's own file first, then the header it was inlined from, if any."""
        own: Location | None = self
        while own is not None and not own.file.endswith(".cu"):
            own = own.inlined_at
        inner = f"{PurePath(self.file).name}:{self.line}"
        if own is None or own is self:
            return inner
        return f"{PurePath(own.file).name}:{own.line} ({inner})"


@dataclass(frozen=True)
class Instruction:
    """One PTX instruction: `opcode` with all its modifiers, operands as written, `guard` as "%p1" or "!%p1".

    `line` is the 1-based line of the PTX text; names of nested scopes carry a unique suffix.
    """

    opcode: str
    operands: tuple[str, ...]
    guard: str
    location: Location
    line: int
    scope: tuple[int, ...] = ()

    @property
    def parts(self) -> tuple[str, ...]:
        return tuple(self.opcode.split("."))

    def __str__(self) -> str:
        guard = f"@{self.guard} " if self.guard else ""
        return f"{guard}{self.opcode} {', '.join(self.operands)}".strip()


@dataclass(frozen=True)
class Variable:
    """A named piece of memory: `space` is global, const, shared, local or param; `size` 0 is a dynamic shared array."""

    name: str
    space: str
    size: int
    align: int
    data: bytes = b""


@dataclass
class Entry:
    """One kernel: parameters in order, register types by name, instructions, label positions by (scope, name)."""

    name: str
    parameters: list[Variable] = field(default_factory=list)
    registers: dict[str, str] = field(default_factory=dict)
    variables: dict[str, Variable] = field(default_factory=dict)
    instructions: list[Instruction] = field(default_factory=list)
    labels: dict[tuple[int, str], int] = field(default_factory=dict)
    tables: dict[tuple[int, str], tuple[str, ...]] = field(default_factory=dict)

    def target(self, instruction: Instruction, label: str) -> int:
        """The position that a label means where `instruction` stands."""
        for scope in reversed(instruction.scope):
            if (scope, label) in self.labels:
                return self.labels[scope, label]
        raise EmulatorError(f"{instruction.location}: `{instruction}` jumps to the unknown label {label}")


@dataclass(frozen=True)
class Module:
    """A parsed PTX file: entries by name and module-level variables."""

    entries: dict[str, Entry]
    variables: dict[str, Variable]


_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
_FILE = re.compile(r'^\s*\.file\s+(\d+)\s+"([^"]*)"', re.MULTILINE)
_SECTION = re.compile(r"\.section\s+\S+\s*\{[^}]*\}")
_ENTRY = re.compile(r"(?:\.visible\s+|\.weak\s+)*\.entry\s+([\w$]+)\s*(?:\(([^)]*)\))?[^{;]*\{")
_FUNCTION = re.compile(r"(?:\.visible\s+|\.weak\s+)*\.func\b[^{;]*\{")
_LOC = re.compile(
    r"\.loc\s+(\d+)\s+(\d+)\s+(\d+)(?:\s*,\s*function_name\s+\S+\s*,\s*inlined_at\s+(\d+)\s+(\d+)\s+(\d+))?[^\n]*"
)
_LABEL = re.compile(r"([$%\w]+)\s*:(?!:)")
_TABLE = re.compile(r"([$%\w]+)\s*:\s*\.branchtargets\s+([^;]*);")
_STATEMENT = re.compile(r"[^;]*;")
_IDENTIFIER = re.compile(r"[%$A-Za-z_][\w$]*")
_VARIABLE = re.compile(
    r"(?:\.(?:visible|extern|weak|common)\s+)*\.(global|const|shared|local|param)\s+(?:\.ptr\s+)?"
    r"(?:\.align\s+(\d+)\s+)?(?:\.v([24])\s+)?\.([bsuf]\d+)\s+([\w$]+)\s*((?:\[[^\]]*\])*)\s*(?:=\s*(.*))?$",
    re.DOTALL,
)
_SPACE = re.compile(r"\s+")


def parse(text: str) -> Module:
    """Parse a PTX module; raises EmulatorError for text outside the grammar."""
    files = {int(n): path for n, path in _FILE.findall(text)}
    clean = _SECTION.sub(_blank, _COMMENT.sub(_blank, text))
    entries: dict[str, Entry] = {}
    variables: dict[str, Variable] = {}
    at = 0
    while True:
        match = _ENTRY.search(clean, at)
        function = _FUNCTION.search(clean, at)
        if function and (not match or function.start() < match.start()):
            _declare_all(clean[at : function.start()], variables)
            at = _closing_brace(clean, function.end())
            continue
        if not match:
            break
        _declare_all(clean[at : match.start()], variables)
        end = _closing_brace(clean, match.end())
        reader = _Body(match.group(1), files, clean)
        reader.parameters(match.group(2) or "")
        reader.read(match.end(), end - 1)
        entries[match.group(1)] = reader.entry
        at = end
    _declare_all(clean[at:], variables)
    return Module(entries, variables)


def _blank(match: re.Match[str]) -> str:
    """Spaces in place of a comment, so that line numbers stay."""
    return re.sub(r"[^\n]", " ", match.group(0))


def _closing_brace(text: str, at: int) -> int:
    depth = 1
    for match in re.compile(r"[{}]").finditer(text, at):
        depth += 1 if match.group() == "{" else -1
        if depth == 0:
            return match.end()
    raise EmulatorError("the PTX ends inside a function")


def _declare_all(text: str, variables: dict[str, Variable]) -> None:
    for statement in text.split(";"):
        found = re.search(
            r"(?:\.(?:visible|extern|weak|common)\s+)*\.(?:global|const|shared)\s.*", statement, re.DOTALL
        )
        if found:
            variable = variable_of(found.group(0).strip())
            variables[variable.name] = variable


def variable_of(text: str) -> Variable:
    """A variable from its declaration, without the semicolon."""
    match = _VARIABLE.match(text)
    if not match:
        raise EmulatorError(f"cannot read the PTX declaration `{text[:80]}`")
    space, align, vector, kind, name, dimensions, value = match.groups()
    width = int(kind[1:]) // 8 * int(vector or 1)
    count = 1
    for dimension in re.findall(r"\[([^\]]*)\]", dimensions):
        count *= int(dimension or 0)
    return Variable(name, space, count * width, int(align or width), _initial(value, kind) if value else b"")


def _initial(value: str, kind: str) -> bytes:
    width = int(kind[1:]) // 8
    out = bytearray()
    for word in value.strip().strip("{}").split(","):
        word = word.strip()
        if re.fullmatch(r"0[fd][0-9a-fA-F]+", word):
            out += int(word[2:], 16).to_bytes(width, "little")
        elif re.fullmatch(r"-?(0x)?[0-9a-fA-F]+U?", word):
            out += (int(word.rstrip("U"), 0) % (1 << 8 * width)).to_bytes(width, "little")
        else:
            return b""  # an address; a kernel that reads it is refused where it does
    return bytes(out)


class _Body:
    """Reads the statements of one function body."""

    def __init__(self, name: str, files: dict[int, str], text: str) -> None:
        self.entry = Entry(name)
        self._files, self._text = files, text
        self._scopes = [0]
        self._names: list[dict[str, str]] = [{}]
        self._count = 0
        self._inlined: dict[tuple[int, int, int], tuple[int, int, int]] = {}
        self._location = Location("?", 0)

    def parameters(self, text: str) -> None:
        for declaration in filter(None, (part.strip() for part in text.split(","))):
            self.entry.parameters.append(variable_of(re.sub(r"\.ptr(\s+\.\w+)?", "", declaration)))

    def read(self, at: int, end: int) -> None:
        text = self._text
        line, counted = text.count("\n", 0, at) + 1, at
        while True:
            at = _SPACE.match(text, at, end).end() if _SPACE.match(text, at, end) else at  # type: ignore[union-attr]
            if at >= end:
                return
            line, counted = line + text.count("\n", counted, at), at
            if text[at] == "{":
                self._count += 1
                self._scopes.append(self._count)
                self._names.append({})
                at += 1
            elif text[at] == "}":
                self._scopes.pop()
                self._names.pop()
                at += 1
            elif match := _LOC.match(text, at, end):
                self._locate(match)
                at = match.end()
            elif match := _TABLE.match(text, at, end):
                targets = tuple(word.strip() for word in match.group(2).split(","))
                self.entry.tables[self._scopes[-1], match.group(1)] = targets
                at = match.end()
            elif match := _LABEL.match(text, at, end):
                self.entry.labels[self._scopes[-1], match.group(1)] = len(self.entry.instructions)
                at = match.end()
            elif match := _STATEMENT.match(text, at, end):
                self._statement(" ".join(match.group(0)[:-1].split()), line)
                at = match.end()
            else:
                raise EmulatorError(f"PTX line {line}: cannot read `{text[at : at + 60]}`")

    def _locate(self, match: re.Match[str]) -> None:
        numbers = tuple(int(g) for g in match.groups() if g is not None)
        here = (numbers[0], numbers[1], numbers[2])
        if numbers[1] == 0:
            return  # line 0: the compiler names no line; keep the last
        if len(numbers) == 6:
            self._inlined[here] = (numbers[3], numbers[4], numbers[5])
        else:
            self._inlined.pop(here, None)
        self._location = self._chain(here, set())

    def _chain(self, here: tuple[int, int, int], seen: set[tuple[int, int, int]]) -> Location:
        outer = self._inlined.get(here)
        seen.add(here)
        within = self._chain(outer, seen) if outer and outer not in seen else None
        return Location(self._files.get(here[0], "?"), here[1], within)

    def _statement(self, text: str, line: int) -> None:
        if not text or text.startswith(".pragma"):
            return
        if text.startswith(".reg"):
            self._registers(text)
        elif text.startswith((".shared", ".local", ".const", ".global", ".param")):
            variable = variable_of(text)
            self.entry.variables[variable.name] = variable
        elif text.startswith("."):
            raise EmulatorError(f"PTX line {line}: the directive `{text[:60]}` is not supported")
        else:
            self._instruction(text, line)

    def _registers(self, text: str) -> None:
        _, kind, names = text.split(None, 2)
        for name in (part.strip() for part in names.split(",")):
            match = re.fullmatch(r"([%$\w]+)<(\d+)>", name)
            if match:
                for i in range(int(match.group(2))):
                    self._register(f"{match.group(1)}{i}", kind[1:])
            else:
                self._register(name, kind[1:])

    def _register(self, name: str, kind: str) -> None:
        unique = name if len(self._scopes) == 1 else f"{name}@{self._scopes[-1]}"
        if unique != name:
            self._names[-1][name] = unique
        self.entry.registers[unique] = kind

    def _rename(self, match: re.Match[str]) -> str:
        name = match.group(0)
        for names in reversed(self._names):
            if name in names:
                return names[name]
        return name

    def _instruction(self, text: str, line: int) -> None:
        guard = ""
        if text.startswith("@"):
            guard, text = text[1:].split(None, 1)
        opcode, _, rest = text.partition(" ")
        if any(self._names):
            rest, guard = _IDENTIFIER.sub(self._rename, rest), _IDENTIFIER.sub(self._rename, guard)
        operands = tuple(split_operands(rest))
        self.entry.instructions.append(Instruction(opcode, operands, guard, self._location, line, tuple(self._scopes)))


def split_operands(text: str) -> list[str]:
    """Split at commas outside brackets and braces."""
    parts, depth, start = [], 0, 0
    for i, char in enumerate(text):
        if char in "[{(":
            depth += 1
        elif char in "]})":
            depth -= 1
        elif char == "," and depth == 0:
            parts.append(text[start:i].strip())
            start = i + 1
    last = text[start:].strip()
    return [*parts, last] if last else parts
