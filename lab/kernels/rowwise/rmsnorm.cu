// rmsnorm: total = x + residual, y = total / sqrt(mean(total^2) + eps) * weight, a row at a time.
//
// Idea: a row is read once and stays in registers, between the sum of its squares and the products, so that HBM moves no
// byte twice. A lane loads 16 bytes at a time, a warp 512 contiguous ones, all loads of a row before the first use.
//
// Warp roles: all alike. `warps` warps share a row, their sums of squares meet in shared memory; a CTA has `rows` rows.
//
//        vector:    0        1        2        3
//   row r     | warp 0 | warp 1 | warp 0 | warp 1 |     warps = 2, vectors = 2
//
// Launches overlap: the weight never changes, so its loads are issued before the launch before has ended.
//
// The launch behind may begin before the one ahead has ended, or `late`, when it has; if nothing else is said, late where
// there are several tokens: a step of 16 sequences, whose layers take whole SMs, was measured to be a third longer else.
//
// Bytes expected from HBM: x, residual, y and total once, the weight once; from L2 the weight once a row at most.
#include "lab/kernels/common/warp_sum.cuh"
#include "ptx/convert.cuh"
#include "ptx/griddepcontrol.cuh"
#include "ptx/load.cuh"
#include "schedule.cuh"

using Activation = problem::activations;

constexpr int LANES = 32;
constexpr int VECTOR = sizeof(Vector16) / sizeof(Activation);  // elements of a lane's load
constexpr int STRIDE = LANES * VECTOR * schedule::warps;       // from one vector of a lane to its next
constexpr int VECTORS = schedule::vectors;

struct Shared {
    float partial[schedule::rows][schedule::warps];
};

// The sum over all lanes of the warps that share a row; every thread of the CTA calls it.
__device__ __forceinline__ float row_sum(Shared& shared, float value, int row, int warp) {
    value = warp_sum(value);
    if constexpr (schedule::warps > 1) {
        if (threadIdx.x % LANES == 0) shared.partial[row][warp] = value;
        __syncthreads();
        value = 0;
#pragma unroll
        for (int w = 0; w < schedule::warps; ++w) value += shared.partial[row][w];
    }
    return value;
}

// x + residual, rounded; two elements in each word.
__device__ __forceinline__ Vector16 added(const Vector16& x, const Vector16& residual) {
    Vector16 total;
#pragma unroll
    for (int i = 0; i < VECTOR / 2; ++i)
        total.words[i] = ptx::convert::pair<Activation>(
            ptx::convert::low<Activation>(x.words[i]) + ptx::convert::low<Activation>(residual.words[i]),
            ptx::convert::high<Activation>(x.words[i]) + ptx::convert::high<Activation>(residual.words[i]));
    return total;
}

__device__ __forceinline__ float squares(const Vector16& total) {
    float sum = 0;
#pragma unroll
    for (int i = 0; i < VECTOR / 2; ++i) {
        const float low = ptx::convert::low<Activation>(total.words[i]);
        const float high = ptx::convert::high<Activation>(total.words[i]);
        sum = fmaf(low, low, sum);
        sum = fmaf(high, high, sum);
    }
    return sum;
}

__device__ __forceinline__ Vector16 scaled(const Vector16& total, float root, const Vector16& weight) {
    Vector16 y;
#pragma unroll
    for (int i = 0; i < VECTOR / 2; ++i)
        y.words[i] = ptx::convert::pair<Activation>(
            ptx::convert::low<Activation>(total.words[i]) * root * ptx::convert::low<Activation>(weight.words[i]),
            ptx::convert::high<Activation>(total.words[i]) * root * ptx::convert::high<Activation>(weight.words[i]));
    return y;
}

extern "C" __global__ void __launch_bounds__(schedule::threads)
    rmsnorm(const Activation* __restrict__ x, const Activation* __restrict__ residual,
            const Activation* __restrict__ weight, Activation* __restrict__ y, Activation* __restrict__ total, int m,
            int n, float eps) {
    __shared__ Shared shared;
    const int warp = threadIdx.x / LANES % schedule::warps, row = threadIdx.x / LANES / schedule::warps;
    const int64_t token = int64_t(blockIdx.x) * schedule::rows + row;
    const int first = (warp * LANES + threadIdx.x % LANES) * VECTOR;
    const bool there = token < m;
    const float share = 1.0f / n;

    const bool at_once = schedule::late == 2 ? m == 1 : !schedule::late;
    if (at_once) ptx::griddepcontrol::launch_dependents();
    Vector16 weights[VECTORS], sums[VECTORS], addends[VECTORS];
#pragma unroll
    for (int v = 0; v < VECTORS; ++v) {
        const int at = first + v * STRIDE;
        weights[v] = ptx::load::cached_if(weight + at, there && at < n);
    }
    ptx::griddepcontrol::wait();  // until the launch before has written x and residual, and reads y and total no more
    if (!at_once) ptx::griddepcontrol::launch_dependents();
#pragma unroll
    for (int v = 0; v < VECTORS; ++v) {
        const int at = first + v * STRIDE;
        sums[v] = ptx::load::no_allocate_if<16>(x + token * n + at, there && at < n);
        if constexpr (problem::residual)
            addends[v] = ptx::load::no_allocate_if<16>(residual + token * n + at, there && at < n);
    }
    __syncwarp();  // ptxas would sink each load to its first use; it moves none across a warp barrier
    float sum = 0;
#pragma unroll
    for (int v = 0; v < VECTORS; ++v) {
        const int at = first + v * STRIDE;
        if constexpr (problem::residual) {
            sums[v] = added(sums[v], addends[v]);
            if (there && at < n) *reinterpret_cast<Vector16*>(total + token * n + at) = sums[v];
        }
        sum += squares(sums[v]);
    }
    const float root = rsqrtf(row_sum(shared, sum, row, warp) * share + eps);
#pragma unroll
    for (int v = 0; v < VECTORS; ++v) {
        const int at = first + v * STRIDE;
        if (there && at < n) *reinterpret_cast<Vector16*>(y + token * n + at) = scaled(sums[v], root, weights[v]);
    }
}
