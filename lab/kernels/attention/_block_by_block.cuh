// A warpgroup that takes one block of keys after another and waits for each of its products.
#pragma once
#include "lab/kernels/attention/_consumer.cuh"
#include "lab/kernels/attention/_results.cuh"

struct BlockByBlock {
    Shared& shared;
    const Work& work;
    const int first_row;  // this warpgroup's first of the tile
    const int row;        // this warp's
    Softmax softmax;
    Position k_at, v_at;
    bool accumulate = false;  // whether there is a weighted sum yet
    Values y;

    __device__ __forceinline__ BlockByBlock(Shared& shared, int consumer, float scale)
        : shared(shared), work(shared.work[0]), first_row(consumer * MMA_M),
          row(first_row + threadIdx.x % WARPGROUP / WARP * 16), softmax(scale) {}

    // Scores, weights, weighted sum.
    template <bool masked>
    __device__ __forceinline__ void take(int block) {
        Scores scores;
        ptx::mbarrier::wait(shared.k_full[k_at.stage], k_at.parity);
        ptx::wgmma::fence();
        multiply_keys(scores, shared.q, first_row, shared.k[k_at.stage]);
        ptx::wgmma::commit_group();
        ptx::wgmma::wait_group<0>();
        ptx::wgmma::hold(scores);
        release(shared.k_empty[k_at.stage]);
        k_at.advance();

        if constexpr (masked) visible(work, row + threadIdx.x % WARP / 4, block * schedule::block_n).mask(scores);
        softmax.take(scores);
        softmax.rescale(y);
        Weights weights;
        pack<Element>(weights, scores);

        ptx::mbarrier::wait(shared.v_full[v_at.stage], v_at.parity);
        ptx::wgmma::hold(weights);
        ptx::wgmma::hold(y);
        ptx::wgmma::fence();
        multiply_values(y, weights, shared.v[v_at.stage], accumulate);
        ptx::wgmma::commit_group();
        ptx::wgmma::wait_group<0>();
        ptx::wgmma::hold(y);
        release(shared.v_empty[v_at.stage]);
        v_at.advance();
        accumulate = true;
    }

    // Every block from the last to the first, then the results; `before` is called before each block.
    template <typename Before>
    __device__ __forceinline__ void run(const Results& results, Before before) {
        if (work.first >= work.last) return results.store_nothing(work, row);
        const int ragged_end = max(work.ragged_end(), work.first);
        int block = work.last - 1;
        for (; block >= ragged_end; --block) {
            before(block);
            take<true>(block);
        }
        for (; block >= work.first; --block) {
            before(block);
            take<false>(block);
        }
        results.store(y, softmax, work, row);
    }
};
