// gemv_mma: y[m, n] = x[m, k] @ w[n, k].T for few rows of x, the tokens, on the tensor cores: batched decode.
//
// Idea: w is the A operand of mma.sync and up to eight tokens are the columns of B, so that one stream of weights serves
// them all. Nothing is staged: the order of k within a sum is free, so what a lane loads with 16 bytes of a row is a
// fragment as it is, if x is read in the same order. Many warps with a few such loads in flight stream faster than rings.
// x comes through L1, which the CTAs of an SM share.
//
// A request covers 8 rows of w, 64 bytes each; HBM and L2 like longer stretches. With `fold` = 2 it covers 4 rows, 128
// bytes each: the rows of an mma then are 4 rows of w twice, at two parts of k. Each part of x is multiplied with all of
// them, which is twice as much as needed, and of the sums each quad of lanes keeps those of its own part: the tensor
// cores have the time.
// Adds to gemv_vectorized: tensor cores, so more tokens; int4 groups, scale and offset applied to sums of a group.
//
// Warp roles: all alike. A team of `split_k` warps shares `rows` row tiles, of 16 / fold rows; its warps take the chunks
// along k in turn; partial sums meet in shared memory.
//
//   fold = 1        k: 0 .. 31 (bf16)          fold = 2         k: 0 .. 31   32 .. 63
//   rows 0 .. 7    | lanes 4 g + t |           rows 0 .. 3     | even quads | odd quads |      request 0
//   rows 8 .. 15   | the same      |           rows 4 .. 7     | even quads | odd quads |      request 1
//
// Launches overlap: w never changes, so a warp's first loads of it are issued before the launch before has ended.
// The launch behind may begin at once, or `late`, when the loads here are done: its own first ones would delay the last.
//
// Bytes expected from HBM: w once, x once, y once. blockIdx.y is the block of tokens: further ones read w again. From L1:
// x once for every team.
#include "lab/kernels/common/dequantise.cuh"
#include "lab/kernels/gemv/mma_tiles.cuh"
#include "ptx/convert.cuh"
#include "ptx/griddepcontrol.cuh"
#include "ptx/load.cuh"
#include "schedule.cuh"

using Element = problem::activations;  // of x, and what the tensor cores multiply
using Weight = problem::weights;
using Output = problem::output;

constexpr int TOKEN_TILES = schedule::block_m / MMA_N;
constexpr int REQUEST = LANES * VECTOR;  // bytes
constexpr int PAIRS_BYTES = 64;          // scale and offset of 16 rows and a group
constexpr int FOLD = schedule::fold, SPLIT = schedule::split_k, ROWS = schedule::rows, UNROLL = schedule::unroll;
constexpr bool GROUPED = problem::group > 0;

// A run is what a row tile takes of two requests: of row-major weights, the upper and the lower half of its rows; of
// packed ones, two neighbouring tiles (sim/int4.py).
constexpr int TILE_ROWS = MMA_M / FOLD;
constexpr int HALF_ROWS = TILE_ROWS / 2;
constexpr int PART_COLUMNS = GROUPED ? 128 : 4 * VECTOR / int(sizeof(Weight));  // of a run: those of a part of k
constexpr int RUN_COLUMNS = FOLD * PART_COLUMNS;
constexpr int STEPS = PART_COLUMNS / MMA_K;  // mma along a part
constexpr int GROUP = GROUPED ? problem::group : PART_COLUMNS;
constexpr int GROUPS = PART_COLUMNS / GROUP;  // of a run
constexpr int CHUNK = UNROLL * RUN_COLUMNS;  // columns that a warp takes at once
constexpr int TEAM_ROWS = ROWS * TILE_ROWS;
constexpr int BLOCK_N = schedule::teams * TEAM_ROWS;
constexpr int OUTPUTS = schedule::block_m * BLOCK_N;

static_assert(schedule::threads == LANES * schedule::teams * SPLIT, "teams of split_k warps");

struct Shared {
    float sums[schedule::teams][SPLIT * FOLD][schedule::block_m][TEAM_ROWS + 4];
};

// What a lane holds of some runs: weights, and of packed ones scale and offset of its two rows for each group.
template <int count>
struct Runs {
    Vector16 w[count][ROWS][2];
    Vector<8> pairs[count][ROWS][GROUPS];
};

