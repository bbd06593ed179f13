"""The machine's state: NumPy arrays that compiled code reaches through one table of addresses.

A Numba call that passes forty arrays copies their descriptors each time; a `Handle` passes one array, from which each
function takes views of the few tables it needs.
"""

from typing import Any

import numpy as np
from numba import types
from numba.extending import intrinsic
from numba.np.arrayobj import populate_array
from numpy.typing import NDArray

from sim.linked_jit import jit

# The tables, in the order of their rows in the handle.
(
    CODE, POOL, CFG, STAT, RNG, REG, POISON, FLIGHT, WRITTEN_AT, PRED, PRED_POISON, WARP, LANE_PC, CTA,
    CLUSTER, BAR, MBAR, MBAR_AT, OPS, READY, CLOCK, PLACES, LANE_PAIRS, SHARED_SHADOW, _1, _2, _3, _4, SHARED_STATE,
    GLOBAL_SHADOW, _7, _8, _9, _10, GLOBAL_STATE, ARRAYS, G8, G16, G32, G64, S8, S16, S32, S64, LOCAL8, PARAM8,
    MARKS, MAPS, HAZARDS, RESULT, EVENTS, SCRATCH, LANE_RESULT, RELEASES, PRINTS, MATRICES, LANE_RELEASED,
    PROFILE, FINE, AUTHORS,
) = range(60)  # fmt: skip
TABLES = 60
# The shadow of shared or of global memory is six tables, counted from the first: a granule's last weak write, its last
# strong write, its readers, which lanes made each, and whether it was set.
X_WRITE, X_STRONG, X_READ, X_WRITE_LANES, X_READ_LANES, X_STATE = range(6)

# CFG: what does not change during a launch, and a few counters.
(
    CHECK, WARPS, THREADS, CLUSTER_SIZE, CLUSTERS, SLOTS, SHARED_STRIDE, SHARED_BYTES, REGISTERS, FIRST_ROW,
    CONSTANT_ROWS, AGENTS, CLOCK_WIDTH, WIDE, SHARED_SHIFT, GLOBAL_SHIFT, ARRAY_COUNT, LOCAL_BYTES,
    PARAM_BYTES, MAP_COUNT, NEXT_CLUSTER, READY_COUNT, OPS_COUNT, HAZARD_COUNT, EVENT_COUNT, TRACE, STEPS,
    MAX_STEPS, GRID_X, GRID_Y, GRID_Z, BLOCK_X, BLOCK_Y, BLOCK_Z, CLUSTER_X, CLUSTER_Y, CLUSTER_Z, SM_COUNT,
    FREE_SLOTS, HAS_TENSOR, HAS_BULK, HAS_CP_ASYNC, HAS_MBARRIER, DYNAMIC_SHARED, STOPPED, PLACE_CLOCK,
    CLOCK_SECTIONS, QUANTUM, TENSOR_AGENT, BULK_READ_AGENT, BULK_WRITE_AGENT, CP_ASYNC_AGENT, MBAR_AGENT,
    SPIN_LIMIT, SCOPED, LOST_HAZARDS, START, FUNCTIONS, FUNCTION_COUNT, HEAP_ARRAY, HEAP_AT, GRID_WORKSPACE,
    PRINT_COUNT, PROFILED,
) = range(64)  # fmt: skip
CFG_SIZE = 72

# STAT: what is counted. Instruction classes come first.
N_CLASSES = 14
(
    MMA_FLOPS, EXP, LOAD_SECTORS, STORE_SECTORS, TMA_LOAD_BYTES, L2_TO_SM, SM_TO_L2, LOAD_REQUESTS,
    STORE_REQUESTS, SHARED_REQUESTS, SHARED_WAVEFRONTS, SHARED_IDEAL, ATOMIC_REQUESTS, POLLS, SPUN, PROGRESS,
) = range(N_CLASSES, N_CLASSES + 16)  # fmt: skip
STAT_SIZE = 32

