// attention_mla: decode of multi-head latent attention, absorbed: all query heads share one latent row a token, whose
// first part is also the value.
//
// Idea: a token's row is read once, to shared memory, and multiplied twice: as a key, and, read across, as a value. One
// warpgroup has the queries in registers and makes the scores of 64 rows, whose weights it leaves in shared memory where
// the keys' last columns were; two others have half of the sums of values each, which would not fit in one. While those
// add up a block, the first makes weights of the next: they wait for its scores, so that products never stop for a softmax.
// Queries of several tokens and heads are rows alike. The CTAs of a cluster, 64 rows each, load each row once for all.
//
//   producer   | q | kv 0 | kv 1 | kv 2 ...          through one ring; a cluster's CTAs multicast to each other
//   scores     | q, qk 0 | softmax 0 | qk 1        | softmax 1 | qk 2        | softmax 2 ...
//   values                           |  sum 0, begin | sum 0, end | sum 1, begin | sum 1, end ...
//
// Bytes expected through TMA: q of a tile and the latents that it sees, for every CTA. From HBM: the latents once for
// every cluster that shares them.
#include "lab/kernels/attention/_softmax.cuh"
#include "lab/kernels/attention/mla_stream.cuh"
#include "ptx/barrier.cuh"
#include "ptx/griddepcontrol.cuh"
#include "ptx/ldmatrix.cuh"
#include "ptx/setmaxnreg.cuh"
#include "ptx/stmatrix.cuh"
#include "ptx/thread.cuh"
#include "ptx/wgmma.cuh"

constexpr int SCORES_REGISTERS = 184, VALUES_REGISTERS = 160;
constexpr int VALUES_WARPGROUPS = 2;
constexpr int SCORES_BARRIER = 1;  // named barrier of the warpgroup that makes scores
constexpr int BOX_STEPS = BOX_COLUMNS / MMA_K;
constexpr int STEPS = BLOCK_N / MMA_K;
constexpr int HALF = problem::latent / VALUES_WARPGROUPS;  // columns of a values warpgroup
constexpr float LOG2_E = 1.4426950408889634f;

static_assert(schedule::threads == (1 + VALUES_WARPGROUPS) * WARPGROUP, "scores, and two of values");
static_assert(SCORES_REGISTERS + VALUES_WARPGROUPS * VALUES_REGISTERS <= (1 + VALUES_WARPGROUPS) * 168, "168 a thread at launch");
static_assert(schedule::early >= 0 && schedule::early <= GROUPS, "groups of a block's sum");

constexpr int QUERY_STEPS = VALUE_BOXES * BOX_STEPS - 1;  // of q in registers

using Scores = float[BLOCK_N / 2];
using Queries = uint32_t[QUERY_STEPS][4];

// A row's running maximum and sum. Weights are 2^(scale score - maximum). A maximum moves by whole powers of two, so that
// what it makes of earlier sums is exact, and a byte says it.
struct PowerSoftmax {
    float maximum[2] = {-infinity(), -infinity()};
    float sum[2] = {0, 0};  // of the weights in this thread's columns

    // Scores to weights; returns of each row how many powers of two smaller earlier sums become.
    __device__ __forceinline__ void take(Scores& scores, float scale, uint32_t (&powers)[2]) {
        float largest[2] = {scores[0], scores[2]};
#pragma unroll
        for (int i = 0; i < BLOCK_N / 2; ++i) largest[row_of(i)] = fmaxf(largest[row_of(i)], scores[i]);
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            const float now = row_max(largest[r]) * scale;
            float steps = 0;
            // Weights up to 2^slack are as good as up to 1: the maximum stays where it is until it is that far off.
            if (now > maximum[r] + schedule::slack) {
                steps = fminf(ceilf(now - maximum[r]), NONE_LEFT);
                maximum[r] = steps < NONE_LEFT ? maximum[r] + steps : now;
            }
            powers[r] = uint32_t(steps);
            sum[r] *= power(powers[r]);
            const float base = maximum[r] == -infinity() ? 0 : maximum[r];  // a row that saw nothing yet
#pragma unroll
            for (int i = 0; i < BLOCK_N / 2; ++i) {
                if (row_of(i) != r) continue;
                scores[i] = ptx::ex2::approx(fmaf(scores[i], scale, -base));
                sum[r] += scores[i];
            }
        }
    }

    static constexpr float NONE_LEFT = 127;

    // 2^-steps, or 0.
    static __device__ __forceinline__ float power(uint32_t steps) { return __uint_as_float((127 - steps) << 23); }

    // The natural logarithm of the sum of exponentials.
    __device__ __forceinline__ float log_sum_exp(int r, float total) const {
        constexpr float LN_2 = 0.6931471805599453f;
        return total > 0 ? (maximum[r] + __log2f(total)) * LN_2 : -infinity();
    }
};

