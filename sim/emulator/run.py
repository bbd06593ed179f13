"""Run a launch's PTX on the emulated chip: build its memory, interpret, collect counts and hazards."""

from functools import cache, reduce
from math import inf, prod
from time import monotonic
from typing import Any

import numpy as np
from numba import types
from numpy.typing import NDArray

from sim.cache import crossing, replay
from sim.counts import SECTOR, Counts
from sim.emulator import interpret, printed, profile, shadow
from sim.emulator import tables as t
from sim.emulator.decode import decode
from sim.emulator.image import Buffer, Image, address, image_of
from sim.emulator.program import Program
from sim.emulator.ptx import EmulatorError
from sim.emulator.report import Emulation, Hazard, hazards_of, lines_of, stalled, statistics_of, trace_of
from sim.launch import Launch
from sim.machine import Machine

_ALIGNMENT = 256  # bytes, of every array, as cudaMalloc gives
_REGISTER_BUDGET = 1 << 28  # bytes of register rows that CTAs resident at once may take
_CLOCK_BUDGET = 1 << 28  # bytes of vector clocks
_HEAP = 8 << 20  # bytes: cudaLimitMallocHeapSize as it is at first
_RESIDENT = 8  # clusters resident at once, where the grid does not synchronise
_MAX_STEPS = 1 << 34  # warp instructions
_LANES = 32
LIVELOCKED = -1  # beside what the interpreter returns
_SLICE = 1 << 22  # warp instructions between two looks at the clock


def run(ptx: str, launch: Launch, arrays: dict[str, NDArray[Any]], machine: Machine, **options: Any) -> Emulation:
    """Execute one launch of a kernel; output arrays are written in place.

    `arrays` holds each array argument's storage bits by name. Options and errors are those of `execute`.
    """
    return execute(ptx, image_of(launch, arrays), machine, **options)


def execute(
    ptx: str,
    image: Image,
    machine: Machine,
    *,
    seed: int = 0,
    check: bool = True,
    trace: bool = False,
    profiled: bool = False,
    max_steps: int = _MAX_STEPS,
    deadline_s: float = inf,
) -> Emulation:
    """Execute one launch; its buffers and module variables are updated in place.

    `seed` chooses the interleaving of warps, CTAs and copies. `check` finds hazards and poison; without it only results
    and counts remain. `trace` keeps events for `Emulation.trace`, `profiled` what each
    source line did for `Emulation.lines`. A run ends after `max_steps` warp instructions or
    `deadline_s` seconds, and is then truncated. Raises EmulatorError for PTX that the emulator does not know and for a
    launch that does not fit its parameters.
    """
    program = decode(ptx, image.entry, len(image.buffers))
    chip = _Chip(program, image, machine, seed, check, trace, profiled)
    interpreter()  # its compilation is none of the deadline's
    outcome = chip.run(max_steps, monotonic() + deadline_s)
    chip.copy_back()
    return chip.emulation(outcome)


@cache
def interpreter() -> Any:
    """The compiled interpreter: by the first call that needs it in a minute or two, later from the cache."""
    interpret.run.compile((types.Array(types.int64, 2, "C"),))
    return interpret.run


