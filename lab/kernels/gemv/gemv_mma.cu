// gemv_mma: y[m, n] = x[m, k] @ w[n, k].T for few rows of x, the tokens, on the tensor cores: batched decode.
//
// Idea: w is the A operand of mma.sync, 16 rows at a time, and up to eight tokens are the columns of B, so that one
// stream of weights serves them all. Every lane copies to shared memory, by cp.async, the very 16 bytes that it will read
// back as its own part of a fragment: no barrier in the main loop, and what is in flight takes no registers. The CTAs
// all run at once, read as much each, and share k where that takes more of them than w has rows.
// Adds to gemv_vectorized: tensor cores, copies that do not wait, k shared by the CTAs of a cluster, launches that
// overlap, fp8 and int4 weights.
//
// Warp roles: all alike. `split_k` warps, a team, take the steps along k of `rows` x 16 rows of w in turn; the CTAs of a
// cluster each take one part of k. x comes once to each CTA, by bulk copies in a few parts of its k, the first of
// which is all that the first steps wait for. Sums meet in shared memory, then each CTA of a cluster sums and stores its
// own part of the rows.
//
//   cp.async   | 0 | 1 | 2 | 3 |   | 4 |     | 5 |          stages = 4: the ring of one warp
//   bulk, x    |-- part 0 --|-- part 1 --|
//   mma.sync                       | 0 |     | 1 |     | 2 | ...  | sum over warps | sum over CTAs | y
//
// Launches overlap: w never changes, so its first steps are asked for before the launch before has ended; x is not.
//
// Bytes expected from HBM: w once, x once, y once; x from L2 once for every block of rows.
#include "lab/kernels/gemv/_runs.cuh"
#include "ptx/bulk.cuh"
#include "ptx/cluster.cuh"
#include "ptx/convert.cuh"
#include "ptx/cp_async.cuh"
#include "ptx/fence.cuh"
#include "ptx/griddepcontrol.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/store.cuh"

using Output = problem::output;
constexpr int CLUSTER = schedule::cluster, SPLIT = schedule::split_k, WARPS = schedule::warps;
constexpr int STEP = schedule::runs * COLUMNS;  // columns of w that a warp takes at once
constexpr int ONES = 0x3f803f80;                // two bf16

// Scales of the row tiles of a step: 64 bytes for each tile and group, along k.
constexpr int STEP_GROUPS = GROUPED ? schedule::runs * GROUPS : 0;
constexpr int PAIRS_BYTES = 2 * TILE * sizeof(fp16);           // scale and offset of 16 rows
constexpr int TILE_SCALES = STEP_GROUPS * PAIRS_BYTES / VECTOR;  // vectors of a row tile
constexpr int SCALES = schedule::rows * TILE_SCALES;

// A row of sums starts at another bank, so that a warp writes its fragments without conflicts.
constexpr int SUMS = schedule::rows * TILE + 4;

struct Stage {
    Vector16 weights[schedule::rows][schedule::runs][VECTORS][LANES];
    Vector16 scales[SCALES > 0 ? SCALES : LANES];
};
constexpr int STAGE_BYTES = sizeof(Stage::weights) + SCALES * VECTOR;

// What a warp streams, and then its sums.
union alignas(VECTOR) Warp {
    uint8_t ring[schedule::stages * STAGE_BYTES];
    float sums[schedule::block_m][SUMS];
};

struct alignas(VECTOR) Shared {
    Warp warps[WARPS];
    uint64_t full[schedule::parts];  // one arrival, and the bytes of that part of x
    uint64_t arrived;                // one arrival, and the sums that all CTAs of the cluster send
};
static_assert(SCALES == 0 || sizeof(Stage) == STAGE_BYTES, "scales lie behind the weights");

// The rows of y^T that a CTA of a cluster sums and stores, in quads of four rows.
constexpr int QUADS = schedule::block_n / 4;
constexpr int PART = (QUADS + CLUSTER - 1) / CLUSTER;
constexpr int WIDTH = PART < LANES ? PART : LANES;       // quads of a token that a warp takes at once
constexpr int AT_ONCE = LANES / WIDTH;                   // tokens
constexpr int WIDTHS = (PART + WIDTH - 1) / WIDTH;       // of a part

// What the CTAs of the cluster send to one of them.
struct Inbox {
    float4 sums[schedule::block_m][PART];
};
constexpr int INBOXES = CLUSTER > 1 ? CLUSTER : 0;

// What this CTA computes: tokens and rows of w, steps along k.
struct Work {
    int token, tokens, row, rank, first, end, pitch;

