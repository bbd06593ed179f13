// gemv_mma: y[m, n] = x[m, k] @ w[n, k].T for few rows of x, the tokens, on the tensor cores: batched decode.
//
// Idea: w is the A operand of mma.sync, 16 rows at a time, and up to eight tokens are the columns of B, so that one
// stream of weights serves them all. Every warp copies its own steps to a ring in shared memory by cp.async, whole
// stretches of each row: no barrier in the main loop, and what is in flight takes no registers. The CTAs all run at
// once, read as much each, and share k where that takes more of them than w has rows.
// Adds to gemv_vectorized: tensor cores, copies that do not wait, k shared by the CTAs of a cluster, launches that
// overlap, fp8 and int4 weights.
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
// Launches overlap: w never changes, so its first steps are asked for before the launch before has ended; x is not.
//
// Bytes expected from HBM: w once, x once, y once; x from L2 once for every block of rows.
#include "lab/kernels/gemv/_out_mma.cuh"
#include "ptx/bulk.cuh"
#include "ptx/fence.cuh"
#include "ptx/griddepcontrol.cuh"

constexpr uint32_t ONES[4] = {0x3f803f80, 0x3f803f80, 0x3f803f80, 0x3f803f80};  // an A fragment of bf16

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

// d += a b, or d = a b where this is the first of a sum.
__device__ __forceinline__ void multiply_tile(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                                              bool first) {
    if (first)
        ptx::mma::m16n8k16_first<Element>(d, a, b);
    else
        ptx::mma::m16n8k16<Element>(d, a, b);
}