// B fragments of a run: for each part of k and eight tokens, in the order of k that the A fragments have.
using Fragments = uint32_t[FOLD][TOKEN_TILES][STEPS][2];
using Sums = float[ROWS][FOLD][TOKEN_TILES][4];

// Where a warp reads: this lane's first bytes in the first row tile, what lies between tiles, and how much there is.
struct Team {
    const uint8_t *w, *pairs, *x[TOKEN_TILES];
    int pitch, pairs_pitch;  // of row-major w between requests, of packed w between row tiles
    int rows, k;             // rows of w from the team's first one on; columns

    __device__ __forceinline__ Team(const Element* x, const Weight* weights, const void* w_scale, int row0, int tokens,
                                    int n, int k)
        : rows(n - row0), k(k) {
        const int lane = threadIdx.x % LANES, g = lane / 4, t = lane % 4;
        const auto* bytes = reinterpret_cast<const uint8_t*>(weights);
        pairs = nullptr;
        pairs_pitch = 0;
        if constexpr (GROUPED) {
            const int64_t tile = row0 / TILE_ROWS;
            pitch = (k + 63) / 64 * REQUEST;
            pairs_pitch = (k + GROUP - 1) / GROUP * PAIRS_BYTES;
            w = bytes + tile * pitch + lane * VECTOR;
            pairs = static_cast<const uint8_t*>(w_scale) + tile * pairs_pitch + g * sizeof(Vector<8>);
        } else {
            pitch = HALF_ROWS * int(sizeof(Weight)) * k;
            w = bytes + int64_t(row0 + lane_row()) * k * sizeof(Weight) + lane % (4 * FOLD) * VECTOR;
        }
#pragma unroll
        for (int j = 0; j < TOKEN_TILES; ++j) {
            const int64_t token = min(j * MMA_N + g, tokens - 1);  // clamped; what it then sums is discarded
            this->x[j] = reinterpret_cast<const uint8_t*>(x + token * k + t * (GROUPED ? 2 : PART_COLUMNS / 4));
        }
    }

    // Within a request of row-major weights.
    static __device__ __forceinline__ int lane_row() { return threadIdx.x % LANES / (4 * FOLD); }
    static __device__ __forceinline__ int lane_column() {
        return threadIdx.x % (4 * FOLD) * (VECTOR / int(sizeof(Weight)));
    }

    // The columns from `at` on; where all of them lie inside of w the loads need no predicate.
    template <bool whole, int count>
    __device__ __forceinline__ void load(Runs<count>& runs, int at) const {
#pragma unroll
        for (int u = 0; u < count; ++u)
#pragma unroll
            for (int r = 0; r < ROWS; ++r) {
                const int first = at + u * RUN_COLUMNS;
#pragma unroll
                for (int h = 0; h < 2; ++h) {
                    const uint8_t* from = w + int64_t(GROUPED ? r : 2 * r + h) * pitch +
                                          (GROUPED ? first * 8 + h * REQUEST : first * int(sizeof(Weight)));
                    const int column = first + (GROUPED ? h * 64 : lane_column());
                    const int row = r * TILE_ROWS + (GROUPED ? 0 : h * HALF_ROWS + lane_row());
                    runs.w[u][r][h] =
                        whole ? ptx::load::stream(from) : ptx::load::stream_if(from, column < k && row < rows);
                }
                if constexpr (GROUPED)
#pragma unroll
                    for (int q = 0; q < GROUPS; ++q) {
                        const uint8_t* from = pairs + int64_t(r) * pairs_pitch + (first / GROUP + q) * PAIRS_BYTES;
                        const bool inside = first + q * GROUP < k && r * TILE_ROWS < rows;
                        runs.pairs[u][r][q] = whole ? ptx::load::cached_8(from) : ptx::load::cached_8_if(from, inside);
                    }
            }
    }

