"""What an emulation found: hazards in words, statistics, a trace."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.counts import Counts
from sim.emulator import hazards as z
from sim.emulator import isa, printed, profile
from sim.emulator import tables as t
from sim.emulator.program import Program


@dataclass(frozen=True)
class Access:
    """One side of a hazard: which agent, at which source line, executing what."""

    agent: str
    line: str
    instruction: str

    def __str__(self) -> str:
        return f"{self.agent} at {self.line}" if self.line else self.agent


@dataclass(frozen=True)
class Hazard:
    """Something wrong with the kernel: a kind, one sentence, the access that met it and the one it conflicts with.

    `count` says how often the two met.
    """

    kind: str
    message: str
    access: Access
    other: Access | None = None
    count: int = 1

    def __str__(self) -> str:
        return f"{self.kind}: {self.message}"


@dataclass(frozen=True)
class Statistics:
    """Beyond Counts: warp instructions by class, requests, sectors a request, shared-memory wavefronts.

    `shared_ideal_wavefronts` is what the same requests would take without bank conflicts.
    """

    instructions: dict[str, int]
    load_requests: int
    store_requests: int
    sectors_per_load: float
    sectors_per_store: float
    atomic_requests: int
    polls: int
    shared_requests: int
    shared_wavefronts: int
    shared_ideal_wavefronts: int

    @property
    def bank_conflicts(self) -> int:
        return self.shared_wavefronts - self.shared_ideal_wavefronts

    @property
    def warp_instructions(self) -> int:
        return sum(self.instructions.values())


@dataclass(frozen=True)
class Event:
    """A span of one agent, in executed warp instructions of the whole chip: `what` it did or waited for, and where."""

    agent: str
    what: str
    line: str
    begin: int
    end: int


@dataclass(frozen=True)
class Line:
    """What the instructions of one source line did, in all warps.

    `instructions` counts warp instructions and `lanes` their active lanes on average; sectors and wavefronts are those
    of `Statistics`, bytes those of `Counts`.
    """

    line: str
    instructions: int
    lanes: float
    sectors_per_load: float
    sectors_per_store: float
    bank_conflicts: int
    l2_to_sm_bytes: int
    sm_to_l2_bytes: int


@dataclass(frozen=True)
class Emulation:
    """The result of running one launch: what was counted, which hazards were met, statistics, and events if asked.

    `reads` are pairs of a part of a CTA that read, and the one that had written what it found or 0: the same in every
    interleaving of a kernel without hazards in which no atomic chooses who reads what.
    `truncated` says that a limit of steps or seconds came before the end. `printed` is each call of printf; `lines`
    are what each source line did, if asked.
    """

    counts: Counts
    hazards: tuple[Hazard, ...]
    statistics: Statistics
    trace: tuple[Event, ...] = field(default=())
    reads: frozenset[tuple[int, int]] = frozenset()
    truncated: bool = False
    printed: tuple[str, ...] = ()
    lines: tuple[Line, ...] = ()


_KINDS = {
    z.RACE: ("race", "{me} {verb} {where}, and nothing orders the two"),
    z.LANE_RACE: ("race between lanes", "{me} {verb} {where}, with no __syncwarp between the two lanes"),
    z.UNTOLD: (
        "missing __syncwarp",
        "{me} {verb} {where}; another lane of that warp signalled for it, with no __syncwarp between the two lanes",
    ),
    z.SCOPE_RACE: ("race by scope", "{me} {verb} {where}, both atomically, but at a scope that does not hold both"),
    z.EQUAL_WRITES: (
        "same value written twice",
        "{me} {verb} {where}, and nothing orders the two; the values are the same",
    ),
    z.READER_FENCE: (
        "fence at the writer alone",
        "{me} {verb} {where}; it has seen a flag that was written after a fence, and has no fence of its own",
    ),
    z.NULL_POINTER: ("null pointer", "{me} accesses address {address:#x}: a pointer that is null, or an index past it"),
    z.NO_MAP: ("tensor map", "{me} finds no tensor map at {where}"),
    z.MAP_RANK: ("tensor map", "{me} uses the tensor map at {where}, which has {extra} dimensions"),
    z.ASSERTION: ("assertion failed", "{me} finds that `{text}` does not hold, in line {extra}"),
    z.STACK_OVERFLOW: ("stack overflow", "{me} needs more than the {extra} B of local memory that a thread has here"),
    z.ILLEGAL_MASK: ("illegal member mask", "{me} is not among the lanes {mask} that its mask names"),
    z.PROXY_FENCE: (
        "missing fence.proxy.async",
        "{me} reads or writes {where} asynchronously after {other}, with no fence.proxy.async between",
    ),
    z.TMA_EARLY: ("access before TMA arrival", "{me} touches {where} without having waited for the copy by {other}"),
    z.EARLY_COPY: (
        "access before cp.async arrival",
        "{me} touches {where} without having waited for the copy by {other}",
    ),
    z.TMA_OVERWRITES: ("TMA overwrites data in use", "{me} writes {where} while {other} may still use it"),
    z.OPERAND_OVERWRITTEN: ("wgmma operand overwritten", "{me} writes {where} while {other} may still read it"),
    z.SOURCE_OVERWRITTEN: ("bulk store source overwritten", "{me} writes {where} while {other} may still read it"),
    z.UNINITIALISED_ADDRESS: ("uninitialised address", "{me} uses an operand that was never set"),
    z.UNINITIALISED_BRANCH: ("uninitialised branch", "{me} depends on a predicate that was never set"),
    z.UNINITIALISED_OUTPUT: ("uninitialised output", "{me} stores a value that was never set to {where}"),
    z.OUT_OF_BOUNDS: ("out of bounds", "{me} accesses {where}, which no array or shared memory of this CTA holds"),
    z.MISALIGNED: ("misaligned", "{me} accesses {where}, which is not a multiple of {extra} B"),
    z.WGMMA_REGISTERS: ("wgmma registers in flight", "{me} touches a register of a wgmma that has not been waited for"),
    z.WGMMA_FENCE: ("missing wgmma.fence", "{me} uses registers that were written after the last wgmma.fence"),
    z.MBAR_OVERFLOW: ("mbarrier count", "{me} arrives on the mbarrier at {where} more often than its count of {extra}"),
    z.MBAR_BYTES: ("mbarrier bytes", "copies bring {extra} B more to the mbarrier at {where} than its phase expects"),
    z.MBAR_INVALID: (
        "mbarrier not initialised",
        "{me} uses the mbarrier at {where} before its initialisation is ordered, or after it was overwritten",
    ),
    z.MBAR_UNPUBLISHED: (
        "mbarrier not published",
        "{me} issues a copy on the mbarrier at {where}, initialised with no fence since",
    ),
    z.BARRIER_MISMATCH: (
        "barrier mismatch",
        "{me} arrives on barrier {address} with {extra} threads, which does not match the others",
    ),
    z.BARRIER_DIVERGENT: ("divergent barrier", "{me} reaches a warp-wide instruction with only some of its lanes"),
    z.EXIT_IN_FLIGHT: ("exit with work in flight", "the CTA of {me} ends while what was issued there is in flight"),
    z.CLUSTER_EXITED: (
        "cluster CTA exited",
        "{me} accesses the shared memory of a CTA that has ended or is outside the cluster",
    ),
    z.INPUT_WRITTEN: ("input written", "{me} writes to {where}, an input"),
    z.TRAP: ("trap", "{me} executes a trap"),
    z.REGISTER_CHANGE: ("setmaxnreg", "{me} changes its registers, and not all warps of its warpgroup do the same"),
    z.SHUFFLE_INACTIVE: ("shuffle from inactive lane", "{me} reads lane {other_pc}, which does not take part"),
}
_RACE_NAMES = ("race on shared memory", "race on global memory")
_VERBS = ("writes what {other} writes to", "reads what {other} writes to", "writes what {other} reads from")


def hazards_of(tables: t.Tables, program: Program, arrays: Sequence[str]) -> Iterator[Hazard]:
    """The hazards that the interpreter noted, in words; `arrays` are the names of all that global memory holds."""
    cfg = tables[t.CFG]
    rows = tables[t.HAZARDS]
    for row in sorted(rows[rows[:, t.Z_COUNT] > 0], key=lambda row: int(row[t.Z_ORDER])):
        yield _hazard(row, tables, program, arrays)
    if cfg[t.LOST_HAZARDS]:
        nobody = Access("nobody", "", "")
        yield Hazard(
            "more hazards", "more pairs of instructions met than are kept", nobody, count=int(cfg[t.LOST_HAZARDS])
        )


def _hazard(row: NDArray[np.int64], tables: t.Tables, program: Program, arrays: Sequence[str]) -> Hazard:
    kind, pc, other, address = (int(row[c]) for c in (t.Z_KIND, t.Z_PC, t.Z_OTHER, t.Z_ADDRESS))
    name, sentence = _KINDS[kind]
    me = _access(int(row[t.Z_AGENT]), pc, tables, program, int(row[t.Z_LANE]))
    against = None
    if other > z.PC_BITS:
        against = _access(other >> z.AGENT_SHIFT, other & z.PC_BITS, tables, program, -1)
    if kind == z.RACE:
        name = _RACE_NAMES[address >= 1 << isa.ARRAY_SHIFT]
    extra = int(row[t.Z_EXTRA])
    verb = _VERBS[extra].format(other=against or "another access") if 0 <= extra < len(_VERBS) else ""
    text = printed.text_at(tables, address) if kind == z.ASSERTION else ""
    message = sentence.format(
        me=me, other=against or "another access", where=_place(kind, row, arrays), verb=verb,
        extra=extra, address=address, other_pc=other, mask=f"{extra & 0xFFFFFFFF:#010x}", text=text,
    )  # fmt: skip
    return Hazard(name, message, me, against, int(row[t.Z_COUNT]))


def _place(kind: int, row: NDArray[np.int64], names: Sequence[str]) -> str:
    address = int(row[t.Z_ADDRESS])
    if kind in (z.UNINITIALISED_OUTPUT, z.INPUT_WRITTEN):
        array = int(row[t.Z_EXTRA])
        return f"{names[array]} + {address}" if 0 <= array < len(names) else f"byte {address}"
    array = (address >> isa.ARRAY_SHIFT) - 1
    if 0 <= array < len(names):
        return f"{names[array]} + {address & ((1 << isa.ARRAY_SHIFT) - 1)}"
    if 0 <= address < 1 << 32:
        return f"shared byte {address & 0xFFFFFF}"
    return f"address {address:#x}"


def _access(agent: int, pc: int, tables: t.Tables, program: Program, lane: int) -> Access:
    who = agent_name(agent, tables[t.CFG])
    if lane >= 0:
        who += f" lane {lane}"
    if pc < 0:
        return Access(who, "", "")
    instruction = program.where(pc)
    return Access(who, str(instruction.location), str(instruction))


def agent_name(agent: int, cfg: NDArray[np.int64]) -> str:
    """An agent's number in words: its CTA and what it is there."""
    cta, index = divmod(agent, int(cfg[t.AGENTS]))
    for first, what in (
        (t.MBAR_AGENT, "copy on mbarrier"),
        (t.CP_ASYNC_AGENT, "cp.async of warp"),
        (t.BULK_WRITE_AGENT, "bulk store of warp"),
        (t.BULK_READ_AGENT, "bulk store of warp"),
        (t.TENSOR_AGENT, "wgmma of warpgroup"),
    ):
        if index >= cfg[first]:
            return f"CTA {cta} {what} {index - int(cfg[first])}"
    return f"CTA {cta} warp {index}"


