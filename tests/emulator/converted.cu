// Each thread takes one element to float, and rounds one float by itself and in a pair.
#include "ptx/convert.cuh"
#include "schedule.cuh"

using schedule::element;

extern "C" __global__ void converted(const element* bits, const float* values, float* widened, element* rounded,
                                     element* pairs) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    widened[i] = ptx::convert::to_float(bits[i]);
    ptx::convert::from_float(rounded[i], values[i]);
    if constexpr (sizeof(element) == 2)
        reinterpret_cast<uint32_t*>(pairs)[i] = ptx::convert::pair<element>(values[i], -values[i]);
    else
        reinterpret_cast<uint16_t*>(pairs)[i] = ptx::convert::pair_fp8(values[i], -values[i]);
}
