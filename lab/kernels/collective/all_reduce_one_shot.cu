// all_reduce_one_shot: the sum of two ranks on both, by stores into each other's memory that carry their own flags.
//
// Idea: a small sum is all latency. A load from the other GPU takes its link twice, a fence and a flag once more; a
// store takes it once. So every word is stored with the epoch it belongs to, and its receiver polls for that very word.
//
//   rank 0: x --store word and epoch--> inbox of rank 1      rank 1: x --> inbox of rank 0
//   both:   poll the own inbox for the epoch, add, store y
//
// Warp roles: all alike. A launch has one rank, or both as grid.y where one chip plays both. CTAs of a launch are all
// resident. The epoch is counted by each CTA in its own memory, so that a captured graph may be replayed.
//
// Bytes expected: x read twice, once from L2; twice x over the link each way; y written once.
#include "lab/kernels/collective/one_shot.cuh"
#include "schedule.cuh"

using Activation = problem::activations;

extern "C" __global__ void __launch_bounds__(schedule::threads)
    all_reduce_one_shot(const Vector16* __restrict__ x, Vector16* __restrict__ y, Words* inbox0, Words* inbox1,
                        uint32_t* epochs, int units, int first_rank) {
    const int rank = first_rank + blockIdx.y, ctas = schedule::ctas;
    const int64_t own = int64_t(blockIdx.y) * units;
    uint32_t* counter = epochs + rank * ctas + blockIdx.x;
    const uint32_t epoch = ptx::load::cached_4(counter) + 1;
    const OneShot<Activation> ranks{x + own, y + own, rank ? inbox1 : inbox0, rank ? inbox0 : inbox1, units};
    ranks.send(blockIdx.x, ctas, epoch);
    ranks.add(blockIdx.x, ctas, epoch);
    __syncthreads();  // every thread has read the counter
    if (threadIdx.x == 0) ptx::store::global<4>(counter, Vector<4>{epoch});
}
