// attention_mla: decode of multi-head latent attention, absorbed: all query heads share one latent row a token, whose
// first part is also the value.
//
// Idea: a token's row is read once, to shared memory, and multiplied twice: as a key, and, read across, as a value.
// One warpgroup has the queries in registers and makes the scores of 64 rows, whose weights it leaves in shared memory
// where the keys' last columns were; two others have half of the sums of values each, which would not fit in one. While
// those add up a block, the first makes weights of the next: they wait for its scores, so that products never stop for
// a softmax. Queries of several tokens and heads are rows alike. The CTAs of a cluster, 64 rows each, load each row
// once for all. Of clusters that share a sequence's rows, who comes last adds up their partial results.
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
                  float* lse, float* partial, float* partial_lse, uint32_t* arrivals, int batch_size, int max_q_len,
                  int max_kv_len, int max_tiles, int table_width, int pages, float scale) {
    extern __shared__ __align__(ALIGNMENT) uint8_t dynamic[];
    Shared& shared = *reinterpret_cast<Shared*>(dynamic);
    const Batch batch{q_starts, kv_lens, batch_size, max_q_len, max_kv_len};
    const int warpgroup = threadIdx.x / WARPGROUP, rank = schedule::cluster == 1 ? 0 : int(ptx::cluster::rank());
    if (threadIdx.x == 0) {
        ptx::tma::prefetch(q_map);
        ptx::tma::prefetch(kv_map);
        init(shared);
    }
    ptx::griddepcontrol::wait();
    ptx::griddepcontrol::launch_dependents();
    if (threadIdx.x < WARP)
        plan(shared, batch);
    else if (threadIdx.x < 2 * WARP)
        ask_for_table(places, batch_size * table_width);
    sync_cluster();

    if (shared.parts[0].exists()) {
        const Results results{y, lse, partial, partial_lse, arrivals, max_tiles, rank};
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
