"""PTX text to instructions with their source lines; knows the grammar, not what an instruction means.

One pass finds the functions and variables of a module; a function's body is read when it is asked for.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
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
        """The line of who wrote the kernel, in a header of theirs or not; in parentheses how it comes to be there."""
        own: Location | None = self
        while own is not None and _is_library(own.file):
            own = own.inlined_at
        if own is None:
            return self._short()
        kernel: Location | None = own
        while kernel is not None and not kernel.file.endswith(".cu"):
            kernel = kernel.inlined_at
        notes = [] if own is self else [self._short()]
        notes += [f"in {kernel._short()}"] if kernel and kernel is not own else []
        return f"{own._short()} ({', '.join(notes)})" if notes else own._short()

    def _short(self) -> str:
        return f"{PurePath(self.file).name}:{self.line}"


@dataclass(frozen=True)
class Instruction:
    """One PTX instruction: `opcode` with all its modifiers, operands as written, `guard` as "%p1" or "!%p1".

    `line` is the 1-based line of the PTX text, `span` where it stands there, its semicolon included; names of nested
    scopes carry a unique suffix.
    """

    opcode: str
    operands: tuple[str, ...]
    guard: str
    location: Location
    line: int
    scope: tuple[int, ...] = ()
    span: tuple[int, int] = (0, 0)

    @property
    def parts(self) -> tuple[str, ...]:
        return tuple(self.opcode.split("."))

    def __str__(self) -> str:
        guard = f"@{self.guard} " if self.guard else ""
        return f"{guard}{self.opcode} {', '.join(self.operands)}".strip()


@dataclass(frozen=True)
class Variable:
    """A named piece of memory: `space` is global, const, shared, local or param; `size` 0 is a dynamic shared array.

    `references` are addresses in its data: (offset, name of a variable or function, what is added).
    """

    name: str
    space: str
    size: int
    align: int
    data: bytes = b""
    references: tuple[tuple[int, str, int], ...] = ()


@dataclass
class Entry:
    """A kernel or a function: parameters and results in order, register types by name, instructions, labels.

    Labels and tables of branch targets are by (scope, name).
    """

    name: str
    parameters: list[Variable] = field(default_factory=list)
    results: list[Variable] = field(default_factory=list)
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


class Function:
    """A kernel or function of a module, whose text is [start, end); one that is only declared has none."""

    def __init__(self, name: str, module: "Module", parameters: str, results: str, start: int, end: int) -> None:
        self.name, self._module, self._span = name, module, (start, end)
        self._parameters, self._results = parameters, results

    @property
    def is_defined(self) -> bool:
        return self._span[1] > 0

    @cached_property
    def entry(self) -> Entry:
        """What its text says; raises EmulatorError for text outside the grammar."""
        reader = _Body(self.name, self._module)
        reader.entry.parameters = list(_parameters(self._parameters))
        reader.entry.results = list(_parameters(self._results))
        reader.read(*self._span)
        return reader.entry


@dataclass
class Module:
    """A parsed PTX file: kernels and functions by name, module-level variables, source files by number."""

    text: str
    files: dict[int, str] = field(default_factory=dict)
    kernels: dict[str, Function] = field(default_factory=dict)
    functions: dict[str, Function] = field(default_factory=dict)
    variables: dict[str, Variable] = field(default_factory=dict)

    def entry(self, name: str) -> Entry:
        """A kernel's text; raises EmulatorError where there is none of that name."""
        if name not in self.kernels:
            raise EmulatorError(f"the PTX has no entry {name}; it has {', '.join(self.kernels) or 'none'}")
        return self.kernels[name].entry

    def line(self, position: int) -> int:
        """The 1-based line of a position in the text."""
        return self.text.count("\n", 0, position) + 1


