// attention_fp8: y = softmax(q k^T / sqrt(head_dim)) v on a cache in fp8, multiplied as fp8: prefill.
//
// Idea: tensor cores multiply fp8 at twice the rate of bf16, but only rows along which they sum: values have to be turned
// from rows of keys to rows of elements. Warps beside the producer's turn each block in place, in an order of keys in
// which a thread's weights are the next product's fragments as they are. The tensor cores keep few bits of long sums, so
// each block's weighted sum leaves them for float32 sums in registers. fp8 queries and weights are one term; bf16 queries
// are two, exactly, and weights two as well: then products cost what bf16's do, and the cache is read as it is.
// Adds to attention_pingpong: fp8.
//
//   producer    | q, k 0 | k 1, v 0 | k 2, v 1 | k 3, v 2 ...                            blocks from the last to the first
//   turners                | turn v 0 | turn v 1 | ...
//   consumer 0      | qk 0 | softmax 0 | wv 0 | qk 1 | softmax 1 | wv 1 | ...
//   consumer 1      | qk 0 | softmax 0 | wv 0 | qk 1 | softmax 1 | wv 1 | ...
//
// Bytes expected through TMA: q once, k and v once for every tile of queries that sees them. From HBM: each once, while
// the heads of a section fit in L2.
#include "lab/kernels/attention/_fp8_terms.cuh"
#include "lab/kernels/attention/_results.cuh"
#include "ptx/setmaxnreg.cuh"
#include "ptx/wgmma.cuh"

constexpr int CONSUMER_REGISTERS = 232, PRODUCER_REGISTERS = 40;

static_assert(schedule::threads == (1 + CONSUMERS) * WARPGROUP, "a producer, turners and the consumers");

__device__ __forceinline__ void release(uint64_t& empty) {
    if (threadIdx.x % WARP == 0) ptx::mbarrier::arrive(empty);
}

// sum = weights v of the 2 n elements whose values' rows start at `values`, queued.
template <int n>
__device__ __forceinline__ void multiply(float (&sum)[n], const Fragments (&weights)[TERMS], const Row* values) {
    const uint64_t b = ptx::wgmma::descriptor_k_major_128b(values);
#pragma unroll
    for (int i = 0; i < TERMS * STEPS; ++i)
        ptx::wgmma::mma<fp8>(sum, weights[i / STEPS][i % STEPS], ptx::wgmma::advance(b, i % STEPS * MMA_K), i > 0);
    ptx::wgmma::commit_group();
}

struct Consumer {
    Shared& shared;
    const Results& results;
    const int row;  // this warp's first of a tile
    Position k_at, v_at;
    uint32_t q_parity = 0;
    Queries queries;
    Fragments weights[TERMS];
    Values y;

    __device__ __forceinline__ Consumer(Shared& shared, const Results& results, int first)
        : shared(shared), results(results), row(first + threadIdx.x % WARPGROUP / WARP * 16), queries(shared, first) {}

    __device__ __forceinline__ void hold_weights() {
#pragma unroll
        for (int term = 0; term < TERMS; ++term) ptx::wgmma::hold(weights[term]);
        ptx::wgmma::fence();
    }

    // Scores that have been waited for.
    template <bool masked>
    __device__ __forceinline__ void receive(const Work& work, int block, Scores& scores, Softmax& softmax) {
        ptx::wgmma::hold(scores);
        release(shared.k_empty[k_at.stage]);
        k_at.advance();
        if constexpr (masked) visible(work, row + threadIdx.x % WARP / 4, block * schedule::block_n).mask(scores);
        softmax.begin(scores);
        softmax.base[0] -= schedule::headroom, softmax.base[1] -= schedule::headroom;
    }

    // Part of the columns of a weighted sum that has been waited for.
    template <int n>
    __device__ __forceinline__ void add(int first, float (&partial)[n], const float (&decay)[2]) {
        ptx::wgmma::hold(partial);
#pragma unroll
        for (int i = 0; i < n; ++i) y[first + i] = fmaf(y[first + i], decay[row_of(i)], partial[i]);
    }

    // Weights of a block.
    template <bool masked>
    __device__ __forceinline__ void weigh(const Work& work, int block, Softmax& softmax) {
        Scores scores;
        ptx::mbarrier::wait(shared.k_full[k_at.stage], k_at.parity);
        ptx::wgmma::fence();
        queries.multiply(scores, shared.k[k_at.stage]);
        ptx::wgmma::wait_group<0>();
        receive<masked>(work, block, scores, softmax);
        softmax.weigh<0, schedule::block_n / 2>(scores);
        pack(weights, scores);
    }

    // Weighted sum of the block that was weighed last.
    __device__ __forceinline__ void sum(const Softmax& softmax) {
        Values partial;
        ptx::mbarrier::wait(shared.v_full[v_at.stage], v_at.parity);
        hold_weights();
        multiply(partial, weights, shared.v[v_at.stage]);
        ptx::wgmma::wait_group<0>();
        add(0, partial, softmax.decay);
        release(shared.v_empty[v_at.stage]);
        v_at.advance();
    }

