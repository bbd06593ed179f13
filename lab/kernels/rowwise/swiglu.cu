// swiglu: y = silu(gate) * up, of the halves of a row.
//
// Idea: a copy that computes as it goes. A warp has `vectors` requests of 512 contiguous bytes of the gate and as many of
// the values it gates, all under way before the first is used. Rows are split over CTAs along y.
//
// Launches overlap; what is read, the launch before has written.
//
// The launch behind may begin before the one ahead has ended, or `late`, when it has; if nothing else is said, late where
// there are several tokens: a step of 16 sequences, whose layers take whole SMs, was measured to be a third longer else.
//
// Bytes expected from HBM: gate, up and y once.
#include "lab/kernels/common/silu.cuh"
#include "ptx/convert.cuh"
#include "ptx/griddepcontrol.cuh"
#include "ptx/load.cuh"
#include "schedule.cuh"

using Activation = problem::activations;

constexpr int LANES = 32;
constexpr int VECTOR = sizeof(Vector16) / sizeof(Activation);  // elements of a lane's load
constexpr int REQUEST = LANES * VECTOR;                        // of a warp's

__device__ __forceinline__ Vector16 gated(const Vector16& gate, const Vector16& up) {
    Vector16 y;
#pragma unroll
    for (int i = 0; i < VECTOR / 2; ++i)
        y.words[i] = ptx::convert::pair<Activation>(
            silu(ptx::convert::low<Activation>(gate.words[i])) * ptx::convert::low<Activation>(up.words[i]),
            silu(ptx::convert::high<Activation>(gate.words[i])) * ptx::convert::high<Activation>(up.words[i]));
    return y;
}

extern "C" __global__ void __launch_bounds__(schedule::threads)
    swiglu(const Activation* __restrict__ gate_up, Activation* __restrict__ y, int n) {
    const int64_t token = blockIdx.x;
    const int warp = blockIdx.y * schedule::warps + threadIdx.x / LANES;
    const int first = warp * schedule::vectors * REQUEST + threadIdx.x % LANES * VECTOR;

    const bool at_once = schedule::late == 2 ? gridDim.x == 1 : !schedule::late;
    if (at_once) ptx::griddepcontrol::launch_dependents();
    ptx::griddepcontrol::wait();  // until the launch before has written gate_up, and reads y no more
    if (!at_once) ptx::griddepcontrol::launch_dependents();
    Vector16 gate[schedule::vectors], up[schedule::vectors];
#pragma unroll
    for (int v = 0; v < schedule::vectors; ++v) {
        const int at = first + v * REQUEST;
        gate[v] = ptx::load::no_allocate_if<16>(gate_up + 2 * token * n + at, at < n);
        up[v] = ptx::load::no_allocate_if<16>(gate_up + (2 * token + 1) * n + at, at < n);
    }
    __syncwarp();  // ptxas would sink each load to its use; it moves none across a warp barrier
#pragma unroll
    for (int v = 0; v < schedule::vectors; ++v) {
        const int at = first + v * REQUEST;
        if (at < n) *reinterpret_cast<Vector16*>(y + token * n + at) = gated(gate[v], up[v]);
    }
}