# Parts of the paths of headers that come with the compiler, with CUDA or with this project.
_LIBRARIES = ("nvrtc", "/nvidia/", "/cuda/", "/cccl/", "/cuda-", "/ptx/")
_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
_FILE = re.compile(r'^\s*\.file\s+(\d+)\s+"([^"]*)"', re.MULTILINE)
_NOT_NEWLINE = re.compile(r"[^\n]+")
_LINKING = r"(?:\.(?:visible|weak|extern|common)\s+)*"
_TOP = re.compile(
    rf"{_LINKING}\.(?P<kind>entry|func)\b\s*(?:\.noreturn\s*)?(?:\((?P<results>[^)]*)\))?\s*(?P<name>[\w$]+)\s*"
    rf"(?:\((?P<parameters>[^)]*)\))?(?P<directives>[^{{;]*)(?P<end>[{{;])"
    rf"|(?P<section>\.section\s+\S+\s*\{{[^}}]*\}})"
    rf"|(?P<variable>{_LINKING}\.(?:global|const|shared)\s[^;]*);"
)
_BRACE = re.compile(r"[{}]")
_TOKEN = re.compile(
    r"(?P<scope>[{}])"
    r"|\.loc\s+(?P<file>\d+)\s+(?P<line>\d+)\s+(?P<column>\d+)(?:\s*,\s*function_name\s+[^,\n]+,\s*inlined_at"
    r"\s+(?P<file2>\d+)\s+(?P<line2>\d+)\s+(?P<column2>\d+))?[^\n]*"
    r"|(?P<label>[$%\w]+)\s*:(?!:)(?:\s*\.(?P<table>branchtargets|calltargets|callprototype)\s*(?P<targets>[^;]*);)?"
    r"|(?P<statement>[^;{}]*(?:\{[^{}]*\}[^;{}]*)*);"
)
_SPACE = re.compile(r"[\s;]*")
_IDENTIFIER = re.compile(r"[%$A-Za-z_][\w$]*")
_REGISTERS = re.compile(r"([%$\w]+)<(\d+)>")
_VARIABLE = re.compile(
    rf"{_LINKING}(?:\.attribute\([^)]*\)\s*)?\.(global|const|shared|local|param)\s+(?:\.ptr\b(?:\s*\.\w+)?\s*)?"
    r"(?:\.align\s+(\d+)\s+)?(?:\.v([24])\s+)?\.([bsuf]\d+|pred)\s+(?:\.ptr\b(?:\s*\.(?:global|shared|const|local)\b)?"
    r"(?:\s*\.align\s+\d+)?\s*)?([\w$]+)\s*((?:\[[^\]]*\]\s*)*)(?:=\s*(.*))?$",
    re.DOTALL,
)
_DIMENSION = re.compile(r"\[([^\]]*)\]")


def parse(text: str) -> Module:
    """Find a module's kernels, functions and variables; raises EmulatorError for text outside the grammar."""
    module = Module(_COMMENT.sub(_blank, text), {int(n): path for n, path in _FILE.findall(text)})
    at = 0
    while match := _TOP.search(module.text, at):
        at = match.end()
        if match["variable"]:
            variable = variable_of(match["variable"])
            if variable.name not in module.variables or variable.data or variable.size:
                module.variables[variable.name] = variable
        elif match["name"]:
            start, end = at, 0
            if match["end"] == "{":
                at = _closing_brace(module.text, at)
                end = at - 1
            function = Function(match["name"], module, match["parameters"] or "", match["results"] or "", start, end)
            known = module.kernels if match["kind"] == "entry" else module.functions
            if end or match["name"] not in known:
                known[match["name"]] = function
    return module


def _is_library(file: str) -> bool:
    """Whether a file is a header of CUDA's or of ours, so that the line that used it says more."""
    return any(part in file for part in _LIBRARIES)


def _blank(match: re.Match[str]) -> str:
    """Spaces in place of a comment, so that line numbers stay."""
    return _NOT_NEWLINE.sub(lambda m: " " * len(m.group()), match.group())


def _closing_brace(text: str, at: int) -> int:
    depth = 1
    for match in _BRACE.finditer(text, at):
        depth += 1 if match.group() == "{" else -1
        if depth == 0:
            return match.end()
    raise EmulatorError("the PTX ends inside a function")


def _parameters(text: str) -> Iterator[Variable]:
    for declaration in filter(None, (part.strip() for part in text.split(","))):
        yield variable_of(declaration)


