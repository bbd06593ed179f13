// gemv_vectorized: y[m, n] = x[m, k] @ w[n, k].T for few rows of x: decode.
//
// Idea: weights are read once, so nothing is staged. Every lane streams eight weights at a time, a warp 256 or 512
// contiguous bytes, and several such loads are in flight before the first is used. Weights leave no line in L1; x, which
// every warp reads again, stays there. A CTA computes `block_m` tokens in one pass: each weight becomes a float once and
// is multiplied by an element of each of them.
// Adds to gemv_coalesced: wide loads, several in flight, weights past L1, a row shared by warps, tokens that share w.
//
// Warp roles: all alike. A team of `split_k` warps shares `rows` rows of w; warp s of it takes the k-steps
// s, s + split_k, ... of 256 elements; partial sums meet in shared memory.
//
//        k-step:    0        1        2        3
//   row r     | warp 0 | warp 1 | warp 0 | warp 1 |     split_k = 2
//   row r + 1 | warp 0 | warp 1 | warp 0 | warp 1 |     rows = 2
//
// Launches overlap: w never changes, so a warp's first loads of it are issued before the launch before has ended.
// The launch behind may begin at once, or `late`, when the loads here are done: its own first ones would delay the last.
//
// fp8 weights meet bf16 activations; their scale, one of all or one a row, multiplies the sums.
//
// What lies between the matrices of a step is no launch of its own, where one token makes it as short as a launch.
// swiglu: half of a team's rows are of the gate, half of what it gates. RMSNorm is in two parts, as its root is a scalar
// that may come last. The matrix ahead adds the residual, multiplies by the norm's weights and sums the squares of each
// eight rows of a CTA; in the one behind each thread asks for some of these sums with its first x, and the root
// multiplies what a team stores.
//
// Bytes expected from HBM: w once, x once, y once. blockIdx.y is the block of tokens: further ones read w again. From L1:
// x once for every `rows` rows, so that many tokens want many rows.
#include "lab/kernels/common/silu.cuh"
#include "lab/kernels/common/warp_sum.cuh"
#include "ptx/convert.cuh"
#include "ptx/griddepcontrol.cuh"
#include "ptx/load.cuh"
#include "schedule.cuh"

using Weight = problem::weights;
using Activation = problem::activations;
using Output = problem::output;

constexpr int LANES = 32;
constexpr int VECTOR = sizeof(Vector16) / sizeof(Activation);  // elements of a lane's load
using Weights = Vector<VECTOR * sizeof(Weight)>;

constexpr int STEP = LANES * VECTOR;              // elements of a row that a warp takes at once
constexpr int STRIDE = STEP * schedule::split_k;  // from one k-step of a warp to its next
constexpr int ROWS = schedule::rows, TOKENS = schedule::block_m;
constexpr int SUMS = TOKENS * ROWS;  // of a team; those of a token adjoin
constexpr int WARPS = schedule::teams * schedule::split_k;

constexpr int HALVES = problem::swiglu ? 2 : 1;  // of a team's rows: the gate's and those of what it gates
constexpr int COLUMNS = ROWS / HALVES;           // of y that a team makes of a token
constexpr int SQUARES = schedule::squares;       // rows whose squares are one sum

static_assert(schedule::threads == LANES * WARPS, "teams of split_k warps");
static_assert(SUMS <= LANES, "a lane stores one");
static_assert(TOKENS == 1 || !(problem::swiglu || problem::rooted || problem::summed), "for one token a CTA");
static_assert(!problem::summed || schedule::teams * ROWS % SQUARES == 0, "a CTA has all rows of a sum");

struct Shared {
    float partial[schedule::teams][schedule::split_k][SUMS];
    float squares[WARPS];  // of x; then of each team's columns of y
};

// The rows that a warp multiplies: of x, of w, and how many of them, in either half, are not beyond the last.
struct Part {
    const Activation* x;
    const Weight* w;
    int64_t half;  // elements from one half of w to the other
    int tokens, rows, k;
};

// What a thread needs beside: its share of the sums of squares of x, and what its lane adds to y.
struct Beside {
    static constexpr int AT_ONCE = 4;  // squares that a thread asks for with its first x
    const float* squares;
    const Output* residual;
    int parts;  // of the squares
    bool adds;
    float own[AT_ONCE];
    float sum;
    uint16_t added;  // as it came: nothing waits for it before the end

    // When the launch before has ended.
    __device__ __forceinline__ void ask() {
        if constexpr (problem::summed) added = ptx::load::cached_2_if(residual, adds);
        if constexpr (problem::rooted) {
#pragma unroll
            for (int i = 0; i < AT_ONCE; ++i) {
                const int at = threadIdx.x + i * schedule::threads;
                own[i] = __uint_as_float(ptx::load::cached_4_if(squares + at, at < parts));
            }
        }
    }

