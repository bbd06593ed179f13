// sample: the next token of each row of logits: temperature, top-k, top-p, min-p, and its log-probability.
//
// Idea: nothing is sorted. A cluster of CTAs has a row in its registers, read once. Each token that may be drawn has a
// random score, weight / E, and the largest one wins; only then is it asked how many tokens, and how much probability,
// are likelier than the winner. If it should not have been kept, neither should those that are no likelier, and the
// race is run again among the rest: the winner is the one that a sort, a cut and one race would have found.
//
// Warp roles: all alike. What the warps of a cluster found meets in the shared memory of every CTA, which each warp then
// reads by itself, so that all decide alike and one barrier of the cluster is enough for an exchange.
//
//   logits -> largest -> weights, their sum -> [ race -> winner -> likelier ones ]* -> token
//
// Launches overlap; what is read, the launch before has written.
//
// Bytes expected from HBM: the logits once, 32 bytes of settings and 8 of results a row.
#include "lab/kernels/common/philox.cuh"
#include "lab/kernels/common/warp_sum.cuh"
#include "ptx/address.cuh"
#include "ptx/cluster.cuh"
#include "ptx/convert.cuh"
#include "ptx/ex2.cuh"
#include "ptx/griddepcontrol.cuh"
#include "ptx/load.cuh"
#include "ptx/store.cuh"
#include "schedule.cuh"

using Activation = problem::activations;

constexpr int LANES = 32;
constexpr int VECTOR = sizeof(Vector16) / sizeof(Activation);  // elements of a lane's load
constexpr int ELEMENTS = schedule::vectors * VECTOR;           // of a lane
constexpr int CLUSTER = schedule::cluster;
constexpr int PARTIES = CLUSTER * schedule::warps;  // of an exchange
constexpr float LOG2_E = 1.4426950408889634f;
constexpr uint32_t NONE = 0xffffffffu;
constexpr float LEAST = -3.4028234663852886e38f;  // of all floats

struct Three {
    uint32_t words[3];
};

struct Shared {
    Three slots[2][PARTIES];  // of this exchange and of the one before, which some warp may still read
};

struct Settings {
    float temperature;
    int top_k;
    float top_p, min_p;
    uint32_t seed_low, seed_high, draw;

    __device__ __forceinline__ explicit Settings(const int32_t* words) {
        const Vector16 a = ptx::load::cached(words), b = ptx::load::cached(words + 4);
        temperature = __uint_as_float(a.words[0]), top_k = a.words[1];
        top_p = __uint_as_float(a.words[2]), min_p = __uint_as_float(a.words[3]);
        seed_low = b.words[0], seed_high = b.words[1], draw = b.words[2];
    }
};

// A token, its weight, and the score by which the largest and of equals the first is sought.
struct Token {
    float score;
    uint32_t index;
    float weight;

    __device__ __forceinline__ void challenge(float other_score, uint32_t other_index, float other_weight) {
        if (other_score > score || (other_score == score && other_index < index))
            score = other_score, index = other_index, weight = other_weight;
    }
    __device__ __forceinline__ Three packed() const {
        return {__float_as_uint(score), index, __float_as_uint(weight)};
    }
    __device__ __forceinline__ void challenge(const Three& other) {
        challenge(__uint_as_float(other.words[0]), other.words[1], __uint_as_float(other.words[2]));
    }
};

struct Sums {
    float first, second;
    uint32_t count;

    __device__ __forceinline__ Three packed() const {
        return {__float_as_uint(first), __float_as_uint(second), count};
    }
    __device__ __forceinline__ void challenge(const Three& other) {
        first += __uint_as_float(other.words[0]), second += __uint_as_float(other.words[1]), count += other.words[2];
    }
};

// What all lanes of a warp have together, in each of them.
template <typename Kind>
__device__ __forceinline__ void join_lanes(Kind& mine) {
#pragma unroll
    for (int offset = LANES / 2; offset > 0; offset /= 2) {
        Three other = mine.packed();
#pragma unroll
        for (int i = 0; i < 3; ++i) other.words[i] = __shfl_xor_sync(0xffffffffu, other.words[i], offset);
        mine.challenge(other);
    }
}

// What all threads of the cluster have together, in each of them; `turn` alternates.
template <typename Kind>
__device__ __forceinline__ Kind joined(Shared& shared, Kind mine, const Kind& nothing, int rank, int& turn) {
    const int lane = threadIdx.x % LANES, party = rank * schedule::warps + threadIdx.x / LANES;
    join_lanes(mine);
    Three(&slots)[PARTIES] = shared.slots[turn];
    turn ^= 1;
    const Three own = mine.packed();
    if (CLUSTER == 1) {
        if (lane == 0) slots[party] = own;
        __syncthreads();
    } else {
        if (lane < CLUSTER) {
            const uint32_t to = ptx::address::shared_of_cta(&slots[party], lane);
#pragma unroll
            for (int i = 0; i < 3; ++i) ptx::store::cluster(to + 4 * i, own.words[i]);
        }
        __syncwarp();
        ptx::cluster::arrive();
        ptx::cluster::wait();
    }
    Kind all = nothing;
    for (int i = lane; i < PARTIES; i += LANES) all.challenge(slots[i]);
    join_lanes(all);
    return all;
}

