// The epilogue of the wgmma GEMMs: accumulators become y, box by box, through shared memory.
#pragma once
#include "lab/kernels/common/silu.cuh"
#include "lab/kernels/gemm/wgmma_mainloop.cuh"
#include "ptx/barrier.cuh"
#include "ptx/bulk.cuh"
#include "ptx/convert.cuh"
#include "ptx/fence.cuh"
#include "ptx/stmatrix.cuh"
#include "ptx/tma.cuh"

// A box of y in shared memory, with the swizzle that TMA undoes: 16-byte chunk c of row r lies at chunk
// c ^ (r row_bytes / 128), modulo the chunks of a row, so that stmatrix meets no bank conflict.
using Output = problem::output;
constexpr int BOX_COLUMNS = box::y_map::columns;
constexpr int BOX_CHUNKS = BOX_COLUMNS * sizeof(Output) / 16;
constexpr int BOX_REGISTERS = MMA_M * BOX_COLUMNS / WARPGROUP;
constexpr int W_HALVES = problem::swiglu ? 2 : 1;                // gate and up, each half of a tile's rows of w
constexpr int TILE_COLUMNS = schedule::block_n / W_HALVES;       // of y
constexpr int BOXES = TILE_COLUMNS / BOX_COLUMNS;                // side by side in a tile
constexpr int BUFFERS = schedule::y_bytes / (MMA_M * BOX_COLUMNS * sizeof(Output));  // of a warpgroup
using Box = Output[MMA_M][BOX_COLUMNS];

static_assert(box::y_map::rows == MMA_M && box::y_map::swizzle == BOX_COLUMNS * sizeof(Output), "one row, one swizzle");

__device__ __forceinline__ void* chunk_of(Box& box, int row, int chunk) {
    const int swizzled = chunk ^ (row * BOX_CHUNKS / 8) % BOX_CHUNKS;
    return &box[row][swizzled * 16 / sizeof(Output)];
}

// Two neighbouring elements of a row.
struct alignas(8) Pair {
    float low, high;
};

template <typename T>
struct ResidualOf {
    using type = T;
};
template <>
struct ResidualOf<fp8> {
    using type = bf16;
};
using Residual = ResidualOf<Output>::type;

constexpr int GROUPS = BOX_REGISTERS / 4;  // of eight columns in a box

// What a thread adds to its part of a box of y: for each group the neighbours of its upper row and of its lower row.
struct Addends {
    uint32_t neighbours[GROUPS][2];
};

// From sums to y: scaled, the residual added or silu(gate) * up taken. What lies beyond y's edge is never stored.
struct Epilogue {
    const Residual* residual;
    const float *x_scale, *w_scale;
    int m, columns;            // of y
    float scale = 1;           // of the whole of x and of w, or of x alone
    float inverse_y_scale = 1;

    // Reads the scales of whole tensors.
    __device__ __forceinline__ Epilogue(const Residual* residual, const float* x_scale, const float* w_scale,
                                        const float* y_scale, int m, int columns)
        : residual(residual), x_scale(x_scale), w_scale(w_scale), m(m), columns(columns) {
        if constexpr (problem::scaled && !problem::x_row_scales && !problem::block_scales)
            scale = problem::row_scales ? x_scale[0] : x_scale[0] * w_scale[0];
        if constexpr (problem::scaled && sizeof(Output) == 1) inverse_y_scale = 1 / y_scale[0];
    }

    // All of the box's whose first element is (row, column) at once, so that their latencies overlap.
    __device__ __forceinline__ void read(Addends& addends, int row, int column) const {
        if constexpr (problem::residual) {
            row += threadIdx.x % WARPGROUP / WARP * 16 + threadIdx.x % WARP / 4;
            column += threadIdx.x % 4 * 2;
#pragma unroll
            for (int i = 0; i < 2 * GROUPS; ++i)
                addends.neighbours[i / 2][i % 2] = residual_at(row + i % 2 * 8, column + i / 2 * 8);
        }
    }

    __device__ __forceinline__ float scale_of_row(int row) const {
        if constexpr (problem::x_row_scales) return row < m ? x_scale[row] : 0;
        return scale;
    }

    // For `half` 1 of swiglu the scales of up, whose rows of w follow those of gate. Element by element: of whole pairs
    // the compiler would choose an address, and load ones from memory beyond y's edge.
    __device__ __forceinline__ Pair scales_of_columns(int column, int half) const {
        float low = 1, high = 1;
        if constexpr (problem::row_scales)
            if (column < columns) {
                const Pair pair = *reinterpret_cast<const Pair*>(w_scale + half * columns + column);
                low = pair.low;
                high = pair.high;
            }
        return {low, high};
    }

    __device__ __forceinline__ uint32_t residual_at(int row, int column) const {
        if (row >= m || column >= columns) return 0;
        return *reinterpret_cast<const uint32_t*>(residual + int64_t(row) * columns + column);
    }
};

__device__ __forceinline__ Pair unpacked(uint32_t neighbours) {
    struct alignas(4) {
        Residual low, high;
    } pair;
    reinterpret_cast<uint32_t&>(pair) = neighbours;
    return {ptx::convert::to_float(pair.low), ptx::convert::to_float(pair.high)};
}