    __device__ __forceinline__ Work(int m, int k) {
        const int steps = (k + STEP - 1) / STEP;
        token = blockIdx.y * schedule::block_m;
        tokens = min(schedule::block_m, m - token);
        row = blockIdx.x / CLUSTER * schedule::block_n;
        rank = blockIdx.x % CLUSTER;
        first = rank * steps / CLUSTER;
        end = (rank + 1) * steps / CLUSTER;
        const int longest = (steps + CLUSTER - 1) / CLUSTER * STEP * int(sizeof(Element));
        pitch = (longest + 127) / 128 * 128 + Run<Weight>::X_PAD;
    }

    // Steps that all warps of a team together take while they read one part of x, for each of them.
    __device__ __forceinline__ int rounds_of_part() const {
        const int rounds = (end - first + SPLIT - 1) / SPLIT;
        return (rounds + schedule::parts - 1) / schedule::parts;
    }
};

__device__ __forceinline__ Inbox* inboxes(Shared& shared) { return reinterpret_cast<Inbox*>(&shared + 1); }
__device__ __forceinline__ uint8_t* x_rows(Shared& shared) {
    return reinterpret_cast<uint8_t*>(inboxes(shared) + INBOXES);
}

// A warp's stream of weights: where its lanes copy from next, and to.
struct Stream {
    const uint8_t* from;    // this lane's first 16 bytes
    const uint8_t* scales;  // of the warp's first row tile
    int64_t pitch;          // bytes from a row tile to the next; of row-major w, its eight rows half as many
    int64_t scales_pitch;
    int step, end;    // the next step, and the end of this CTA's
    int k, row_left;  // columns of w; rows from the warp's first one on
    int groups;       // along k
    uint8_t* ring;
    int slot = 0;

    __device__ __forceinline__ Stream(const Weight* w, const void* w_scale, const Work& work, int n, int k, int team,
                                      int warp, uint8_t* ring)
        : step(work.first + warp), end(work.end), k(k), ring(ring) {
        const int lane = threadIdx.x % LANES, row = work.row + team * schedule::rows * TILE;
        const auto* bytes = reinterpret_cast<const uint8_t*>(w);
        row_left = n - row;
        if constexpr (GROUPED) {
            groups = (k + problem::group - 1) / problem::group;
            pitch = int64_t((k + 63) / 64) * (LANES * VECTOR);
            scales_pitch = int64_t(groups) * PAIRS_BYTES;
            from = bytes + row / TILE * pitch + int64_t(step) * (STEP * TILE / 2) + lane * VECTOR;
            scales = static_cast<const uint8_t*>(w_scale) + row / TILE * scales_pitch;
        } else {
            pitch = int64_t(k) * (TILE * sizeof(Weight));
            from = bytes + int64_t(row + lane / 4) * k * sizeof(Weight) +
                   int64_t(step) * (STEP * sizeof(Weight)) + lane % 4 * VECTOR;
        }
    }

    // Ask for the next step, if there is one; what lies beyond w becomes zero.
    __device__ __forceinline__ void fill() {
        if (step < end) {
            const uint32_t to = ptx::address::shared(ring + slot * STAGE_BYTES);
            copy_weights(to + threadIdx.x % LANES * VECTOR);
            if constexpr (GROUPED) copy_scales(to + sizeof(Stage::weights));
        }
        ptx::cp_async::commit_group();
        step += SPLIT;
        from += SPLIT * (GROUPED ? STEP * TILE / 2 : STEP * int(sizeof(Weight)));
        slot = slot + 1 == schedule::stages ? 0 : slot + 1;
    }

    __device__ __forceinline__ void copy_weights(uint32_t to) const {
        const int column = step * STEP + (GROUPED ? 0 : threadIdx.x % LANES % 4 * (COLUMNS / 4));
#pragma unroll
        for (int r = 0; r < schedule::rows; ++r)
#pragma unroll
            for (int c = 0; c < schedule::runs; ++c)
#pragma unroll
                for (int v = 0; v < VECTORS; ++v) {
                    const int at = GROUPED ? column + c * COLUMNS + v * (COLUMNS / VECTORS) : column + c * COLUMNS;
                    const int row = GROUPED ? r * TILE : r * TILE + v * (TILE / 2);
                    const int64_t offset = GROUPED ? r * pitch + (c * VECTORS + v) * (LANES * VECTOR)
                                                   : (2 * r + v) * (pitch / 2) + c * (COLUMNS * int(sizeof(Weight)));
                    ptx::cp_async::copy_16(to, from + offset, at < k && row < row_left ? VECTOR : 0);
                    to += LANES * VECTOR;
                }
    }

