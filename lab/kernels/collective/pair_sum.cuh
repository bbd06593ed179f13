// What both all-reduces of two ranks share: the slots of an inbox, and the sum of 16 bytes.
//
// Slots are taken in turn, epoch by epoch: when a rank sends for the second time after an epoch, the other has answered
// the first and so is done with that epoch's slot.
#pragma once
#include "ptx/convert.cuh"

#ifndef SLOTS
#define SLOTS 2
#endif

// Two elements each, added in float32 and rounded.
template <class Activation>
__device__ __forceinline__ uint32_t pair_sum(uint32_t a, uint32_t b) {
    return ptx::convert::pair<Activation>(ptx::convert::low<Activation>(a) + ptx::convert::low<Activation>(b),
                                          ptx::convert::high<Activation>(a) + ptx::convert::high<Activation>(b));
}

template <class Activation>
__device__ __forceinline__ Vector16 pair_sum(const Vector16& a, const Vector16& b) {
    Vector16 sum;
#pragma unroll
    for (int i = 0; i < 4; ++i) sum.words[i] = pair_sum<Activation>(a.words[i], b.words[i]);
    return sum;
}
