"""The emulator's numbers: columns of a decoded instruction, operations, spaces, columns of the machine's tables."""

# Columns of a decoded instruction. D, A, B, C are register rows (negative: ~row of a constant) unless the operation
# says otherwise; F0 to F3 are immediates; POOL and COUNT are a slice of the operand pool.
OP, GUARD, D, A, B, C, F0, F1, F2, F3, POOL, COUNT, SOURCE, CLASS, JOIN, WIDE = range(16)
COLUMNS = 16

# Where lanes wait for each other, JOIN is the position at which other paths join, or 0, and WIDE says for which lanes:
# the row that holds a member mask plus 1 (negative: ~row of a constant), or ALL_LANES.
ALL_LANES = 1 << 40
# Integer operations: F0 = 64 - width of the operands, F1 = 1 where signed, F2 = 64 - width of the result.
(
    MOV, ADD, SUB, MUL, MUL_HI, MUL_HI64, MAD, MAD_HI, DIV, REM, MIN, MAX, ABS, NEG, AND, OR, XOR, NOT, SHL,
    SHR, FUNNEL_L, FUNNEL_R, LOP3, PRMT, BFE, BFI, POPC, CLZ, BREV, BFIND, CVT_INT, CNOT, SAD, DP4A, CVTA_TO,
    CVTA_FROM,
) = range(36)  # fmt: skip
INTEGER_END = 64

# Float operations: F0 = format, F1 = 1 for ftz, F2 = 1 for saturation to [0, 1].
(
    FADD, FSUB, FMUL, FFMA, FDIV, FMIN, FMAX, FNEG, FABS, FSQRT, FRCP, FRSQRT, FEX2, FLG2, FSIN, FCOS, FTANH,
    FCOPYSIGN,
) = range(64, 82)  # fmt: skip
CVT_F2F, CVT_F2I, CVT_I2F, CVT_PACK, CVT_UNPACK8 = range(
    90, 95
)  # F0 = source, F1 = destination, F2 = rounding, F3 = flags
FLOAT_END = 128

# Predicates, lanes, control.
SETP, PLOGIC, SELP, PACK, UNPACK, SHFL, VOTE, REDUX, MATCH, ELECT, ACTIVEMASK, MOV_PRED = range(128, 140)
BRA, BRX, EXIT, TRAP, NOP, CALL, CALL_INDIRECT, RET, CLOCK = range(160, 169)

# Memory.
(
    LD, ST, ATOM, LDMATRIX, STMATRIX, CP_ASYNC, CP_ASYNC_COMMIT, CP_ASYNC_WAIT, CP_ASYNC_MBARRIER, MAPA, PREFETCH,
    PRINT, ASSERT, MALLOC, SPILL, FILL,
) = range(192, 208)  # fmt: skip

# Synchronisation.
(
    BAR_SYNC, BAR_ARRIVE, BAR_RED, WARP_SYNC, CLUSTER_ARRIVE, CLUSTER_WAIT, FENCE, MBAR_INIT, MBAR_INVAL,
    MBAR_ARRIVE, MBAR_EXPECT, MBAR_WAIT, SETMAXNREG, GRIDDEP, MBAR_COMPLETE,
) = range(224, 239)  # fmt: skip

# Asynchronous copies and tensor cores.
(
    TMA_LOAD,
    TMA_STORE,
    BULK_LOAD,
    BULK_STORE,
    BULK_COMMIT,
    BULK_WAIT,
    WGMMA,
    WGMMA_FENCE,
    WGMMA_COMMIT,
    WGMMA_WAIT,
    MMA,
    BULK_DSMEM,
    STORE_ASYNC,
) = range(256, 269)

# Instructions at which lanes of a warp wait for each other.
WARP_WIDE = frozenset(
    (SHFL, VOTE, REDUX, MATCH, ELECT, LDMATRIX, STMATRIX, BAR_SYNC, BAR_ARRIVE, BAR_RED, WARP_SYNC, CLUSTER_ARRIVE,
     CLUSTER_WAIT, SETMAXNREG, WGMMA, WGMMA_FENCE, WGMMA_COMMIT, WGMMA_WAIT, MMA)
)  # fmt: skip
# Formats of float operands.
F16, BF16, F32, F64, E4M3, E5M2, TF32, S8, U8, S4, U4, S32 = range(12)  # the integers are those of matrices
FORMAT_BYTES = (2, 2, 4, 8, 1, 1, 4)

# Rounding of conversions.
RN, RZ, RM, RP, RNA = range(5)

