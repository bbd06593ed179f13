// gemv_mma: y[m, n] = x[m, k] @ w[n, k].T for few rows of x, the tokens, on the tensor cores: batched decode.
//
// Idea: w is the A operand of mma.sync, 16 rows at a time, and up to eight tokens are the columns of B, so that one
// stream of weights serves them all. Every lane copies to shared memory, by cp.async, the very 16 bytes that it will read
// back as its own part of a fragment: no barrier in the main loop, and what is in flight takes no registers. The CTAs
// all run at once, read as much each, and share k where that takes more of them than w has rows.
// Adds to gemv_vectorized: tensor cores, copies that do not wait, k shared by the CTAs of a cluster, launches that
// overlap, fp8 and int4 weights.
//
// Warp roles: all alike. `split_k` warps, a team, take the steps along k of `rows` x 16 rows of w in turn; the CTAs of a
// cluster each take one part of k. x comes once to each CTA, by bulk copies in a few parts of its k, the first of
// which is all that the first steps wait for. Sums meet in shared memory, then each CTA of a cluster sums and stores its
// own part of the rows.
//
//   cp.async   | 0 | 1 | 2 | 3 |   | 4 |     | 5 |          stages = 4: the ring of one warp
//   bulk, x    |-- part 0 --|-- part 1 --|
//   mma.sync                       | 0 |     | 1 |     | 2 | ...  | sum over warps | sum over CTAs | y
//
// Launches overlap: w never changes, so its first steps are asked for before the launch before has ended; x is not.
//
// Bytes expected from HBM: w once, x once, y once; x from L2 once for every block of rows.
#include "lab/kernels/gemv/_out_mma.cuh"
#include "ptx/bulk.cuh"
#include "ptx/fence.cuh"
#include "ptx/griddepcontrol.cuh"

constexpr int ONES = 0x3f803f80;  // two bf16

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

// sum += the products of a run of int4 weights. Each group is summed by itself, as q + bias times x; scale and offset
// come after. An A fragment of ones sums x, in the lanes that need it.
__device__ __forceinline__ void multiply_groups(Sum& sum, const Tokens& x, const Stage& stage, int c) {
    constexpr int GROUP_STEPS = STEPS / GROUPS;
    const uint32_t ones[4] = {ONES, ONES, ONES, ONES};
    float x_sum[GROUPS][TOKEN_TILES][4] = {};
#pragma unroll
    for (int s = 0; s < STEPS; ++s)
#pragma unroll
        for (int j = 0; j < TOKEN_TILES; ++j) ptx::mma::m16n8k16<Element>(x_sum[s / GROUP_STEPS][j], ones, x.b[s][j]);
    const auto* scales = reinterpret_cast<const uint8_t*>(stage.scales);
#pragma unroll
    for (int r = 0; r < schedule::rows; ++r) {
        Run<Weight> run;
#pragma unroll
        for (int v = 0; v < VECTORS; ++v) run.part[v] = stage.weights[r][c][v][threadIdx.x % LANES];
#pragma unroll
        for (int q = 0; q < GROUPS; ++q) {
            float partial[TOKEN_TILES][4] = {};
#pragma unroll
            for (int s = q * GROUP_STEPS; s < (q + 1) * GROUP_STEPS; ++s) {
                uint32_t a[4];
                run.fragment(a, s);
#pragma unroll
                for (int j = 0; j < TOKEN_TILES; ++j) ptx::mma::m16n8k16<Element>(partial[j], a, x.b[s][j]);
            }
            const Pairs pairs(scales + (r * STEP_GROUPS + c * GROUPS + q) * PAIRS_BYTES);
#pragma unroll
            for (int j = 0; j < TOKEN_TILES; ++j)
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    sum[r][j][i] = fmaf(pairs.scale[i / 2], partial[j][i], sum[r][j][i]);
                    sum[r][j][i] = fmaf(pairs.offset[i / 2], x_sum[q][j][i], sum[r][j][i]);
                }
        }
    }
}

// sum += the products of run `c` of a step.
__device__ __forceinline__ void multiply(Sum& sum, const Tokens& x, const Stage& stage, int c) {
#pragma unroll
    for (int r = 0; r < schedule::rows; ++r) {
        Run<Weight> run;
#pragma unroll
        for (int v = 0; v < VECTORS; ++v) run.part[v] = stage.weights[r][c][v][threadIdx.x % LANES];
#pragma unroll
        for (int s = 0; s < STEPS; ++s) {
            uint32_t a[4];
            run.fragment(a, s);
#pragma unroll
            for (int j = 0; j < TOKEN_TILES; ++j) ptx::mma::m16n8k16<Element>(sum[r][j], a, x.b[s][j]);
        }
    }
}

