// What the GEMVs share whose warps multiply what lies in shared memory: products of vectors of eight elements.
#pragma once
#include "lab/kernels/common/warp_sum.cuh"
#include "ptx/convert.cuh"
#include "schedule.cuh"

using Weight = problem::weights;
using Element = problem::activations;  // of x
using Output = problem::output;

constexpr int LANES = 32;
constexpr int VECTOR = sizeof(Vector16) / sizeof(Element);
using Weights = Vector<VECTOR * sizeof(Weight)>;

// What a pair of weights is before it becomes two floats.
template <typename T>
struct Widened {
    using Type = T;
    static __device__ __forceinline__ uint32_t pair(const Weights& w, int i) { return w.words[i]; }
};

template <>
struct Widened<fp8> {
    using Type = fp16;
    static __device__ __forceinline__ uint32_t pair(const Weights& w, int i) {
        const uint32_t four = w.words[i / 2];
        return i % 2 ? ptx::convert::widen_upper_fp8(four) : ptx::convert::widen_fp8(uint16_t(four));
    }
};

// The dot product of a vector of weights and one of activations, added to `sum`.
__device__ __forceinline__ void multiply_add(float& sum, const Weights& w, const Vector16& x) {
    using Wide = typename Widened<Weight>::Type;
#pragma unroll
    for (int i = 0; i < VECTOR / 2; ++i) {
        const uint32_t pair = Widened<Weight>::pair(w, i);
        sum = fmaf(ptx::convert::low<Wide>(pair), ptx::convert::low<Element>(x.words[i]), sum);
        sum = fmaf(ptx::convert::high<Wide>(pair), ptx::convert::high<Element>(x.words[i]), sum);
    }
}
