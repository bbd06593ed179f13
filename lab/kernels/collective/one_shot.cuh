// One-shot all-reduce of two ranks: each sends all it has to the other's inbox and adds what is in its own.
//
// A word travels with its epoch in eight bytes, which are written and read at once: who reads the epoch has the word, and
// no fence and no flag is waited for. Two words are a store. An inbox has `SLOTS` slots, taken in turn: when a rank
// sends for the second time after an epoch, the other has answered the first and so is done with that epoch's slot.
#pragma once
#include "ptx/convert.cuh"
#include "ptx/load.cuh"
#include "ptx/store.cuh"

#ifndef SLOTS
#define SLOTS 2
#endif

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

    static __device__ __forceinline__ uint32_t sum(uint32_t a, uint32_t b) {
        return ptx::convert::pair<Activation>(
            ptx::convert::low<Activation>(a) + ptx::convert::low<Activation>(b),
            ptx::convert::high<Activation>(a) + ptx::convert::high<Activation>(b));
    }

    __device__ __forceinline__ void add(int cta, int ctas, uint32_t epoch) const {
        const Words* slot = mine + int64_t(epoch % SLOTS) * 2 * units;
        for (int i = cta * blockDim.x + threadIdx.x; i < units; i += ctas * blockDim.x) {
            const Vector16 own = ptx::load::no_allocate_if<16>(x + i, true);
            const Words first = awaited(slot + i, epoch), second = awaited(slot + units + i, epoch);
            ptx::store::global<16>(y + i, Vector16{sum(own.words[0], first.words[0]), sum(own.words[1], first.words[2]),
                                                   sum(own.words[2], second.words[0]), sum(own.words[3], second.words[2])});
        }
    }
};