// sum += the products of a step of int4 weights. Each group is summed by itself, as q + bias times x; scale and offset
// come after. An A fragment of ones sums x, in the lanes that need it.
__device__ __forceinline__ void multiply_groups(Sum& sum, const TokenRows& rows, const uint8_t* stage,
                                                uint32_t mask) {
    constexpr int GROUP_STEPS = GROUP / DEPTH;
    constexpr int UNROLL = GROUPS > 1 ? 1 : REQUESTS;  // more groups at once would take more registers
    float partial[schedule::rows][TOKEN_TILES][4], x_sum[TOKEN_TILES][4];
#pragma unroll UNROLL
    for (int tile = 0; tile < REQUESTS; ++tile) {
        const Tokens x(rows, tile * (COLUMNS / VECTORS));
        Vector16 held[schedule::rows];
#pragma unroll
        for (int r = 0; r < schedule::rows; ++r)
            held[r] = reinterpret_cast<const Vector16*>(stage)[(r * REQUESTS + tile) * LANES + threadIdx.x % LANES];
#pragma unroll
        for (int s = 0; s < STEPS; ++s) {
            const int step = tile * STEPS + s;
            const bool first = step % GROUP_STEPS == 0, last = step % GROUP_STEPS == GROUP_STEPS - 1;
#pragma unroll
            for (int j = 0; j < TOKEN_TILES; ++j) multiply_tile(x_sum[j], ONES, x.b[s][j], first);
#pragma unroll
            for (int r = 0; r < schedule::rows; ++r) {
                uint32_t a[4];
                fragment(a, held[r].words, s, mask);
#pragma unroll
                for (int j = 0; j < TOKEN_TILES; ++j) multiply_tile(partial[r][j], a, x.b[s][j], first);
                if (!last) continue;
                const Pairs pairs(stage + WEIGHTS_BYTES + (r * STEP_GROUPS + step / GROUP_STEPS) * PAIRS_BYTES);
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

// sum += the products of a step of row-major weights.
__device__ __forceinline__ void multiply(Sum& sum, const TokenRows& rows, const uint8_t* stage) {
    constexpr int WORD_STEPS = WIDE ? 1 : 2;  // that four words hold
    const int lane = threadIdx.x % LANES;
    const uint32_t at = ptx::address::shared(stage) + lane % TILE * ROW_PITCH + lane / TILE * VECTOR;
#pragma unroll
    for (int c = 0; c < schedule::runs; ++c) {
        const Tokens x(rows, c * COLUMNS);
#pragma unroll
        for (int r = 0; r < schedule::rows; ++r)
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                uint32_t words[4];
                ptx::ldmatrix::x4(words, at + r * TILE * ROW_PITCH + (2 * c + half) * 2 * VECTOR);
#pragma unroll
                for (int s = 0; s < WORD_STEPS; ++s) {
                    uint32_t a[4];
                    fragment(a, words, s);
#pragma unroll
                    for (int j = 0; j < TOKEN_TILES; ++j)
                        ptx::mma::m16n8k16<Element>(sum[r][j], a, x.b[half * WORD_STEPS + s][j]);
                }
            }
    }
}

// Every step of a warp; x is the first of its columns.
__device__ __forceinline__ void accumulate(Sum& sum, Shared& shared, Stream& stream, const Work& work, int warp,
                                           const uint8_t* ring) {
    TokenRows x(x_rows(shared) + warp * (STEP * sizeof(Element)), work.pitch, work.tokens);
    const uint32_t mask = held(INT4_SIGNIFICANDS, stream.to);
    uint64_t* full = shared.full;
    int until = 0, stage = 0;
    for (int at = 0, end = work.end - work.first - warp * STEP; at < end; at += ROUND) {
        if (at == until) {
            ptx::mbarrier::wait(*full++, 0);
            until = 2 * until + ROUND;
        }
        ptx::cp_async::wait_group<schedule::stages - 1>();
        __syncwarp();  // the other lanes' copies too
        if constexpr (GROUPED)
            multiply_groups(sum, x, ring + stage, mask);
        else
            multiply(sum, x, ring + stage);
        x.advance(ROUND);
        __syncwarp();
        stream.fill(stage);
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
__device__ __forceinline__ void load_x(Shared& shared, const Element* x, const Work& work, int k) {
    if (threadIdx.x % LANES == 0)
        visit_parts(shared, work, k, [&](uint64_t& full, int at, int columns) {
#pragma unroll 1
            for (int token = threadIdx.x / LANES; token < work.tokens; token += WARPS)
                ptx::bulk::load(x_rows(shared) + token * work.pitch + at * sizeof(Element),
                                x + int64_t(work.token + token) * k + work.first + at, columns * sizeof(Element), full);
        });
    __syncwarp();
}

// What lies between k and the end of the last step is zero, as the weights there are: the two must not make a NaN.
__device__ __forceinline__ void pad_x(Shared& shared, const Work& work, int k) {
    constexpr int PER_VECTOR = VECTOR / sizeof(Element);
#pragma unroll 1
    for (int column = k + threadIdx.x % LANES * PER_VECTOR; column < work.end; column += LANES * PER_VECTOR)
#pragma unroll 1
        for (int token = threadIdx.x / LANES; token < work.tokens; token += WARPS) {
            uint8_t* at = x_rows(shared) + token * work.pitch + (column - work.first) * sizeof(Element);
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
        visit_parts(shared, work, k, [&](uint64_t& full, int, int columns) {
            ptx::mbarrier::arrive_expect_tx(full, columns * work.tokens * int(sizeof(Element)));
        });
        if constexpr (CLUSTER > 1)
            ptx::mbarrier::arrive_expect_tx(shared.arrived, work.tokens * work.part * int(CLUSTER * sizeof(float)));
        ptx::griddepcontrol::launch_dependents();
    }
    __syncthreads();
    if constexpr (CLUSTER > 1) ptx::cluster::arrive_relaxed();  // the barriers' own fence is all that the others need
}

extern "C" __global__ void __launch_bounds__(schedule::threads, schedule::ctas_per_sm)
    gemv_mma(const Element* __restrict__ x, const Weight* __restrict__ w, const void* __restrict__ w_scale,
             Output* __restrict__ y, int m, int n, int k) {
    extern __shared__ __align__(128) uint8_t dynamic[];
    Shared& shared = *reinterpret_cast<Shared*>(dynamic);
    const Work work(m, k);
    const int warp = __shfl_sync(~0u, threadIdx.x / LANES, 0);  // known to be the same in all lanes
    Warp& own = shared.warps[warp];
    Stream stream(w, w_scale, work, n, k, warp / SPLIT, warp % SPLIT, own.ring);
#pragma unroll 1
    for (int stage = 0; stage < schedule::stages * STAGE_BYTES; stage += STAGE_BYTES) stream.fill(stage);
    start(shared, work, k);
    ptx::griddepcontrol::wait();  // until the launch before has written x, and reads y no more
    load_x(shared, x, work, k);
    Sum sum = {};
    accumulate(sum, shared, stream, work, warp % SPLIT, own.ring);
    leave(sum, own);
    __syncthreads();
    if constexpr (CLUSTER > 1) exchange(shared, work);
    store(shared, w_scale, y, work, n);
}
