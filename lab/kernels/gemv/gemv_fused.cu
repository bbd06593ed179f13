// gemv_fused: y[m, n] = x[m, k] @ w[n, k].T for up to eight rows of x, the tokens, with what a layer does before and
// behind it: RMSNorm of x, silu(gate) * up, the sum with the residual stream.
//
// Idea: in a step each launch waits for the one ahead, and HBM with it. So what is small becomes part of what is large,
// and what is large asks for weights ahead: all CTAs are resident at once, each with a ring in shared memory that is
// full before the launch ahead has ended. x is normalised by every CTA for itself while it is brought to shared memory;
// the root of its mean square multiplies the sums.
// Adds to gemv_mma: the ring, so that HBM reads on while launches change; norm, gate and residual without a launch.
//
// Warp roles: one warp copies; `warps` multiply. A stage is 16 rows of w, a row tile, by some columns; each warp takes
// its own columns of them as A fragments of mma.sync, as they lie, with x as B in the same order. At the end of a row
// tile sums meet in shared memory; the warps take turns in finishing: warp t % warps finishes the CTA's row tile t.
//
//   copies     | s0 | s1 | s2 | s3 |  wait  | s4 | s5 | ...          stages = 4
//   launch ahead ................ends
//   others                            x | s0 | s1 | s2 | s3 | sums | s4 ...
//
// With swiglu a row tile of the gate is followed by that of the values it gates.
//
// Launches overlap: w never changes; x, and what is added, are not touched before the launch ahead has ended.
//
// Bytes expected from HBM: w, x, y, the norm's weights and the residual once; from L2 x and these weights once a CTA.
// blockIdx.y is the block of tokens: further ones, where x of all has no room, read w again.
#include "lab/kernels/common/dequantise.cuh"
#include "lab/kernels/common/ring_position.cuh"
#include "lab/kernels/common/silu.cuh"
#include "lab/kernels/common/warp_sum.cuh"
#include "lab/kernels/gemv/gemv_fused_stream.cuh"
#include "ptx/barrier.cuh"
#include "ptx/griddepcontrol.cuh"
#include "ptx/load.cuh"

constexpr int MULTIPLY = 1;  // named barrier of the warps that multiply

using Fragments = uint32_t[STEPS][2];  // of x, for a packet

// x of this CTA in shared memory, in the order of the fragments: 16-byte vectors of eight columns.
struct Tokens {
    uint8_t* rows;
    int pitch;  // bytes from token to token

    // Packed weights have fragments of their own (sim/int4.py): a lane's words of x come from all over 64 columns.
    __device__ __forceinline__ void put(int token, int column, const Vector16& eight) const {
        uint8_t* row = rows + token * pitch;
        if constexpr (GROUPED) {
            uint32_t* words = reinterpret_cast<uint32_t*>(row + column / 64 * 128 + column % 64 / 8 * 4);
#pragma unroll
            for (int t = 0; t < 4; ++t) words[t * 8] = eight.words[t];
        } else {
            *reinterpret_cast<Vector16*>(row + column * int(sizeof(bf16))) = eight;
        }
    }

    // The B fragments of the packet that begins at a column, of which so many are there. Tokens beyond the last are the
    // last one again.
    __device__ __forceinline__ void get(Fragments& b, int column, int columns, int tokens) const {
        const int lane = threadIdx.x % LANES;
        const uint8_t* from = rows + min(lane / 4, tokens - 1) * pitch + column * int(sizeof(bf16)) + lane % 4 * LANE_X;
#pragma unroll
        for (int v = 0; v < X_VECTORS; ++v) {
            if (GROUPED && v / 2 * 64 >= columns) break;
            const int skip = GROUPED ? v / 2 * 128 + v % 2 * VECTOR : v * VECTOR;
            const Vector16 four = *reinterpret_cast<const Vector16*>(from + skip);
#pragma unroll
            for (int word = 0; word < 4; ++word) b[2 * v + word / 2][word % 2] = four.words[word];
        }
    }
};

// Bring x, times the norm's weights, to shared memory, and this warp's sums of its squares.
__device__ __forceinline__ void bring_x(Shared& shared, const Tokens& to, const bf16* x, const bf16* norm, int tokens,
                                        int k) {
    for (int token = 0; token < tokens; ++token) {
        float squares = 0;
#pragma unroll 2
        for (int column = threadIdx.x * 8; column < k; column += CONSUMERS * 8) {
            Vector16 eight = ptx::load::cached(x + int64_t(token) * k + column);
            if constexpr (problem::norm) {
                const Vector16 by = ptx::load::cached(norm + column);
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    const float low = ptx::convert::low<bf16>(eight.words[i]);
                    const float high = ptx::convert::high<bf16>(eight.words[i]);
                    squares = fmaf(high, high, fmaf(low, low, squares));
                    eight.words[i] = ptx::convert::pair<bf16>(low * ptx::convert::low<bf16>(by.words[i]),
                                                              high * ptx::convert::high<bf16>(by.words[i]));
                }
            }
            to.put(token, column, eight);
        }
        if constexpr (problem::norm) {
            squares = warp_sum(squares);
            if (threadIdx.x % LANES == 0) shared.squares[token][threadIdx.x / LANES] = squares;
        }
    }
}

