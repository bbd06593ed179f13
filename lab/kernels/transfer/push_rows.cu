// push_rows: pages of a KV cache stored into another GPU's memory, by block tables, and a flag when all are there.
//
// Idea: what NVLink carries best are stores that nobody waits for, and few SMs fill it. So a few CTAs gather rows of the
// own pool and store them where the receiver has reserved room; the rest of the chip goes on with its prefill.
//
//   pool of prefill            NVLink             pool of decode
//   [.. 7 .. 2 .. 9 ..]  --16 bytes a lane-->  [.. 4 .. 1 .. 6 ..]
//   all CTAs: fence, count;  the last: fence, epoch  -->  flag
//
// Warp roles: all alike. The tables and the epoch are read from memory, so that a captured graph replays with others.
//
// Bytes expected: each row once from HBM, once over the link, once into the receiver's HBM.
#include "lab/kernels/transfer/push.cuh"
#include "schedule.cuh"

using Activation = problem::activations;

extern "C" __global__ void __launch_bounds__(schedule::threads)
    push_rows(const int32_t* __restrict__ from_rows, const int32_t* __restrict__ to_rows,
              const uint32_t* __restrict__ epoch, const char* __restrict__ source, char* __restrict__ target,
              uint32_t* flag, uint32_t* arrived, int m, int n) {
    const Rows rows{source, target, from_rows, to_rows, m, int64_t(n) * int64_t(sizeof(Activation))};
    push<schedule::warps, schedule::vectors>(rows, blockIdx.x, schedule::ctas);
    arrive(arrived, schedule::ctas, flag, epoch);
}
