// Both sides of a transfer in one launch: all CTAs but the last push, the last is the receiver, which waits for the
// epoch in its flag and then reads what has arrived.
#include "lab/kernels/transfer/push.cuh"

#ifndef SENT
#define SENT epoch
#endif
#ifndef ARRIVED
#define ARRIVED(flag, epoch) (int32_t(flag - epoch) >= 0)
#endif

extern "C" __global__ void pair(const int32_t* from, const int32_t* to, const uint32_t* epoch, const char* source,
                                char* target, uint32_t* flag, uint32_t* arrived, Vector16* y, int rows, int row_bytes) {
    const int senders = gridDim.x - 1;
    if (blockIdx.x < senders) {
        push<2, 2>({source, target, from, to, rows, row_bytes}, blockIdx.x, senders);
        arrive(arrived, senders, flag, SENT);
        return;
    }
    if (threadIdx.x == 0)
        while (!ARRIVED(ptx::load::acquire_system(flag), *epoch)) {}
    __syncthreads();
    const int units = row_bytes / sizeof(Vector16);
    for (int i = threadIdx.x; i < rows * units; i += blockDim.x)
        y[i] = reinterpret_cast<const Vector16*>(target)[to[i / units] * units + i % units];
}
