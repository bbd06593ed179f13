// gemv_int4: y[m, n] = x[m, k] @ w[n, k].T for few rows of x, the tokens, and w in int4 groups: batched decode.
//
// Idea: w, packed as fragments, is the A operand of mma.sync, 16 rows at a time, and up to eight tokens are the columns
// of B, so that one stream of weights serves them all. Every warp copies its own steps to a ring in shared memory by
// cp.async, whole packed tiles: no barrier in the main loop, and what is in flight takes no registers. Scale and offset
// of a group come after its sums. The CTAs all run at once, read as much each, and share k where that takes more of
// them than w has rows.
// Adds to gemv_mma: x in shared memory, so more tokens; copies that do not wait; k shared by the CTAs of a cluster.
//
// Warp roles: all alike. `split_k` warps, a team, take the steps along k of `rows` x 16 rows of w in turn; the CTAs of
// a cluster each take one part of k. x comes once to each CTA, by bulk copies in parts of its k, each twice as long as
// the one before: the first is all that the first steps wait for. Sums meet in shared memory, then each CTA of a
// cluster sums and stores its own part of the rows.
//
//   cp.async   | 0 | 1 | 2 | 3 |   | 4 |     | 5 |          stages = 4: the ring of one warp
//   bulk, x    |- part 0 -|------ part 1 ------|
//   mma.sync                       | 0 |     | 1 |     | 2 | ...  | sum over warps | sum over CTAs | y
//
// swiglu and both parts of RMSNorm may be part of the launch, as gemv_vectorized says; what they need beside comes with
// the first copies after the launch before has ended.
//
// Of an act-order layer x comes whole to each CTA, which then takes each of its columns from where `order` says.
//
// Launches overlap: w never changes, so its first steps are asked for before the launch before has ended; x is not.
// The launch behind may begin at once, or `late`, when the loads here are done: its own first ones would delay the last.
//
// Bytes expected from HBM: w once, x once, y once; x from L2 once for every block of rows.
#include "lab/kernels/common/dequantise.cuh"
#include "lab/kernels/gemv/gemv_int4_epilogue.cuh"
#include "ptx/bulk.cuh"
#include "ptx/fence.cuh"
#include "ptx/griddepcontrol.cuh"
#include "ptx/ldmatrix.cuh"
#include "ptx/load.cuh"

constexpr int STEPS = PACKED_COLUMNS / MMA_K;  // of an mma along a packed tile
constexpr uint32_t ONES[4] = {0x3f803f80, 0x3f803f80, 0x3f803f80, 0x3f803f80};  // an A fragment of bf16

// `constant`, in a register throughout: the compiler would bring what it knows to be one to a register at each use, but
// does not know that addresses in shared memory have less than 32 bits.
__device__ __forceinline__ uint32_t held(uint32_t constant, uint32_t shared_address) {
    return constant | shared_address >> 31;
}

// Where this lane reads x: of each eight tokens, in shared memory. Tokens beyond the last are the last one again.
struct TokenRows {
    const uint8_t* at[TOKEN_TILES];

    // `x` is the first of the columns, `pitch` the bytes from token to token.
    __device__ __forceinline__ TokenRows(const uint8_t* x, int pitch, int tokens) {
        const int lane = threadIdx.x % LANES;
#pragma unroll
        for (int j = 0; j < TOKEN_TILES; ++j)
            at[j] = x + min(j * MMA_N + lane % MMA_N, tokens - 1) * pitch + lane / MMA_N * VECTOR;
    }

    __device__ __forceinline__ void advance(int columns) {
#pragma unroll
        for (int j = 0; j < TOKEN_TILES; ++j) at[j] += columns * sizeof(bf16);
    }
};

// The B fragments for a packed tile: of eight tokens each, the columns that the A fragments have.
struct Tokens {
    uint32_t b[STEPS][TOKEN_TILES][2];

