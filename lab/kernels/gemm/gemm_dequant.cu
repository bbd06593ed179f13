// gemm_dequant: y[m, n] = x[m, k] @ w[n, k].T of bf16 activations and narrow weights, fp8 or int4 groups.
//
// Idea: weights stay narrow all the way to the registers, where each warp widens its own to bf16: they are the operand A
// of wgmma, which may come from registers, and tokens are its N. So shared memory and HBM hold few bytes of w, and a
// tile is as wide as there are tokens. A unit of k is widened while the tensor cores multiply the one before it. int4
// groups are multiplied as integers, less their zero points, each group into a fresh partial sum P; then
// total += scale P in float32. Where offsets are added to groups, integers have a bias, from 16 to 31, and
// total += (min - 16 scale) X + scale P, where X, the sum of the group's x, is made once for all warps of the CTA. The
// first term is a product of the tensor cores too: min and scale are tf32, X is the sum of three, exactly.
// Adds to gemm_split_k: operand A from registers, narrow weights, group scales; y^T in registers is stored as y.
//
// Warp roles: warpgroup g owns rows 64 g .. 64 g + 63 of w in the tile; one more warp loads; with offsets more sum x.
//
//   loads      | x, w step 0 | x, w step 1 | ...                            into a ring of stages
//   sums x                   | X of step 0    | X of step 1    | ...        into the stage, with offsets only
//   widens                   | w 0 | w 1 | w 2 | w 3 | ...                  into registers, units of a step
//   multiplies                     | x w 0 | x w 1 | x w 2 | x w 3 | ...    tensor cores
//
// The CTAs of a cluster share the k-steps of a tile, then its tokens, as those of gemm_split_k do. Weights
// and their scales are constants: the first stages of w are asked for before the launch before has ended, x after it.
// Bytes expected through TMA: every row of tiles loads w, narrow; every column of tiles loads x.
#include "lab/kernels/gemm/gemm_dequant_stage.cuh"
#include "lab/kernels/gemm/split_reduce.cuh"
#include "ptx/barrier.cuh"
#include "ptx/bulk.cuh"
#include "ptx/cluster.cuh"
#include "ptx/griddepcontrol.cuh"
#include "ptx/setmaxnreg.cuh"
#include "ptx/stmatrix.cuh"
#include "ptx/wgmma.cuh"

constexpr int SPLIT = schedule::split_k;
constexpr int WARPGROUP_ROWS = 64;  // of w
constexpr int CONSUMERS = schedule::block_n / WARPGROUP_ROWS;
constexpr int PRODUCER = CONSUMERS * WARPGROUP;  // the thread that loads; those before it multiply
constexpr int SUMMERS = schedule::helper_threads / WARP - 1;  // warps that sum x, if it is summed, after the one that loads
constexpr int PART = schedule::block_m / SPLIT;  // tokens that each CTA sums and stores
constexpr int PART_REGISTERS = PART / 2;         // of a consumer's thread
constexpr bool MOVES_REGISTERS = schedule::consumer_registers > schedule::registers;

using Rows = RowsOf<schedule::group, SUMMED>::type;
using Inbox = InboxOf<PART_REGISTERS, PRODUCER>;
using Box = bf16[PART][WARPGROUP_ROWS];  // of y, with the 128-byte swizzle

struct alignas(ALIGNMENT) Stage {
    Tokens x;
    Rows w;
};

struct alignas(ALIGNMENT) Shared {
    union {
        Stage ring[schedule::stages];
        Box y[CONSUMERS];  // after the last k-step
    };
    uint64_t full[schedule::stages];    // one arrival, and the bytes of the stage
    uint64_t summed[schedule::stages];  // one arrival from every warp that sums x, if it is summed
    uint64_t empty[schedule::stages];   // one arrival from every warp that reads the stage
    uint64_t arrived;                   // one arrival, and the bytes of all inboxes
};

static_assert(sizeof(Stage) == schedule::stage_span, "x, w and what is summed, aligned");
static_assert(sizeof(Shared) + (SPLIT - 1) * sizeof(Inbox) + ALIGNMENT == schedule::shared_bytes, "as launched");
static_assert(box::y_map::rows == PART && box::y_map::columns == WARPGROUP_ROWS, "a consumer's part of y");
static_assert(schedule::threads == PRODUCER + schedule::helper_threads, "helpers after the consumers");
static_assert(PART % 8 == 0, "a CTA's tokens are whole 8 x 8 matrices");

__device__ __forceinline__ void load_weights(Stage& stage, uint64_t& full, const Maps& maps, int step, int row) {
    ptx::mbarrier::arrive_expect_tx(full, schedule::stage_bytes);
    stage.w.load(maps, step, row, full);
}