// A warpgroup's accumulators of BOX_COLUMNS columns become the box of y whose first element is (row, column); `up` are
// those of the second half of w. A warp holds 16 rows; registers 4j .. 4j + 3 are columns 8j .. 8j + 7 of its upper
// eight rows, then of its lower eight.
__device__ __forceinline__ void round_to(Box& box, const float* sum, const float* up, const Epilogue& epilogue,
                                         const Addends& addends, int row, int column) {
    const int lane = threadIdx.x % WARP, warp_row = threadIdx.x % WARPGROUP / WARP * 16;
    const int upper = row + warp_row + lane / 4;
    const float row_scales[2] = {epilogue.scale_of_row(upper), epilogue.scale_of_row(upper + 8)};
    Pair y[2][2];  // of two neighbouring groups of eight columns, the upper and the lower rows
#pragma unroll
    for (int j = 0; j < GROUPS; ++j) {
        const int at = column + 8 * j + lane % 4 * 2;
        const Pair gate_scale = epilogue.scales_of_columns(at, 0);
        const Pair up_scale = problem::swiglu ? epilogue.scales_of_columns(at, 1) : Pair{};
#pragma unroll
        for (int lower = 0; lower < 2; ++lower) {
            const int i = 4 * j + 2 * lower;
            const float s = row_scales[lower];
            Pair& v = y[j % 2][lower];
            v = {sum[i] * (s * gate_scale.low), sum[i + 1] * (s * gate_scale.high)};
            if constexpr (problem::swiglu)
                v = {silu(v.low) * (up[i] * (s * up_scale.low)), silu(v.high) * (up[i + 1] * (s * up_scale.high))};
            if constexpr (problem::residual) {
                const Pair r = unpacked(addends.neighbours[j][lower]);
                v = {v.low + r.low, v.high + r.high};
            }
            if constexpr (sizeof(Output) == 1) {
                const float inverse = epilogue.inverse_y_scale;
                auto* chunk = static_cast<uint16_t*>(chunk_of(box, warp_row + lane / 4 + 8 * lower, j / 2));
                chunk[j % 2 * 4 + lane % 4] = ptx::convert::pair_fp8(v.low * inverse, v.high * inverse);
            }
        }
        if constexpr (sizeof(Output) == 2)
            if (j % 2)
                ptx::stmatrix::x4(chunk_of(box, warp_row + lane % 16, j - 1 + lane / 16),
                                  ptx::convert::pair<Output>(y[0][0].low, y[0][0].high),
                                  ptx::convert::pair<Output>(y[0][1].low, y[0][1].high),
                                  ptx::convert::pair<Output>(y[1][0].low, y[1][0].high),
                                  ptx::convert::pair<Output>(y[1][1].low, y[1][1].high));
    }
}

// Rows of MMA_M x `tiles` are stored in rounds of boxes: each round is rounded into the next of a warpgroup's buffers, from
// where one thread stores it, clipped to y, while the next is rounded; what is added is read a box ahead. A round is all
// boxes where there are buffers for them, as a fence and two barriers end it. `barrier` is the warpgroup's own.
template <int tiles, int registers>
__device__ __forceinline__ void store(const float (&sum)[tiles][registers], Box (&buffers)[BUFFERS], int& next,
                                      const TensorMap& y, const Epilogue& epilogue, int barrier, Tile tile) {
    constexpr int ALL = tiles * BOXES, ROUND = BUFFERS >= ALL ? ALL : BUFFERS % 2 ? 1 : BUFFERS / 2;
    constexpr int ROUNDS = BUFFERS / ROUND;  // that have buffers
    const bool storing = threadIdx.x % WARPGROUP == 0;
    const auto row_of = [&](int i) { return tile.row + i / BOXES * MMA_M; };
    const auto column_of = [&](int i) { return tile.column + i % BOXES * BOX_COLUMNS; };
    Addends ahead;
    epilogue.read(ahead, tile.row, tile.column);
#pragma unroll
    for (int first = 0; first < ALL; first += ROUND) {
        Box* boxes = &buffers[next * ROUND];
        next = next + 1 == ROUNDS ? 0 : next + 1;
        if (storing) ptx::bulk::wait_group_read<ROUNDS - 1>();  // the last stores of these buffers have read them
        ptx::barrier::sync<WARPGROUP>(barrier);
#pragma unroll
        for (int i = first; i < first + ROUND && i < ALL; ++i) {
            const Addends addends = ahead;
            if (i + 1 < ALL) epilogue.read(ahead, row_of(i + 1), column_of(i + 1));
            const float* gate = &sum[i / BOXES][i % BOXES * BOX_REGISTERS];
            const float* up = gate + (W_HALVES - 1) * registers / 2;
            round_to(boxes[i - first], gate, up, epilogue, addends, row_of(i), column_of(i));
        }
        ptx::fence::proxy_async_shared();
        ptx::barrier::sync<WARPGROUP>(barrier);
        if (storing) {
#pragma unroll
            for (int i = first; i < first + ROUND && i < ALL; ++i)
                ptx::tma::store_2d(y, boxes[i - first], column_of(i), row_of(i));
            ptx::bulk::commit_group();
        }
    }
}

// Shared memory must outlive the stores' reads.
__device__ __forceinline__ void finish_stores() {
    if (threadIdx.x % WARPGROUP == 0) ptx::bulk::wait_group_read<0>();
}