    __device__ __forceinline__ void copy_scales(uint32_t to) const {
#pragma unroll
        for (int first = 0; first < SCALES; first += LANES) {
            const int i = first + threadIdx.x % LANES;
            const int tile = i / TILE_SCALES, vector = i % TILE_SCALES;
            const int group = step * STEP_GROUPS + vector / (PAIRS_BYTES / VECTOR);
            const bool inside = group < groups && tile * TILE < row_left;
            const uint8_t* at = scales + tile * scales_pitch + int64_t(step) * (STEP_GROUPS * PAIRS_BYTES);
            if (i < SCALES) ptx::cp_async::copy_16(to + i * VECTOR, at + vector * VECTOR, inside ? VECTOR : 0);
        }
    }
};

using Sum = float[schedule::rows][TOKEN_TILES][4];

// Scale and offset of rows g and g + 8 of a row tile.
struct Pairs {
    float scale[2], min[2];

    __device__ __forceinline__ explicit Pairs(const uint8_t* of_tile) {
        const uint2 words = *reinterpret_cast<const uint2*>(of_tile + threadIdx.x % LANES / 4 * 8);
        const uint32_t both[2] = {words.x, words.y};
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            scale[h] = ptx::convert::to_float(fp16{uint16_t(both[h])});
            min[h] = ptx::convert::to_float(fp16{uint16_t(both[h] >> 16)});
            if constexpr (problem::zero_points) min[h] *= -scale[h];  // exact: 11 bits times 11 bits
        }
    }
};

// sum += the products of a run of int4 weights. Each group is summed by itself, as q times x; scale and min come after.
// An A fragment of ones sums x, in the lanes that need it.
__device__ __forceinline__ void multiply_groups(Sum& sum, const Tokens& x, const Stage& stage, int c) {
    constexpr int GROUP_STEPS = STEPS / GROUPS;
    const uint32_t ones[4] = {ONES, ONES, ONES, ONES};
    float x_sum[GROUPS][TOKEN_TILES][4] = {};
#pragma unroll
    for (int s = 0; s < STEPS; ++s)
#pragma unroll
        for (int j = 0; j < TOKEN_TILES; ++j) ptx::mma::m16n8k16<Element>(x_sum[s / GROUP_STEPS][j], ones, x.b[s][j]);
    const auto* scales = reinterpret_cast<const uint8_t*>(stage.scales);
#pragma unroll
    for (int r = 0; r < schedule::rows; ++r) {
        Run<Weight> run;
#pragma unroll
        for (int v = 0; v < VECTORS; ++v) run.part[v] = stage.weights[r][c][v][threadIdx.x % LANES];
#pragma unroll
        for (int q = 0; q < GROUPS; ++q) {
            float partial[TOKEN_TILES][4] = {};
#pragma unroll
            for (int s = q * GROUP_STEPS; s < (q + 1) * GROUP_STEPS; ++s) {
                uint32_t a[4];
                run.fragment(a, s);
#pragma unroll
                for (int j = 0; j < TOKEN_TILES; ++j) ptx::mma::m16n8k16<Element>(partial[j], a, x.b[s][j]);
            }
            const Pairs pairs(scales + (r * STEP_GROUPS + c * GROUPS + q) * PAIRS_BYTES);
#pragma unroll
            for (int j = 0; j < TOKEN_TILES; ++j)
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    sum[r][j][i] = fmaf(pairs.scale[i / 2], partial[j][i], sum[r][j][i]);
                    sum[r][j][i] = fmaf(pairs.min[i / 2], x_sum[q][j][i], sum[r][j][i]);
                }
        }
    }
}

// sum += the products of run `c` of a step.
__device__ __forceinline__ void multiply(Sum& sum, const Tokens& x, const Stage& stage, int c) {
#pragma unroll
    for (int r = 0; r < schedule::rows; ++r) {
        Run<Weight> run;
#pragma unroll
        for (int v = 0; v < VECTORS; ++v) run.part[v] = stage.weights[r][c][v][threadIdx.x % LANES];
#pragma unroll
        for (int s = 0; s < STEPS; ++s) {
            uint32_t a[4];
            run.fragment(a, s);
#pragma unroll
            for (int j = 0; j < TOKEN_TILES; ++j) ptx::mma::m16n8k16<Element>(sum[r][j], a, x.b[s][j]);
        }
    }
}

