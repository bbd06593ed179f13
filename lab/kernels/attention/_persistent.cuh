// CTAs that take one work after another: a producer's warp that runs ahead into the next, and consumers of some kind.
#pragma once
#include "lab/kernels/attention/_consumer.cuh"
#include "ptx/setmaxnreg.cuh"

constexpr float LOG2_E = 1.4426950408889634f;

static_assert(schedule::threads == (1 + CONSUMERS) * WARPGROUP, "a producer and the consumers");

struct Maps {
    const TensorMap &q, &k, &v;
};

// `consume` is called by each warpgroup but the producer's, with its number.
template <typename Consume>
__device__ __forceinline__ void run_persistent(const Maps& maps, const Lengths& lengths, int row_pages, int pages,
                                               int* counter, Consume consume) {
    extern __shared__ uint8_t dynamic[];
    Shared& shared = aligned(dynamic);
    const int warpgroup = threadIdx.x / WARPGROUP;
    if (threadIdx.x == 0) {
        ptx::tma::prefetch(maps.q);
        ptx::tma::prefetch(maps.k);
        ptx::tma::prefetch(maps.v);
        init(shared);
    }
    sync_cluster();

    if (warpgroup == 0) {
        ptx::setmaxnreg::dec<PRODUCER_REGISTERS>();
        if (threadIdx.x < WARP) {
            const int rank = schedule::cluster == 1 ? 0 : int(ptx::cluster::rank());
            const Cache cache{maps.k, maps.v, lengths.places, lengths.kv_heads, row_pages, pages, rank};
            Producer producer{shared, maps.q, cache};
            Tickets tickets{shared, counter, lengths.works(), rank};
            producer.begin();
            for (int index = tickets.first(); index < tickets.works; index = tickets.get()) {
                tickets.ask();
                Work work;
                if (lengths.work(index, rank, work)) producer.feed(work);
            }
            producer.end();
        }
    } else {
        ptx::setmaxnreg::inc<CONSUMER_REGISTERS>();
        consume(shared, uniform(warpgroup) - 1);
    }
    finish();
}