class _Chip:
    """The tables of one launch."""

    def __init__(self, program: Program, image: Image, machine: Machine, seed: int, check: bool, trace: bool,
                 profiled: bool) -> None:  # fmt: skip
        self.program, self.image, self.machine = program, image, machine
        self.tables = t.Tables()
        self.cfg = self.tables.add(t.CFG, np.zeros(t.CFG_SIZE, np.int64))
        self.check, self.trace = check, trace
        self.profiled = profiled
        self._geometry()
        self._global_memory()
        self._parameters()
        self._agents()
        self._state()
        state = np.array([(2 * seed + 1) * 0x9E3779B97F4A7C15 % (1 << 64)], np.uint64)
        self.tables.add(t.RNG, state)

    def run(self, max_steps: int, deadline: float) -> int:
        """Interpret until the launch ends, stalls, has executed `max_steps` or the clock says `deadline`."""
        cfg, stat, compiled = self.cfg, self.tables[t.STAT], interpreter()
        while True:
            cfg[t.MAX_STEPS] = min(int(cfg[t.STEPS]) + _SLICE, max_steps)
            spun, progress = int(stat[t.SPUN]), int(stat[t.PROGRESS])
            outcome = int(compiled(self.tables.handle))
            if outcome != interpret.OUT_OF_STEPS:
                return outcome
            if cfg[t.STEPS] > max_steps or (stat[t.SPUN] > spun and stat[t.PROGRESS] == progress):
                return LIVELOCKED
            if monotonic() > deadline:
                return outcome

    def _geometry(self) -> None:
        cfg, launch, program = self.cfg, self.image, self.program
        threads, size = prod(launch.block), prod(launch.cluster)
        uneven = any(g % c for g, c in zip(launch.grid, launch.cluster, strict=True))
        if not 0 < threads <= 1024 or min(launch.grid) < 1 or uneven:
            raise EmulatorError(
                f"{launch.entry}: {threads} threads, grid {launch.grid}, cluster {launch.cluster} is no launch"
            )
        warps = -(-threads // _LANES)
        clusters = prod(launch.grid) // size
        shared = program.shared + launch.shared_bytes
        stride = max(1024, -(-shared // 1024) * 1024)
        per_cluster = size * warps * program.registers * _LANES * 8
        slots = min(clusters, max(1, _REGISTER_BUDGET // per_cluster))
        if not program.synchronises:
            slots = min(slots, _RESIDENT if self.check else 1)
        values = {
            t.CHECK: self.check,
            t.WARPS: warps,
            t.THREADS: threads,
            t.CLUSTER_SIZE: size,
            t.CLUSTERS: clusters,
            t.SLOTS: slots,
            t.FREE_SLOTS: slots,
            t.SHARED_STRIDE: stride,
            t.SHARED_BYTES: shared,
            t.REGISTERS: program.registers,
            t.FIRST_ROW: len(program.constants),
            t.CONSTANT_ROWS: len(program.constants),
            t.LOCAL_BYTES: program.local,
            t.SHARED_SHIFT: program.shared_granule.bit_length() - 1,
            t.GLOBAL_SHIFT: program.global_granule.bit_length() - 1,
            t.TRACE: self.trace,
            t.SM_COUNT: self.machine.sms,
            t.DYNAMIC_SHARED: launch.shared_bytes,
            t.QUANTUM: 4000,
            t.START: program.start,
            t.PROFILED: program.start if self.profiled else -1,
            t.FUNCTIONS: program.functions,
            t.FUNCTION_COUNT: len(program.pool) - program.functions,
        }
        for k, axis in enumerate("xyz"):
            del axis
            cfg[t.GRID_X + k], cfg[t.BLOCK_X + k], cfg[t.CLUSTER_X + k] = (
                launch.grid[k],
                launch.block[k],
                launch.cluster[k],
            )
        for column, value in values.items():
            cfg[column] = int(value)

    def _global_memory(self) -> None:
        program, cfg = self.program, self.cfg
        pieces = list(self.image.buffers)
        for variable in program.variables:
            data = np.zeros(max(variable.size, 1), np.uint8)
            given = self.image.variables.get(variable.name, np.frombuffer(variable.data, np.uint8))
            data[: len(given)] = given
            pieces.append(Buffer(variable.name, data, variable.space == "global"))
        self.counted = len(pieces)  # what follows is not the kernel's own
        if program.uses_heap:
            cfg[t.HEAP_ARRAY] = len(pieces)
            pieces.append(Buffer("the heap", np.zeros(_HEAP, np.uint8), unset=np.ones(_HEAP, bool)))
        if program.uses_grid:
            cfg[t.GRID_WORKSPACE] = address(len(pieces))
            pieces.append(Buffer("the grid's workspace", np.zeros(_ALIGNMENT, np.uint8)))
        self.pieces = pieces
        rows = np.zeros((len(pieces), t.ARRAY_COLUMNS), np.int64)
        flat = granules = marks = 0
        granule = program.global_granule
        for row, piece in zip(rows, pieces, strict=True):
            size, tracked = piece.data.size, piece.writable or piece.unset is not None
            row[t.A_FLAT], row[t.A_BYTES], row[t.A_TRACKED] = flat, size, tracked
            row[t.A_GRANULE], row[t.A_MARK], row[t.A_INPUT] = granules, marks, not piece.writable
            flat += -(-size // _ALIGNMENT) * _ALIGNMENT
            marks += -(-size // SECTOR)
            granules += -(-size // granule) if tracked and self.check else 0
        memory = np.empty(max(flat, _ALIGNMENT), np.uint8)
        state = np.ones(granules + 1, np.uint8)
        for row, piece in zip(rows, pieces, strict=True):
            memory[row[t.A_FLAT] : row[t.A_FLAT] + piece.data.size] = piece.data
            if piece.unset is not None and piece.data.size and self.check:
                part = self._granules(state, row)
                padded = np.zeros(part.size * granule, bool)
                padded[: piece.data.size] = piece.unset
                part[:] = ~reduce(np.logical_or, padded.reshape(-1, granule).T)
        add = self.tables.add
        for table, kind in ((t.G8, np.uint8), (t.G16, np.uint16), (t.G32, np.uint32), (t.G64, np.uint64)):
            add(table, memory.view(kind))
        add(t.ARRAYS, rows)
        add(t.MARKS, np.zeros(marks + 1, np.uint8))
        self._shadow(t.GLOBAL_SHADOW, granules + 1)
        add(t.GLOBAL_STATE, state)
        cfg[t.ARRAY_COUNT] = len(pieces)

    def _granules(self, table: NDArray[Any], row: NDArray[np.int64]) -> NDArray[Any]:
        """The part of a table of granules that belongs to the array of that row."""
        first = int(row[t.A_GRANULE])
        return table[first : first - (-int(row[t.A_BYTES]) // self.program.global_granule)]

    def _parameters(self) -> None:
        program, image = self.program, self.image
        if len(program.parameters) != len(image.parameters):
            takes, gets = len(program.parameters), len(image.parameters)
            raise EmulatorError(f"{image.entry} takes {takes} parameters; the launch has {gets} arguments")
        data = np.zeros(max(program.parameter_bytes, 16), np.uint8)
        for i, (bits, parameter) in enumerate(zip(image.parameters, program.parameters, strict=True)):
            if bits.size != parameter.size:
                sides = f"argument {i + 1} has {bits.size} B; parameter {parameter.name} has {parameter.size}"
                raise EmulatorError(f"{image.entry}: {sides}")
            offset = program.parameter_offsets[i]
            data[offset : offset + bits.size] = bits
        places = {v.name: address(len(image.buffers) + i) for i, v in enumerate(program.variables)}
        maps = np.zeros((max(len(image.maps), 1), t.MAP_COLUMNS), np.int64)
        for row, one in zip(maps, image.maps, strict=False):
            dims = len(one.shape)
            if one.variable:
                row[t.T_OFFSET] = one.offset + places.get(one.variable, -1)
            elif one.parameter is not None:
                row[t.T_OFFSET] = one.offset + program.parameter_offsets[one.parameter]
            else:
                row[t.T_OFFSET] = one.offset
            row[t.T_ARRAY], row[t.T_DIMS], row[t.T_ELEMENT] = one.buffer, dims, one.element
            row[t.T_SWIZZLE], row[t.T_FORMAT] = one.swizzle, one.number
            row[t.T_SIZE : t.T_SIZE + dims] = one.shape[::-1]
            row[t.T_STRIDE : t.T_STRIDE + dims] = one.strides[::-1]
            row[t.T_BOX : t.T_BOX + dims] = one.box[::-1]
        self.tables.add(t.PARAM8, data)
        self.tables.add(t.MAPS, maps)
        self.cfg[t.PARAM_BYTES], self.cfg[t.MAP_COUNT] = data.size, len(image.maps)

    def _agents(self) -> None:
        program, cfg = self.program, self.cfg
        warps = int(cfg[t.WARPS])
        at = warps
        for column, count in (
            (t.TENSOR_AGENT, -(-warps // 4) if program.uses_wgmma else 0),
            (t.BULK_READ_AGENT, warps if program.uses_bulk_groups else 0),
            (t.BULK_WRITE_AGENT, warps if program.uses_bulk_groups else 0),
            (t.CP_ASYNC_AGENT, warps if program.uses_cp_async else 0),
            (t.MBAR_AGENT, t.MBARRIERS if program.uses_mbarrier else 0),
        ):
            cfg[column] = at
            at += count
        cfg[t.AGENTS] = at
        cfg[t.WIDE] = program.synchronises
        cfg[t.SCOPED] = program.scoped
        cfg[t.CLOCK_SECTIONS] = 8 if program.scoped else 4 if program.synchronises else 2
        cfg[t.CLOCK_WIDTH] = at * (prod(self.image.grid) if program.synchronises else cfg[t.CLUSTER_SIZE])
        if self.check:
            row = 4 * int(cfg[t.CLOCK_WIDTH] * cfg[t.CLOCK_SECTIONS])
            fit = _CLOCK_BUDGET // (row * int(cfg[t.CLUSTER_SIZE]) * (warps + t.BARRIERS))
            cfg[t.SLOTS] = cfg[t.FREE_SLOTS] = min(int(cfg[t.SLOTS]), max(fit, 1))

    def _state(self) -> None:
        cfg, program, add = self.cfg, self.program, self.tables.add
        ctas = int(cfg[t.SLOTS] * cfg[t.CLUSTER_SIZE])
        warps = ctas * int(cfg[t.WARPS])
        rows = len(program.constants) + warps * program.registers
        add(t.CODE, program.code)
        add(t.POOL, program.pool)
        add(t.STAT, np.zeros(t.STAT_SIZE, np.int64))
        registers = add(t.REG, np.empty((rows, _LANES), np.uint64))
        registers[: len(program.constants)] = program.constants[:, None]
        for table, kind in ((t.POISON, np.uint32), (t.FLIGHT, np.int64), (t.WRITTEN_AT, np.int64)):
            add(table, np.zeros(rows, kind))
        for table in (t.PRED, t.PRED_POISON):
            add(table, np.zeros((warps, program.predicates), np.uint32))
        add(t.WARP, np.zeros((warps, t.WARP_COLUMNS), np.int64))
        self.tables[t.WARP][:, t.STATE] = t.W_DONE
        add(t.LANE_PC, np.zeros((warps, _LANES), np.int64))
        add(t.CTA, np.zeros((ctas, t.CTA_COLUMNS), np.int64))
        add(t.CLUSTER, np.zeros((int(cfg[t.SLOTS]), t.CLUSTER_COLUMNS), np.int64))
        add(t.BAR, np.zeros((ctas * t.BARRIERS, t.BAR_COLUMNS), np.int64))
        add(t.MBAR, np.zeros((ctas * t.MBARRIERS, t.MBAR_COLUMNS), np.int64))
        add(t.MBAR_AT, np.zeros((ctas, int(cfg[t.SHARED_STRIDE]) // 8), np.int32))
        add(t.OPS, np.zeros((t.MAX_OPS, t.OP_COLUMNS), np.int64))
        add(t.READY, np.zeros(warps + 1, np.int64))
        clocks = warps + ctas * t.BARRIERS + int(cfg[t.SLOTS]) + 2 * ctas * t.MBARRIERS if self.check else 1
        cfg[t.PLACE_CLOCK] = clocks
        clocks += t.MAX_PLACES if program.synchronises and self.check else 0
        observed = t.OBSERVED if program.synchronises else 0
        add(t.CLOCK, np.zeros((clocks, int(cfg[t.CLOCK_WIDTH] * cfg[t.CLOCK_SECTIONS]) + observed), np.int32))
        add(t.PLACES, np.zeros((t.MAX_PLACES, t.PLACE_COLUMNS), np.int64))
        granules = ctas * (int(cfg[t.SHARED_STRIDE]) >> int(cfg[t.SHARED_SHIFT])) if self.check else 1
        self._shadow(t.SHARED_SHADOW, granules)
        add(t.SHARED_STATE, np.zeros(granules, np.uint8))
        add(t.LANE_PAIRS, np.zeros((warps, _LANES * _LANES), np.int32))
        add(t.FINE, np.zeros((warps, t.FINE_RECORDS), np.int64))
        add(t.LANE_RELEASED, np.zeros((warps, _LANES), np.int32))
        add(t.RELEASES, np.zeros((warps, t.RELEASE_COLUMNS * t.MBARRIERS), np.int64))
        shared = np.zeros(ctas * int(cfg[t.SHARED_STRIDE]), np.uint8)
        for table, width in ((t.S8, np.uint8), (t.S16, np.uint16), (t.S32, np.uint32), (t.S64, np.uint64)):
            add(table, shared.view(width))
        add(t.LOCAL8, np.zeros(max(warps * _LANES * program.local, 1), np.uint8))
        add(t.HAZARDS, np.zeros((t.MAX_HAZARDS, t.HAZARD_COLUMNS), np.int64))
        add(t.MATRICES, np.zeros((64, 256), np.float64))
        add(t.RESULT, np.zeros((64, 256), np.float32))
        add(t.EVENTS, np.zeros((t.MAX_EVENTS if self.trace else 1, t.EVENT_COLUMNS), np.int64))
        add(t.PRINTS, np.zeros((t.MAX_PRINTS, t.P_DATA + t.PRINT_WORDS), np.int64))
        add(t.PROFILE, np.zeros((len(program.code) + 1 if self.profiled else 1, profile.COLUMNS), np.int64))
        add(t.SCRATCH, np.zeros((8, _LANES), np.int64))
        add(t.LANE_RESULT, np.zeros(_LANES, np.uint64))
        add(t.AUTHORS, np.zeros((int(cfg[t.AGENTS]), 2 + int(cfg[t.MBAR_AGENT])), np.uint8))

    def _shadow(self, first: int, granules: int) -> None:
        """Tables for what touched each granule last, but its state; as one piece, which large pages may back."""
        one, each = (granules,), (granules, t.READERS)
        layout = [(t.X_WRITE, one, np.int64), (t.X_STRONG, one, np.int64), (t.X_READ, each, np.int64),
                  (t.X_WRITE_LANES, one, np.uint64), (t.X_READ_LANES, each, np.uint32)]  # fmt: skip
        sizes = [prod(shape) * np.dtype(kind).itemsize for _, shape, kind in layout]
        parts = np.split(np.zeros(sum(sizes), np.uint8), np.cumsum(sizes)[:-1])
        for (table, shape, kind), part in zip(layout, parts, strict=True):
            self.tables.add(first + table, part.view(kind).reshape(shape))

    def copy_back(self) -> None:
        """Write what the kernel may have changed back into the buffers and variables of the image."""
        memory, state = self.tables[t.G8], self.tables[t.GLOBAL_STATE]
        for number, (piece, row) in enumerate(zip(self.pieces, self.tables[t.ARRAYS], strict=True)):
            if not piece.writable:
                continue
            piece.data[:] = memory[row[t.A_FLAT] : row[t.A_FLAT] + row[t.A_BYTES]]
            if number >= self.counted:
                continue
            if number >= len(self.image.buffers):
                self.image.variables[piece.name] = piece.data
            elif piece.unset is not None and self.check:
                unset = self._granules(state, row) != shadow.CLEAN
                piece.unset[:] = False
                if unset.any():
                    piece.unset[:] = np.repeat(unset, self.program.global_granule)[: piece.data.size]

    def emulation(self, outcome: int) -> Emulation:
        """What the run found."""
        stat, cfg = self.tables[t.STAT], self.cfg
        if cfg[t.STOPPED] == 2:
            raise EmulatorError(f"{self.image.entry} initialises more than {t.MBARRIERS} mbarriers in a CTA")
        found = list(hazards_of(self.tables, self.program, [piece.name for piece in self.pieces]))
        if outcome == interpret.DEADLOCKED:
            found.append(stalled(self.tables, self.program, "deadlock"))
        elif outcome == LIVELOCKED:
            found.append(stalled(self.tables, self.program, "livelock"))
        marks = self.tables[t.MARKS]
        rows = self.tables[t.ARRAYS][: len(self.image.buffers)]
        segments = [marks[r[t.A_MARK] : r[t.A_MARK] + -(-int(r[t.A_BYTES]) // SECTOR)] for r in rows]
        traffic = replay(segments, self.machine)
        counts = Counts(
            mma_flops=int(stat[t.MMA_FLOPS]),
            exp_count=int(stat[t.EXP]),
            global_load_sectors=int(stat[t.LOAD_SECTORS]),
            global_store_sectors=int(stat[t.STORE_SECTORS]),
            tma_load_bytes=int(stat[t.TMA_LOAD_BYTES]),
            l2_to_sm_bytes=int(stat[t.L2_TO_SM]),
            sm_to_l2_bytes=int(stat[t.SM_TO_L2]),
            hbm_read_bytes=traffic.read_bytes,
            hbm_write_bytes=traffic.write_bytes,
            l2_dirty_bytes=traffic.dirty_bytes,
            **crossing([s for s, buffer in zip(segments, self.image.buffers, strict=True) if buffer.peer]),
        )
        hazards: tuple[Hazard, ...] = tuple(found)
        statistics = statistics_of(stat, int(cfg[t.STEPS]))
        reads = frozenset(zip(*(axis.tolist() for axis in self.tables[t.AUTHORS].nonzero()), strict=True))
        return Emulation(
            counts,
            hazards,
            statistics,
            trace_of(self.tables, self.program),
            reads,
            outcome == interpret.OUT_OF_STEPS,
            tuple(printed.lines(self.tables)),
            lines_of(self.tables, self.program) if self.profiled else (),
        )
