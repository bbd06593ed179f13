// attention_naive: y = softmax(q k^T / sqrt(head_dim)) v in three launches, with every score in global memory.
//
// Idea: the definition, matrix by matrix: all scores, the softmax of each row of them, all weights times values. The
// products run on the tensor cores, so that what is left of the time is what the scores cost on their way.
//
// Warp roles: all alike. A warp has 16 rows of a tile of scores or of y; in the softmax a row by itself.
//
//   attention_naive            q, k -> scores      a CTA a tile of block_m queries x block_n keys
//   attention_naive_softmax    scores -> weights   a warp a row, twice over it: maximum, then weights and their sum
//   attention_naive_values     weights, v -> y     a CTA a tile of block_m queries
//
// Bytes expected from HBM: beside q, k, v and y once, for each pair of a query and a key of each head 4 written and read
// once or twice as a score, 2 written and read as a weight: quadratic in the length.
#include "lab/kernels/attention/mma_tiles.cuh"
#include "lab/kernels/common/warp_sum.cuh"
#include "ptx/convert.cuh"
#include "ptx/ex2.cuh"

constexpr int DIM = problem::head_dim;
constexpr int WARPS = schedule::threads / WARP;
static_assert(schedule::block_m == WARPS * MMA_M, "16 rows a warp");

__device__ __forceinline__ int blocks_of(int extent, int block) { return (extent + block - 1) / block; }

// A sequence's own lengths, and the row of q that it starts at.
struct Sequence {
    int queries, keys, query;
};

__device__ __forceinline__ Sequence sequence_at(const int* q_starts, const int* kv_lens, int at) {
    const int query = q_starts[at];
    return {q_starts[at + 1] - query, kv_lens[at], query};
}

struct ScoreTiles {
    MmaTile<schedule::block_m, DIM> q;
    MmaTile<schedule::block_n, DIM> k;
};

struct ValueTiles {
    MmaTile<schedule::block_m, schedule::block_n> weights;
    MmaTile<schedule::block_n, DIM> v;
};

union Shared {
    ScoreTiles of_scores;
    ValueTiles of_values;
};

static_assert(sizeof(ScoreTiles) == schedule::score_rows * DIM * sizeof(Element), "what the launch asks for");
static_assert(sizeof(ValueTiles) == schedule::weight_bytes + schedule::block_n * DIM * sizeof(Element), "likewise");

// scores[head of a sequence, query, key], `columns` of them a row; masked ones as well.
extern "C" __global__ void __launch_bounds__(schedule::threads)
    attention_naive(const Element* __restrict__ q, const Element* __restrict__ k, float* __restrict__ scores,
                    const int* q_starts, const int* kv_lens, const int* kv_starts, int q_heads, int q_len, int kv_len,
                    int columns) {
    extern __shared__ __align__(128) uint8_t dynamic[];
    ScoreTiles& tiles = reinterpret_cast<Shared*>(dynamic)->of_scores;
    const int across = blocks_of(kv_len, schedule::block_n), down = blocks_of(q_len, schedule::block_m);
    const int first_key = blockIdx.x % across * schedule::block_n;
    const int token = blockIdx.x / across % down * schedule::block_m, of = blockIdx.x / across / down;
    const int head = of % q_heads, kv_heads = q_heads / problem::group;
    const Sequence sequence = sequence_at(q_starts, kv_lens, of / q_heads);
    if (token >= sequence.queries || first_key >= sequence.keys) return;

    fill(tiles.q, q + (int64_t(sequence.query + token) * q_heads + head) * DIM, int64_t(q_heads) * DIM,
         sequence.queries - token, DIM);
    fill(tiles.k, k + (int64_t(kv_starts[of / q_heads] + first_key) * kv_heads + head / problem::group) * DIM,
         int64_t(kv_heads) * DIM, sequence.keys - first_key, DIM);
    __syncthreads();
    const int row = threadIdx.x / WARP * MMA_M, lane = threadIdx.x % WARP;
    float sum[schedule::block_n / 8][4] = {};
#pragma unroll
    for (int step = 0; step < DIM / MMA_K; ++step) {
        uint32_t a[4];
        load_a(a, tiles.q, row, step);
        multiply_rows<schedule::block_n>(sum, a, tiles.k, step);
    }
    for (int half = 0; half < 2; ++half) {
        const int query = token + row + lane / 4 + 8 * half;
        float* to = scores + (int64_t(of) * q_len + query) * columns + first_key + lane % 4 * 2;
#pragma unroll
        for (int i = 0; i < schedule::block_n / 8; ++i)
            if (query < sequence.queries && first_key + 8 * i + lane % 4 * 2 < sequence.keys)
                *reinterpret_cast<float2*>(to + 8 * i) = {sum[i][2 * half], sum[i][2 * half + 1]};
    }
}