// Where results go: y and lse, or partial results of rows that several workers share.
struct Results {
    Element* y;
    float *lse, *partial, *partial_lse;
    int rank;  // in the cluster

    // Row `row` of this CTA's tile in the partial results.
    __device__ __forceinline__ int64_t partial_row(int slot, int row) const {
        return int64_t(slot) * ROWS + rank * BLOCK_M + row;
    }
};

// This thread's place in its warpgroup, found anew: registers are too few to keep it.
struct Lane {
    const int thread = ptx::thread::index() % WARPGROUP, warp = thread / WARP, index = thread % WARP;

    // Its rows of accumulators, r = 0 and 1.
    __device__ __forceinline__ int row(int r) const { return warp * 16 + index / 4 + 8 * r; }
};

enum class After { BLOCK, PART, NOTHING };

// The warpgroup that makes scores and weights.
struct Scorer {
    Shared& shared;
    const Results& results;
    const float scale_log2;
    Position at;
    Turn turn;  // of its part
    Queries queries;

    __device__ __forceinline__ Scorer(Shared& shared, const Results& results, float scale_log2)
        : shared(shared), results(results), scale_log2(scale_log2) {}

    // The queries of a part to registers; the last columns, which scores read in shared memory, to where they stay.
    __device__ __forceinline__ void take_queries() {
        const Tile& tile = shared.ring[at.stage];
        const Lane own;
        const int row = own.warp * 16 + own.index % 16, right = own.index / 16, first = (right ^ row % 8) * 8;
        ptx::mbarrier::wait(shared.full[at.stage][0], at.parity);
        ptx::mbarrier::wait(shared.full[at.stage][1], at.parity);
#pragma unroll
        for (int step = 0; step < BOXES * BOX_STEPS; ++step) {
            const int column = first ^ step % BOX_STEPS * MMA_K;  // swizzled
            const uint32_t from = ptx::address::shared(&tile[step / BOX_STEPS][row][column]);
            if (step < QUERY_STEPS) {
                ptx::ldmatrix::x4(queries[step], from);
            } else {
                Element* to = step == QUERY_STEPS ? shared.q_columns[row / 8][right][row % 8] : &shared.q_rest[row][column];
                uint32_t part[4];
                ptx::ldmatrix::x4(part, from);
                ptx::stmatrix::x4(to, part[0], part[1], part[2], part[3]);
            }
        }
        ptx::wgmma::hold(queries);
        ptx::fence::proxy_async_shared();
        ptx::barrier::sync<WARPGROUP>(SCORES_BARRIER);
        arrive(shared.scored[at.stage]);  // nobody waits, but every lap of the ring is a phase
        arrive(shared.weighed[at.stage]);
        for (int i = 0; i < VALUES_WARPGROUPS; ++i) {  // in place of the others
            release(shared.empty[at.stage][0]);
            release(shared.empty[at.stage][1]);
        }
        at.advance();
    }

    template <int group>
    __device__ __forceinline__ void multiply_group(Scores& scores, const Tile& keys) {
#pragma unroll
        for (int step = 0; step < QUERY_STEPS; ++step) {
            const int box = step / BOX_STEPS;
            if (group_of(box) != group) continue;
            ptx::wgmma::mma<Element>(
                scores, queries[step],
                ptx::wgmma::advance(ptx::wgmma::descriptor_k_major_128b(keys[box]), step % BOX_STEPS * MMA_BYTES), step > 0);
        }
    }

