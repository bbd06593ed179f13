// What attention's tiles are made of, and who multiplies them.
#pragma once
#include "ptx/types.cuh"
#include "schedule.cuh"

using Element = problem::activations;  // of q, k, v, y and the weights between them

constexpr int WARP = 32;
