"""Control flow: basic blocks in an order in which running the lowest position first reconverges a warp.

Blocks are laid out in a weak topological order (Bourdoncle, "Efficient chaotic iteration strategies with widenings",
1993): every block of a loop comes before what follows the loop, and every arm of a branch before the point where the
arms meet. So lanes that wait at the higher position are joined by the others, as they are at the convergence barriers
that ptxas inserts.
"""

from bisect import bisect_right
from collections.abc import Iterator
from functools import cached_property

from sim.emulator.ptx import EmulatorError, Entry, Instruction

_ENDS = ("bra", "brx", "ret", "exit", "trap")


def root(instruction: Instruction) -> str:
    return instruction.opcode.split(".", 1)[0]


def targets(entry: Entry, instruction: Instruction) -> list[int]:
    """Positions that a branch can jump to."""
    kind = root(instruction)
    if kind == "bra":
        return [entry.target(instruction, instruction.operands[0])]
    if kind == "brx":
        table = instruction.operands[1]
        for scope in reversed(instruction.scope):
            if (scope, table) in entry.tables:
                return [entry.target(instruction, label) for label in entry.tables[scope, table]]
        raise EmulatorError(f"{instruction.location}: `{instruction}` has no table of targets")
    return []


class Blocks:
    """The basic blocks of an entry: positions, successors, and which block each falls through to."""

    def __init__(self, entry: Entry) -> None:
        code = entry.instructions
        leaders = {0}
        for i, instruction in enumerate(code):
            if root(instruction) in _ENDS:
                leaders.update(targets(entry, instruction))
                leaders.add(i + 1)
        self.code = code
        self.starts = sorted(s for s in leaders if s < len(code))
        self.ends = [*self.starts[1:], len(code)]
        block_of = {start: b for b, start in enumerate(self.starts)}
        self.successors: list[list[int]] = []
        self.falls: list[int | None] = []
        for end in self.ends:
            last = code[end - 1]
            falls_through = end < len(code) and not (root(last) in _ENDS and not (last.guard and root(last) != "trap"))
            next_block = block_of[end] if falls_through else None
            found = [block_of[t] for t in targets(entry, last) if t < len(code)]
            self.successors.append(found + ([next_block] if next_block is not None else []))
            self.falls.append(next_block)

    def layout(self) -> list[int]:
        """The positions of instructions in execution layout.

        A negative element -p - 1 is a jump to position p, inserted where a block no longer falls through.
        """
        order: list[int] = []
        blocks = _order(set(range(len(self.starts))), 0, self.successors)
        for i, block in enumerate(blocks):
            order.extend(range(self.starts[block], self.ends[block]))
            following = blocks[i + 1] if i + 1 < len(blocks) else None
            fall = self.falls[block]
            if fall is not None and fall != following:
                order.append(-self.starts[fall] - 1)
        return order

    def joins(self, position: int) -> Iterator[int]:
        """Positions that every path from `position` passes, the nearest first; what only ends the thread is none."""
        block = bisect_right(self.starts, position) - 1
        while (block := self._post_dominators[block]) >= 0:
            if root(self.code[self.starts[block]]) not in ("ret", "exit"):
                yield self.starts[block]

    @cached_property
    def _post_dominators(self) -> list[int]:
        """The nearest post-dominator of each block, -1 for none: Cooper, Harvey, Kennedy, "A simple, fast dominance
        algorithm", on the reversed graph."""
        count = len(self.starts)
        leaves = [b for b in range(count) if not self.successors[b]]
        before: list[list[int]] = [[] for _ in range(count)]
        for b, successors in enumerate(self.successors):
            for s in successors:
                before[s].append(b)
        order = _post_order(leaves, before)
        number = {b: i for i, b in enumerate(order)}
        nearest = {count: count} | dict.fromkeys(leaves, count)  # `count` stands for the end of the thread
        number[count] = len(order)
        changed = True
        while changed:
            changed = False
            for b in reversed(order):
                if not self.successors[b]:
                    continue
                known = [s for s in self.successors[b] if s in nearest]
                best = known[0]
                for other in known[1:]:
                    while best != other:
                        while number[best] < number[other]:
                            best = nearest[best]
                        while number[other] < number[best]:
                            other = nearest[other]
                if nearest.get(b) != best:
                    nearest[b], changed = best, True
        return [p if (p := nearest.get(b, count)) < count else -1 for b in range(count)]


def _post_order(roots: list[int], edges: list[list[int]]) -> list[int]:
    order: list[int] = []
    seen = set(roots)
    work = [(r, iter(edges[r])) for r in reversed(roots)]
    while work:
        node, rest = work[-1]
        for to in rest:
            if to not in seen:
                seen.add(to)
                work.append((to, iter(edges[to])))
                break
        else:
            order.append(node)
            work.pop()
    return order


def _order(blocks: set[int], head: int, successors: list[list[int]]) -> list[int]:
    """Weak topological order of the blocks reachable from `head` inside `blocks`."""
    out: list[int] = []
    work: list[tuple[set[int], int, bool]] = [(blocks, head, False)]
    while work:
        inside, entry, cut = work.pop()
        components = _components(inside, entry, successors, entry if cut else None)
        if len(components) == 1 and len(inside) == 1:
            out.append(entry)
        else:
            work.extend((component, first, True) for component, first in reversed(components))
    return out


def _components(
    inside: set[int], entry: int, successors: list[list[int]], cut: int | None
) -> list[tuple[set[int], int]]:
    """Strongly connected components in topological order, each with the first block that control reaches in it.

    Edges into `cut`, the head of the enclosing loop, are left out. Tarjan's algorithm without recursion.
    """
    index: dict[int, int] = {}
    low: dict[int, int] = {}
    on_stack: set[int] = set()
    stack: list[int] = []
    found: list[tuple[set[int], int]] = []
    work = [(entry, 0)]
    while work:
        node, edge = work.pop()
        if edge == 0:
            index[node] = low[node] = len(index)
            stack.append(node)
            on_stack.add(node)
        edges = [s for s in successors[node] if s in inside and s != cut]
        descended = False
        for i in range(edge, len(edges)):
            to = edges[i]
            if to not in index:
                work.append((node, i + 1))
                work.append((to, 0))
                descended = True
                break
            if to in on_stack:
                low[node] = min(low[node], low[to])
        if descended:
            continue
        if low[node] == index[node]:
            component: set[int] = set()
            while True:
                member = stack.pop()
                on_stack.discard(member)
                component.add(member)
                if member == node:
                    break
            found.append((component, node))
        elif work:
            parent = work[-1][0]
            low[parent] = min(low[parent], low[node])
    return found[::-1]