// One thread keeps the ring full.
__device__ __forceinline__ void producer(Shared& shared, const Maps& maps, Tile tile, int first, int end) {
    const int ahead = min(first + schedule::stages, end);
    for (int step = first; step < ahead; ++step)
        load_weights(shared.ring[step - first], shared.full[step - first], maps, step, tile.column);
    ptx::griddepcontrol::wait();  // until the launch before has written x
    Position at;
    for (int step = first; step < end; ++step, at.advance()) {
        Stage& stage = shared.ring[at.stage];
        uint64_t& full = shared.full[at.stage];
        if (step >= ahead) {
            ptx::mbarrier::wait(shared.empty[at.stage], at.parity ^ 1);
            load_weights(stage, full, maps, step, tile.column);
        }
#pragma unroll
        for (int b = 0; b < BLOCK_K / BOX_K; ++b)
            ptx::tma::load_2d(stage.x[b], maps.x, step * BLOCK_K + b * BOX_K, tile.row, full);
    }
}

// A warp has read a stage, or all it needs of it.
__device__ __forceinline__ void arrive(uint64_t& barrier) {
    __syncwarp();
    if (threadIdx.x % WARP == 0) ptx::mbarrier::arrive(barrier);
}

// One of the warps that sum x over each group, every SUMMERS-th 16 tokens of all stages.
template <typename Shared>
__device__ __forceinline__ void summer(Shared& shared, int index, int steps) {
    Position at;
    int token = index * 16;
    for (int step = 0; step < steps; ++step, at.advance()) {
        auto& stage = shared.ring[at.stage];
        ptx::mbarrier::wait(shared.full[at.stage], at.parity);
        for (; token < schedule::block_m; token += SUMMERS * 16) stage.w.sum_tokens(stage.x, token);
        token -= schedule::block_m;
        ptx::fence::proxy_async_shared();
        arrive(shared.summed[at.stage]);
        arrive(shared.empty[at.stage]);
    }
}

// sum += w x^T over a unit of k, as a group; the first mma of a group of w starts from zero.
__device__ __forceinline__ void multiply(Sums& sum, const Fragments& a, const Tokens& x, int unit) {
    ptx::wgmma::fence();
#pragma unroll
    for (int s = 0; s < UNIT_STEPS; ++s) {
        const int k = unit * UNIT_K + s * MMA_K;
        const uint64_t b = ptx::wgmma::descriptor_k_major_128b(x[k / BOX_K]);
        ptx::wgmma::mma<bf16>(sum, a[s], ptx::wgmma::advance(b, k % BOX_K * sizeof(bf16)), !Rows::starts_group(k));
    }
    ptx::wgmma::commit_group();
}

// All k-steps. While a unit is multiplied the next one is widened, into fragments whose last mma has been waited for.
template <typename Shared>
__device__ __forceinline__ void accumulate(Sums& total, Shared& shared, int steps) {
    Sums partial;  // of a group; of two that took turns, ptxas would serialise the wgmma
    Sums& sum = GROUPED ? partial : total;
    Fragments a[2];
    float a_sums[4];
    Position now;
    int before = 0;
    static_assert(UNITS % 2 == 0, "every step starts with the first fragments");
    const auto widen = [&](const Rows::Packed& packed, int unit) {
        Rows::widen(a[unit % 2], packed);
        ptx::wgmma::hold(a[unit % 2]);
    };
    ptx::mbarrier::wait(shared.full[0], 0);
    widen(shared.ring[0].w.read(0), 0);
    for (int step = 0; step < steps; ++step) {
        const auto& stage = shared.ring[now.stage];
        Position next = now;
        next.advance();
#pragma unroll
        for (int unit = 0; unit < UNITS; ++unit) {
            multiply(sum, a[unit % 2], stage.x, unit);
            const bool last = unit + 1 == UNITS, more = !last || step + 1 < steps;
            Rows::Packed packed;
            if (last && more) ptx::mbarrier::wait(shared.full[next.stage], next.parity);
            if (more) packed = (last ? shared.ring[next.stage] : stage).w.read((unit + 1) % UNITS);
            ptx::wgmma::wait_group<1>();
            if (!GROUPED && unit == 0 && step > 0) arrive(shared.empty[before]);
            if (more) widen(packed, unit + 1);
            if constexpr (GROUPED)
                if (Rows::starts_group((unit + 1) * UNIT_K)) {  // and the last one ends
                    const float2 scale = stage.w.scales(unit * UNIT_K);
                    if constexpr (SUMMED) {
                        if ((unit + 1) * UNIT_K == schedule::group)
                            ptx::mbarrier::wait(shared.summed[now.stage], now.parity);
                        stage.w.offsets(a_sums, unit * UNIT_K);
                        ptx::wgmma::hold(a_sums);
                        ptx::wgmma::fence();
                        ptx::wgmma::mma_tf32(total, a_sums, stage.w.sums_of(unit * UNIT_K), true);
                        ptx::wgmma::commit_group();
                    }
                    ptx::wgmma::wait_group<0>();
                    if (last) arrive(shared.empty[now.stage]);
                    ptx::wgmma::hold(a_sums);
                    ptx::wgmma::hold(partial);
                    ptx::wgmma::hold(total);
                    stage.w.promote(total, partial, scale);
                }
        }
        before = now.stage;
        now = next;
    }
    ptx::wgmma::wait_group<0>();
    ptx::wgmma::hold(total);
}

// Scales of a thread's two rows of w.
struct Scales {
    float upper = 1, lower = 1;

