// Plain types that device code shares: NVRTC brings no host headers, so they are defined here.
#pragma once

using int8_t = signed char;
using int32_t = int;
using int64_t = long long;
using uint8_t = unsigned char;
using uint16_t = unsigned short;
using uint32_t = unsigned int;
using uint64_t = unsigned long long;

// Storage types, named as the formats of sim/formats.py are.
using fp32 = float;
struct alignas(2) bf16 {
    uint16_t bits;
};
struct alignas(2) fp16 {
    uint16_t bits;
};
struct fp8 {  // e4m3
    uint8_t bits;
};
struct int4x2 {  // two weights of int4 groups
    uint8_t bits;
};

// A vector of registers, accessed at once; 16 bytes is the widest access of one thread.
template <int bytes>
struct alignas(bytes) Vector {
    uint32_t words[bytes / 4];
};
using Vector16 = Vector<16>;

// The opaque 128 bytes that cuTensorMapEncodeTiled makes.
struct alignas(64) TensorMap {
    uint8_t bytes[128];
};