// Every step of a warp.
__device__ __forceinline__ void accumulate(Sum& sum, Shared& shared, Stream& stream, const Work& work, int warp) {
    const int rounds = work.rounds_of_part();
    const uint8_t* x = x_rows(shared) + warp * (STEP * sizeof(Element));
    int part = 0, until = 0, reading = 0;
    for (int step = work.first + warp, round = 0; step < work.end; step += SPLIT, ++round) {
        if (round == until) {
            ptx::mbarrier::wait(shared.full[part++], 0);
            until += rounds;
        }
        ptx::cp_async::wait_group<schedule::stages - 1>();
        __syncwarp();  // scales were copied by other lanes
        const Stage& stage = *reinterpret_cast<const Stage*>(stream.ring + reading * STAGE_BYTES);
#pragma unroll
        for (int c = 0; c < schedule::runs; ++c) {
            Tokens tokens;
            tokens.load(x + c * (COLUMNS * sizeof(Element)), work.pitch, work.tokens);
            if constexpr (GROUPED)
                multiply_groups(sum, tokens, stage, c);
            else
                multiply(sum, tokens, stage, c);
        }
        x += SPLIT * STEP * sizeof(Element);
        reading = reading + 1 == schedule::stages ? 0 : reading + 1;
        __syncwarp();
        stream.fill();
    }
}

// This CTA's columns of x, a part after the other.
struct Parts {
    int first, end, columns;  // the last part has fewer

    __device__ __forceinline__ Parts(const Work& work, int k)
        : first(work.first * STEP), end(min(work.end * STEP, k)), columns(work.rounds_of_part() * SPLIT * STEP) {}

    __device__ __forceinline__ int count() const { return (end - first + columns - 1) / columns; }
    __device__ __forceinline__ int nbytes(int part) const {
        return min(columns, end - first - part * columns) * int(sizeof(Element));
    }
};

// Bring them: one lane of each warp asks for some tokens' rows, those of the first part before the others.
__device__ __forceinline__ void load_x(Shared& shared, const Element* x, const Work& work, int k) {
    const Parts parts(work, k);
    if (threadIdx.x % LANES == 0)
        for (int item = threadIdx.x / LANES; item < parts.count() * work.tokens; item += WARPS) {
            const int part = item / work.tokens, token = item % work.tokens, column = part * parts.columns;
            ptx::bulk::load(x_rows(shared) + token * work.pitch + column * sizeof(Element),
                            x + int64_t(work.token + token) * k + parts.first + column, parts.nbytes(part),
                            shared.full[part]);
        }
    __syncwarp();
}

// What lies between k and the end of the last step is zero, as the weights there are: the two must not make a NaN.
__device__ __forceinline__ void pad_x(Shared& shared, const Work& work, int k) {
    constexpr int PER_VECTOR = VECTOR / sizeof(Element);
    const int vectors = (work.end * STEP - k) / PER_VECTOR;  // beyond k; negative where this CTA's columns end before
    for (int i = threadIdx.x; i < vectors * work.tokens; i += schedule::threads) {
        const int column = k - work.first * STEP + i % vectors * PER_VECTOR;
        *reinterpret_cast<Vector16*>(x_rows(shared) + i / vectors * work.pitch + column * sizeof(Element)) = {};
    }
}

// The barriers and what is zero of x; from here on the other CTAs of the cluster may send.
__device__ __forceinline__ void start(Shared& shared, const Work& work, int k) {
    pad_x(shared, work, k);
    if (threadIdx.x == 0) {
        for (int part = 0; part < schedule::parts; ++part) ptx::mbarrier::init(shared.full[part], 1);
        ptx::mbarrier::init(shared.arrived, 1);
        ptx::fence::mbarrier_init();
        const Parts parts(work, k);
        for (int part = 0; part < parts.count(); ++part)
            ptx::mbarrier::arrive_expect_tx(shared.full[part], parts.nbytes(part) * work.tokens);
        if constexpr (CLUSTER > 1) {
            const int quads = max(min(PART, QUADS - work.rank * PART), 0);
            ptx::mbarrier::arrive_expect_tx(shared.arrived, CLUSTER * work.tokens * quads * int(sizeof(float4)));
        }
        ptx::griddepcontrol::launch_dependents();
    }
    __syncthreads();
    if constexpr (CLUSTER > 1) ptx::cluster::arrive();
}

extern "C" __global__ void __launch_bounds__(schedule::threads, schedule::ctas_per_sm)
    gemv_mma(const Element* __restrict__ x, const Weight* __restrict__ w, const void* __restrict__ w_scale,
             Output* __restrict__ y, int m, int n, int k) {
    extern __shared__ __align__(128) uint8_t dynamic[];
    Shared& shared = *reinterpret_cast<Shared*>(dynamic);
    const Work work(m, k);
    const int warp = threadIdx.x / LANES;
    Stream stream(w, w_scale, work, n, k, warp / SPLIT, warp % SPLIT, shared.warps[warp].ring);
#pragma unroll
    for (int stage = 0; stage < schedule::stages; ++stage) stream.fill();
    start(shared, work, k);
    ptx::griddepcontrol::wait();  // until the launch before has written x, and reads y no more
    load_x(shared, x, work, k);
    Sum sum = {};
    accumulate(sum, shared, stream, work, warp % SPLIT);
    leave(sum, shared.warps[warp]);
    __syncthreads();
    if constexpr (CLUSTER > 1) exchange(shared, work);
    store(shared, w_scale, y, work, n);
}
