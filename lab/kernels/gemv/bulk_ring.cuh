// What the GEMVs share that stream w through a ring in shared memory: its stages, who fills them, who multiplies.
//
// A stage is a step along k of `warps` neighbouring rows of w and of x. One thread copies it, each row's segment in one
// bulk copy; of the other warps each multiplies one row. So the bytes in flight need no registers and no warp waits to ask
// for more.
#pragma once
#include "lab/kernels/common/ring_position.cuh"
#include "lab/kernels/gemv/dot_product.cuh"
#include "ptx/bulk.cuh"
#include "ptx/createpolicy.cuh"
#include "ptx/fence.cuh"
#include "ptx/griddepcontrol.cuh"
#include "ptx/mbarrier.cuh"

constexpr int WARPS = schedule::warps;     // that multiply
constexpr int PRODUCER = LANES * WARPS;    // the thread that copies; those before it multiply
constexpr int STEP = schedule::step_bytes / sizeof(Element);

struct Stage {
    Element w[WARPS][STEP];
    Element x[STEP];
};

struct alignas(16) Ring {
    Stage stages[schedule::stages];
    uint64_t full[schedule::stages];   // one arrival, and the bytes of the stage
    uint64_t empty[schedule::stages];  // one arrival from every warp that multiplies
};

static_assert(sizeof(Ring) == schedule::ring_bytes, "as the launch has it");
static_assert(schedule::threads == PRODUCER + LANES, "a warp for each row of a stage, and one that copies");
static_assert(STEP % (LANES * VECTOR) == 0, "a step is whole vectors of a warp");

// What a CTA takes of w: neighbouring rows, and of these the same columns; and the row of x.
struct Part {
    const Element* x;
    const Element* w;
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
            row += WARPS;
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
    const int rows = min(WARPS, part.rows - turn.row);
    const uint32_t bytes = turn.width(part) * sizeof(Element);
    ptx::mbarrier::arrive_expect_tx(ring.full[stage], (rows + 1) * bytes);
    const Element* from = part.w + int64_t(turn.row) * part.row_elements + turn.column;
    for (int r = 0; r < rows; ++r, from += part.row_elements)
        ptx::bulk::load(ring.stages[stage].w[r], from, bytes, ring.full[stage], policy);
}

__device__ __forceinline__ void copy_x(Ring& ring, int stage, const Part& part, Turn turn) {
    ptx::bulk::load(ring.stages[stage].x, part.x + turn.column, turn.width(part) * sizeof(Element), ring.full[stage]);
}

// One thread keeps the ring full. The first lap of w is asked for before the launch that this one depends on has ended,
// if there is one: w must be a constant, which no such launch writes; x may be its result.
__device__ __forceinline__ void producer(Ring& ring, const Part& part) {
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
}

// A lane's products of a step of one row, added to `sum`.
template <bool whole>
__device__ __forceinline__ void multiply(float& sum, const Element* w, const Element* x, int width, int lane) {
#pragma unroll
    for (int first = 0; first < STEP; first += LANES * VECTOR) {
        const int at = first + lane * VECTOR;
        if (whole || at < width)
            multiply_add(sum, *reinterpret_cast<const Vector16*>(w + at), *reinterpret_cast<const Vector16*>(x + at));
    }
}

// The dot products of this warp's rows of the part; finish(row, sum) gets each, the sum in every lane.
template <typename Finish>
__device__ __forceinline__ void consumer(Ring& ring, const Part& part, Finish finish) {
    const int warp = threadIdx.x / LANES, lane = threadIdx.x % LANES;
    Position at;
    float sum = 0;
    for (Turn turn; turn.inside(part); turn.advance(part), at.advance()) {
        const Stage& stage = ring.stages[at.stage];
        const int row = turn.row + warp, width = turn.width(part);
        ptx::mbarrier::wait(ring.full[at.stage], at.parity);
        if (row < part.rows) {
            if (width == STEP)
                multiply<true>(sum, stage.w[warp], stage.x, width, lane);
            else
                multiply<false>(sum, stage.w[warp], stage.x, width, lane);
        }
        __syncwarp();
        if (lane == 0) ptx::mbarrier::arrive(ring.empty[at.stage]);
        if (turn.ends_row(part) && row < part.rows) {
            finish(row, warp_sum(sum));
            sum = 0;
        }
    }
}

// All that a CTA does which shares its rows with no other; y begins at the first of them.
__device__ __forceinline__ void stream_rows(Ring& ring, const Part& part, Element* y) {
    if (threadIdx.x == 0) start(ring);
    __syncthreads();
    if (threadIdx.x < PRODUCER) {
        consumer(ring, part, [&](int row, float sum) {
            if (threadIdx.x % LANES == 0) ptx::convert::from_float(y[row], sum);
        });
    } else if (threadIdx.x == PRODUCER) {
        producer(ring, part);
    }
}