def stalled(tables: t.Tables, program: Program, kind: str) -> Hazard:
    """A deadlock or an endless loop: what every agent waits for."""
    cfg, lines, first = tables[t.CFG], [], None
    for row in tables[t.WARP]:
        if row[t.STATE] == t.W_DONE:
            continue
        access = _access(int(row[t.AGENT]), int(row[t.PC]), tables, program, -1)
        first = first or access
        what = t.WAITING[int(row[t.STATE])]
        if row[t.STATE] == t.W_MBAR:
            bar = tables[t.MBAR][int(row[t.WAIT_A])]
            what += (
                f" at shared byte {int(bar[t.M_ADDRESS])} (phase {int(bar[t.M_PHASE] - bar[t.M_BASE])}, waits for "
                f"parity {int(row[t.WAIT_B]) & 1}; "
                f"{int(bar[t.M_PENDING])} arrivals and {int(bar[t.M_TX])} B are missing)"
            )
        elif row[t.STATE] == t.W_BAR:
            bar = tables[t.BAR][int(row[t.CTA_SLOT]) * t.BARRIERS + int(row[t.WAIT_A])]
            expected = int(bar[t.B_EXPECTED]) or "all"
            what += f" {int(row[t.WAIT_A])} ({int(bar[t.B_ARRIVED])} of {expected} threads are there)"
        lines.append(f"{access} waits for {what}" if row[t.STATE] else f"{access} still runs")
    message = "; ".join(lines[:16]) + (f"; and {len(lines) - 16} more" if len(lines) > 16 else "")
    del cfg
    return Hazard(kind, message, first or Access("nobody", "", ""))