    // scores = q k^T.
    __device__ __forceinline__ void multiply_keys(Scores& scores, int stage) {
        const Tile& keys = shared.ring[stage];
        ptx::mbarrier::wait(shared.full[stage][0], at.parity);
        ptx::wgmma::fence();
        multiply_group<0>(scores, keys);
        ptx::mbarrier::wait(shared.full[stage][1], at.parity);
        ptx::wgmma::fence();
        multiply_group<1>(scores, keys);
        ptx::wgmma::mma<Element>(scores, ptx::wgmma::descriptor_k_major(shared.q_columns),
                                 ptx::wgmma::advance(ptx::wgmma::descriptor_k_major_128b(keys[VALUE_BOXES - 1]),
                                                     (BOX_STEPS - 1) * MMA_BYTES),
                                 true);
        const uint64_t a = ptx::wgmma::descriptor_k_major_128b(shared.q_rest);
        const uint64_t b = ptx::wgmma::descriptor_k_major_128b(keys[VALUE_BOXES]);
#pragma unroll
        for (int step = 0; step < BOX_STEPS; ++step)
            ptx::wgmma::mma<Element>(scores, ptx::wgmma::advance(a, step * MMA_BYTES),
                                     ptx::wgmma::advance(b, step * MMA_BYTES), true);
        ptx::wgmma::commit_group();
        ptx::wgmma::wait_group<0>();
        ptx::wgmma::hold(scores);
    }

    // Zeros in the values of tokens from `token` of the block on, which may be NaN: no weight of 0 would make those 0.
    __device__ __forceinline__ void clear(Tile& tile, int token) const {
        constexpr int CHUNKS = BOX_COLUMNS * sizeof(Element) / sizeof(Vector16);
        for (int box = 0; box < VALUE_BOXES; ++box)
            for (int i = token * CHUNKS + threadIdx.x % WARPGROUP; i < BLOCK_N * CHUNKS; i += WARPGROUP)
                reinterpret_cast<Vector16*>(tile[box])[i] = {};
    }

    // Weights to where the last columns of the keys were, as the values warpgroups multiply them.
    __device__ __forceinline__ void leave(const Scores& weights, Box& box) const {
        const Lane own;
        const int row = own.warp * 16 + own.index % 16, first = (own.index / 16 ^ row % 8) * 8;
        uint32_t rounded[STEPS][4];
        pack<Element>(rounded, weights);
#pragma unroll
        for (int step = 0; step < STEPS; ++step)
            ptx::stmatrix::x4(&box[row][first ^ step * MMA_K], rounded[step][0], rounded[step][1], rounded[step][2],
                              rounded[step][3]);
    }

    // Which columns of the block at `token` each of this thread's rows sees, from its first column on.
    __device__ __forceinline__ Visible visible(const Part& part, int token) const {
        const Lane own;
        Visible seen;
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            seen.start[r] = 0;
            const int row = part.first + results.rank * BLOCK_M + own.row(r);
            seen.end[r] = part.limit(row / problem::group) - token - first_column();
        }
        return seen;
    }

    // What a row's last weights leave to be done: the inverse of their sum, and the row's log-sum-exp.
    __device__ __forceinline__ void finish(const PowerSoftmax& softmax, const Part& part) const {
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            const Lane own;
            const float total = row_sum(softmax.sum[r]);
            if (own.index % 4) continue;
            shared.inverse[turn.of_two()][own.row(r)] = total > 0 ? __fdividef(1, total) : 0;
            if (results.rank * BLOCK_M + own.row(r) >= part.rows) continue;
            if (part.slot >= 0)
                results.partial_lse[results.partial_row(part.slot, own.row(r))] = softmax.log_sum_exp(r, total);
            else if constexpr (problem::lse)
                results.lse[part.row + results.rank * BLOCK_M + own.row(r)] = softmax.log_sum_exp(r, total);
        }
    }

    // A block: its scores become weights. What comes after it is known before others may reuse the part's place.
    __device__ __forceinline__ After step(int block, PowerSoftmax& softmax) {
        const int stage = uniform(at.stage), token = block * BLOCK_N;
        const Part& part = shared.parts[turn.of_three()];
        Scores scores;
        multiply_keys(scores, stage);
        arrive(shared.scored[stage]);
        if (token + BLOCK_N > part.limit(0)) visible(part, token).mask(scores);
        uint32_t powers[2];
        softmax.take(scores, scale_log2, powers);
        const Lane own;
        if (own.index % 4 == 0)
            shared.decay[stage][own.row(0)] = powers[0], shared.decay[stage][own.row(1)] = powers[1];
        ptx::mbarrier::wait(shared.scored[stage], at.parity);  // all warps are through with the keys
        leave(scores, shared.ring[stage][VALUE_BOXES]);
        const int rows = part.kv_len - token;
        if (rows < BLOCK_N) clear(shared.ring[stage], max(rows, 0));
        const After after = block < part.hi - 1 ? After::BLOCK : part.more ? After::PART : After::NOTHING;
        if (after != After::BLOCK) finish(softmax, part);
        ptx::fence::proxy_async_shared();
        arrive(shared.weighed[stage]);
        at.advance();
        return after;
    }

    __device__ __forceinline__ void run() {
        After after;
        do {
            take_queries();
            PowerSoftmax softmax;
            int block = shared.parts[turn.of_three()].lo;
            do after = step(block++, softmax);
            while (after == After::BLOCK);
            turn.advance();
        } while (after == After::PART);
    }
};

