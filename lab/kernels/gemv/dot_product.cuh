// What the GEMVs share that read 16 bytes at a time: products of vectors.
#pragma once
#include "lab/kernels/common/warp_sum.cuh"
#include "ptx/convert.cuh"
#include "schedule.cuh"

using Element = problem::weights;  // of w, of x and of y

constexpr int LANES = 32;
constexpr int VECTOR = sizeof(Vector16) / sizeof(Element);

// The dot product of a vector of weights and one of activations, added to `sum`.
__device__ __forceinline__ void multiply_add(float& sum, const Vector16& w, const Vector16& x) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        sum = fmaf(ptx::convert::low<Element>(w.words[i]), ptx::convert::low<Element>(x.words[i]), sum);
        sum = fmaf(ptx::convert::high<Element>(w.words[i]), ptx::convert::high<Element>(x.words[i]), sum);
    }
}