def statistics_of(stat: NDArray[np.int64], steps: int) -> Statistics:
    """The counters that are not part of Counts."""
    del steps
    loads, stores = int(stat[t.LOAD_REQUESTS]), int(stat[t.STORE_REQUESTS])
    return Statistics(
        instructions={name: int(stat[i]) for i, name in enumerate(isa.CLASSES)},
        load_requests=loads,
        store_requests=stores,
        sectors_per_load=int(stat[t.LOAD_SECTORS]) / loads if loads else 0.0,
        sectors_per_store=int(stat[t.STORE_SECTORS]) / stores if stores else 0.0,
        atomic_requests=int(stat[t.ATOMIC_REQUESTS]),
        polls=int(stat[t.POLLS]),
        shared_requests=int(stat[t.SHARED_REQUESTS]),
        shared_wavefronts=int(stat[t.SHARED_WAVEFRONTS]),
        shared_ideal_wavefronts=int(stat[t.SHARED_IDEAL]),
    )


def lines_of(tables: t.Tables, program: Program) -> tuple[Line, ...]:
    """What each source line did, the busiest first."""
    rows: dict[str, NDArray[np.int64]] = {}
    last = tables[t.PROFILE][-1]
    final = [int(tables[t.STAT][c]) - int(last[profile.FIRST + i]) for i, c in enumerate(profile.COUNTED)]
    for pc, row in enumerate(tables[t.PROFILE][:-1]):
        if row[profile.EXECUTIONS]:
            where = str(program.where(pc).location)
            rows[where] = rows.get(where, np.zeros(profile.COLUMNS, np.int64)) + row
            if pc == tables[t.CFG][t.PROFILED]:
                rows[where][profile.FIRST :] += final
    found = []
    for where, row in rows.items():
        loads, stores, load_sectors, store_sectors, _, waves, ideal, to_sm, to_l2 = map(int, row[profile.FIRST :])
        executed = int(row[profile.EXECUTIONS])
        found.append(
            Line(where, executed, int(row[profile.LANES]) / executed, load_sectors / loads if loads else 0.0,
                 store_sectors / stores if stores else 0.0, waves - ideal, to_sm, to_l2)
        )  # fmt: skip
    return tuple(sorted(found, key=lambda line: -line.instructions))


