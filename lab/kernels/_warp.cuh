// What the kernels share whose warps add up what their lanes have.
#pragma once

// The sum over all lanes of a full warp, in every lane.
__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) value += __shfl_xor_sync(0xffffffffu, value, offset);
    return value;
}