// sum += a packet of row-major weights times x.
__device__ __forceinline__ void multiply(float (&sum)[4], const uint8_t* w, const Fragments& b) {
    const int lane = threadIdx.x % LANES;
    const uint8_t* from = w + lane / 4 * PITCH + lane % 4 * VECTOR;
    Vector16 half[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) half[h] = *reinterpret_cast<const Vector16*>(from + h * (MMA_M / 2) * PITCH);
#pragma unroll
    for (int s = 0; s < STEPS; ++s) {
        uint32_t a[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            if constexpr (sizeof(Weight) == 1)
                a[i] = bf16_of_fp8(half[i % 2].words[s], i / 2 * 2);
            else
                a[i] = half[i % 2].words[2 * s + i / 2];
        }
        ptx::mma::m16n8k16<bf16>(sum, a, b[s]);
    }
}

// sum += a packet of packed weights times x, of which the first `columns` are there: group by group, as q + INT4_BIAS;
// scale and offset come after. An A fragment of ones sums x.
__device__ __forceinline__ void multiply_groups(float (&sum)[4], const uint8_t* w, const uint8_t* pairs,
                                                const Fragments& b, int columns, uint32_t significands) {
    constexpr int GROUP_STEPS = GROUP / MMA_K;
    constexpr uint32_t ONES[4] = {0x3f803f80, 0x3f803f80, 0x3f803f80, 0x3f803f80};  // of bf16
    const int lane = threadIdx.x % LANES;
    float partial[4], x_sum[4];
    Vector16 tile;
#pragma unroll
    for (int s = 0; s < STEPS; ++s) {
        if (s * MMA_K >= columns) break;
        if (s % 4 == 0) tile = *reinterpret_cast<const Vector16*>(w + s / 4 * PACKED_BYTES + lane * VECTOR);
        const bool first = s % GROUP_STEPS == 0;
        uint32_t a[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) a[i] = biased_bf16_of_int4(tile.words[s % 4], i, significands);
        multiply_tile<bf16>(x_sum, ONES, b[s], first);
        multiply_tile<bf16>(partial, a, b[s], first);
        if (s % GROUP_STEPS != GROUP_STEPS - 1 && (s + 1) * MMA_K < columns) continue;
        const auto both = *reinterpret_cast<const Vector<8>*>(pairs + s / GROUP_STEPS * PAIRS_BYTES + lane / 4 * 8);
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            const float scale = ptx::convert::low<fp16>(both.words[h]), stored = ptx::convert::high<fp16>(both.words[h]);
            const float offset = problem::zero_points ? -scale * (stored + INT4_BIAS) : fmaf(-INT4_BIAS, scale, stored);
#pragma unroll
            for (int i = 0; i < 2; ++i)
                sum[2 * h + i] = fmaf(offset, x_sum[i], fmaf(scale, partial[2 * h + i], sum[2 * h + i]));
        }
    }
}

// This warp's part of the products of a row tile, whose stages are next in the ring.
__device__ __forceinline__ void consume(float (&sum)[4], Shared& shared, Position& at, const Tokens& x, int tokens, int k,
                                        uint32_t significands) {
    const int warp = threadIdx.x / LANES;
    for (int first = 0; first < k; first += STAGE_COLUMNS, at.advance()) {
        const Stage& stage = stage_of(shared, at.stage);
        ptx::mbarrier::wait(shared.full[at.stage], at.parity);
#pragma unroll
        for (int u = 0; u < schedule::unroll; ++u) {
            const int packet = u * WARPS + warp, column = first + packet * PACKET_COLUMNS;
            if (column >= k) break;
            Fragments b;
            x.get(b, column, k - column, tokens);
            if constexpr (GROUPED)
                multiply_groups(sum, stage.w + packet * PACKET_BYTES, stage.pairs + packet * PACKET_PAIRS, b, k - column,
                                significands);
            else
                multiply(sum, stage.w + packet * ROW_BYTES, b);
        }
        __syncwarp();
        if (threadIdx.x % LANES == 0) ptx::mbarrier::arrive(shared.empty[at.stage]);
    }
}