_COPIES = ("TMA load", "TMA store", "bulk load", "bulk store", "copy to another CTA", "cp.async",
           "asynchronous store")  # fmt: skip


def trace_of(tables: t.Tables, program: Program) -> tuple[Event, ...]:
    """The events of a traced run."""
    events, cfg = [], tables[t.CFG]
    for row in tables[t.EVENTS][: int(cfg[t.EVENT_COUNT])]:
        what, pc = int(row[t.E_WHAT]), int(row[t.E_PC])
        line = str(program.where(pc).location) if pc >= 0 else ""
        agent = agent_name(int(row[t.E_AGENT]), cfg)
        if what < 0:
            text = "runs"
        elif what < 100:
            text = f"waits for {t.WAITING[what]} {int(row[t.E_ARGUMENT])}"
        else:
            text, agent = f"{_COPIES[what - 100]} of {int(row[t.E_ARGUMENT])} B", f"{agent} copies"
        events.append(Event(agent, text, line, int(row[t.E_BEGIN]), int(row[t.E_END])))
    return tuple(events)


def to_chrome_trace(emulation: Emulation) -> dict[str, Any]:
    """The events as Chrome trace JSON (Perfetto opens it); one microsecond stands for one warp instruction."""
    agents = {name: i for i, name in enumerate(dict.fromkeys(e.agent for e in emulation.trace))}
    events: list[dict[str, Any]] = [
        {"ph": "M", "name": "thread_name", "pid": 0, "tid": i, "args": {"name": name}} for name, i in agents.items()
    ]
    events += [
        {"ph": "X", "name": e.what, "pid": 0, "tid": agents[e.agent], "ts": e.begin, "dur": max(e.end - e.begin, 1),
         "args": {"line": e.line}}
        for e in emulation.trace
    ]  # fmt: skip
    return {"traceEvents": events, "displayTimeUnit": "ns"}