// Every step of a warp.
__device__ __forceinline__ void accumulate(Sum& sum, Shared& shared, Stream& stream, const Work& work, int warp) {
    const int rounds = work.rounds_of_part();
    const uint8_t* x = x_rows(shared) + warp * (STEP * sizeof(Element));
    int part = 0, until = 0, reading = 0;
    for (int step = work.first + warp, round = 0; step < work.end; step += SPLIT, ++round) {
        if (round == until) {
            ptx::mbarrier::wait(shared.full[part++], 0);
            until += rounds;
        }
        ptx::cp_async::wait_group<schedule::stages - 1>();
        __syncwarp();  // scales were copied by other lanes
        const Stage& stage = *reinterpret_cast<const Stage*>(stream.ring + reading * STAGE_BYTES);
#pragma unroll
        for (int c = 0; c < schedule::runs; ++c) {
            Tokens tokens;
            tokens.load(x + c * (COLUMNS * sizeof(Element)), work.pitch, work.tokens);
            if constexpr (GROUPED)
                multiply_groups(sum, tokens, stage, c);
            else
                multiply(sum, tokens, stage, c);
        }
        x += SPLIT * STEP * sizeof(Element);
        reading = reading + 1 == schedule::stages ? 0 : reading + 1;
        __syncwarp();
        stream.fill();
    }
}

// Bring this CTA's columns of x, a part after the other; lane r brings token r. What lies between k and the end of the
// last step is zero, as the weights there are: the two must not make a NaN.
__device__ __forceinline__ void load_x(Shared& shared, const Element* x, const Work& work, int k) {
    const int lane = threadIdx.x % LANES, columns = work.rounds_of_part() * SPLIT * STEP;
    const int end = min(work.end * STEP, k);
    const Element* from = x + int64_t(work.token + lane) * k;
    auto* to = reinterpret_cast<Element*>(x_rows(shared) + lane * work.pitch);
    for (int part = 0, at = work.first * STEP; at < end; ++part, at += columns) {
        const int nbytes = min(columns, end - at) * int(sizeof(Element));
        if (lane == 0) ptx::mbarrier::arrive_expect_tx(shared.full[part], nbytes * work.tokens);
        __syncwarp();
        if (lane < work.tokens) ptx::bulk::load(to + (at - work.first * STEP), from + at, nbytes, shared.full[part]);
    }
}

__device__ __forceinline__ void pad_x(Shared& shared, const Work& work, int k) {
    constexpr int PER_VECTOR = VECTOR / sizeof(Element);
    const int vectors = (work.end * STEP - k) / PER_VECTOR;  // beyond k; negative where this CTA's columns end before
    for (int i = threadIdx.x; i < vectors * work.tokens; i += schedule::threads) {
        const int column = k - work.first * STEP + i % vectors * PER_VECTOR;
        *reinterpret_cast<Vector16*>(x_rows(shared) + i / vectors * work.pitch + column * sizeof(Element)) = {};
    }
}

// A warp's sums, in the place of its ring.
__device__ __forceinline__ void leave(const Sum& sum, Warp& own) {
    const int lane = threadIdx.x % LANES;
    __syncwarp();
#pragma unroll
    for (int r = 0; r < schedule::rows; ++r)
#pragma unroll
        for (int j = 0; j < TOKEN_TILES; ++j)
#pragma unroll
            for (int i = 0; i < 4; ++i)
                own.sums[j * EIGHT + lane % 4 * 2 + i % 2][r * TILE + i / 2 * (TILE / 2) + lane / 4] = sum[r][j][i];
}

__device__ __forceinline__ float4 operator+(const float4& a, const float4& b) {
    return {a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w};
}

// The sum of a team's warps for a token and four rows of this CTA.
__device__ __forceinline__ float4 team_sum(const Shared& shared, int token, int quad) {
    constexpr int TEAM_QUADS = schedule::rows * TILE / 4;
    const Warp* team = &shared.warps[quad / TEAM_QUADS * SPLIT];
    float4 total = reinterpret_cast<const float4*>(team[0].sums[token])[quad % TEAM_QUADS];
#pragma unroll
    for (int s = 1; s < SPLIT; ++s)
        total = total + reinterpret_cast<const float4*>(team[s].sums[token])[quad % TEAM_QUADS];
    return total;
}

// Calls `visit(token, quad of the owner's part)` for what this lane has of all `owners` parts; `part` says of which.
template <typename Visit>
__device__ __forceinline__ void visit_quads(int owners, int tokens, const Visit& visit) {
    const int lane = threadIdx.x % LANES, each = (tokens + AT_ONCE - 1) / AT_ONCE * WIDTHS;
    for (int item = threadIdx.x / LANES; item < owners * each; item += WARPS) {
        const int token = item % each / WIDTHS * AT_ONCE + lane / WIDTH;
        const int quad = item % WIDTHS * WIDTH + lane % WIDTH;
        if (lane < AT_ONCE * WIDTH && token < tokens && quad < PART) visit(item / each, token, quad);
    }
}

