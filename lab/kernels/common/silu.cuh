// What the kernels share that end with a gated activation.
#pragma once

__device__ __forceinline__ float silu(float gate) { return __fdividef(gate, 1 + __expf(-gate)); }
