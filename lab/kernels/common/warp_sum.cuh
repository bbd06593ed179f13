// What the kernels share whose warps add up what their lanes have.
#pragma once
#include "ptx/types.cuh"

// The sum over `lanes` neighbouring lanes, a power of two, in each of them; those lanes call it together.
template <int lanes>
__device__ __forceinline__ float sum_of_lanes(float value) {
    const uint32_t together = (0xffffffffu >> (32 - lanes)) << (threadIdx.x % 32 / lanes * lanes);
#pragma unroll
    for (int offset = lanes / 2; offset > 0; offset /= 2) value += __shfl_xor_sync(together, value, offset);
    return value;
}

// The sum over all lanes of a full warp, in every lane.
__device__ __forceinline__ float warp_sum(float value) { return sum_of_lanes<32>(value); }

// The sums over all lanes of a full warp of each of `count` values, a power of two up to 32: lane l returns that of value
// l % count. While a lane has several values, it sends half of them to a lane that keeps those; so few are sent.
template <int count>
__device__ __forceinline__ float warp_sums(float (&values)[count]) {
    static_assert(count <= 32 && (count & (count - 1)) == 0, "a power of two up to the lanes of a warp");
    const uint32_t lane = threadIdx.x % 32;
#pragma unroll
    for (int left = count / 2; left > 0; left /= 2) {
        const bool upper = lane & left;
#pragma unroll
        for (int i = 0; i < left; ++i) {
            const float sent = upper ? values[i] : values[i + left], kept = upper ? values[i + left] : values[i];
            values[i] = kept + __shfl_xor_sync(0xffffffffu, sent, left);
        }
    }
    float sum = values[0];
#pragma unroll
    for (int offset = count; offset < 32; offset *= 2) sum += __shfl_xor_sync(0xffffffffu, sum, offset);
    return sum;
}
