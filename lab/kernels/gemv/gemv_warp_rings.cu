// gemv_warp_rings: y[m, n] = x[m, k] @ w[n, k].T for few rows of x: every warp has a ring of its own.
//
// Idea: one thread issues a bulk copy in some 45 ns, an SM one in 20, whoever asks; a warp that copies for all others asks
// for too little unless its copies are large, and all wait for it. Here each warp streams its own rows: its first lane asks
// for the next segment as soon as the warp has multiplied the one that lay there. No barrier but those that the copies
// complete on, no warp that only copies. x comes once to each CTA, whole, when the launch before has written it; by then
// the rings are full, so HBM has been busy meanwhile.
// Adds to gemv_split_k: a ring for each warp, x once a CTA, fp8, several rows a warp so that x is widened once for them.
//
// Warp roles: all alike. Warp r takes the groups of `rows` rows r, r + warps, ... of the CTA's.
//
//   warp 0   | row 0, step 0 | row 0, step 1 | row 2, step 0 | row 2, step 1 |      warps = 2, rows = 1
//   warp 1   | row 1, step 0 | row 1, step 1 | row 3, step 0 | row 3, step 1 |      each in its own ring
//
// Launches overlap: w never changes, so the rings are filled before the launch before has ended. The launch behind may
// begin at once, or `late`, when a warp here has asked for its last segment.
//
// Bytes expected from HBM: w once, x once, y once; from L2 x once for every CTA. blockIdx.y is the row of x: m > 1 reads w
// again for each.
#include "lab/kernels/common/ring_position.cuh"
#include "lab/kernels/common/warp_sum.cuh"
#include "ptx/bulk.cuh"
#include "ptx/convert.cuh"
#include "ptx/createpolicy.cuh"
#include "ptx/fence.cuh"
#include "ptx/griddepcontrol.cuh"
#include "ptx/mbarrier.cuh"

using Weight = problem::weights;
using Element = problem::activations;  // of x
using Output = problem::output;

constexpr int LANES = 32;
constexpr int VECTOR = sizeof(Vector16) / sizeof(Element);  // elements that a lane multiplies at once
using Weights = Vector<VECTOR * sizeof(Weight)>;

constexpr int WARPS = schedule::warps, ROWS = schedule::rows;
constexpr int STEP = schedule::step_bytes / sizeof(Weight);

static_assert(STEP % (LANES * VECTOR) == 0, "a step is whole vectors of a warp");

struct Stage {
    Weight w[ROWS][STEP];
};

struct alignas(16) Shared {
    Stage rings[WARPS][schedule::stages];
    uint64_t full[WARPS][schedule::stages];  // one arrival, and the bytes of the stage
    uint64_t x_full;
    float scale[problem::scaled ? schedule::block_n : 1];
};

// The rows of a CTA.
struct Block {
    const Weight* w;
    int rows, columns;
};

// A turn of a warp's ring: its rows from `row` on, the step from `column` on.
struct Turn {
    int row, column = 0;

    __device__ __forceinline__ bool inside(const Block& block) const { return row < block.rows; }
    __device__ __forceinline__ bool ends_row(const Block& block) const { return block.columns - column <= STEP; }
    __device__ __forceinline__ int rows(const Block& block) const { return min(ROWS, block.rows - row); }
    __device__ __forceinline__ int width(const Block& block) const { return min(STEP, block.columns - column); }

    __device__ __forceinline__ void advance(const Block& block) {
        if (ends_row(block)) {
            row += WARPS * ROWS;
            column = 0;
        } else {
            column += STEP;
        }
    }
};

// Ask for a turn's segments, which L2 need not keep: by one lane.
__device__ __forceinline__ void ask(Stage& stage, uint64_t& full, const Block& block, Turn turn, uint64_t policy) {
    const int rows = turn.rows(block);
    const uint32_t bytes = turn.width(block) * sizeof(Weight);
    ptx::mbarrier::arrive_expect_tx(full, rows * bytes);
    const Weight* from = block.w + int64_t(turn.row) * block.columns + turn.column;
    for (int r = 0; r < rows; ++r, from += block.columns) ptx::bulk::load(stage.w[r], from, bytes, full, policy);
}

// What a pair of weights is before it becomes two floats.
template <typename T>
struct Widened {
    using Type = T;
    static __device__ __forceinline__ uint32_t pair(const Weights& w, int i) { return w.words[i]; }
};

template <>
struct Widened<fp8> {
    using Type = fp16;
    static __device__ __forceinline__ uint32_t pair(const Weights& w, int i) {
        const uint32_t four = w.words[i / 2];
        return i % 2 ? ptx::convert::widen_upper_fp8(four) : ptx::convert::widen_fp8(uint16_t(four));
    }
};

