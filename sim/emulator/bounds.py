"""Which comparisons bound the memory accesses of a PTX entry, and where a bound must go to admit more of them."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from sim.emulator.dataflow import Code, is_jump
from sim.emulator.ptx import Instruction

_COMPARISON = re.compile(r"setp\.(lt|le|gt|ge|lo|ls|hi|hs|eq|ne)(?:\.(?:and|or|xor))?\.[su](32|64)$")
_LESS = ("lt", "le", "lo", "ls")


@dataclass(frozen=True)
class Bound:
    """A comparison at position `at` whose operand `operand`, of `width` bits, admits more when moved by `step`."""

    at: int
    operand: int
    step: int
    width: int


@dataclass(frozen=True)
class _Guard:
    """Positions that run only where a comparison at `at` comes out as `truth`."""

    at: int
    truth: bool
    inside: range


def bounds(code: Code) -> Iterator[Bound]:
    """The innermost bounds of every memory access, in the order of the text.

    An access under two bounds, one around the other, is protected by the inner one alone; a loop that lies inside a
    bound keeps both, for its first and its further rounds.
    """
    guards = [guard for at in range(len(code.instructions)) for guard in _guards(code, at)]
    found: set[tuple[int, bool]] = set()
    for position, instruction in enumerate(code.instructions):
        if not code.is_access(instruction):
            continue
        around = sorted((g for g in guards if position in g.inside), key=lambda g: len(g.inside))
        forward = next((len(g.inside) for g in around if g.at not in g.inside), len(code.instructions))
        found |= {(g.at, g.truth) for g in around if len(g.inside) <= forward}
    for at, truth in sorted(found):
        yield _bound(code, at, truth)


def _bound(code: Code, at: int, truth: bool) -> Bound:
    instruction = code.instructions[at]
    match = _COMPARISON.match(instruction.opcode)
    assert match is not None
    how, width = match[1], int(match[2])
    if how in ("eq", "ne"):
        return Bound(at, 2, _counter_step(code, instruction.operands[1]), width)
    sign = 1 if (how in _LESS) == truth else -1
    if code.is_uniform(instruction.operands[1]) and not code.is_uniform(instruction.operands[2]):
        return Bound(at, 1, -sign, width)
    return Bound(at, 2, sign, width)


def _counter_step(code: Code, name: str) -> int:
    """By how much a loop's counter moves each round: the immediate of the addition that makes it, else 1."""
    for instruction in code.instructions:
        if instruction.opcode.startswith("add.") and code.results(instruction) == [name]:
            immediate = re.fullmatch(r"-?\d+", instruction.operands[2])
            return int(immediate[0]) if immediate else 1
    return 1


def _guards(code: Code, at: int) -> Iterator[_Guard]:
    """What the comparison at `at` guards, followed through the logic on predicates to accesses and jumps."""
    match = _COMPARISON.match(code.instructions[at].opcode)
    if not match:
        return
    equality = match[1] in ("eq", "ne")
    results = code.results(code.instructions[at])
    work = [(name, True) for name in results[:1]] + [(name, False) for name in results[1:]]
    seen = set()
    while work:
        name, same = work.pop()
        if name in seen:
            continue
        seen.add(name)
        for position in code.uses(name):
            user = code.instructions[position]
            if user.guard.lstrip("!") == name:
                truth = same != user.guard.startswith("!")
                yield from _guarded(code, at, position, truth, equality)
            else:
                passes = _passes(user)
                work += [(result, same == passes) for result in code.results(user)[:1] if passes is not None]


def _guarded(code: Code, at: int, position: int, truth: bool, equality: bool) -> Iterator[_Guard]:
    """What an instruction guarded by a predicate admits; an equality bounds nothing but a loop."""
    user = code.instructions[position]
    if not is_jump(user):
        if not equality:
            yield _Guard(at, truth, range(position, position + 1))
        return
    target = code.target(position)
    if target <= at < position:
        yield _Guard(at, truth, range(target, position))
    elif target > position and not equality:
        yield _Guard(at, not truth, range(position + 1, target))


def _passes(user: Instruction) -> bool | None:
    """Whether logic hands a truth on as it is (True), inverted (False) or not at all (None)."""
    root = user.opcode.split(".")[0]
    if user.opcode in ("and.pred", "or.pred", "mov.pred") or (root == "setp" and len(user.operands) > 3):
        return True
    if user.opcode == "not.pred":
        return False
    if root == "selp" and user.operands[1:3] in (("1", "0"), ("0", "1")):
        return user.operands[1] == "1"
    if root == "setp" and user.operands[2] == "0" and user.opcode.split(".")[1] in ("ne", "eq"):
        return ".ne." in user.opcode
    return None
