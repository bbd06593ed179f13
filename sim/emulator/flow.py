"""Control flow: basic blocks in an order in which running the lowest position first reconverges a warp.

Blocks are laid out in a weak topological order (Bourdoncle, "Efficient chaotic iteration strategies with widenings",
1993): every block of a loop comes before what follows the loop, and every arm of a branch before the point where the
arms meet. So lanes that wait at the higher position are joined by the others, as they are at the convergence barriers
that ptxas inserts.
"""

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


def layout(entry: Entry) -> list[int]:
    """The positions of instructions in execution layout.

    A negative element -p - 1 is a jump to position p, inserted where a block no longer falls through.
    """
    code = entry.instructions
    leaders = {0}
    for i, instruction in enumerate(code):
        if root(instruction) in _ENDS:
            leaders.update(targets(entry, instruction))
            leaders.add(i + 1)
    starts = sorted(s for s in leaders if s < len(code))
    ends = [*starts[1:], len(code)]
    block_of = {start: b for b, start in enumerate(starts)}
    successors: list[list[int]] = []
    falls: list[int | None] = []
    for end in ends:
        last = code[end - 1]
        falls_through = end < len(code) and not (root(last) in _ENDS and not (last.guard and root(last) != "trap"))
        next_block = block_of[end] if falls_through else None
        found = [block_of[t] for t in targets(entry, last) if t < len(code)]
        successors.append(found + ([next_block] if next_block is not None else []))
        falls.append(next_block)
    order: list[int] = []
    blocks = _order(set(range(len(starts))), 0, successors)
    for i, block in enumerate(blocks):
        for position in range(starts[block], ends[block]):
            order.append(position)
        following = blocks[i + 1] if i + 1 < len(blocks) else None
        fall = falls[block]
        if fall is not None and fall != following:
            order.append(-starts[fall] - 1)
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