// A warp's sums of a row tile to shared memory.
__device__ __forceinline__ void put_sums(const float (&sum)[4], float (&to)[schedule::block_m][MMA_M]) {
    const int row = threadIdx.x % LANES / 4, token = threadIdx.x % 4 * 2;
#pragma unroll
    for (int i = 0; i < 4; ++i)
        if (token + i % 2 < schedule::block_m) to[token + i % 2][row + i / 2 * (MMA_M / 2)] = sum[i];
}

// What all warps have of a row of a row tile together, scaled.
__device__ __forceinline__ float row_sum(const Sums& sums, int half, int token, int row, const float* w_scale,
                                         int row_of_w) {
    float total = 0;
#pragma unroll
    for (int warp = 0; warp < WARPS; ++warp) total += sums[half][warp][token][row];
    if constexpr (problem::scaled) total *= w_scale[problem::row_scales ? row_of_w : 0];
    return total;
}

// Where this CTA's tokens end up.
struct Results {
    const bf16* residual;
    const float* w_scale;
    bf16* y;
    int tokens, k, columns;  // of y
    float eps;
};

// The root of token's mean square, inverse.
__device__ __forceinline__ float inverse_root(const Shared& shared, int token, const Results& out) {
    float squares = 0;
#pragma unroll
    for (int warp = 0; warp < WARPS; ++warp) squares += shared.squares[token][warp];
    return rsqrtf(squares / out.k + out.eps);
}

// One warp's: y of a row tile, half a warp for each token.
__device__ __forceinline__ void finish(const Shared& shared, const Sums& sums, int tile, const Results& out) {
    const int lane = threadIdx.x % LANES, row = lane % MMA_M, column = tile * MMA_M + row;
    for (int token = lane / MMA_M; token < out.tokens; token += LANES / MMA_M) {
        const int64_t at = int64_t(token) * out.columns + column;
        float added = 0;
        if constexpr (problem::residual) added = ptx::convert::to_float(out.residual[at]);
        const float root = problem::norm ? inverse_root(shared, token, out) : 1;
        float value = root * row_sum(sums, 0, token, row, out.w_scale, column);
        if constexpr (problem::swiglu)
            value = silu(value) * root * row_sum(sums, 1, token, row, out.w_scale, out.columns + column);
        ptx::convert::from_float(out.y[at], value + added);
    }
}

extern "C" __global__ void __launch_bounds__(schedule::threads, schedule::ctas_per_sm)
    gemv_fused(const bf16* __restrict__ x, const bf16* __restrict__ norm, const uint8_t* __restrict__ w,
               const void* __restrict__ w_scale, const bf16* residual, bf16* __restrict__ y, int m, int n, int k, float eps) {
    extern __shared__ __align__(128) uint8_t dynamic[];
    Shared& shared = *reinterpret_cast<Shared*>(dynamic);
    const int columns = n / HALVES;
    const Work work(columns / MMA_M);
    ptx::griddepcontrol::launch_dependents();
    if (threadIdx.x == 0) start(shared);
    __syncthreads();
    if (threadIdx.x >= CONSUMERS) {
        produce(shared, work, w, static_cast<const uint8_t*>(w_scale), columns / MMA_M, k);
        return;
    }
    ptx::griddepcontrol::wait();  // until the launch ahead has written x, and reads y no more
    const int64_t token0 = int64_t(blockIdx.y) * schedule::block_m;
    const int tokens = int(min(int64_t(schedule::block_m), m - token0));
    const Tokens own{x_of(shared), x_pitch(k)};
    bring_x(shared, own, x + token0 * k, norm, tokens, k);
    ptx::barrier::sync<CONSUMERS>(MULTIPLY);
    const Results out{residual + token0 * columns, static_cast<const float*>(w_scale), y + token0 * columns, tokens, k,
                      columns, eps};
    const uint32_t significands = INT4_SIGNIFICANDS * gridDim.z;  // which is 1: it thus stays in one register
    const int warp = threadIdx.x / LANES;
    Position at;
    for (int tile = work.first; tile < work.end; ++tile) {
        const int turn = tile - work.first;
        Sums& sums = shared.sums[turn % 2];  // those of the tile before may still be read
#pragma unroll
        for (int half = 0; half < HALVES; ++half) {
            float sum[4] = {};
            consume(sum, shared, at, own, tokens, k, significands);
            put_sums(sum, sums[half][warp]);
        }
        ptx::barrier::sync<CONSUMERS>(MULTIPLY);
        if (turn % WARPS == warp) finish(shared, sums, tile, out);
    }
}