# Comparisons of setp; 6 to 11 are the first six, true also where an operand is NaN.
EQ, NE, LT, LE, GT, GE, EQU, NEU, LTU, LEU, GTU, GEU, NUM, NAN = range(14)
COMPARISONS = {
    "eq": EQ, "ne": NE, "lt": LT, "le": LE, "gt": GT, "ge": GE, "lo": LT, "ls": LE, "hi": GT, "hs": GE, "equ": EQU,
    "neu": NEU, "ltu": LTU, "leu": LEU, "gtu": GTU, "geu": GEU, "num": NUM, "nan": NAN,
}  # fmt: skip
AND_THEN, OR_THEN, XOR_THEN = 1, 2, 3  # setp's second predicate; also PLOGIC's operation, with NOT_ONLY
SIGNED, UNSIGNED = -1, -2  # setp operand kinds beside the float formats

# Spaces of an address.
GENERIC, GLOBAL, SHARED, LOCAL, PARAM, CONST = range(6)
# Virtual addresses: an array k starts at (k + 1) << ARRAY_SHIFT, so that no offset reaches another array.
ARRAY_SHIFT = 40
SHARED_WINDOW, LOCAL_WINDOW, PARAM_WINDOW = 1 << 56, 1 << 57, 1 << 58
FUNCTION_WINDOW = 1 << 59  # a function pointer is this plus an index
RANK_SHIFT = 24  # a shared::cluster address carries rank + 1 from this bit on; 0 is the executing CTA

# Semantics of a memory operation.
ACQUIRE, RELEASE, STRONG, SCOPE_CTA, SCOPE_CLUSTER = 1, 2, 4, 8, 16

# What a fence does: orders this thread's accesses at a scope, joins generic and async proxy, publishes mbarriers.
FENCE_SCOPE, FENCE_ASYNC, FENCE_MBARRIER = 1, 2, 4
# Flags of an arrival on an mbarrier.
ARRIVE_EXPECT, ARRIVE_REMOTE, ARRIVE_DROP, ARRIVE_RELAXED = 1, 2, 4, 8

# Atomic operations.
A_ADD, A_MIN, A_MAX, A_AND, A_OR, A_XOR, A_EXCH, A_CAS, A_INC, A_DEC = range(10)

# Special registers: the first rows of every warp.
SPECIAL = (
    "%tid.x", "%tid.y", "%tid.z", "%ntid.x", "%ntid.y", "%ntid.z", "%ctaid.x", "%ctaid.y", "%ctaid.z", "%nctaid.x",
    "%nctaid.y", "%nctaid.z", "%laneid", "%warpid", "%nwarpid", "%clusterid.x", "%clusterid.y", "%clusterid.z",
    "%nclusterid.x", "%nclusterid.y", "%nclusterid.z", "%cluster_ctaid.x", "%cluster_ctaid.y", "%cluster_ctaid.z",
    "%cluster_nctaid.x", "%cluster_nctaid.y", "%cluster_nctaid.z", "%cluster_ctarank", "%cluster_nctarank", "%smid",
    "%nsmid", "%gridid", "%lanemask_eq", "%lanemask_lt", "%lanemask_le", "%lanemask_gt", "%lanemask_ge",
    "%dynamic_smem_size", "%total_smem_size", "%is_explicit_cluster", "%clock", "%clock64", "%globaltimer",
    "%envreg1", "%envreg2",
)  # fmt: skip
S_TID, S_NTID, S_CTAID, S_NCTAID, S_LANE, S_WARP, S_NWARP, S_CLUSTERID, S_NCLUSTER, S_IN_CLUSTER = (
    0,
    3,
    6,
    9,
    12,
    13,
    14,
    15,
    18,
    21,
)
S_CLUSTER_SHAPE, S_RANK, S_CLUSTER_SIZE, S_SM, S_NSM, S_GRID, S_MASKS, S_DYNAMIC, S_TOTAL, S_EXPLICIT = (
    24,
    27,
    28,
    29,
    30,
    31,
    32,
    37,
    38,
    39,
)

S_WORKSPACE = 43  # of a grid that synchronises: the two halves of its address
# Rows behind the special registers: a sink, where the frame of the function begins, where a call returns to.
SINK_ROW, FRAME_ROW, LINK_ROW = range(len(SPECIAL), len(SPECIAL) + 3)
RESERVED_ROWS = len(SPECIAL) + 3

# Instruction classes, for statistics.
CLASSES = ("integer", "float", "convert", "predicate", "lane", "control", "global", "shared", "other memory", "barrier",
           "mbarrier", "bulk copy", "tensor core", "other")  # fmt: skip
