// gemv_split_k: y[m, n] = x[m, k] @ w[n, k].T for few rows of x: a cluster of CTAs shares each block of rows along k.
//
// Idea: a matrix of few rows has too few for all SMs, or too few for each of them. So the `split_k` CTAs of a cluster take
// one block of rows, each a contiguous share of the columns, and sum what they have. Each owns a part of the rows: the
// warp that has a CTA's sum of a row sends it at once to the CTA that owns the row, where an mbarrier counts the bytes; so
// nothing but the last sum is waited for. The order of the sum is fixed, so the result is always the same.
// Adds to gemv_streamed: split k, a reduction through distributed shared memory, launches that overlap: while one ends,
// the next has its first stages of w on the way, for w is a constant; x is what it waits for.
//
// Warp roles: as in gemv_streamed.
//
//           columns:  0 .. k / 2     k / 2 .. k
//   rows of CTA 0's   |  CTA 0   |    CTA 1    ---> CTA 0 sums and stores      split_k = 2
//   rows of CTA 1's   |  CTA 0 -----> CTA 1    |    CTA 1 sums and stores
//
// Bytes expected from HBM and from L2: as gemv_streamed; between the CTAs of a cluster, four a row.
#include "lab/kernels/gemv/bulk_ring.cuh"
#include "ptx/cluster.cuh"
#include "ptx/store.cuh"

constexpr int SPLIT = schedule::split_k;

struct Shared {
    Ring ring;
    float inbox[SPLIT][schedule::part];  // of the rows that this CTA owns, what each CTA of the cluster has
    uint64_t arrived;                    // one arrival, and the bytes of the inbox
};

static_assert(sizeof(Shared) == schedule::shared_bytes, "as launched");
static_assert(schedule::part * SPLIT == schedule::block_n, "every CTA owns as many rows");
static_assert(schedule::part <= PRODUCER, "a thread sums and stores one row");

// The first column of a CTA's share: a whole line of 128 bytes, so that no two CTAs ask for one.
__device__ __forceinline__ int first_column(int rank, int k) {
    constexpr int line = 128 / sizeof(Element);
    const int lines = (k - 1) / line + 1;
    return rank == SPLIT ? k : int(int64_t(rank) * lines / SPLIT) * line;
}

// How many of a block's rows the CTA of this rank owns.
__device__ __forceinline__ int owned(int rank, int rows) {
    return max(0, min(schedule::part, rows - rank * schedule::part));
}

// Send this CTA's sum of a row of the block to the CTA that owns the row.
__device__ __forceinline__ void send(Shared& shared, int rank, int row, float sum) {
    const int owner = row / schedule::part;
    const float& to = shared.inbox[rank][row % schedule::part];
    ptx::store::async_cluster(ptx::address::shared_of_cta(&to, owner), sum,
                              ptx::address::shared_of_cta(&shared.arrived, owner));
}

// What a CTA of a cluster does with its part of the columns; y begins at the cluster's first row. A launch without clusters
// has no distributed shared memory, and must not wait for what it would send to itself.
__device__ __forceinline__ void stream_part(Shared& shared, const Part& part, int rank, Element* y) {
    const int own = owned(rank, part.rows);
    if (threadIdx.x == 0) {
        ptx::mbarrier::init(shared.arrived, 1);
        start(shared.ring);
        ptx::mbarrier::arrive_expect_tx(shared.arrived, own * SPLIT * sizeof(float));
        ptx::griddepcontrol::launch_dependents();
    }
    __syncthreads();
    if (threadIdx.x >= PRODUCER) {
        ptx::cluster::arrive_relaxed();
        if (threadIdx.x == PRODUCER) producer(shared.ring, part);
        __syncwarp();
        ptx::cluster::wait();
        return;
    }
    ptx::cluster::arrive_relaxed();  // the barriers' own fence is all that the others need
    ptx::cluster::wait();    // every CTA of the cluster has started; the copies are on their way meanwhile
    consumer(shared.ring, part, [&](int row, float sum) {
        if (threadIdx.x % LANES == 0) send(shared, rank, row, sum);
    });
    if (threadIdx.x < own) {
        ptx::mbarrier::wait_cluster(shared.arrived, 0);
        float sum = 0;
#pragma unroll
        for (int r = 0; r < SPLIT; ++r) sum += shared.inbox[r][threadIdx.x];
        ptx::convert::from_float(y[rank * schedule::part + threadIdx.x], sum);
    }
}

extern "C" __global__ void __launch_bounds__(schedule::threads)
    gemv_split_k(const Element* __restrict__ x, const Element* __restrict__ w, Element* __restrict__ y, int m, int n,
                 int k) {
    extern __shared__ Shared dynamic[];
    Shared& shared = dynamic[0];
    const int rank = blockIdx.x % SPLIT, row0 = blockIdx.x / SPLIT * schedule::block_n;
    const int rows = min(schedule::block_n, n - row0);
    const int first = first_column(rank, k);
    const int64_t token = blockIdx.y;
    const Part part{x + token * k + first, w + int64_t(row0) * k + first, rows, k, first_column(rank + 1, k) - first};
    y += token * n + row0;
    if constexpr (SPLIT == 1) {
        if (threadIdx.x == 0) ptx::griddepcontrol::launch_dependents();
        stream_rows(shared.ring, part, y);
    } else {
        stream_part(shared, part, rank, y);
    }
}