    __device__ __forceinline__ Scales(const float* w_scale, int row, int n) {
        if constexpr (problem::row_scales) {
            upper = row < n ? w_scale[row] : 0;
            lower = row + 8 < n ? w_scale[row + 8] : 0;
        } else if constexpr (problem::scaled) {
            upper = lower = w_scale[0];
        }
    }
};

// Round y^T of 64 rows of w, transposed, in the place of the ring, from where one thread stores it, clipped to y.
__device__ __forceinline__ void store(const float* sum, const Scales& scale, Shared& shared,
                                      const TensorMap& y, int row, int column) {
    const int consumer = threadIdx.x / WARPGROUP, lane = threadIdx.x % WARP;
    Box& box = shared.y[consumer];
    const int chunk = threadIdx.x % WARPGROUP / WARP * 2 + lane / 8 % 2;  // eight rows of w
    ptx::barrier::sync<PRODUCER>(1);  // no consumer reads the ring any more
#pragma unroll
    for (int j = 0; j < PART / 8; ++j) {
        const float* four = &sum[4 * j];
        ptx::stmatrix::x2_transposed(&box[8 * j + lane % 8][(chunk ^ lane % 8) * 8],
                                     ptx::convert::pair<bf16>(four[0] * scale.upper, four[1] * scale.upper),
                                     ptx::convert::pair<bf16>(four[2] * scale.lower, four[3] * scale.lower));
    }
    ptx::fence::proxy_async_shared();
    ptx::barrier::sync<WARPGROUP>(2 + consumer);
    if (threadIdx.x % WARPGROUP == 0) {
        ptx::tma::store_2d(y, box, column + consumer * WARPGROUP_ROWS, row);
        ptx::bulk::commit_group();
        ptx::bulk::wait_group_read<0>();  // shared memory must outlive the read
    }
}

__device__ __forceinline__ void consumer(Shared& shared, const TensorMap& y, const float* w_scale, int n, Tile tile,
                                         int rank, int steps) {
    const Lane lane;
    const Scales scale(w_scale, tile.column + lane.warp * ROWS + lane.g, n);
    Sums sum = {};
    accumulate(sum, shared, steps);
    if constexpr (SPLIT == 1) {
        store(sum, scale, shared, y, tile.row, tile.column);
    } else {
        float own[PART_REGISTERS];
        ptx::cluster::wait();  // every CTA of the cluster has started
        reduce<SPLIT>(own, sum, reinterpret_cast<Inbox*>(&shared + 1), shared.arrived, rank);
        store(own, scale, shared, y, tile.row + rank * PART, tile.column);
    }
}

extern "C" __global__ void __launch_bounds__(schedule::threads, schedule::ctas_per_sm)
    gemm_dequant(const __grid_constant__ TensorMap x_map, const __grid_constant__ TensorMap w_map,
                 const __grid_constant__ TensorMap pairs_map, const __grid_constant__ TensorMap y_map, const bf16*,
                 const void*, bf16*, const void* w_scale, int m, int n, int k) {
    extern __shared__ uint8_t dynamic[];
    Shared& shared = aligned<Shared>(dynamic);
    const int rank = blockIdx.x % SPLIT, steps = tiles_of(k, BLOCK_K), warp = threadIdx.x / WARP;
    const int first = rank * steps / SPLIT, end = (rank + 1) * steps / SPLIT;  // of this CTA's k-steps
    const Tile tile = tile_at(blockIdx.x / SPLIT, tiles_of(m, schedule::block_m), tiles_of(n, schedule::block_n),
                              schedule::block_m, schedule::block_n);

    if (threadIdx.x == 0) {
        ptx::mbarrier::init(shared.arrived, 1);
        if constexpr (SUMMED)
            for (int stage = 0; stage < schedule::stages; ++stage) ptx::mbarrier::init(shared.summed[stage], SUMMERS);
        init_ring(shared, x_map, w_map, y_map, PRODUCER / WARP + (SUMMED ? SUMMERS : 0));
        ptx::mbarrier::arrive_expect_tx(shared.arrived, (SPLIT - 1) * sizeof(Inbox));
        ptx::griddepcontrol::launch_dependents();
    }
    __syncthreads();
    if constexpr (SPLIT > 1) ptx::cluster::arrive_relaxed();  // the barriers' own fence is all that the others need

    if (threadIdx.x < PRODUCER) {
        if constexpr (MOVES_REGISTERS) ptx::setmaxnreg::inc<schedule::consumer_registers>();
        consumer(shared, y_map, static_cast<const float*>(w_scale), n, tile, rank, end - first);
    } else {
        if constexpr (MOVES_REGISTERS) ptx::setmaxnreg::dec<schedule::helper_registers>();
        if (threadIdx.x == PRODUCER) producer(shared, Maps{x_map, w_map, pairs_map}, tile, first, end);
        if constexpr (SUMMED)
            if (warp > PRODUCER / WARP) summer(shared, warp - PRODUCER / WARP - 1, end - first);
        __syncwarp();
        if constexpr (SPLIT > 1) ptx::cluster::wait();
    }
}
