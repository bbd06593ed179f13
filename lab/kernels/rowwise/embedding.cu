// embedding: y = table[ids], rows of a table by their numbers.
//
// Idea: a copy whose rows are chosen. A warp has `vectors` requests of 512 contiguous bytes of one row, all under way
// before the first is stored. Rows are split over CTAs along y, so that one token's row is read by several SMs.
//
// Launches overlap: ids are read, and y written, when the launch before has ended. The table may be its output too.
//
// The launch behind may begin before the one ahead has ended, or `late`, when it has; if nothing else is said, late where
// there are several tokens: a step of 16 sequences, whose layers take whole SMs, was measured to be a third longer else.
//
// Bytes expected from HBM: each row that is named and each row of y once.
#include "ptx/griddepcontrol.cuh"
#include "ptx/load.cuh"
#include "schedule.cuh"

using Activation = problem::activations;

constexpr int LANES = 32;
constexpr int VECTOR = sizeof(Vector16) / sizeof(Activation);  // elements of a lane's load
constexpr int REQUEST = LANES * VECTOR;                        // of a warp's

extern "C" __global__ void __launch_bounds__(schedule::threads)
    embedding(const int32_t* __restrict__ ids, const Activation* __restrict__ table, Activation* __restrict__ y, int n,
              int vocab) {
    const int64_t token = blockIdx.x;
    const int warp = blockIdx.y * schedule::warps + threadIdx.x / LANES;
    const int first = warp * schedule::vectors * REQUEST + threadIdx.x % LANES * VECTOR;

    const bool at_once = schedule::late == 2 ? gridDim.x == 1 : !schedule::late;
    if (at_once) ptx::griddepcontrol::launch_dependents();
    ptx::griddepcontrol::wait();  // until the launch before has written ids, and reads y no more
    if (!at_once) ptx::griddepcontrol::launch_dependents();
    const uint32_t id = min(ptx::load::cached_4(ids + token), uint32_t(vocab - 1));
    Vector16 row[schedule::vectors];
#pragma unroll
    for (int v = 0; v < schedule::vectors; ++v) {
        const int at = first + v * REQUEST;
        row[v] = ptx::load::no_allocate_if<16>(table + int64_t(id) * n + at, at < n);
    }
    __syncwarp();  // ptxas would sink each load to its store; it moves none across a warp barrier
#pragma unroll
    for (int v = 0; v < schedule::vectors; ++v) {
        const int at = first + v * REQUEST;
        if (at < n) *reinterpret_cast<Vector16*>(y + token * n + at) = row[v];
    }
}