    // When the first of x are there, and so are these.
    __device__ __forceinline__ void add() {
        if constexpr (problem::rooted) sum = (own[0] + own[1]) + (own[2] + own[3]);
    }

    // The sum of this thread's squares.
    __device__ __forceinline__ float all() const {
        float total = sum;
#pragma unroll 1
        for (int at = threadIdx.x + AT_ONCE * schedule::threads; at < parts; at += schedule::threads)
            total += __uint_as_float(ptx::load::cached_4(squares + at));
        return total;
    }
};

template <bool whole>
__device__ __forceinline__ Weights load_w(const Part& part, int row, int at) {
    const Weight* from = part.w + int64_t(row % COLUMNS) * part.k + row / COLUMNS * part.half + at;
    return whole ? ptx::load::no_allocate<sizeof(Weights)>(from)
                 : ptx::load::no_allocate_if<sizeof(Weights)>(from, at < part.k && row % COLUMNS < part.rows);
}

template <bool whole>
__device__ __forceinline__ Vector16 load_x(const Part& part, const Activation* from, int at) {
    return whole ? ptx::load::cached(from) : ptx::load::cached_if(from, at < part.k);
}

// The elements of a vector as floats.
template <typename T>
__device__ __forceinline__ void widen(float (&values)[VECTOR], const Vector<VECTOR * sizeof(T)>& vector) {
#pragma unroll
    for (int i = 0; i < VECTOR / 2; ++i) {
        if constexpr (sizeof(T) == 1) {
            const uint32_t word = vector.words[i / 2];
            const uint32_t pair =
                i % 2 ? ptx::convert::widen_upper_fp8(word) : ptx::convert::widen_fp8(uint16_t(word));
            values[2 * i] = ptx::convert::low<fp16>(pair);
            values[2 * i + 1] = ptx::convert::high<fp16>(pair);
        } else {
            values[2 * i] = ptx::convert::low<T>(vector.words[i]);
            values[2 * i + 1] = ptx::convert::high<T>(vector.words[i]);
        }
    }
}

// `unroll` k-steps of `rows` rows from element k0 on, the `first` of this warp or later ones: all loads of w are issued
// before the first multiply, and those of x where it has one token. Where the whole step lies inside the matrix the loads need no predicate.
template <bool whole>
__device__ __forceinline__ void step(float (&sum)[SUMS], const Part& part, Beside& beside, int k0, bool first) {
    Weights w_part[schedule::unroll][ROWS];
    Vector16 x_part[schedule::unroll];
#pragma unroll
    for (int u = 0; u < schedule::unroll; ++u) {
        const int at = k0 + u * STRIDE;
#pragma unroll
        for (int r = 0; r < ROWS; ++r) w_part[u][r] = load_w<whole>(part, r, at);
    }
    if (first) ptx::griddepcontrol::wait();  // until the launch before has written x, and reads y no more
    if constexpr (TOKENS == 1) {
#pragma unroll
        for (int u = 0; u < schedule::unroll; ++u) {
            const int at = k0 + u * STRIDE;
            x_part[u] = load_x<whole>(part, part.x + at, at);
        }
    }
    if (first) beside.ask();
    __syncwarp();  // ptxas would sink each load to its first use; it moves none across a warp barrier
#pragma unroll
    for (int u = 0; u < schedule::unroll; ++u) {
        float w[ROWS][VECTOR], x[VECTOR];
#pragma unroll
        for (int r = 0; r < ROWS; ++r) widen<Weight>(w[r], w_part[u][r]);
        const Activation* from = part.x + (k0 + u * STRIDE);
#pragma unroll
        for (int t = 0; t < TOKENS; ++t) {
            if constexpr (TOKENS > 1) {
                if (t % 2 == 0) __syncwarp();  // nor does it then hold more than two tokens in registers
                x_part[u] = load_x<whole>(part, from, k0 + u * STRIDE);
                if (t + 1 < part.tokens) from += part.k;  // clamped; what the last token then sums again is discarded
            }
            widen<Activation>(x, x_part[u]);
#pragma unroll
            for (int r = 0; r < ROWS; ++r)
#pragma unroll
                for (int i = 0; i < VECTOR; ++i) sum[t * ROWS + r] = fmaf(w[r][i], x[i], sum[t * ROWS + r]);
        }
    }
    if (first) beside.add();
}

// This warp's share of the dot products.
__device__ __forceinline__ void stream(float (&sum)[SUMS], const Part& part, Beside& beside, int warp, int lane) {
    const int start = warp * STEP;
    int k0 = start;
    if (part.rows >= COLUMNS)
        for (; k0 + (schedule::unroll - 1) * STRIDE + STEP <= part.k; k0 += schedule::unroll * STRIDE)
            step<true>(sum, part, beside, k0 + lane * VECTOR, k0 == start);
    for (; k0 < part.k; k0 += schedule::unroll * STRIDE)
        step<false>(sum, part, beside, k0 + lane * VECTOR, k0 == start);
}

