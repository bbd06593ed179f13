// attention_mla: decode of multi-head latent attention, absorbed: all query heads share one latent row a token, whose
// first part is also the value.
//
// Idea: a token's row is read once, to shared memory, and multiplied twice: as a key, and, read across, as a value.
// One warpgroup has the queries in registers and makes the scores of 64 rows, whose weights it leaves in shared memory
// where the keys' last columns were; two others have half of the sums of values each, which would not fit in one. While
// those add up a block, the first makes weights of the next: they wait for its scores, so that products never stop for
// a softmax. Queries of several tokens and heads are rows alike. The CTAs of a cluster, 64 rows each, load each row
// once for all.
//
//   producer   | q | kv 0 | kv 1 | kv 2 ...          through one ring; a cluster's CTAs multicast to each other
//   scores     | q, qk 0 | softmax 0 | qk 1        | softmax 1 | qk 2        | softmax 2 ...
//   values                           |  sum 0, begin | sum 0, end | sum 1, begin | sum 1, end ...
//
// Bytes expected through TMA: q of a tile and the latents that it sees, for every CTA. From HBM: the latents once for
// every cluster that shares them.
#include "lab/kernels/attention/mla_scores.cuh"
#include "lab/kernels/attention/mla_values.cuh"
#include "ptx/griddepcontrol.cuh"
#include "ptx/setmaxnreg.cuh"

constexpr int SCORES_REGISTERS = 184, VALUES_REGISTERS = 160;

static_assert(schedule::threads == (1 + VALUES_WARPGROUPS) * WARPGROUP, "scores, and two of values");
static_assert(SCORES_REGISTERS + VALUES_WARPGROUPS * VALUES_REGISTERS <= (1 + VALUES_WARPGROUPS) * 168,
              "168 a thread at launch");

extern "C" __global__ void __launch_bounds__(schedule::threads, 1)
    attention_mla(const __grid_constant__ TensorMap q_map, const __grid_constant__ TensorMap kv_map, const Element*,
                  const Element*, const int32_t* q_starts, const int32_t* kv_lens, const int32_t* places, Element* y,
                  float* lse, float* partial, float* partial_lse, int batch_size, int max_kv_len, int table_width,
                  int pages, float scale) {
    extern __shared__ __align__(ALIGNMENT) uint8_t dynamic[];
    Shared& shared = *reinterpret_cast<Shared*>(dynamic);
    const Batch batch{q_starts, kv_lens, batch_size, max_kv_len};
    const int warpgroup = threadIdx.x / WARPGROUP, rank = schedule::cluster == 1 ? 0 : int(ptx::cluster::rank());
    if (threadIdx.x == 0) {
        ptx::tma::prefetch(q_map);
        ptx::tma::prefetch(kv_map);
        init(shared);
    }
    ptx::griddepcontrol::wait();
    ptx::griddepcontrol::launch_dependents();
    if (threadIdx.x < WARP) plan(shared, batch);
    sync_cluster();

    if (shared.parts[0].exists()) {
        const Results results{y, lse, partial, partial_lse, rank};
        if (warpgroup == 0) {
            ptx::setmaxnreg::inc<SCORES_REGISTERS>();
            Scorer(shared, results, scale * LOG2_E).run();
        } else {
            ptx::setmaxnreg::dec<VALUES_REGISTERS>();
            const Cache cache{kv_map, places, table_width, pages};
            Summer(shared, results, Loader{shared, q_map, cache, rank}, uniform(warpgroup) - 1).run(batch);
        }
    }
    finish();
}

// A row of y from its partial results, by a warp.
extern "C" __global__ void __launch_bounds__(schedule::combine_threads)
    attention_mla_combine(const int32_t* q_starts, const int32_t* kv_lens, Element* y, float* lse, const float* partial,
                          const float* partial_lse, int batch_size, int max_kv_len, int max_workers) {
    constexpr int VECTORS = problem::latent / 4 / WARP;  // of four columns, a lane's
    const int lane = threadIdx.x % WARP, row = blockIdx.x * (schedule::combine_threads / WARP) + threadIdx.x / WARP;

    // The lengths are older than the launch before: it lets this one start after it has waited itself.
    ptx::griddepcontrol::launch_dependents();
    const Partials partials = partials_of(row, {q_starts, kv_lens, batch_size, max_kv_len}, max_workers);
    ptx::griddepcontrol::wait();
    if (partials.count == 0) return;

    float largest = -infinity();
    for (int i = lane; i < partials.count; i += WARP) largest = fmaxf(largest, partial_lse[partials.at(i)]);
#pragma unroll
    for (int offset = 1; offset < WARP; offset *= 2) largest = fmaxf(largest, __shfl_xor_sync(FULL, largest, offset));
    const float base = largest == -infinity() ? 0 : largest;
    float sum = 0, total[VECTORS][4] = {};
    for (int some = 0; some < partials.count; some += WARP) {
        const int count = min(partials.count - some, WARP);
        const float own = lane < count ? ptx::ex2::approx((partial_lse[partials.at(some + lane)] - base) * LOG2_E) : 0;
        sum += own;
#pragma unroll 4
        for (int i = 0; i < count; ++i) {
            const auto* from = reinterpret_cast<const float4*>(partial + partials.at(some + i) * problem::latent);
            const float weight = __shfl_sync(FULL, own, i);
#pragma unroll
            for (int v = 0; v < VECTORS; ++v) {
                const float4 four = from[v * WARP + lane];
                total[v][0] = fmaf(four.x, weight, total[v][0]), total[v][1] = fmaf(four.y, weight, total[v][1]);
                total[v][2] = fmaf(four.z, weight, total[v][2]), total[v][3] = fmaf(four.w, weight, total[v][3]);
            }
        }
    }
#pragma unroll
    for (int offset = 1; offset < WARP; offset *= 2) sum += __shfl_xor_sync(FULL, sum, offset);
    const float inverse = sum > 0 ? 1 / sum : 0;
#pragma unroll
    for (int v = 0; v < VECTORS; ++v)
        reinterpret_cast<Vector<8>*>(y + int64_t(row) * problem::latent)[v * WARP + lane] = {
            {ptx::convert::pair<Element>(total[v][0] * inverse, total[v][1] * inverse),
             ptx::convert::pair<Element>(total[v][2] * inverse, total[v][3] * inverse)}};
    if (problem::lse && lane == 0) lse[row] = sum > 0 ? base + __logf(sum) : -infinity();
}