    template <bool whole>
    __device__ __forceinline__ void load_x(Fragments& b, int at) const {
        constexpr int VECTORS = sizeof(Element) / sizeof(Weight);  // of a lane, for as many columns as it has of w
        const int t = threadIdx.x % 4;
#pragma unroll
        for (int f = 0; f < FOLD; ++f)
#pragma unroll
            for (int j = 0; j < TOKEN_TILES; ++j) {
                const int first = at + f * PART_COLUMNS;
                const uint8_t* from = x[j] + first * sizeof(Element);
                if constexpr (GROUPED) {
#pragma unroll
                    for (int i = 0; i < 2 * STEPS; ++i)
                        b[f][j][i / 2][i % 2] = whole ? ptx::load::cached_4(from + i * VECTOR)
                                                      : ptx::load::cached_4_if(from + i * VECTOR, first + i * (VECTOR / int(sizeof(Element))) < k);
                } else {
#pragma unroll
                    for (int i = 0; i < VECTORS; ++i) {
                        const bool inside = first + t * (PART_COLUMNS / 4) < k;
                        const Vector16 four = whole ? ptx::load::cached(from + i * VECTOR)
                                                    : ptx::load::cached_if(from + i * VECTOR, inside);
#pragma unroll
                        for (int word = 0; word < 4; ++word) b[f][j][2 * i + word / 2][word % 2] = four.words[word];
                    }
                }
            }
    }
};

// sum += the products of a run of row-major weights.
template <int count>
__device__ __forceinline__ void multiply(Sums& sum, const Runs<count>& runs, const Fragments& b, int u) {
#pragma unroll
    for (int r = 0; r < ROWS; ++r)
#pragma unroll
        for (int s = 0; s < STEPS; ++s) {
            uint32_t a[4];
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const uint32_t(&words)[4] = runs.w[u][r][i % 2].words;
                if constexpr (sizeof(Weight) == 1)
                    a[i] = bf16_of_fp8(words[s], i / 2 * 2);
                else
                    a[i] = words[2 * s + i / 2];
            }
#pragma unroll
            for (int f = 0; f < FOLD; ++f)
#pragma unroll
                for (int j = 0; j < TOKEN_TILES; ++j) ptx::mma::m16n8k16<Element>(sum[r][f][j], a, b[f][j][s]);
        }
}

// sum += the products of a run of int4 weights. Each group is summed by itself, as q + INT4_BIAS times x; scale and
// offset come after. An A fragment of ones sums x, in the lanes that need it.
template <int count>
__device__ __forceinline__ void multiply_groups(Sums& sum, const Runs<count>& runs, const Fragments& b, int u,
                                                uint32_t significands) {
    constexpr int GROUP_STEPS = GROUP / MMA_K;
    constexpr uint32_t ONES[4] = {0x3f803f80, 0x3f803f80, 0x3f803f80, 0x3f803f80};  // of bf16
    float partial[ROWS][TOKEN_TILES][4], x_sum[TOKEN_TILES][4];
#pragma unroll
    for (int s = 0; s < STEPS; ++s) {
        const bool first = s % GROUP_STEPS == 0, last = s % GROUP_STEPS == GROUP_STEPS - 1;
#pragma unroll
        for (int j = 0; j < TOKEN_TILES; ++j) multiply_tile<Element>(x_sum[j], ONES, b[0][j][s], first);
#pragma unroll
        for (int r = 0; r < ROWS; ++r) {
            uint32_t a[4];
#pragma unroll
            for (int i = 0; i < 4; ++i)
                a[i] = biased_bf16_of_int4(runs.w[u][r][s / 4].words[s % 4], i, significands);
#pragma unroll
            for (int j = 0; j < TOKEN_TILES; ++j) multiply_tile<Element>(partial[r][j], a, b[0][j][s], first);
            if (!last) continue;
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                const uint32_t pair = runs.pairs[u][r][s / GROUP_STEPS].words[h];
                const float scale = ptx::convert::low<fp16>(pair), stored = ptx::convert::high<fp16>(pair);
                const float offset =
                    problem::zero_points ? -scale * (stored + INT4_BIAS) : fmaf(-INT4_BIAS, scale, stored);
#pragma unroll
                for (int j = 0; j < TOKEN_TILES; ++j)
#pragma unroll
                    for (int i = 0; i < 2; ++i) {
                        float& total = sum[r][0][j][2 * h + i];
                        total = fmaf(offset, x_sum[j][i], fmaf(scale, partial[r][j][2 * h + i], total));
                    }
            }
        }
    }
}