// A warpgroup that adds up half of the values' columns, in groups.
struct Summer {
    Shared& shared;
    const Results& results;
    Loader loader;
    const int half;
    const bool loads;  // this warp
    Position at;
    Turn turn;  // of its part
    float y[GROUPS][HALF / 2 / GROUPS];

    __device__ __forceinline__ Summer(Shared& shared, const Results& results, const Loader& loader, int half)
        : shared(shared), results(results), loader(loader), half(half), loads(half == 0 && uniform(threadIdx.x % WARPGROUP / WARP) == 0) {}

    // Sums of a group of columns: y += weights v.
    template <int group>
    __device__ __forceinline__ void multiply_values(int stage) {
        const Tile& tile = shared.ring[stage];
        const uint64_t a = ptx::wgmma::descriptor_k_major_128b(tile[VALUE_BOXES]);
        const uint64_t b = ptx::wgmma::descriptor_n_major_128b(tile[(half * GROUPS + group) * GROUP_BOXES], sizeof(Box));
#pragma unroll
        for (int step = 0; step < STEPS; ++step)
            ptx::wgmma::mma_n_major<Element>(y[group], ptx::wgmma::advance(a, step * MMA_BYTES),
                                             ptx::wgmma::advance(b, step * MMA_K * int(sizeof(Box) / BLOCK_N)),
                                             true);
        ptx::wgmma::commit_group();
    }

    // The rest of a block's sum fills the time in which the next block's scores become weights.
    __device__ __forceinline__ void wait_for_scores(bool ends) const {
        Position next = at;
        next.advance();
        if (!ends) ptx::mbarrier::wait(shared.scored[next.stage], next.parity);
    }

    template <int group>
    __device__ __forceinline__ void let_go() {
        release(shared.empty[at.stage][group]);
        if (loads) loader.load<group>(at.stage, at.parity);
    }

    // A block; after a part's last one, whether there is another part.
    __device__ __forceinline__ bool step(bool ends) {
        const int stage = uniform(at.stage);
        ptx::mbarrier::wait(shared.weighed[stage], at.parity);
        const Lane own;
        const uint32_t powers[2] = {shared.decay[stage][own.row(0)], shared.decay[stage][own.row(1)]};
        if (__any_sync(FULL, powers[0] | powers[1])) {
            const float decay[2] = {PowerSoftmax::power(powers[0]), PowerSoftmax::power(powers[1])};
#pragma unroll
            for (int i = 0; i < HALF / 2; ++i) y[i / (HALF / 4)][i % (HALF / 4)] *= decay[row_of(i)];
        }
        ptx::wgmma::hold(y[0]);
        ptx::wgmma::hold(y[1]);
        if constexpr (schedule::early == 0) wait_for_scores(ends);
        ptx::wgmma::fence();
        multiply_values<0>(stage);
        if constexpr (schedule::early == 1) wait_for_scores(ends);
        multiply_values<1>(stage);
        ptx::wgmma::wait_group<1>();
        let_go<0>();
        ptx::wgmma::wait_group<0>();
        ptx::wgmma::hold(y[0]);
        ptx::wgmma::hold(y[1]);
        bool more = false;
        if (ends) {
            const Part& part = shared.parts[turn.of_three()];
            store<0>(part);
            store<1>(part);
            more = part.more;
            __syncwarp();
        }
        let_go<1>();
        at.advance();
        return more;
    }

