// A split along k: the CTAs of a cluster sum what each has of a tile, through distributed shared memory.
// Each owns a part of every thread's accumulators and gets it from the threads of the same index in the other CTAs,
// straight from their registers; an mbarrier counts the bytes. The order of the sum is fixed.
#pragma once
#include "ptx/address.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/store.cuh"

constexpr int VECTOR = 4;  // floats that are sent at once

// What one other CTA sends: `registers` sums of this CTA's part from each of `threads`, in the order of the threads.
template <int registers, int threads>
struct InboxOf {
    static_assert(registers % VECTOR == 0, "whole vectors");
    float sums[registers / VECTOR][threads][VECTOR];
};

// Send every other CTA its part of the sums, keep this CTA's own and add what the others send. Inbox d - 1 is for the
// d-th next CTA. Every CTA of the cluster has started; `arrived` expects the bytes of all inboxes.
template <int split, int registers, int threads>
__device__ __forceinline__ void reduce(float (&own)[registers], const float (&sum)[split * registers],
                                       InboxOf<registers, threads>* inboxes, uint64_t& arrived, int rank) {
    using Inbox = InboxOf<registers, threads>;
    uint32_t to[split], barrier[split];
#pragma unroll
    for (int owner = 0; owner < split; ++owner) {
        const int distance = owner == rank ? 1 : (rank - owner + split) % split;
        to[owner] = ptx::address::shared_of_cta(inboxes[distance - 1].sums[0][threadIdx.x], owner);
        barrier[owner] = ptx::address::shared_of_cta(&arrived, owner);
    }
#pragma unroll
    for (int i = 0; i < registers; i += VECTOR)
#pragma unroll
        for (int owner = 0; owner < split; ++owner) {  // in turn, so that all receive at the same time
            const float* four = &sum[owner * registers + i];
            if (owner != rank)
                ptx::store::async_cluster(to[owner] + i / VECTOR * sizeof(Inbox::sums[0]), four, barrier[owner]);
            else
                for (int j = 0; j < VECTOR; ++j) own[i + j] = four[j];
        }
    ptx::mbarrier::wait_cluster(arrived, 0);
#pragma unroll
    for (int distance = 1; distance < split; ++distance)
#pragma unroll
        for (int i = 0; i < registers; i += VECTOR) {
            const float4 four = *reinterpret_cast<float4*>(inboxes[distance - 1].sums[i / VECTOR][threadIdx.x]);
            own[i] += four.x, own[i + 1] += four.y, own[i + 2] += four.z, own[i + 3] += four.w;
        }
}