// `count` runs from column `at` on: all loads are issued before the first mma.
template <bool whole, int count>
__device__ __forceinline__ void step(Sums& sum, const Team& team, int at, uint32_t significands) {
    Runs<count> runs;
    team.load<whole>(runs, at);
    ptx::griddepcontrol::wait();  // at first: until the launch before has written x, and reads y no more
    __syncwarp();  // ptxas would sink each load to its first use; it moves none across a warp barrier
    Fragments b[count];
#pragma unroll
    for (int u = 0; u < count; ++u) team.load_x<whole>(b[u], at + u * RUN_COLUMNS);
#pragma unroll
    for (int u = 0; u < count; ++u) {
        if constexpr (GROUPED)
            multiply_groups(sum, runs, b[u], u, significands);
        else
            multiply(sum, runs, b[u], u);
    }
}

// The sums of a warp to shared memory: of each part of k, those that belong to it.
__device__ __forceinline__ void stage_sums(const Sums& sum, Shared& shared, int team, int warp) {
    const int g = threadIdx.x % LANES / 4, t = threadIdx.x % 4, fold = g % FOLD;
#pragma unroll
    for (int r = 0; r < ROWS; ++r)
#pragma unroll
        for (int j = 0; j < TOKEN_TILES; ++j)
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                float own = sum[r][0][j][i];
#pragma unroll
                for (int f = 1; f < FOLD; ++f)
                    if (fold == f) own = sum[r][f][j][i];
                const int row = r * TILE_ROWS + i / 2 * HALF_ROWS + g / FOLD;
                shared.sums[team][warp * FOLD + fold][j * MMA_N + t * 2 + i % 2][row] = own;
            }
}

extern "C" __global__ void __launch_bounds__(schedule::threads, schedule::ctas_per_sm)
    gemv_mma(const Element* __restrict__ x, const Weight* __restrict__ w, const void* __restrict__ w_scale,
             Output* __restrict__ y, int m, int n, int k) {
    __shared__ Shared shared;
    const int warp = __shfl_sync(~0u, threadIdx.x / LANES, 0) % SPLIT;  // known to be the same in all lanes
    const int team = __shfl_sync(~0u, threadIdx.x / LANES, 0) / SPLIT;
    const int64_t token0 = int64_t(blockIdx.y) * schedule::block_m;
    const int tokens = int(min(int64_t(schedule::block_m), m - token0));
    const int block_row = blockIdx.x * BLOCK_N, row0 = block_row + team * TEAM_ROWS;
    const uint32_t significands = INT4_SIGNIFICANDS * gridDim.z;  // which is 1: it thus stays in one register
    const Team part(x + token0 * k, w, w_scale, row0, tokens, n, k);

    if constexpr (!schedule::late) ptx::griddepcontrol::launch_dependents();
    Sums sum = {};
    int at = warp * CHUNK;
    if (part.rows >= TEAM_ROWS)
#pragma unroll 1
        for (; at + CHUNK <= k; at += SPLIT * CHUNK) step<true, UNROLL>(sum, part, at, significands);
    if (part.rows > 0)
#pragma unroll 1
        for (; at < k; at += SPLIT * CHUNK)  // run by run: predicates take registers
#pragma unroll 1
            for (int run = at; run < min(at + CHUNK, k); run += RUN_COLUMNS)
                step<false, 1>(sum, part, run, significands);
    if constexpr (schedule::late) ptx::griddepcontrol::launch_dependents();
    stage_sums(sum, shared, team, warp);
    __syncthreads();

    const auto* scales = static_cast<const float*>(w_scale);
    float scale = 1;
    if (problem::scaled && !problem::row_scales && threadIdx.x < OUTPUTS)
        scale = __uint_as_float(ptx::load::cached_4(scales));
#pragma unroll 1
    for (int index = threadIdx.x; index < OUTPUTS; index += schedule::threads) {
        const int token = index / BLOCK_N, row = index % BLOCK_N;
        if (token >= tokens || block_row + row >= n) continue;
        float total = 0;
#pragma unroll
        for (int s = 0; s < SPLIT * FOLD; ++s) total += shared.sums[row / TEAM_ROWS][s][token][row % TEAM_ROWS];
        if constexpr (problem::row_scales) scale = scales[block_row + row];
        ptx::convert::from_float(y[(token0 + token) * n + block_row + row], total * scale);
    }
}
