// What every ring of stages in shared memory has: a place in it.
#pragma once
#include "ptx/types.cuh"
#include "schedule.cuh"

// Where a walker of the ring is: the stage, and the parity of that stage's phase, which flips on each lap.
struct Position {
    int stage = 0;
    uint32_t parity = 0;

    __device__ __forceinline__ void advance() {
        if (++stage == schedule::stages) {
            stage = 0;
            parity ^= 1;
        }
    }

    __device__ __forceinline__ void skip(int steps) {
        stage += steps;
        parity ^= stage / schedule::stages & 1;
        stage %= schedule::stages;
    }
};