    __device__ __forceinline__ Tokens(const TokenRows& rows, int column) {
#pragma unroll
        for (int j = 0; j < TOKEN_TILES; ++j)
#pragma unroll
            for (int s = 0; s < STEPS; s += 2) {
                uint32_t four[4];
                ptx::ldmatrix::x4(four, ptx::address::shared(rows.at[j] + (column + s * MMA_K) * sizeof(bf16)));
                b[s][j][0] = four[0], b[s][j][1] = four[1];
                b[s + 1][j][0] = four[2], b[s + 1][j][1] = four[3];
            }
    }
};

// Of rows g and g + 8 of a row tile: the scale, and what to add for each of x, the bias of q taken away.
struct Pairs {
    float scale[2], offset[2];

    __device__ __forceinline__ explicit Pairs(const uint8_t* of_tile) {
        const uint2 words = *reinterpret_cast<const uint2*>(of_tile + threadIdx.x % LANES / 4 * 8);
        const uint32_t both[2] = {words.x, words.y};
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            scale[h] = ptx::convert::to_float(fp16{uint16_t(both[h])});
            const float stored = ptx::convert::to_float(fp16{uint16_t(both[h] >> 16)});
            offset[h] = problem::zero_points ? -scale[h] * (stored + INT4_BIAS) : fmaf(-INT4_BIAS, scale[h], stored);
        }
    }
};

// sum += the products of a step. Each group is summed by itself, as q + bias times x; scale and offset come after. An A
// fragment of ones sums x, in the lanes that need it. `mask` is INT4_SIGNIFICANDS.
__device__ __forceinline__ void multiply(Sum& sum, const TokenRows& rows, const uint8_t* stage, uint32_t mask) {
    constexpr int GROUP_STEPS = problem::group / MMA_K;
    constexpr int UNROLL = GROUPS > 1 ? 1 : PACKED_TILES;  // more groups at once would take more registers
    float partial[schedule::rows][TOKEN_TILES][4], x_sum[TOKEN_TILES][4];
#pragma unroll UNROLL
    for (int tile = 0; tile < PACKED_TILES; ++tile) {
        const Tokens x(rows, tile * PACKED_COLUMNS);
        Vector16 packed[schedule::rows];
#pragma unroll
        for (int r = 0; r < schedule::rows; ++r)
            packed[r] =
                reinterpret_cast<const Vector16*>(stage)[(r * PACKED_TILES + tile) * LANES + threadIdx.x % LANES];
#pragma unroll
        for (int s = 0; s < STEPS; ++s) {
            const int step = tile * STEPS + s;
            const bool first = step % GROUP_STEPS == 0, last = step % GROUP_STEPS == GROUP_STEPS - 1;
#pragma unroll
            for (int j = 0; j < TOKEN_TILES; ++j) multiply_tile<bf16>(x_sum[j], ONES, x.b[s][j], first);
#pragma unroll
            for (int r = 0; r < schedule::rows; ++r) {
                uint32_t a[4];
#pragma unroll
                for (int i = 0; i < 4; ++i) a[i] = biased_bf16_of_int4(packed[r].words[s], i, mask);
#pragma unroll
                for (int j = 0; j < TOKEN_TILES; ++j) multiply_tile<bf16>(partial[r][j], a, x.b[s][j], first);
                if (!last) continue;
                const Pairs pairs(stage + WEIGHTS + (r * GROUPS + step / GROUP_STEPS) * PAIRS_BYTES);
#pragma unroll
                for (int j = 0; j < TOKEN_TILES; ++j)
#pragma unroll
                    for (int i = 0; i < 4; ++i) {
                        sum[r][j][i] = fmaf(pairs.scale[i / 2], partial[r][j][i], sum[r][j][i]);
                        sum[r][j][i] = fmaf(pairs.offset[i / 2], x_sum[j][i % 2], sum[r][j][i]);
                    }
            }
        }
    }
}

