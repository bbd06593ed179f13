// One-shot all-reduce of two ranks: each sends all it has to the other's inbox and adds what is in its own.
//
// A word travels with its epoch in eight bytes, which are written and read at once: who reads the epoch has the word, and
// no fence and no flag is waited for. Two words are a store.
#pragma once
#include "lab/kernels/collective/pair_sum.cuh"
#include "ptx/load.cuh"
#include "ptx/store.cuh"

using Words = Vector16;  // word, epoch, word, epoch

// `units` of 16 bytes on each rank; this CTA has every ctas-th run of `threads` of them. Unit i of a slot lies in two
// parts, so that the lanes of a warp store side by side.
template <class Activation>
struct OneShot {
    const Vector16* x;
    Vector16* y;
    Words *mine, *theirs;
    int units;

    __device__ __forceinline__ void send(int cta, int ctas, uint32_t epoch) const {
        Words* slot = theirs + int64_t(epoch % SLOTS) * 2 * units;
        for (int i = cta * blockDim.x + threadIdx.x; i < units; i += ctas * blockDim.x) {
            const Vector16 own = ptx::load::no_allocate_if<16>(x + i, true);
            ptx::store::relaxed_system(slot + i, {own.words[0], epoch, own.words[1], epoch});
            ptx::store::relaxed_system(slot + units + i, {own.words[2], epoch, own.words[3], epoch});
        }
    }

    static __device__ __forceinline__ Words awaited(const Words* at, uint32_t epoch) {
        Words found;
        do found = ptx::load::relaxed_system(at);
        while (found.words[1] != epoch || found.words[3] != epoch);
        return found;
    }

    __device__ __forceinline__ void add(int cta, int ctas, uint32_t epoch) const {
        const Words* slot = mine + int64_t(epoch % SLOTS) * 2 * units;
        for (int i = cta * blockDim.x + threadIdx.x; i < units; i += ctas * blockDim.x) {
            const Vector16 own = ptx::load::no_allocate_if<16>(x + i, true);
            const Words first = awaited(slot + i, epoch), second = awaited(slot + units + i, epoch);
            const Vector16 other{first.words[0], first.words[2], second.words[0], second.words[2]};
            ptx::store::global<16>(y + i, pair_sum<Activation>(own, other));
        }
    }
};