# WARP columns.
(
    STATE, PC, MASK, LIVE, LIMIT, PARKED, CTA_SLOT, INDEX, BASE, WAIT_A, WAIT_B, AGENT, FENCES, GROUPS,
    GROUPS_DONE, BULK_LAST, BULK_GROUPS, BULK_LANES, BULK_PC, CP_GROUPS, CLUSTER_PHASE, CLUSTER_ARRIVED,
    READY_AT, WAIT_PC, REGISTER_CHANGES, OPEN_WGMMA, SPINS, REGISTERS_PC, SINCE, WAITERS, SYNCED, JOIN, JOIN_FOR,
    JOIN_NEEDS, POLLED, POLL_PC, LANES_SYNCED, CP_SYNCED, CLUSTER_RELEASED,
    ALL_RELEASED, PARTIAL, CONVERGED, READS_RELEASED,
) = range(43)  # fmt: skip
WARP_COLUMNS = 44
W_READY, W_DONE, W_BAR, W_MBAR, W_CLUSTER, W_BULK, W_CP_ASYNC, W_WGMMA, W_WARP_SYNC = range(9)
WAITING = ("ready", "done", "a CTA barrier", "an mbarrier", "the cluster barrier", "bulk groups", "cp.async groups",
           "wgmma groups", "the rest of its warp")  # fmt: skip

# CTA columns.
C_LINEAR, C_CLUSTER_SLOT, C_RANK, C_ALIVE, C_MBARS, C_FIRST_WARP, C_X, C_Y, C_Z, C_ACTIVE = range(10)
CTA_COLUMNS = 12
# CLUSTER columns.
K_ACTIVE, K_ALIVE_WARPS, K_ARRIVED, K_PHASE, K_FIRST_CTA, K_INDEX = range(6)
CLUSTER_COLUMNS = 8
# BAR columns.
B_ARRIVED, B_EXPECTED, B_COUNT, B_AND, B_OR, B_PC, B_AGENT = range(7)
BAR_COLUMNS = 8
BARRIERS = 16
# MBAR columns.
(
    M_ADDRESS, M_COUNT, M_PENDING, M_TX, M_PHASE, M_BASE, M_FLYING, M_LAST_EPOCH, M_LAST_PC, M_PUBLISHED,
    M_VALID, M_INIT_PC, M_DROPS, M_INIT_RECORD, M_REMOTE, M_SHOWN,
) = range(16)  # fmt: skip
MBAR_COLUMNS = 16
MBARRIERS = 64  # at most this many a CTA
# OPS columns: one asynchronous copy in flight.
(
    O_KIND, O_WARP, O_CTA, O_PC, O_SHARED, O_BARRIER, O_MASK, O_MAP, O_X0, O_X1, O_X2, O_X3, O_X4, O_GLOBAL,
    O_BYTES, O_GROUP, O_LANE, O_DATA, O_TARGET, O_ELEMENT, O_LIVE, O_SINCE, O_FILL,
) = range(23)  # fmt: skip
OP_COLUMNS = 24
MAX_OPS = 4096
OP_TMA_LOAD, OP_TMA_STORE, OP_BULK_LOAD, OP_BULK_STORE, OP_DSMEM, OP_CP_ASYNC, OP_STORE_ASYNC = range(7)
# ARRAYS columns.
A_FLAT, A_BYTES, A_TRACKED, A_GRANULE, A_MARK, A_INPUT = range(6)
ARRAY_COLUMNS = 8
# MAPS columns: sizes, byte strides and box innermost first.
T_OFFSET, T_ARRAY, T_DIMS, T_ELEMENT, T_SWIZZLE, T_FORMAT = range(6)
T_SIZE, T_STRIDE, T_BOX = 6, 11, 16
MAP_COLUMNS = 24
# HAZARDS columns.
Z_KIND, Z_PC, Z_AGENT, Z_LANE, Z_OTHER, Z_ADDRESS, Z_EXTRA, Z_CTA, Z_COUNT, Z_ORDER = range(10)
HAZARD_COLUMNS = 10
MAX_HAZARDS = 2048
# EVENTS columns.
E_AGENT, E_PC, E_BEGIN, E_END, E_WHAT, E_ARGUMENT = range(6)
EVENT_COLUMNS = 6
MAX_EVENTS = 1 << 18