    // Weights of a block beside the weighted sum of the one before, for half of its columns after the other.
    template <bool masked>
    __device__ __forceinline__ void step(const Work& work, int block, Softmax& softmax) {
        constexpr int HALF = problem::head_dim / 2;  // rows of turned values
        constexpr int FIRST = schedule::block_n / 2 * schedule::settle / 8;  // weights made before the first half is there
        Scores scores;
        float partial[HALF / 2];
        const Row* values = shared.v[v_at.stage];
        ptx::mbarrier::wait(shared.k_full[k_at.stage], k_at.parity);
        hold_weights();
        queries.multiply(scores, shared.k[k_at.stage]);
        ptx::mbarrier::wait(shared.v_full[v_at.stage], v_at.parity);
        multiply(partial, weights, values);
        ptx::wgmma::wait_group<1>();
        const float before[2] = {softmax.decay[0], softmax.decay[1]};
        receive<masked>(work, block, scores, softmax);
        softmax.weigh<0, FIRST>(scores);
        ptx::wgmma::wait_group<0>();
        add(0, partial, before);
        hold_weights();
        multiply(partial, weights, values + HALF);
        softmax.weigh<FIRST, schedule::block_n / 2>(scores);
        ptx::wgmma::wait_group<0>();
        add(HALF / 2, partial, before);
        release(shared.v_empty[v_at.stage]);
        v_at.advance();
        pack(weights, scores);
    }

    // A block after the first: one product after another, or beside one another.
    template <bool masked>
    __device__ __forceinline__ void take(const Work& work, int block, Softmax& softmax) {
        if constexpr (schedule::overlap) {
            step<masked>(work, block, softmax);
        } else {
            sum(softmax);
            weigh<masked>(work, block, softmax);
        }
    }

    // Rows of y: of 16 elements a thread has four side by side, as turned values come.
    __device__ __forceinline__ void store(const Softmax& softmax, const Work& work, float value_scale) const {
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            const float total = softmax.total(r), inverse = total > 0 ? __fdividef(value_scale, total) : 0;
            const float log_sum = softmax.log_sum(r, total) - schedule::headroom;
            const int64_t to = results.place(work, row + threadIdx.x % WARP / 4 + 8 * r);
#pragma unroll
            for (int i = 2 * r; i < problem::head_dim / 2; i += 8) {
                const float4 mean = {y[i] * inverse, y[i + 4] * inverse, y[i + 1] * inverse, y[i + 5] * inverse};
                results.store_four(to, i / 8 * GROUP + threadIdx.x % 4 * 4, mean, log_sum);
            }
        }
    }

    // Every tile, one after another.
    __device__ __forceinline__ void run() {
        for (;;) {
            ptx::mbarrier::wait(shared.q_full, q_parity);
            const Work& work = shared.work[q_parity];
            if (work.sequence < 0) return;
            const Scales scales = shared.scales[q_parity];
            q_parity ^= 1;
            if (work.first >= work.last) {
                results.store_nothing(work, row);
                __syncwarp();
                release(shared.q_empty);
                continue;
            }
            float rows[2];
            queries.receive(rows);
            Softmax softmax(scales.score * rows[0], scales.score * rows[1]);
#pragma unroll
            for (int i = 0; i < problem::head_dim / 2; ++i) y[i] = 0;
            const int first = work.first, ragged_end = work.ragged_end(), ragged_start = work.ragged_start();
            int block = work.last - 1;
            weigh<true>(work, block--, softmax);
            for (; block >= max(ragged_end, first); --block) take<true>(work, block, softmax);
            for (; block >= max(ragged_start, first); --block) take<false>(work, block, softmax);
            if constexpr (problem::window > 0)
                for (; block >= first; --block) take<true>(work, block, softmax);
            queries.end();
            sum(softmax);
            store(softmax, work, scales.value);
            __syncwarp();
        }
    }
};

// Numbers of works: each CTA's first is its own, the others come from a counter, which the last to ask makes 0 again.
__device__ __forceinline__ int ask(int* counter, int works) {
    if (threadIdx.x % WARP > 0) return 0;
    const int index = atomicAdd(counter, 1);
    if (index == works - 1) atomicExch(counter, 0);
    return index + int(gridDim.x);
}

extern "C" __global__ void __launch_bounds__(schedule::threads, 1)
    attention_fp8(const __grid_constant__ TensorMap q_map, const __grid_constant__ TensorMap k_map,
                  const __grid_constant__ TensorMap v_map, const Element*, const fp8*, const fp8*, Output* y, float* lse,
                  const int* q_starts, const int* kv_lens, const int* places, const float* q_scale,
                  const float* k_scale, const float* v_scale, int* counter, int batch, int q_len, int kv_heads,
                  int row_pages, int pages, float scale) {
    extern __shared__ uint8_t dynamic[];
    Shared& shared = aligned(dynamic);
    const int warpgroup = threadIdx.x / WARPGROUP, warp = threadIdx.x / WARP;
    if (threadIdx.x == 0) {
        ptx::tma::prefetch(q_map);
        ptx::tma::prefetch(k_map);
        ptx::tma::prefetch(v_map);
        init(shared);
    }
    __syncthreads();

    if (warpgroup == 0) {
        ptx::setmaxnreg::dec<PRODUCER_REGISTERS>();
        if (warp == 0) {
            constexpr float LOG2_E = 1.4426950408889634f;
            const Lengths lengths{q_starts, kv_lens, places, batch, q_len, kv_heads};
            const Cache cache{k_map, v_map, places, kv_heads, row_pages, pages};
            Producer producer{shared, q_map, cache, q_scale, k_scale, v_scale, scale * LOG2_E};
            producer.begin();
            const int works = lengths.works();
            for (int index = blockIdx.x; index < works;) {
                const int next = ask(counter, works);
                Work work;
                if (lengths.work(index, 0, work)) producer.feed(work);
                index = __shfl_sync(0xffffffffu, next, 0);
            }
            producer.end();
        } else if (warp <= schedule::turners) {
            Turner{shared, warp - 1}.run();
        }
    } else {
        ptx::setmaxnreg::inc<CONSUMER_REGISTERS>();
        const Results results{y, lse, kv_heads, {}};
        Consumer(shared, results, (__shfl_sync(0xffffffffu, warpgroup, 0) - 1) * MMA_M).run();
    }
}