// Every step of a warp; x is the first of its columns.
__device__ __forceinline__ void accumulate(Sum& sum, Shared& shared, Stream& stream, const Work& work, int warp,
                                           const uint8_t* ring) {
    TokenRows x(x_rows(shared) + warp * (STEP * sizeof(bf16)), work.pitch, work.tokens);
    const uint32_t mask = held(INT4_SIGNIFICANDS, stream.to);
    uint64_t* full = shared.full;
    int until = 0, stage = 0;
    for (int at = 0, end = work.end - work.first - warp * STEP; at < end; at += ROUND) {
        if (!problem::ordered && at == until) {
            ptx::mbarrier::wait(*full++, 0);
            until = 2 * until + ROUND;
        }
        ptx::cp_async::wait_group<schedule::stages - 1>();
        __syncwarp();  // the other lanes' copies too
        multiply(sum, x, ring + stage, mask);
        x.advance(ROUND);
        __syncwarp();
        stream.fill(stage);
        if (schedule::late && at + ROUND >= end) ptx::griddepcontrol::launch_dependents();
        stage = stage + STAGE_BYTES == schedule::stages * STAGE_BYTES ? 0 : stage + STAGE_BYTES;
    }
}

// Calls `visit(barrier, first column within this CTA's, columns)` for every part of x.
template <typename Visit>
__device__ __forceinline__ void visit_parts(Shared& shared, const Work& work, int k, const Visit& visit) {
    const int columns = min(work.end, k) - work.first;
    uint64_t* full = shared.full;
#pragma unroll 1
    for (int at = 0, width = ROUND; at < columns; at += width, width *= 2) visit(*full++, at, min(width, columns - at));
}

// Bring x: one lane of each warp asks for some tokens' rows, those of the first part before the others.
__device__ __forceinline__ void load_x(Shared& shared, const bf16* x, const Work& work, int k) {
    if (threadIdx.x % LANES == 0)
        visit_parts(shared, work, k, [&](uint64_t& full, int at, int columns) {
#pragma unroll 1
            for (int token = threadIdx.x / LANES; token < work.tokens; token += WARPS)
                ptx::bulk::load(x_rows(shared) + token * work.pitch + at * sizeof(bf16),
                                x + int64_t(work.token + token) * k + work.first + at, columns * sizeof(bf16), full);
        });
    __syncwarp();
}

// The same where an order is given: all of x, then this CTA's columns of it, by all threads. k is a multiple of eight.
constexpr int PER_LOAD = VECTOR / sizeof(int);  // columns whose places a thread looks up with a load
constexpr int PLACES = 4;                       // loads of them under way together
__device__ __forceinline__ void gather_x(Shared& shared, const bf16* x, const int* order, const Work& work, int k) {
    const bf16* whole = reinterpret_cast<const bf16*>(x_rows(shared) + work.tokens * work.pitch);
    if (threadIdx.x % LANES == 0)
#pragma unroll 1
        for (int token = threadIdx.x / LANES; token < work.tokens; token += WARPS)
            ptx::bulk::load(const_cast<bf16*>(whole) + token * k, x + int64_t(work.token + token) * k,
                            k * sizeof(bf16), shared.full[0]);
    __syncwarp();
    const int columns = min(work.end, k) - work.first;
#pragma unroll 1
    for (int first = 0; first < columns; first += PLACES * PER_LOAD * schedule::threads) {
        Vector16 from[PLACES];  // looked up together, at first while x is on its way
        int column[PLACES];
#pragma unroll
        for (int i = 0; i < PLACES; ++i) {
            column[i] = first + (i * schedule::threads + int(threadIdx.x)) * PER_LOAD;
            const bool inside = column[i] < columns;
            from[i] = ptx::load::cached_if(inside ? order + work.first + column[i] : order, inside);
        }
        if (first == 0) ptx::mbarrier::wait(shared.full[0], 0);
#pragma unroll
        for (int i = 0; i < PLACES; ++i) {
            if (column[i] >= columns) continue;
#pragma unroll 1
            for (int token = 0; token < work.tokens; ++token) {
                uint16_t four[PER_LOAD];
#pragma unroll
                for (int j = 0; j < PER_LOAD; ++j)
                    four[j] = whole[token * k + min(from[i].words[j], uint32_t(k - 1))].bits;
                uint8_t* to = x_rows(shared) + token * work.pitch + column[i] * sizeof(bf16);
                *reinterpret_cast<Vector<8>*>(to) = {four[0] | uint32_t(four[1]) << 16, four[2] | uint32_t(four[3]) << 16};
            }
        }
    }
    __syncthreads();
}

