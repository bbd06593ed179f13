// Sums of values, each times its weight.
#pragma once
#include "lab/kernels/attention/mla_join.cuh"
#include "ptx/convert.cuh"
#include "ptx/store.cuh"
#include "ptx/wgmma.cuh"

constexpr int HALF = problem::latent / VALUES_WARPGROUPS;  // columns of a values warpgroup

static_assert(schedule::early >= 0 && schedule::early <= GROUPS, "groups of a block's sum");

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
        : shared(shared),
          results(results),
          loader(loader),
          half(half),
          loads(half == 0 && uniform(threadIdx.x % WARPGROUP / WARP) == 0) {}

    // Sums of a group of columns: y += weights v.
    template <int group>
    __device__ __forceinline__ void multiply_values(int stage) {
        const Tile& tile = shared.ring[stage];
        const uint64_t a = ptx::wgmma::descriptor_k_major_128b(tile[VALUE_BOXES]);
        const uint64_t b =
            ptx::wgmma::descriptor_n_major_128b(tile[(half * GROUPS + group) * GROUP_BOXES], sizeof(Box));
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
            const bool exists = results.rank * BLOCK_M + own.row(r) < part.rows();
            if (part.slot >= 0) {
                float* to =
                    results.partial + results.partial_row(part.slot, own.row(r)) * problem::latent + first + 2 * t;
#pragma unroll
                for (int i = 2 * r; i < COUNT; i += 4)
                    if (exists)
                        ptx::store::global<8>(to + i / 4 * 8, {{__float_as_uint(sums[i] * inverse),
                                                                __float_as_uint(sums[i + 1] * inverse)}});
            } else {
                const int64_t row = part.row + results.rank * BLOCK_M + own.row(r);
                Element* to = results.y + row * problem::latent + first + 8 * odd + 2 * (t - odd);
#pragma unroll
                for (int i = 2 * r; i < COUNT; i += 8) {
                    const uint32_t left = ptx::convert::pair<Element>(sums[i] * inverse, sums[i + 1] * inverse);
                    const uint32_t right = ptx::convert::pair<Element>(sums[i + 4] * inverse, sums[i + 5] * inverse);
                    const uint32_t other = __shfl_xor_sync(FULL, odd ? left : right, 1);
                    if (exists) ptx::store::global<8>(to + i / 4 * 8, {{odd ? other : left, odd ? right : other}});
                }
            }
        }
    }

    __device__ __forceinline__ void run(const Batch& batch) {
        for (bool first = true, more = true; more; first = false) {
            const Part& part = shared.parts[turn.of_three()];
            if (loads) {
                // On the first lap every stage is empty; the queries' place is once they are in registers. What comes
                // after the first part is found when its queries and a block, if that is not its last, are on their way.
                Position to{first ? 0 : at.stage, first ? 1 : at.parity};
                Turn next = turn;
                next.advance();
                const int find = !first ? schedule::stages : part.hi - part.lo > 1 ? 2 : 1;
#pragma unroll 1
                for (int i = first ? 0 : schedule::stages; i <= schedule::stages; ++i, to.advance()) {
                    if (first && i == find) loader.find_after(turn, batch);
                    if (i == find) loader.find_after(next, batch);
                    loader.load<0>(to.stage, to.parity);
                    loader.load<1>(to.stage, to.parity);
                }
            }
            at.advance();
            ptx::mbarrier::wait(shared.weighed[at.stage], at.parity);  // so the part has been loaded
#pragma unroll
            for (int i = 0; i < HALF / 2; ++i) y[i / (HALF / 4)][i % (HALF / 4)] = 0;
            const bool is_shared = part.slot >= 0;  // once it has ended, its place may be another one's
            int blocks = part.hi - part.lo;
            do more = step(--blocks == 0);
            while (blocks > 0);
            if (is_shared) join(shared, results, part);
            turn.advance();
        }
    }
};