    // A group of a part's sums, divided by those of the weights: pairs of columns as floats, or four a lane rounded.
    template <int group>
    __device__ __forceinline__ void store(const Part& part) {
        auto& sums = y[group];
        constexpr int COUNT = HALF / 2 / GROUPS;
        const Lane own;
        const int t = own.index % 4, odd = t % 2, first = (half * GROUPS + group) * GROUP_BOXES * BOX_COLUMNS;
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            const float inverse = shared.inverse[turn.of_two()][own.row(r)];
            const bool exists = results.rank * BLOCK_M + own.row(r) < part.rows;
            if (part.slot >= 0) {
                float* to = results.partial + results.partial_row(part.slot, own.row(r)) * problem::latent + first + 2 * t;
#pragma unroll
                for (int i = 2 * r; i < COUNT; i += 4)
                    if (exists) *reinterpret_cast<float2*>(to + i / 4 * 8) = {sums[i] * inverse, sums[i + 1] * inverse};
            } else {
                Element* to = results.y + int64_t(part.row + results.rank * BLOCK_M + own.row(r)) * problem::latent + first +
                              8 * odd + 2 * (t - odd);
#pragma unroll
                for (int i = 2 * r; i < COUNT; i += 8) {
                    const uint32_t left = ptx::convert::pair<Element>(sums[i] * inverse, sums[i + 1] * inverse);
                    const uint32_t right = ptx::convert::pair<Element>(sums[i + 4] * inverse, sums[i + 5] * inverse);
                    const uint32_t other = __shfl_xor_sync(FULL, odd ? left : right, 1);
                    const Vector<8> four{{odd ? other : left, odd ? right : other}};
                    if (exists) *reinterpret_cast<Vector<8>*>(to + i / 4 * 8) = four;
                }
            }
        }
    }

    __device__ __forceinline__ void run(const Batch& batch) {
        for (bool first = true, more = true; more; first = false) {
            const Part& part = shared.parts[turn.of_three()];
            if (loads) {
                loader.find_ahead(turn, batch);
                // On the first lap every stage is empty; the queries' place is once they are in registers.
                Position to{first ? 0 : at.stage, first ? 1 : at.parity};
#pragma unroll 1
                for (int i = first ? 0 : schedule::stages; i <= schedule::stages; ++i, to.advance()) {
                    loader.load<0>(to.stage, to.parity);
                    loader.load<1>(to.stage, to.parity);
                }
            }
            at.advance();
            ptx::mbarrier::wait(shared.weighed[at.stage], at.parity);  // so the part has been loaded
#pragma unroll
            for (int i = 0; i < HALF / 2; ++i) y[i / (HALF / 4)][i % (HALF / 4)] = 0;
            int blocks = part.hi - part.lo;
            do more = step(--blocks == 0);
            while (blocks > 0);
            turn.advance();
        }
    }
};

