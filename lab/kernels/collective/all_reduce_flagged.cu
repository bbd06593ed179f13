// all_reduce_flagged: the sum of two ranks on both, one flag for all that a CTA stores into the other's memory.
//
// Idea: beside its epoch a word takes twice its bytes over the link, which large sums pay for and small ones do not. Here
// the words go alone; then the CTA's threads meet, one fences at system scope and stores the epoch to the other's flag.
//
//   rank 0: x --> inbox of rank 1; meet, fence, epoch --> flag of rank 1      rank 1: likewise
//   both:   wait for the own flag, meet, add x and the inbox, store y
//
// Warp roles: all alike; launches and epochs as in all_reduce_one_shot. A flag may already be the next epoch's, whose
// words lie in the other slot.
//
// Bytes expected: x read twice; x once over the link each way and read from the inbox; y written once.
#include "lab/kernels/collective/pair_sum.cuh"
#include "ptx/fence.cuh"
#include "ptx/load.cuh"
#include "ptx/store.cuh"
#include "schedule.cuh"

using Activation = problem::activations;

extern "C" __global__ void __launch_bounds__(schedule::threads)
    all_reduce_flagged(const Vector16* __restrict__ x, Vector16* __restrict__ y, Vector16* inbox0, Vector16* inbox1,
                       uint32_t* flags0, uint32_t* flags1, uint32_t* epochs, int units, int first_rank) {
    const int rank = first_rank + blockIdx.y, cta = blockIdx.x;
    const int64_t own = int64_t(blockIdx.y) * units;
    uint32_t* counter = epochs + rank * schedule::ctas + cta;
    const uint32_t epoch = ptx::load::cached_4(counter) + 1;
    const int64_t slot = int64_t(epoch % SLOTS) * units;
    Vector16* theirs = (rank ? inbox0 : inbox1) + slot;
    const Vector16* mine = (rank ? inbox1 : inbox0) + slot;

    for (int i = cta * schedule::threads + threadIdx.x; i < units; i += schedule::ctas * schedule::threads)
        ptx::store::global<16>(theirs + i, ptx::load::no_allocate_if<16>(x + own + i, true));
    __syncthreads();
    if (threadIdx.x == 0) {
        ptx::fence::system();
        ptx::store::relaxed_system((rank ? flags0 : flags1) + cta, epoch);
        while (int32_t(ptx::load::acquire_system((rank ? flags1 : flags0) + cta) - epoch) < 0) {}
        ptx::store::global<4>(counter, Vector<4>{epoch});
    }
    __syncthreads();
    for (int i = cta * schedule::threads + threadIdx.x; i < units; i += schedule::ctas * schedule::threads) {
        const Vector16 a = ptx::load::no_allocate_if<16>(x + own + i, true);
        const Vector16 b = ptx::load::no_allocate_if<16>(mine + i, true);
        ptx::store::global<16>(y + own + i, pair_sum<Activation>(a, b));
    }
}