// What lies between k and the end of the last step is zero, as the weights there are: the two must not make a NaN.
__device__ __forceinline__ void pad_x(Shared& shared, const Work& work, int k) {
    constexpr int PER_VECTOR = VECTOR / sizeof(bf16);
#pragma unroll 1
    for (int column = k + threadIdx.x % LANES * PER_VECTOR; column < work.end; column += LANES * PER_VECTOR)
#pragma unroll 1
        for (int token = threadIdx.x / LANES; token < work.tokens; token += WARPS) {
            uint8_t* at = x_rows(shared) + token * work.pitch + (column - work.first) * sizeof(bf16);
            *reinterpret_cast<Vector16*>(at) = {};
        }
}

// The barriers and what is zero of x; from here on the other CTAs of the cluster may send.
__device__ __forceinline__ void start(Shared& shared, const Work& work, int k) {
    pad_x(shared, work, k);
    if (threadIdx.x == 0) {
        visit_parts(shared, work, k, [&](uint64_t& full, int, int) { ptx::mbarrier::init(full, 1); });
        if constexpr (CLUSTER > 1) ptx::mbarrier::init(shared.arrived, 1);
        ptx::fence::mbarrier_init();
        if constexpr (problem::ordered)
            ptx::mbarrier::arrive_expect_tx(shared.full[0], k * work.tokens * int(sizeof(bf16)));
        else
            visit_parts(shared, work, k, [&](uint64_t& full, int, int columns) {
                ptx::mbarrier::arrive_expect_tx(full, columns * work.tokens * int(sizeof(bf16)));
            });
        if constexpr (CLUSTER > 1)
            ptx::mbarrier::arrive_expect_tx(shared.arrived, work.tokens * work.part * int(HALVES * CLUSTER * sizeof(float)));
        if constexpr (!schedule::late) ptx::griddepcontrol::launch_dependents();
    }
    __syncthreads();
    if constexpr (CLUSTER > 1) ptx::cluster::arrive_relaxed();  // the barriers' own fence is all that the others need
}

extern "C" __global__ void __launch_bounds__(schedule::threads, schedule::ctas_per_sm)
    gemv_int4(const bf16* __restrict__ x, const uint8_t* __restrict__ w, const uint8_t* __restrict__ w_scale,
              bf16* __restrict__ y, int m, int n, int k, const int* __restrict__ order, const float* squares,
              const bf16* residual, const bf16* norm, bf16* __restrict__ total, float* __restrict__ total_squares,
              float eps) {
    extern __shared__ __align__(128) uint8_t dynamic[];
    Shared& shared = *reinterpret_cast<Shared*>(dynamic);
    const Work work(m, k);
    if (CLUSTER == 1 && work.row >= n / HALVES) {  // one that only holds a place on its SM, as long as the others of its launch
        ptx::griddepcontrol::launch_dependents();
        ptx::griddepcontrol::wait();
        return;
    }
    const int warp = __shfl_sync(~0u, threadIdx.x / LANES, 0);  // known to be the same in all lanes
    Warp& own = shared.warps[warp];
    Stream stream(w, w_scale, work, n, k, warp / SPLIT, warp % SPLIT, own.ring);
#pragma unroll 1
    for (int stage = 0; stage < schedule::stages * STAGE_BYTES; stage += STAGE_BYTES) stream.fill(stage);
    start(shared, work, k);
    ptx::griddepcontrol::wait();  // until the launch before has written x, and reads y no more
    if constexpr (problem::ordered)
        gather_x(shared, x, order, work, k);
    else
        load_x(shared, x, work, k);
    const Beside beside(x_rows(shared) + work.tokens * work.pitch, work, k);
    beside.ask(squares, residual, norm, work, n);
    Sum sum = {};
    accumulate(sum, shared, stream, work, warp % SPLIT, own.ring);
    if constexpr (problem::rooted || problem::summed) beside.sum(squares, work);
    stage_sums(sum, own);
    __syncthreads();
    if constexpr (CLUSTER > 1) exchange(shared, work);
    store(shared, beside, work, {y, total, total_squares, n, k, eps});
}