def variable_of(text: str) -> Variable:
    """A variable from its declaration, without the semicolon."""
    match = _VARIABLE.match(text.strip())
    if not match:
        raise EmulatorError(f"cannot read the PTX declaration `{' '.join(text.split())[:80]}`")
    space, align, vector, kind, name, dimensions, value = match.groups()
    width = int(kind[1:]) // 8 * int(vector or 1) if kind != "pred" else 1
    count = 1
    for dimension in _DIMENSION.findall(dimensions):
        count *= int(dimension, 0) if dimension.strip() else 0
    data, references = _initial(value, width // int(vector or 1)) if value else (b"", ())
    return Variable(name, space, max(count * width, len(data)), int(align or width), data, references)


def _initial(value: str, width: int) -> tuple[bytes, tuple[tuple[int, str, int], ...]]:
    """(data, references) of an initialiser."""
    out, references = bytearray(), []
    for word in value.replace("{", " ").replace("}", " ").split(","):
        word = word.strip()
        if not word:
            continue
        if word[0].isdigit() or word[0] == "-":
            if word[:2] in ("0f", "0F", "0d", "0D") and len(word) in (10, 18):
                number = int(word[2:], 16)
            else:
                number = int(word.rstrip("U"), 0)
            out += (number % (1 << 8 * width)).to_bytes(width, "little")
        else:
            symbol, _, added = re.sub(r"generic\s*\(([^)]*)\)", r"\1", word).partition("+")
            references.append((len(out), symbol.strip(), int(added or "0", 0)))
            out += bytes(width)
    return bytes(out), tuple(references)


class _Body:
    """Reads the statements of one function body."""

    def __init__(self, name: str, module: Module) -> None:
        self.entry = Entry(name)
        self._module = module
        self._scopes = [0]
        self._names: list[dict[str, str]] = [{}]
        self._count = 0
        self._inlined: dict[tuple[int, int, int], tuple[int, int, int]] = {}
        self._location = Location("?", 0)

    def read(self, at: int, end: int) -> None:
        text = self._module.text
        line, counted = self._module.line(at), at
        while True:
            at = _SPACE.match(text, at, end).end()  # type: ignore[union-attr]
            if at >= end:
                return
            match = _TOKEN.match(text, at, end)
            line, counted = line + text.count("\n", counted, at), at
            if not match:
                raise EmulatorError(f"PTX line {line}: cannot read `{text[at : at + 60]}`")
            at = match.end()
            if match["statement"] is not None:
                self._statement(" ".join(match["statement"].split()), line, match.span())
            elif match["file"]:
                self._locate(match)
            elif match["label"]:
                self._label(match)
            elif match["scope"] == "{":
                self._count += 1
                self._scopes.append(self._count)
                self._names.append({})
            else:
                self._scopes.pop()
                self._names.pop()

    def _label(self, match: re.Match[str]) -> None:
        where = self._scopes[-1], match["label"]
        if match["table"] == "branchtargets":
            self.entry.tables[where] = tuple(word.strip() for word in match["targets"].split(","))
        elif not match["table"]:
            self.entry.labels[where] = len(self.entry.instructions)

    def _locate(self, match: re.Match[str]) -> None:
        here = int(match["file"]), int(match["line"]), int(match["column"])
        if here[1] == 0:
            return  # line 0: the compiler names no line; keep the last
        if match["file2"]:
            self._inlined[here] = int(match["file2"]), int(match["line2"]), int(match["column2"])
        else:
            self._inlined.pop(here, None)
        self._location = self._chain(here, set())

    def _chain(self, here: tuple[int, int, int], seen: set[tuple[int, int, int]]) -> Location:
        outer = self._inlined.get(here)
        seen.add(here)
        within = self._chain(outer, seen) if outer and outer not in seen else None
        return Location(self._module.files.get(here[0], "?"), here[1], within)

    def _statement(self, text: str, line: int, span: tuple[int, int]) -> None:
        if not text or text.startswith(".pragma"):
            return
        if text.startswith(".reg"):
            self._registers(text)
        elif text.startswith((".shared", ".local", ".const", ".global", ".param")):
            variable = variable_of(text)
            unique = self._unique(variable.name)
            self.entry.variables[unique] = replace(variable, name=unique)
        elif text.startswith("."):
            raise EmulatorError(f"PTX line {line}: the directive `{text[:60]}` is not supported")
        else:
            self._instruction(text, line, span)

    def _registers(self, text: str) -> None:
        _, kind, names = text.replace(".reg.", ".reg .").split(None, 2)
        for name in (part.strip() for part in names.split(",")):
            if match := _REGISTERS.fullmatch(name):
                for i in range(int(match.group(2))):
                    self.entry.registers[self._unique(f"{match.group(1)}{i}")] = kind[1:]
            else:
                self.entry.registers[self._unique(name)] = kind[1:]

    def _unique(self, name: str) -> str:
        """A name of this scope, unlike the same in any other."""
        if len(self._scopes) == 1:
            return name
        unique = self._names[-1][name] = f"{name}@{self._scopes[-1]}"
        return unique

    def _rename(self, match: re.Match[str]) -> str:
        name = match.group(0)
        for names in reversed(self._names):
            if name in names:
                return names[name]
        return name

    def _instruction(self, text: str, line: int, span: tuple[int, int]) -> None:
        guard = ""
        if text.startswith("@"):
            guard, text = text[1:].lstrip().split(None, 1)
        opcode, _, rest = text.partition(" ")
        if "(" in opcode:  # call (result), name ... without a blank
            opcode, rest = opcode[: opcode.index("(")], text[opcode.index("(") :]
        if any(self._names):
            rest, guard = _IDENTIFIER.sub(self._rename, rest), _IDENTIFIER.sub(self._rename, guard)
        operands = tuple(split_operands(rest))
        self.entry.instructions.append(
            Instruction(opcode, operands, guard, self._location, line, tuple(self._scopes), span)
        )


def split_operands(text: str) -> list[str]:
    """Split at commas outside brackets and braces."""
    if not any(c in text for c in "[{("):
        parts = [part.strip() for part in text.split(",")]
        return parts if parts[-1] else parts[:-1]
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
