// The sum of each block's elements: a tree in shared memory, its last steps within one warp.
template <int BLOCK> __global__ void reduction(const float* x, float* sums, int n) {
    __shared__ float part[BLOCK];
    int i = blockIdx.x * BLOCK + threadIdx.x;
    part[threadIdx.x] = i < n ? x[i] : 0.f;
    __syncthreads();
    for (int half = BLOCK / 2; half >= 32; half /= 2) {
        if (threadIdx.x < half) part[threadIdx.x] += part[threadIdx.x + half];
        __syncthreads();
    }
    if (threadIdx.x < 32) {
        float sum = part[threadIdx.x];
        for (int half = 16; half; half /= 2) sum += __shfl_down_sync(~0u, sum, half);
        if (threadIdx.x == 0) sums[blockIdx.x] = sum;
    }
}