extern "C" __global__ void __launch_bounds__(schedule::threads, 1)
    attention_mla(const __grid_constant__ TensorMap q_map, const __grid_constant__ TensorMap kv_map, const Element*,
                  const Element* latents, const int32_t* q_starts, const int32_t* kv_lens, const int32_t* places, Element* y,
                  float* lse, float* partial, float* partial_lse, int batch_size, int max_kv_len, int table_width,
                  int pages, float scale) {
    extern __shared__ __align__(ALIGNMENT) uint8_t dynamic[];
    Shared& shared = *reinterpret_cast<Shared*>(dynamic);
    const Batch batch{q_starts, kv_lens, batch_size, max_kv_len};
    const int warpgroup = threadIdx.x / WARPGROUP, rank = schedule::cluster == 1 ? 0 : int(ptx::cluster::rank());
    if (threadIdx.x == 0) {
        ptx::tma::prefetch(q_map);
        ptx::tma::prefetch(kv_map);
        init(shared);
    }
    ptx::griddepcontrol::wait();
    ptx::griddepcontrol::launch_dependents();
    if (threadIdx.x < WARP) plan(shared, batch);
    sync_cluster();

    if (shared.parts[0].exists()) {
        const Results results{y, lse, partial, partial_lse, rank};
        if (warpgroup == 0) {
            ptx::setmaxnreg::inc<SCORES_REGISTERS>();
            Scorer(shared, results, scale * LOG2_E).run();
        } else {
            ptx::setmaxnreg::dec<VALUES_REGISTERS>();
            const Cache cache{kv_map, latents, places, table_width, pages};
            Summer(shared, results, Loader{shared, q_map, cache, rank}, uniform(warpgroup) - 1).run(batch);
        }
    }
    finish_cluster();
}

// A row of y from its partial results, by a warp.
extern "C" __global__ void __launch_bounds__(schedule::combine_threads)
    attention_mla_combine(const int32_t* q_starts, const int32_t* kv_lens, Element* y, float* lse, const float* partial,
                          const float* partial_lse, int batch_size, int max_kv_len, int max_workers) {
    constexpr int VECTORS = problem::latent / 4 / WARP;  // of four columns, a lane's
    const int lane = threadIdx.x % WARP, row = blockIdx.x * (schedule::combine_threads / WARP) + threadIdx.x / WARP;

    // The lengths are older than the launch before: it lets this one start after it has waited itself.
    ptx::griddepcontrol::launch_dependents();
    const Partials partials = partials_of(row, {q_starts, kv_lens, batch_size, max_kv_len}, max_workers);
    ptx::griddepcontrol::wait();
    if (partials.count == 0) return;

    float largest = -infinity();
    for (int i = lane; i < partials.count; i += WARP) largest = fmaxf(largest, partial_lse[partials.at(i)]);
#pragma unroll
    for (int offset = 1; offset < WARP; offset *= 2) largest = fmaxf(largest, __shfl_xor_sync(FULL, largest, offset));
    const float base = largest == -infinity() ? 0 : largest;
    float sum = 0, total[VECTORS][4] = {};
    for (int some = 0; some < partials.count; some += WARP) {
        const int count = min(partials.count - some, WARP);
        const float own = lane < count ? ptx::ex2::approx((partial_lse[partials.at(some + lane)] - base) * LOG2_E) : 0;
        sum += own;
#pragma unroll 4
        for (int i = 0; i < count; ++i) {
            const auto* from = reinterpret_cast<const float4*>(partial + partials.at(some + i) * problem::latent);
            const float weight = __shfl_sync(FULL, own, i);
#pragma unroll
            for (int v = 0; v < VECTORS; ++v) {
                const float4 four = from[v * WARP + lane];
                total[v][0] = fmaf(four.x, weight, total[v][0]), total[v][1] = fmaf(four.y, weight, total[v][1]);
                total[v][2] = fmaf(four.z, weight, total[v][2]), total[v][3] = fmaf(four.w, weight, total[v][3]);
            }
        }
    }
#pragma unroll
    for (int offset = 1; offset < WARP; offset *= 2) sum += __shfl_xor_sync(FULL, sum, offset);
    const float inverse = sum > 0 ? 1 / sum : 0;
#pragma unroll
    for (int v = 0; v < VECTORS; ++v)
        reinterpret_cast<Vector<8>*>(y + int64_t(row) * problem::latent)[v * WARP + lane] = {
            {ptx::convert::pair<Element>(total[v][0] * inverse, total[v][1] * inverse),
             ptx::convert::pair<Element>(total[v][2] * inverse, total[v][3] * inverse)}};
    if (problem::lse && lane == 0) lse[row] = sum > 0 ? base + __logf(sum) : -infinity();
}