// Send the sums of each CTA's part of the rows to it, and wait for what all send to this one.
__device__ __forceinline__ void exchange(Shared& shared, const Work& work) {
    ptx::cluster::wait();  // every CTA of the cluster has started
    visit_quads(CLUSTER, work.tokens, [&](int distance, int token, int part_quad) {
        const int owner = (work.rank + 1 + distance) % CLUSTER, quad = owner * PART + part_quad;
        if (quad >= QUADS) return;
        const float4 total = team_sum(shared, token, quad);
        const float four[4] = {total.x, total.y, total.z, total.w};
        ptx::store::async_cluster(
            ptx::address::shared_of_cta(&inboxes(shared)[work.rank].sums[token][part_quad], owner), four,
            ptx::address::shared_of_cta(&shared.arrived, owner));
    });
    ptx::mbarrier::wait_cluster(shared.arrived, 0);
}

struct alignas(8) Four {
    uint32_t words[2];
};

// y of this CTA's part of the rows.
__device__ __forceinline__ void store(Shared& shared, const void* w_scale, Output* y, const Work& work, int n) {
    const auto* of_rows = static_cast<const float*>(w_scale);
    float scale = 1;
    if constexpr (problem::scaled && !problem::row_scales) scale = of_rows[0];
    visit_quads(1, work.tokens, [&](int, int token, int part_quad) {
        const int quad = work.rank * PART + part_quad, row = work.row + quad * 4;
        if (quad >= QUADS || row >= n) return;
        float4 total;
        if constexpr (CLUSTER == 1) {
            total = team_sum(shared, token, quad);
        } else {
            total = inboxes(shared)[0].sums[token][part_quad];
#pragma unroll
            for (int sender = 1; sender < CLUSTER; ++sender)
                total = total + inboxes(shared)[sender].sums[token][part_quad];
        }
        float4 scales = {scale, scale, scale, scale};
        if constexpr (problem::row_scales) scales = *reinterpret_cast<const float4*>(of_rows + row);
        const Four rounded = {ptx::convert::pair<Output>(total.x * scales.x, total.y * scales.y),
                              ptx::convert::pair<Output>(total.z * scales.z, total.w * scales.w)};
        *reinterpret_cast<Four*>(y + int64_t(work.token + token) * n + row) = rounded;
    });
}

// The barriers and what is zero of x; from here on the other CTAs of the cluster may send.
__device__ __forceinline__ void start(Shared& shared, const Work& work, int k) {
    pad_x(shared, work, k);
    if (threadIdx.x == 0) {
        for (int part = 0; part < schedule::parts; ++part) ptx::mbarrier::init(shared.full[part], 1);
        ptx::mbarrier::init(shared.arrived, 1);
        ptx::fence::mbarrier_init();
        if constexpr (CLUSTER > 1) {
            const int quads = max(min(PART, QUADS - work.rank * PART), 0);
            ptx::mbarrier::arrive_expect_tx(shared.arrived, CLUSTER * work.tokens * quads * int(sizeof(float4)));
        }
        ptx::griddepcontrol::launch_dependents();
    }
    __syncthreads();
    if constexpr (CLUSTER > 1) ptx::cluster::arrive();
}

extern "C" __global__ void __launch_bounds__(schedule::threads, schedule::ctas_per_sm)
    gemv_mma(const Element* __restrict__ x, const Weight* __restrict__ w, const void* __restrict__ w_scale,
             Output* __restrict__ y, int m, int n, int k) {
    extern __shared__ __align__(128) uint8_t dynamic[];
    Shared& shared = *reinterpret_cast<Shared*>(dynamic);
    const Work work(m, k);
    const int warp = threadIdx.x / LANES;
    Stream stream(w, w_scale, work, n, k, warp / SPLIT, warp % SPLIT, shared.warps[warp].ring);
#pragma unroll
    for (int stage = 0; stage < schedule::stages; ++stage) stream.fill();
    start(shared, work, k);
    if (warp == 0) {
        ptx::griddepcontrol::wait();  // until the launch before has written x, and reads y no more
        load_x(shared, x, work, k);
    }
    Sum sum = {};
    accumulate(sum, shared, stream, work, warp % SPLIT);
    leave(sum, shared.warps[warp]);
    __syncthreads();
    if constexpr (CLUSTER > 1) exchange(shared, work);
    store(shared, w_scale, y, work, n);
}