__device__ __forceinline__ float warp_max(float value) {
#pragma unroll
    for (int lanes = WARP / 2; lanes > 0; lanes /= 2) value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, lanes));
    return value;
}

// weights = e^(scale (scores - their maximum)), zeros for masked keys and to the end of a chunk; sums = their sums.
extern "C" __global__ void __launch_bounds__(schedule::threads)
    attention_naive_softmax(const float* __restrict__ scores, Element* __restrict__ weights, float* __restrict__ sums,
                            const int* q_starts, const int* kv_lens, int q_heads, int q_len, int columns, int rows,
                            float scale) {
    constexpr float LOG2_E = 1.4426950408889634f;
    const int row = blockIdx.x * WARPS + threadIdx.x / WARP, lane = threadIdx.x % WARP;
    if (row >= rows) return;
    const int token = row % q_len, at = row / q_len / q_heads;
    const Sequence sequence = sequence_at(q_starts, kv_lens, at);
    if (token >= sequence.queries) return;
    const int keys = sequence.keys;
    const int end = problem::causal ? token + keys - sequence.queries + 1 : keys;
    scores += int64_t(row) * columns;
    weights += int64_t(row) * columns;

    float largest = __uint_as_float(0xff800000u);  // -inf
    for (int first = 0; first < end; first += WARP)
        if (first + lane < end) largest = fmaxf(largest, scores[first + lane]);
    largest = warp_max(largest);
    scale *= LOG2_E;
    float sum = 0;
    for (int first = 0; first < end; first += WARP)
        if (first + lane < end) {
            const float weight = ptx::ex2::approx((scores[first + lane] - largest) * scale);
            sum += weight;
            ptx::convert::from_float(weights[first + lane], weight);
        }
    for (int first = max(end, 0); first < blocks_of(keys, CHUNK) * CHUNK; first += WARP)
        if (first + lane < blocks_of(keys, CHUNK) * CHUNK) weights[first + lane] = {};
    sum = warp_sum(sum);
    if (lane == 0) sums[row] = sum;
}

// y = weights v / sums; zeros where no key is seen.
extern "C" __global__ void __launch_bounds__(schedule::threads, 1)
    attention_naive_values(const Element* __restrict__ weights, const float* __restrict__ sums,
                           const Element* __restrict__ v, Element* __restrict__ y, const int* q_starts,
                           const int* kv_lens, const int* kv_starts, int q_heads, int q_len, int columns) {
    extern __shared__ __align__(128) uint8_t dynamic[];
    ValueTiles& tiles = reinterpret_cast<Shared*>(dynamic)->of_values;
    const int down = blocks_of(q_len, schedule::block_m);
    const int token = blockIdx.x % down * schedule::block_m, of = blockIdx.x / down;
    const int head = of % q_heads, kv_heads = q_heads / problem::group;
    const Sequence sequence = sequence_at(q_starts, kv_lens, of / q_heads);
    if (token >= sequence.queries) return;

    weights += (int64_t(of) * q_len + token) * columns;
    v += (int64_t(kv_starts[of / q_heads]) * kv_heads + head / problem::group) * DIM;
    const int row = threadIdx.x / WARP * MMA_M, lane = threadIdx.x % WARP;
    float sum[DIM / 8][4] = {};
    for (int key = 0; key < sequence.keys; key += schedule::block_n) {
        fill(tiles.weights, weights + key, columns, sequence.queries - token, sequence.keys - key);
        fill(tiles.v, v + int64_t(key) * kv_heads * DIM, int64_t(kv_heads) * DIM, sequence.keys - key, DIM);
        __syncthreads();
#pragma unroll
        for (int step = 0; step < schedule::block_n / MMA_K; ++step) {
            uint32_t a[4];
            load_a(a, tiles.weights, row, step);
            multiply_columns<DIM>(sum, a, tiles.v, step);
        }
        __syncthreads();  // the tiles are free
    }
    for (int half = 0; half < 2; ++half) {
        const int query = token + row + lane / 4 + 8 * half;
        if (query >= sequence.queries) continue;
        const float total = sums[int64_t(of) * q_len + query], inverse = total > 0 ? 1 / total : 0;
        Element* to = y + (int64_t(sequence.query + query) * q_heads + head) * DIM + lane % 4 * 2;
#pragma unroll
        for (int i = 0; i < DIM / 8; ++i)
            *reinterpret_cast<uint32_t*>(to + 8 * i) =
                ptx::convert::pair<Element>(sum[i][2 * half] * inverse, sum[i][2 * half + 1] * inverse);
    }
}
