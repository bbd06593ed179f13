"""What each PTX instruction of an entry reads and writes, found by name."""

import re
from collections import defaultdict
from collections.abc import Iterable

from sim.emulator.ptx import Entry, Instruction

POLLS = ("mbarrier.try_wait", "mbarrier.test_wait")  # a wait is a loop around one of these
PURE = ("add", "sub", "mul", "mad", "shl", "shr", "and", "or", "xor", "not", "neg", "min", "max", "mov", "cvt", "cvta",
        "selp", "setp", "lop3", "bfe", "bfi", "prmt", "rem", "div", "mapa")  # fmt: skip
_ACCESSES = ("ld.global", "ld.shared", "ld.volatile", "ld.relaxed", "ld.acquire", "ld.u", "ld.s32", "ld.f", "ld.b",
             "ld.v", "st.", "atom", "red.", "ldmatrix", "stmatrix", "wgmma.mma_async", "cp.async.c",
             "cp.async.bulk.tensor", "cp.async.bulk.shared", "cp.async.bulk.global", "cp.reduce")  # fmt: skip
_NO_RESULT = ("st", "red", "bar", "barrier", "bra", "brx", "ret", "exit", "trap", "fence", "membar", "setmaxnreg", "cp",
              "griddepcontrol", "prefetch")  # fmt: skip
_JUMPS = ("bra", "brx", "ret", "exit", "trap")
_NAME = re.compile(r"%?[A-Za-z_$][\w$@.]*")
_DIVERSE = ("%tid", "%laneid", "%warpid")  # what differs between threads of a CTA


def is_jump(instruction: Instruction) -> bool:
    return instruction.opcode.split(".")[0] in _JUMPS


def names(operands: Iterable[str]) -> set[str]:
    return {name for operand in operands for name in _NAME.findall(operand)}


class Code:
    """The instructions of an entry with their uses and definitions."""

    def __init__(self, entry: Entry) -> None:
        self.entry = entry
        self.instructions = entry.instructions
        self.labels = set(entry.labels.values())
        self._uses: dict[str, list[int]] = defaultdict(list)
        for position, instruction in enumerate(self.instructions):
            for name in self.used(instruction):
                self._uses[name].append(position)
        self._diverse = self._find_diverse()

    def is_access(self, instruction: Instruction) -> bool:
        """Whether it reads or writes shared or global memory, now or later."""
        return instruction.opcode.startswith(_ACCESSES)

    def target(self, at: int) -> int:
        """Where a `bra` goes; past the end for anything else."""
        instruction = self.instructions[at]
        branches = instruction.opcode.split(".")[0] == "bra"
        return self.entry.target(instruction, instruction.operands[0]) if branches else len(self.instructions)

    def results(self, instruction: Instruction) -> list[str]:
        """The registers that the instruction writes, in order."""
        waits = instruction.opcode.startswith(("wgmma.wait", "wgmma.commit", "wgmma.fence"))
        if waits or instruction.opcode.split(".")[0] in _NO_RESULT or not instruction.operands:
            return []
        first = instruction.operands[0]
        return [] if first.startswith("[") else [n for n in _NAME.findall(first) if n in self.entry.registers]

    def used(self, instruction: Instruction) -> set[str]:
        """Names that the instruction reads, its guard and the accumulators of a wgmma among them."""
        writes = bool(self.results(instruction)) and not instruction.opcode.startswith("wgmma.mma_async")
        return names((*instruction.operands[1 if writes else 0 :], instruction.guard))

    def uses(self, name: str) -> list[int]:
        return self._uses[name]

    def defined(self, positions: Iterable[int]) -> set[str]:
        return {name for i in positions for name in self.results(self.instructions[i])}

    def is_uniform(self, operand: str) -> bool:
        """Whether an operand is the same in every thread of a CTA, as far as arithmetic alone shows it."""
        return not names((operand,)) & self._diverse

    def _find_diverse(self) -> set[str]:
        diverse = {name for name in self._uses if name.split(".")[0] in _DIVERSE}
        grew = True
        while grew:
            grew = False
            for instruction in self.instructions:
                results = self.results(instruction)
                pure = instruction.opcode.startswith((*PURE, "ld.param"))
                if not diverse.issuperset(results) and (not pure or self.used(instruction) & diverse):
                    diverse.update(results)
                    grew = True
        return diverse