// The sums of squares of this CTA's columns of y, of which each team's first lane has its own; every thread calls it.
__device__ __forceinline__ void store_squares(Shared& shared, float* to, float square, int team, int warp, int left) {
    constexpr int TEAMS = SQUARES / COLUMNS;  // of a sum
    square = sum_of_lanes<COLUMNS>(square);
    if (warp == 0 && threadIdx.x % LANES == 0) shared.squares[team] = square;
    __syncthreads();
    if (threadIdx.x * TEAMS >= schedule::teams || int(threadIdx.x) >= left) return;
    float total = 0;
#pragma unroll
    for (int i = 0; i < TEAMS; ++i) total += shared.squares[threadIdx.x * TEAMS + i];
    to[threadIdx.x] = total;
}

extern "C" __global__ void __launch_bounds__(schedule::threads, schedule::ctas_per_sm)
    gemv_vectorized(const Activation* __restrict__ x, const Weight* __restrict__ w, const float* __restrict__ w_scale,
                    Output* __restrict__ y, int m, int n, int k, const float* squares, const Output* residual,
                    const Output* __restrict__ norm, Output* __restrict__ total, float* __restrict__ total_squares,
                    float eps) {
    __shared__ Shared shared;
    const int lane = threadIdx.x % LANES;
    const int warp = threadIdx.x / LANES % schedule::split_k;
    const int team = threadIdx.x / LANES / schedule::split_k;
    const int columns = n / HALVES, column0 = (blockIdx.x * schedule::teams + team) * COLUMNS;  // of y
    const int64_t token0 = int64_t(blockIdx.y) * TOKENS;
    const Part part{x + token0 * k, w + int64_t(column0) * k, int64_t(columns) * k,
                    int(min(int64_t(TOKENS), m - token0)), columns - column0, k};
    const int token = lane / COLUMNS, column = lane % COLUMNS;  // whose sum this lane of a team's first warp stores
    const bool stores = warp == 0 && token < part.tokens && column < part.rows;
    const int parts = (k + SQUARES - 1) / SQUARES;
    Beside beside{squares + token0 * parts, residual + token0 * n + column0 + column, parts, stores, {}, 0, 0};

    if constexpr (!schedule::late) ptx::griddepcontrol::launch_dependents();
    float scale = 1, up_scale = 1, by = 1;
    if (problem::scaled && stores) {
        scale = up_scale = w_scale[problem::row_scales ? column0 + column : 0];
        if (problem::row_scales && problem::swiglu) up_scale = w_scale[columns + column0 + column];
    }
    if (problem::summed && stores) by = ptx::convert::to_float(norm[column0 + column]);
    float sum[SUMS] = {};
    if (column0 < columns) {
        stream(sum, part, beside, warp, lane);
    } else if constexpr (problem::rooted) {
        ptx::griddepcontrol::wait();
        beside.ask();
        beside.add();
    }
    if constexpr (schedule::late) ptx::griddepcontrol::launch_dependents();

    float mine = warp_sums(sum);
    if constexpr (problem::rooted) {
        const float own = warp_sum(beside.all());
        if (lane == 0) shared.squares[threadIdx.x / LANES] = own;
    }
    if (schedule::split_k > 1 && lane < SUMS) shared.partial[team][warp][lane] = mine;
    if constexpr (schedule::split_k > 1 || problem::rooted) __syncthreads();
    if (schedule::split_k > 1 && lane < SUMS) {
        mine = 0;
#pragma unroll
        for (int s = 0; s < schedule::split_k; ++s) mine += shared.partial[team][s][lane];
    }
    if constexpr (problem::rooted) {
        float of_x = 0;
#pragma unroll
        for (int i = 0; i < WARPS; ++i) of_x += shared.squares[i];
        const float root = rsqrtf(of_x * (1.0f / k) + eps);
        scale *= root;
        up_scale *= root;
    }
    const int64_t at = (token0 + token) * columns + column0 + column;
    if constexpr (problem::swiglu) {
        const float up = __shfl_down_sync(~0u, mine, COLUMNS);
        if (stores) mine = silu(mine * scale) * (up * up_scale);
    } else {
        mine *= scale;
    }
    if constexpr (problem::summed) {
        Output rounded;
        ptx::convert::from_float(rounded, mine + ptx::convert::to_float(Output{beside.added}));
        mine = ptx::convert::to_float(rounded);
        if (stores) total[at] = rounded;
    }
    if (stores) ptx::convert::from_float(y[at], mine * by);
    if constexpr (problem::summed) {
        constexpr int OWN = schedule::teams * COLUMNS / SQUARES;  // sums of a CTA
        const int first = blockIdx.x * OWN, all = (columns + SQUARES - 1) / SQUARES;
        if constexpr (problem::rooted) __syncthreads();  // all have read those of x
        store_squares(shared, total_squares + token0 * all + first, stores ? mine * mine : 0, team, warp, all - first);
    }
}
