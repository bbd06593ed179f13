"""Mutants of PTX: each with one wait, arrival, fence, commit, barrier, phase, byte count, stage or bound changed.

A checker is worth what it catches: a kernel's own synchronisation, broken one instruction at a time, measures it.
Two are left alone, for the emulator could not tell: griddepcontrol.wait, as launches do not overlap there, and
bar.warp.sync, as it orders accesses of warps and not of the lanes of one warp.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice

from sim.emulator.bounds import Bound, bounds
from sim.emulator.dataflow import POLLS, PURE, Code, is_jump
from sim.emulator.ptx import Location, Module, parse, split_operands

_BARRIER_BYTES = 8  # an mbarrier: the next one in its array is the next stage's
_MATRIX_ROW = 16  # bytes of a row that ldmatrix and stmatrix move
_DESCRIPTOR_UNIT = 16  # bytes: the unit of the address in a wgmma matrix descriptor
_WIDER = (1, 8, 64, 512, 4096)  # by how much a bound is moved: the least that changes an outcome of its comparison

_FAMILIES = {
    "wait": (*POLLS, "wgmma.wait_group", "cp.async.wait_", "cp.async.bulk.wait_group", "barrier.cluster.wait"),
    "arrive": ("mbarrier.arrive", "bar.arrive", "barrier.arrive", "barrier.cta.arrive", "barrier.cluster.arrive",
               "cp.async.mbarrier.arrive"),
    "fence": ("fence", "membar", "wgmma.fence"),
    "commit": ("wgmma.commit_group", "cp.async.commit_group", "cp.async.bulk.commit_group"),
    "barrier": ("bar.sync", "barrier.sync", "barrier.cta.sync"),
}  # fmt: skip
_SHARED = re.compile(r"(ld|st|ldmatrix|stmatrix)\.(?:shared(?:::cta)?(?:\.v([24]))?\.[a-z]+(\d+)|sync\.)")
_ORDERED = re.compile(r"\.(acquire|release|acq_rel)\b")

Reaches = Callable[[str], bool]  # runs PTX and says whether it came to a `trap`


@dataclass(frozen=True)
class Mutant:
    """One changed instruction: `family` is what it is of, `change` says what was done, `line` is the PTX line, from 1.

    `probe` is the right PTX with a `trap` where the change first makes a difference to what is executed.
    """

    family: str
    change: str
    location: Location
    line: int
    ptx: str
    probe: str


def mutants(
    ptx: str, entry: str, box_bytes: int, reaches: Reaches, share: tuple[int, int] = (0, 1)
) -> Iterator[Mutant]:
    """Every mutant of one entry, family by family; of one statement that was unrolled, those of its first copy.

    Bounds are moved in each copy where that changes an outcome, or else in the first.
    `box_bytes` is the smallest box of the launch's tensor maps: what a byte count or a stage's address changes by.
    Of a share (i, n) every n-th mutant from number i on, and those of every n-th comparison.
    Raises EmulatorError for PTX outside the grammar.
    """
    text = _Text(ptx, parse(ptx), entry)
    told: set[tuple[str, str, Location | int, int]] = set()
    own, shares = share
    first = 0  # of the instructions on the line
    for at, instruction in enumerate(text.code.instructions):
        if instruction.line != text.code.instructions[first].line:
            first = at
        place = instruction.location if instruction.location.line else instruction.line
        for mutant in _changed(text, at, box_bytes):
            which = (mutant.family, mutant.change, place, at - first)
            if which not in told:
                if len(told) % shares == own:
                    yield mutant
                told.add(which)
    statements: dict[tuple[str, Location, int, int, bool], list[Bound]] = {}
    for bound in bounds(text.code):
        instruction = text.code.instructions[bound.at]
        varies = instruction.operands[bound.operand].startswith("%")
        alike = instruction.opcode, instruction.location, bound.operand, bound.step, varies
        statements.setdefault(alike, []).append(bound)
    for copies in islice(statements.values(), own, None, shares):
        yield from _widened(text, copies, reaches)


class _Text:
    """A PTX module beside the instructions of one entry; an edit keeps the number of lines."""

    def __init__(self, ptx: str, module: Module, entry: str) -> None:
        self._ptx, self._without_comments = ptx, module.text
        self.code = Code(module.entry(entry))

    def opcode(self, at: int) -> str:
        return self.code.instructions[at].opcode

    def spelled(self, at: int) -> str:
        """An instruction as the text has it, with guard and semicolon."""
        return self._without_comments[slice(*self.code.instructions[at].span)]

    def sees(self, at: int, names: set[str], to: int) -> bool:
        """Whether names of the scope at `at` mean the same at `to`."""
        scope = self.code.instructions[at].scope
        return self.code.instructions[to].scope[: len(scope)] == scope or not any("@" in name for name in names)

    def statement(self, at: int) -> tuple[str, list[str]]:
        """(guard and opcode, operands) of an instruction as it is spelled."""
        words = self.spelled(at).removesuffix(";").split()
        head = 2 if words[0].startswith("@") else 1
        return " ".join(words[:head]), split_operands(" ".join(words[head:]))

    def edited(self, edits: Mapping[int, str]) -> str:
        pieces, done = [], 0
        for position in sorted(edits):
            start, end = self.code.instructions[position].span
            lost = self._ptx.count("\n", start, end) - edits[position].count("\n")
            pieces += [self._ptx[done:start], edits[position], "\n" * lost]
            done = end
        return "".join([*pieces, self._ptx[done:]])

    def mutant(self, at: int, family: str, change: str, edits: Mapping[int, str], probe: str = "") -> Mutant:
        """A mutant with some instructions replaced; `probe` replaces the one at `at`."""
        instruction = self.code.instructions[at]
        guard = f"@{self.spelled(at).split()[0][1:]} " if instruction.guard else ""
        probe = probe or f"{guard}trap; {self.spelled(at)}"
        edited, probed = self.edited(edits), self.edited({at: probe})
        return Mutant(family, change, instruction.location, instruction.line, edited, probed)

    def with_operand(self, at: int, operand: int, width: int, step: str) -> str:
        """The statement at `at` with one operand replaced by a fresh register: its value after `step`."""
        head, operands = self.statement(at)
        old = operands[operand]
        address = re.fullmatch(r"\[\s*([^,\]+\s]+)\s*(.*)\]", old)
        operands[operand] = f"[%mutant{address[2]}]" if address else "%mutant"
        name = address[1] if address else old
        opcode, amount = step.split()
        prepare = f"mov.b{width} %mutant, {name}; {opcode} %mutant, %mutant, {amount};"
        return f"{{ .reg .b{width} %mutant; {prepare} {head} {', '.join(operands)}; }}"


def _changed(text: _Text, at: int, box_bytes: int) -> Iterator[Mutant]:
    """Every mutant of one instruction but a moved bound."""
    instruction = text.code.instructions[at]
    for family, opcodes in _FAMILIES.items():
        if instruction.opcode.startswith(opcodes):
            yield from _order(text, at, family)
    if _ORDERED.search(instruction.opcode) and text.code.is_access(instruction):
        yield _relaxed(text, at)
    yield from _operands(text, at, box_bytes)


def _order(text: _Text, at: int, family: str) -> Iterator[Mutant]:
    """The instruction dropped, moved behind what it must precede, moved before what it must follow."""
    opcode, operands = text.opcode(at), text.statement(at)[1]
    instead = ""
    if opcode.startswith(POLLS):
        instead = f"setp.eq.u32 {operands[0]}, 0, 0;"  # as if the phase had completed
    elif opcode.startswith("mbarrier.arrive") and operands[0].startswith("%"):
        instead = f"mov.b64 {operands[0]}, 0;"
    yield text.mutant(at, family, f"drop {opcode}", {at: instead})
    if family not in ("arrive", "commit"):
        yield from _later(text, at, family, instead)
    if family != "wait":
        yield from _earlier(text, at, family)


def _later(text: _Text, at: int, family: str, instead: str) -> Iterator[Mutant]:
    """The instruction behind the next access or arrival of its basic block; a polling loop behind that of its exit."""
    code, opcode = text.code, text.opcode(at)
    used = code.used(code.instructions[at])
    start, moved = at + 1, text.spelled(at).strip()
    if opcode.startswith(POLLS):
        while not is_jump(code.instructions[start]):
            start += 1
        if code.target(start) > at or any("@" in name for name in used):
            return  # not the loop of a poll, or in registers that its exit does not see
        start += 1
        head, operands = text.statement(at)
        poll = f"{head} {', '.join(['%moved', *operands[1:]])};"
        moved = f"{{ .reg .pred %moved; $moved: {poll} @!%moved bra $moved; }}"
    for to in range(start, len(code.instructions)):
        if to in code.labels or is_jump(code.instructions[to]) or code.defined([to]) & used:
            return
        if not text.sees(at, used, to):
            return
        arrives = text.opcode(to).startswith(_FAMILIES["arrive"]) and "expect_tx" not in text.opcode(to)
        if arrives or code.is_access(code.instructions[to]):
            change = f"move {opcode} behind {text.opcode(to)}"
            yield text.mutant(at, family, change, {at: instead, to: f"{text.spelled(to)} {moved}"})
            return


def _earlier(text: _Text, at: int, family: str) -> Iterator[Mutant]:
    """The instruction before the last access or wait of its basic block, together with the arithmetic it needs."""
    code = text.code
    along, needed = [at], code.used(code.instructions[at])
    stay: list[int] = []
    to = at
    while to > 0 and to not in code.labels:
        to -= 1
        instruction = code.instructions[to]
        if is_jump(instruction):
            return
        if code.is_access(instruction) or instruction.opcode.startswith(_FAMILIES["wait"]):
            break
        if code.defined([to]) & needed and instruction.opcode.startswith(PURE):
            along.append(to)
            needed |= code.used(instruction)
        else:
            stay.append(to)
    else:
        return
    stay.append(to)
    read = set().union(*(code.used(code.instructions[i]) for i in stay))
    if code.defined(stay) & (needed | code.defined(along)) or code.defined(along) & read:
        return  # it needs what the access yields
    if not text.sees(at, needed | code.defined(along), to):
        return
    edits = dict.fromkeys(along, "")
    edits[to] = " ".join(text.spelled(i).strip() for i in (*along[::-1], to))
    yield text.mutant(at, family, f"move {text.opcode(at)} before {text.opcode(to)}", edits)


def _relaxed(text: _Text, at: int) -> Mutant:
    weak = _ORDERED.sub(".relaxed", text.opcode(at))
    return text.mutant(at, "fence", f"relax {text.opcode(at)}", {at: text.spelled(at).replace(text.opcode(at), weak)})


def _operands(text: _Text, at: int, box_bytes: int) -> Iterator[Mutant]:
    """A phase flipped, an expected byte count changed by one box, an address moved to the next stage."""
    opcode = text.opcode(at)
    changes: list[tuple[str, str, int, int, str]] = []  # family, change, operand, bits, step
    next_barrier, next_box = f"add.s32 {_BARRIER_BYTES}", f"add.s32 {box_bytes}"
    if opcode.startswith(POLLS) and ".parity" in opcode:
        changes.append(("phase", "flip the parity of a wait", 2, 32, "xor.b32 1"))
        changes.append(("stage", "wait on the next barrier", 1, 32, next_barrier))
    elif opcode.startswith("mbarrier.arrive"):
        changes.append(("stage", "arrive on the next barrier", 1, 32, next_barrier))
        if ".expect_tx" in opcode:
            changes.append(("bytes", "expect one box more", 2, 32, f"add.s32 {box_bytes}"))
            changes.append(("bytes", "expect one box less", 2, 32, f"sub.s32 {box_bytes}"))
    elif opcode.startswith("cp.async.bulk.") and "complete_tx" in opcode:
        changes.append(("stage", "load to the next box", 0, 32, next_box))
        changes.append(("stage", "complete on the next barrier", 2 if ".tensor" in opcode else 3, 32, next_barrier))
    elif opcode.startswith("cp.async.bulk.") and ".bulk_group" in opcode:
        changes.append(("stage", "store from the next box", 1, 32, next_box))
    elif opcode.startswith("wgmma.mma_async"):
        step = f"add.s64 {box_bytes // _DESCRIPTOR_UNIT}"
        for name, operand in (("a", 1), ("b", 2)):
            if not text.code.instructions[at].operands[operand].startswith("{"):
                changes.append(("stage", f"multiply the next box as {name}", operand, 64, step))
    elif match := _SHARED.match(opcode):
        nbytes = int(match[3]) // 8 * int(match[2] or 1) if match[3] else _MATRIX_ROW
        operand = 0 if match[1].startswith("st") else 1
        changes.append(("stage", f"{match[1]} {nbytes} B further on", operand, 32, f"add.s32 {nbytes}"))
    for family, change, operand, width, step in changes:
        yield text.mutant(at, family, change, {at: text.with_operand(at, operand, width, step)})


def _widened(text: _Text, copies: list[Bound], reaches: Reaches) -> Iterator[Mutant]:
    """Comparisons with bounds moved by the least amount that changes an outcome; one by the least if none does."""
    told = False
    for bound in copies:
        amounts = (_moved_bound(text, bound, amount) for amount in _WIDER)
        if telling := next((mutant for mutant in amounts if reaches(mutant.probe)), None):
            told = True
            yield telling
    if not told:
        yield _moved_bound(text, copies[0], _WIDER[0])


def _moved_bound(text: _Text, bound: Bound, amount: int) -> Mutant:
    head, operands = text.statement(bound.at)
    opcode, result = head.split()[-1], operands[0].split("|")[0]
    step = f"add.s{bound.width} {bound.step * amount}"
    mutated = text.with_operand(bound.at, bound.operand, bound.width, step)
    other = mutated.replace(f"{opcode} {operands[0]}", f"{opcode} %other")
    probe = (
        f"{{ .reg .pred %other; {text.spelled(bound.at)} {other} xor.pred %other, %other, {result}; @%other trap; }}"
    )
    change = f"widen the bound of `{text.code.instructions[bound.at]}` by {amount}"
    return text.mutant(bound.at, "bound", change, {bound.at: mutated}, probe)