# Sections of a clock row, each CLOCK_WIDTH columns: what the owner comes after; what of it the async proxy sees;
# then for each scope in use what of it a fence published, for a later atomic to release, and what atomics have read,
# for a later fence to acquire. Behind them stand OBSERVED columns: how many strong writes of some locations were seen.
BEFORE, VISIBLE_ASYNC, PUBLISHED, ACQUIRABLE = range(4)
OBSERVED = 64
MAX_PLACES = 1024  # memory locations through which warps synchronise by atomics
# RELEASES: for each mbarrier of a warp's CTA, which of its lanes arrived last, at which epoch, in which phase.
RELEASE_COLUMNS = 3
FINE_RECORDS = 64  # records that a warp found ordered before it, each in the column of its hash
# PRINTS columns: the format's address, then the first words of the arguments.
P_FORMAT, P_DATA = range(2)
PRINT_WORDS = 31
MAX_PRINTS = 1 << 12
# PLACES columns.
P_KEY, P_VERSION, P_WARP, P_LANES = range(4)
PLACE_COLUMNS = 4
_HANDLE_COLUMNS = 3  # address, rows, columns
READERS = 4  # unordered readers of a granule that are remembered


def _view(dtype: types.Number, ndim: int) -> Any:
    """A compiled function (handle, table) -> array; an intrinsic, so that no array is counted or compiled for it."""

    @intrinsic
    def view(typingctx: Any, handle: Any, table: Any) -> Any:
        del typingctx, table

        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            rows = context.make_array(signature.args[0])(context, builder, args[0]).data
            first = builder.mul(args[1], context.get_constant(types.intp, _HANDLE_COLUMNS))
            places = [builder.add(first, context.get_constant(types.intp, i)) for i in range(1 + ndim)]
            address, *shape = (builder.load(builder.gep(rows, [place])) for place in places)
            array = context.make_array(signature.return_type)(context, builder)
            itemsize = dtype.bitwidth // 8
            strides = [context.get_constant(types.intp, itemsize)]
            for extent in shape[:0:-1]:
                strides.insert(0, builder.mul(strides[0], extent))
            data = builder.inttoptr(address, array.data.type)
            populate_array(array, data, shape, strides, itemsize, meminfo=None)
            return array._getvalue()

        return types.Array(dtype, ndim, "C")(handle, types.intp), generate

    return view


i64_1, u64_1, u32_1 = _view(types.int64, 1), _view(types.uint64, 1), _view(types.uint32, 1)
u16_1, u8_1 = _view(types.uint16, 1), _view(types.uint8, 1)
i64_2, u64_2, u32_2 = _view(types.int64, 2), _view(types.uint64, 2), _view(types.uint32, 2)
u8_2 = _view(types.uint8, 2)
i32_2, f32_2, f64_2 = _view(types.int32, 2), _view(types.float32, 2), _view(types.float64, 2)


@jit
def fill(array, first, end, value):
    """array[first:end] = value; Numba compiles a loop faster than it does a slice."""
    for i in range(first, end):
        array[i] = value


@jit
def fill_rows(array, first, end, value):
    """array[first:end, :] = value."""
    for row in range(first, end):
        for column in range(array.shape[1]):
            array[row, column] = value


class Tables:
    """Owns the arrays and the handle to them."""

    def __init__(self) -> None:
        self.handle: NDArray[np.int64] = np.zeros((TABLES, _HANDLE_COLUMNS), np.int64)
        self._arrays: dict[int, NDArray[Any]] = {}

    def add(self, table: int, array: NDArray[Any]) -> NDArray[Any]:
        """Keep an array as one of the tables."""
        if not array.flags.c_contiguous:
            raise ValueError("a table is contiguous")
        self._arrays[table] = array
        shape = (*array.shape, 1)
        self.handle[table] = (array.ctypes.data, shape[0], shape[1])
        return array

    def __getitem__(self, table: int) -> NDArray[Any]:
        return self._arrays[table]


@jit
def random(h, n):
    """A number from 0 to n - 1 (xorshift64*)."""
    state = u64_1(h, RNG)
    x = state[0]
    x ^= x >> np.uint64(12)
    x ^= x << np.uint64(25)
    x ^= x >> np.uint64(27)
    state[0] = x
    return np.int64(((x * np.uint64(2685821657736338717)) >> np.uint64(33)) % np.uint64(n))