// The dot product of a vector of weights and one of activations, added to `sum`.
__device__ __forceinline__ void multiply_add(float& sum, const Weights& w, const Vector16& x) {
    using Wide = typename Widened<Weight>::Type;
#pragma unroll
    for (int i = 0; i < VECTOR / 2; ++i) {
        const uint32_t pair = Widened<Weight>::pair(w, i);
        sum = fmaf(ptx::convert::low<Wide>(pair), ptx::convert::low<Element>(x.words[i]), sum);
        sum = fmaf(ptx::convert::high<Wide>(pair), ptx::convert::high<Element>(x.words[i]), sum);
    }
}

// A lane's products of a stage; x is that of its first column. Where all rows and columns are there nothing asks.
template <bool whole>
__device__ __forceinline__ void multiply(float (&sum)[ROWS], const Stage& stage, const Element* x, int rows, int width) {
#pragma unroll
    for (int first = 0; first < STEP; first += LANES * VECTOR) {
        const int at = first + threadIdx.x % LANES * VECTOR;
        if (!whole && at >= width) continue;
        const Vector16 x_part = *reinterpret_cast<const Vector16*>(x + at);
#pragma unroll
        for (int r = 0; r < ROWS; ++r)
            if (whole || r < rows) multiply_add(sum[r], *reinterpret_cast<const Weights*>(stage.w[r] + at), x_part);
    }
}

extern "C" __global__ void __launch_bounds__(schedule::threads)
    gemv_warp_rings(const Element* __restrict__ x, const Weight* __restrict__ w, const float* __restrict__ w_scale,
                    Output* __restrict__ y, int m, int n, int k) {
    extern __shared__ __align__(128) uint8_t dynamic[];
    Shared& shared = *reinterpret_cast<Shared*>(dynamic);
    Element* x_row = reinterpret_cast<Element*>(&shared + 1);
    const int row0 = blockIdx.x * schedule::block_n;
    const int64_t token = blockIdx.y;
    if (!schedule::late || row0 >= n) ptx::griddepcontrol::launch_dependents();
    if (row0 >= n) {  // one that only holds a place on its SM, as long as the others of its launch
        ptx::griddepcontrol::wait();
        return;
    }
    const Block block{w + int64_t(row0) * k, min(schedule::block_n, n - row0), k};
    const int warp = __shfl_sync(~0u, threadIdx.x / LANES, 0), lane = threadIdx.x % LANES;
    Stage* ring = shared.rings[warp];
    uint64_t* full = shared.full[warp];
    const uint64_t policy = ptx::createpolicy::evict_first();

    if (threadIdx.x == 0) {
        ptx::mbarrier::init(shared.x_full, 1);
        for (int i = 0; i < WARPS * schedule::stages; ++i) ptx::mbarrier::init(shared.full[0][i], 1);
        ptx::fence::mbarrier_init();
    }
    __syncthreads();
    Turn ahead{warp * ROWS};
    for (int stage = 0; stage < schedule::stages && ahead.inside(block); ++stage, ahead.advance(block))
        if (lane == 0) ask(ring[stage], full[stage], block, ahead, policy);
    if constexpr (problem::scaled) {  // constants, as w is
#pragma unroll 1
        for (int row = threadIdx.x; row < block.rows; row += schedule::threads)
            shared.scale[row] = w_scale[problem::row_scales ? row0 + row : 0];
        __syncthreads();
    }
    if (threadIdx.x == 0) {
        ptx::griddepcontrol::wait();  // until the launch before has written x, and reads y no more
        ptx::mbarrier::arrive_expect_tx(shared.x_full, k * sizeof(Element));
        ptx::bulk::load(x_row, x + token * k, k * sizeof(Element), shared.x_full);
    }
    __syncwarp();
    ptx::mbarrier::wait(shared.x_full, 0);

    float sum[ROWS] = {};
    Position at;
#pragma unroll 1
    for (Turn turn{warp * ROWS}; turn.inside(block); turn.advance(block), at.advance()) {
        const int rows = turn.rows(block), width = turn.width(block);
        ptx::mbarrier::wait(full[at.stage], at.parity);
        if (rows == ROWS && width == STEP)
            multiply<true>(sum, ring[at.stage], x_row + turn.column, rows, width);
        else
            multiply<false>(sum, ring[at.stage], x_row + turn.column, rows, width);
        __syncwarp();
        if (ahead.inside(block)) {
            if (lane == 0) ask(ring[at.stage], full[at.stage], block, ahead, policy);
            ahead.advance(block);
        }
        if (schedule::late && !ahead.inside(block)) ptx::griddepcontrol::launch_dependents();
        if (!turn.ends_row(block)) continue;
#pragma unroll
        for (int r = 0; r < ROWS; ++r) {
            const float total = warp_sum(sum[r]);
            const int row = turn.row + r;
            if (lane == r && r < rows)
                ptx::convert::from_float(y[token * n + row0 + row], problem::scaled ? total * shared.scale[row] : total);
            sum[r] = 0;
        }
    }
}
