// gemm_whole_lines: y[m, n] = x[m, k] @ w[n, k].T for rows that begin anywhere in a 128-byte line.
//
// Idea: where a row is no multiple of 128 bytes, the 128 bytes of it that a k-step needs lie in two lines, and TMA takes
// twice as long to bring them. Here a warpgroup copies by cp.async, eight lanes a row, each lane the same 16 bytes of
// every line: a request is whole lines. What of a line belongs to the step before goes there: the lanes that bring it
// are one step behind the others. So a line is asked for once, and its 16-byte chunks land where wgmma looks for them.
// Adds to gemm_persistent: rows that begin at any 16 bytes at the price of those that begin with a line.
//
//   row, lines   |  . . 0 0 0 0 0 0 | 0 0 1 1 1 1 1 1 | 1 1 2 2 ...      k-step of each chunk; this row begins at 32 bytes
//   lanes 2..7          step 0      |     step 1      | step 2
//   lanes 0, 1                      | 0               | 1                one step behind
//
// Bytes expected through L1's port: every sector of a tile's rows once; of y through TMA, as gemm_wgmma.
#include "lab/kernels/gemm/warp_roles.cuh"
#include "ptx/cp_async.cuh"

constexpr int MMA_TILES = schedule::block_m / CONSUMERS / MMA_M;  // of 64 rows, in each consumer
constexpr int BYTES = 16;                                         // of a chunk
constexpr int CHUNKS = schedule::step_bytes / BYTES;              // of a line, and of a row of a stage
constexpr int PASS = WARPGROUP / CHUNKS;                          // rows that the producer copies at once

static_assert(schedule::stages >= 3, "lanes one step behind fill the last stage but one while the next must be free");

// What this thread copies of one operand in each k-step: one chunk of every PASS-th row.
template <int rows>
struct Source {
    const uint8_t* from;  // in this k-step
    int left;             // elements of a row from there on
    int inside;           // of its rows, those of the operand
    uint32_t to;          // bytes from the beginning of a tile
    bool behind;          // the chunk lies in the line after the one with the step's first byte

    __device__ __forceinline__ Source(const Element* operand, int extent, int k, int first) {
        const int lane = threadIdx.x % WARP, row = lane / CHUNKS * (PASS / 4) + threadIdx.x / WARP;
        const auto* start = reinterpret_cast<const uint8_t*>(operand) + int64_t(first + row) * k * sizeof(Element);
        const int shift = reinterpret_cast<uint64_t>(start) / BYTES % CHUNKS;  // where the row begins in its line
        const int chunk = (lane - shift) & (CHUNKS - 1);
        from = start + chunk * BYTES;
        left = k - chunk * int(BYTES / sizeof(Element));
        inside = max(extent - first - row + PASS - 1, 0) / PASS;
        to = row * schedule::step_bytes + (chunk ^ row % 8) * BYTES;
        behind = lane % CHUNKS < shift;
    }

    // What lies outside the operand becomes zero.
    __device__ __forceinline__ void copy(const Element (&tile)[rows][BLOCK_K], int64_t stride) {
        const uint8_t* at = from;
        const int within = left > 0 ? inside : 0;
#pragma unroll
        for (int i = 0; i < rows / PASS; ++i, at += stride)
            ptx::cp_async::copy_16(ptx::address::shared(tile) + to + i * PASS * schedule::step_bytes, at,
                                   i < within ? BYTES : 0);
        from += schedule::step_bytes;
        left -= BLOCK_K;
    }
};

// The warpgroup keeps the ring full. A warp asks for four rows that are PASS / 4 apart and share no sector. In each turn
// lanes copy their chunk of the turn's k-step, or of the one before: all those of a row the same line.
__device__ __forceinline__ void producer(Shared& shared, const Element* x, const Element* w, Walk walk, int m, int n,
                                         int k, int steps) {
    const int64_t stride = int64_t(PASS) * k * sizeof(Element);
    Position now;
    int before = 0;
    for (Tile tile; walk.next(tile);) {
        Source<schedule::block_m> of_x(x, m, k, tile.row);
        Source<schedule::block_n> of_w(w, n, k, tile.column);
        const bool behind = of_x.behind;
        for (int turn = 0; turn <= steps; ++turn) {
            if (turn < steps) ptx::mbarrier::wait(shared.empty[now.stage], now.parity ^ 1);
            const int stage = behind ? before : now.stage;
            if (behind ? turn > 0 : turn < steps) {
                of_x.copy(shared.ring[stage].x, stride);
                of_w.copy(shared.ring[stage].w, stride);
                ptx::cp_async::arrive(shared.full[stage]);
            }
            before = now.stage;
            if (turn < steps) now.advance();
        }
    }
}

__device__ __forceinline__ void consumer(Shared& shared, const TensorMap& y, const Epilogue& epilogue, int consumer,
                                         Walk walk, int steps) {
    float sum[MMA_TILES][schedule::block_n / 2] = {};
    const int first = consumer * MMA_TILES * MMA_M;
    const auto release = [&](int stage) {
        if (threadIdx.x % WARP == 0) ptx::mbarrier::arrive(shared.empty[stage]);
    };
    const auto landed = [] { ptx::fence::proxy_async_shared(); };  // cp.async writes as ordinary stores do
    Position now;
    int next = 0;
    for (Tile tile; walk.next(tile);) {
        accumulate(sum, shared, first, steps, now, release, landed);
        store(sum, shared.y[consumer], next, y, epilogue, 1 + consumer, {tile.row + first, tile.column});
    }
    finish_stores();
}

extern "C" __global__ void __launch_bounds__(schedule::threads, 1)
    gemm_whole_lines(const __grid_constant__ TensorMap y_map, const Element* x, const Element* w, Output*, int m, int n,
                     int k) {
    extern __shared__ uint8_t dynamic[];
    Shared& shared = aligned<Shared>(dynamic);
    const int steps = tiles_of(k, BLOCK_K), warpgroup = threadIdx.x / WARPGROUP;
    const Walk walk{tiles_of(m, schedule::block_m), tiles_of(n, schedule::block_n), schedule::block_m,
                    schedule::block_n,              int(blockIdx.x),                int(gridDim.x)};

    if (threadIdx.x == 0) {
        ptx::tma::prefetch(y_map);
        for (int stage = 0; stage < schedule::stages; ++stage) {
            ptx::mbarrier::init(shared.full[stage], WARPGROUP);
            ptx::mbarrier::init(shared.empty[stage], CONSUMERS * WARPGROUP / WARP);
        }
    }
    __syncthreads();

    if (warpgroup == 0) {
        ptx::setmaxnreg::dec<PRODUCER_REGISTERS>();
        producer(shared, x, w, walk, m, n, k, steps);
    } else {
        ptx::setmaxnreg::inc<CONSUMER_REGISTERS>();
        consumer(shared, y_map, {nullptr, nullptr, nullptr, nullptr, m, n}, warpgroup - 1, walk, steps);
    }
}