__device__ __forceinline__ float value(const Vector16& v, int i) {
    const uint32_t word = v.words[i / 2];
    return i % 2 ? ptx::convert::high<Activation>(word) : ptx::convert::low<Activation>(word);
}

// -log(1 - uniform), also where 1 - uniform is rounded (Kahan's log1p).
__device__ __forceinline__ float variate(float uniform) {
    const float left = 1 - uniform;
    return left == 1 ? uniform : uniform * __fdividef(logf(left), left - 1);
}

// Of a lane's weights above `floor` and of at least min_p, the one with the largest weight / E.
__device__ __forceinline__ Token race(const float (&weight)[ELEMENTS], uint32_t first, float floor, const Settings& s) {
    Token winner{-1, NONE, 0};
#pragma unroll
    for (int i = 0; i < ELEMENTS; i += 4) {
        const uint32_t at = first + i / VECTOR * LANES * VECTOR + i % VECTOR;
        const Vector16 random = philox::words(at / 4, s.draw, s.seed_low, s.seed_high);
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            if (!(weight[i + j] > floor && weight[i + j] >= s.min_p)) continue;
            const float uniform = (float(random.words[j]) + 0.5f) * 0x1p-32f;
            winner.challenge(__fdividef(weight[i + j], variate(uniform)), at + j, weight[i + j]);
        }
    }
    return winner;
}

__device__ __forceinline__ Sums likelier(const float (&weight)[ELEMENTS], float than) {
    Sums sums{0, 0, 0};
#pragma unroll
    for (int i = 0; i < ELEMENTS; ++i)
        if (weight[i] > than) sums.first += weight[i], ++sums.count;
    return sums;
}

extern "C" __global__ void __launch_bounds__(schedule::threads)
    sample(const Activation* __restrict__ logits, const int32_t* __restrict__ settings, int32_t* __restrict__ token,
           float* __restrict__ log_probability, int n) {
    __shared__ Shared shared;
    const int rank = blockIdx.x % CLUSTER, party = rank * schedule::warps + threadIdx.x / LANES;
    const int64_t row = blockIdx.x / CLUSTER;
    const uint32_t first = (party * schedule::vectors * LANES + threadIdx.x % LANES) * VECTOR;
    const Token no_token{-2, NONE, 0};
    const Sums no_sums{0, 0, 0};
    int turn = 0;

    ptx::griddepcontrol::launch_dependents();
    if (CLUSTER > 1) ptx::cluster::arrive_relaxed();
    ptx::griddepcontrol::wait();  // until the launch before has written logits, and reads token no more
    const Settings s(settings + row * 8);
    Vector16 words[schedule::vectors];
#pragma unroll
    for (int v = 0; v < schedule::vectors; ++v) {
        const int at = first + v * LANES * VECTOR;
        words[v] = ptx::load::no_allocate_if<16>(logits + row * n + at, at < n);
    }
    if (CLUSTER > 1) ptx::cluster::wait();  // every CTA of the cluster has begun, and so has its shared memory

    Token top{LEAST, NONE, 0};
#pragma unroll
    for (int i = 0; i < ELEMENTS; ++i) {
        const uint32_t at = first + i / VECTOR * LANES * VECTOR + i % VECTOR;
        if (at < n) top.challenge(value(words[i / VECTOR], i % VECTOR), at, 1);
    }
    top = joined(shared, top, Token{LEAST, NONE, 0}, rank, turn);

    const float scale = s.temperature > 0 ? LOG2_E / s.temperature : LOG2_E;
    float weight[ELEMENTS];
    Sums sums = no_sums;  // of exponentials at temperature 1, and of weights
#pragma unroll
    for (int i = 0; i < ELEMENTS; ++i) {
        const bool there = first + i / VECTOR * LANES * VECTOR < n;
        const float away = there ? value(words[i / VECTOR], i % VECTOR) - top.score : LEAST;
        sums.first += ptx::ex2::approx(away * LOG2_E);
        weight[i] = ptx::ex2::approx(away * scale);
        sums.second += weight[i];
    }
    sums = joined(shared, sums, no_sums, rank, turn);

    Token winner = top;
    if (s.temperature > 0) {
        float floor = 0;
        while (true) {
            winner = joined(shared, race(weight, first, floor, s), no_token, rank, turn);
            if (s.top_k <= 0 && s.top_p >= 1) break;
            const Sums above = joined(shared, likelier(weight, winner.weight), no_sums, rank, turn);
            if ((s.top_k <= 0 || above.count < s.top_k) && (s.top_p >= 1 || above.first < s.top_p * sums.second)) break;
            floor = winner.weight;
        }
    }
    if (rank == 0 && threadIdx.x == 0) {
        const float own = ptx::convert::to_float(logits[row * n + winner.index]);
        token[row] = winner.index;
        log_probability[row] = own - top.score - logf(sums.first);
    }
}
