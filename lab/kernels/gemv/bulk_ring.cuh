// What the GEMVs share that stream w through a ring in shared memory: its stages, who fills them, who multiplies.
//
// A stage is a step along k of `stage_rows` neighbouring rows of w and of x. One thread copies it, each row's segment in one
// bulk copy; of the other warps each multiplies as many of the rows. So the bytes in flight need no registers and no warp
// waits to ask for more.
#pragma once
#include "lab/kernels/common/ring_position.cuh"
#include "lab/kernels/gemv/dot_product.cuh"
#include "ptx/bulk.cuh"
#include "ptx/createpolicy.cuh"
#include "ptx/fence.cuh"
#include "ptx/griddepcontrol.cuh"
#include "ptx/mbarrier.cuh"

constexpr int WARPS = schedule::warps;               // that multiply
constexpr int PRODUCER = LANES * WARPS;              // the thread that copies; those before it multiply
constexpr int ROWS = schedule::stage_rows / WARPS;  // of a stage that a warp multiplies
constexpr int STEP = schedule::step_bytes / sizeof(Weight);

struct Stage {
    Weight w[schedule::stage_rows][STEP];
    Element x[STEP];
};

struct alignas(16) Ring {
    Stage stages[schedule::stages];
    uint64_t full[schedule::stages];   // one arrival, and the bytes of the stage
    uint64_t empty[schedule::stages];  // one arrival from every warp that multiplies
};

static_assert(schedule::threads == PRODUCER + LANES, "the warps that multiply, and one that copies");
static_assert(STEP % (LANES * VECTOR) == 0, "a step is whole vectors of a warp");

// What a CTA takes of w: neighbouring rows, and of these the same columns; and the row of x.
struct Part {
    const Element* x;
    const Weight* w;
    int rows, row_elements;  // of w: how many there are, and from one to the next
    int columns;
};

// One turn of the ring: the rows of a stage from `row` on, the step from `column` on.
struct Turn {
    int row = 0, column = 0;

    __device__ __forceinline__ bool inside(const Part& part) const { return row < part.rows; }
    __device__ __forceinline__ bool ends_row(const Part& part) const { return part.columns - column <= STEP; }
    __device__ __forceinline__ int width(const Part& part) const { return min(STEP, part.columns - column); }

    __device__ __forceinline__ void advance(const Part& part) {
        if (ends_row(part)) {
            row += schedule::stage_rows;
            column = 0;
        } else {
            column += STEP;
        }
    }
};

__device__ __forceinline__ void start(Ring& ring) {
    for (int stage = 0; stage < schedule::stages; ++stage) {
        ptx::mbarrier::init(ring.full[stage], 1);
        ptx::mbarrier::init(ring.empty[stage], WARPS);
    }
    ptx::fence::mbarrier_init();
}

// Announce what a stage will hold and copy its rows of w, which L2 need not keep.
__device__ __forceinline__ void copy_w(Ring& ring, int stage, const Part& part, Turn turn, uint64_t policy) {
    const int rows = min(schedule::stage_rows, part.rows - turn.row), width = turn.width(part);
    const uint32_t bytes = width * sizeof(Weight);
    ptx::mbarrier::arrive_expect_tx(ring.full[stage], rows * bytes + width * int(sizeof(Element)));
    const Weight* from = part.w + int64_t(turn.row) * part.row_elements + turn.column;
    for (int r = 0; r < rows; ++r, from += part.row_elements)
        ptx::bulk::load(ring.stages[stage].w[r], from, bytes, ring.full[stage], policy);
}

__device__ __forceinline__ void copy_x(Ring& ring, int stage, const Part& part, Turn turn) {
    ptx::bulk::load(ring.stages[stage].x, part.x + turn.column, turn.width(part) * sizeof(Element), ring.full[stage]);
}

// One thread keeps the ring full. The first lap of w is asked for before the launch that this one depends on has ended,
// if there is one: w must be a constant, which no such launch writes; x may be its result. Calls `asked()` when nothing is
// left to ask for.
template <typename Asked>
__device__ __forceinline__ void producer(Ring& ring, const Part& part, Asked asked) {
    const uint64_t policy = ptx::createpolicy::evict_first();
    Turn ahead;
    int stages = 0;
    for (; stages < schedule::stages && ahead.inside(part); ++stages, ahead.advance(part))
        copy_w(ring, stages, part, ahead, policy);
    ptx::griddepcontrol::wait();
    Turn turn;
    for (int stage = 0; stage < stages; ++stage, turn.advance(part)) copy_x(ring, stage, part, turn);
    for (Position at{0, 1}; turn.inside(part); turn.advance(part), at.advance()) {
        ptx::mbarrier::wait(ring.empty[at.stage], at.parity ^ 1);
        copy_w(ring, at.stage, part, turn, policy);
        copy_x(ring, at.stage, part, turn);
    }
    asked();
}

// A lane's products of a step of this warp's rows of a stage, added to their sums; `rows` and `width` are how many there
// are, or more, and where all of them are there nothing asks.
template <bool whole>
__device__ __forceinline__ void multiply(float (&sum)[ROWS], const Stage& stage, int rows, int width) {
    const int warp = threadIdx.x / LANES, lane = threadIdx.x % LANES;
#pragma unroll
    for (int first = 0; first < STEP; first += LANES * VECTOR) {
        const int at = first + lane * VECTOR;
        if (!whole && at >= width) continue;
        const Vector16 x = *reinterpret_cast<const Vector16*>(stage.x + at);
#pragma unroll
        for (int r = 0; r < ROWS; ++r)
            if (whole || r < rows)
                multiply_add(sum[r], *reinterpret_cast<const Weights*>(stage.w[warp * ROWS + r] + at), x);
    }
}

// The dot products of this warp's rows of the part; finish(row, sum) gets each, the sum in every lane.
template <typename Finish>
__device__ __forceinline__ void consumer(Ring& ring, const Part& part, Finish finish) {
    const int warp = threadIdx.x / LANES, lane = threadIdx.x % LANES;
    Position at;
    float sum[ROWS] = {};
    for (Turn turn; turn.inside(part); turn.advance(part), at.advance()) {
        const Stage& stage = ring.stages[at.stage];
        const int row = turn.row + warp * ROWS, rows = part.rows - row, width = turn.width(part);
        ptx::mbarrier::wait(ring.full[at.stage], at.parity);
        if (rows >= ROWS && width == STEP)
            multiply<true>(sum, stage, rows, width);
        else
            multiply<false>(sum, stage, rows, width);
        __syncwarp();
        if (lane == 0) ptx::mbarrier::arrive(ring.empty[at.stage]);
        if (turn.ends_row(part))
#pragma unroll
            for (int r = 0; r < ROWS; ++r) {
                if (r < rows) finish(row + r, warp_sum(sum[r]));
                sum[r] = 0;
            }
    }
}

// All that a CTA does which shares its rows with no other; y begins at the first of them. `asked` as above; `scaled(row,
// sum)` is what a sum becomes.
template <typename Asked, typename Scaled>
__device__ __forceinline__ void stream_rows(Ring& ring, const Part& part, Output* y, Asked asked, Scaled scaled) {
    if (threadIdx.x == 0) start(ring);
    __syncthreads();
    if (threadIdx.x < PRODUCER) {
        consumer(ring, part, [&](int row, float sum) {
            if (threadIdx.x % LANES == 0) ptx::convert::from_float(y[row], scaled(row, sum));
        });
    } else if (threadIdx.x == PRODUCER) {
        producer(ring, part, asked);
    }
}
