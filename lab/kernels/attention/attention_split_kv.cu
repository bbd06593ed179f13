// attention_split_kv: attention of a few query tokens over a long cache, on the tensor cores: decode.
//
// Idea: the cache is read once, as a plain read does it: every team of warps copies the tokens it will multiply, 16 at a
// time, to its own ring in shared memory, and waits for nobody; so what an SM has under way is what its shared memory
// holds. Sequences are divided over the SMs on the device, from their lengths. A CTA that shares a sequence with others
// leaves a partial result, and who comes last adds them up in the same launch. Those that share the only sequence add up
// its rows between them: when all have come, or, of a short one, as a cluster. Where all but the last tokens are settled,
// work is divided and the first keys are copied while the launch before is still at work.
//
// Warp roles: all alike. The teams of a KV head take the units of a stretch in turn, each with a softmax of its own; at
// the end of a sequence their sums meet in shared memory. A team is one warp, or several where the queries are many: four
// with 64 queries are a warpgroup and multiply longer units by wgmma.
//
//   cp.async     unit 0 | unit 1 | unit 2 |              unit 3 |              unit 4 |               stages = 4
//   multiply                                unit 0               unit 1               unit 2 ...
//                                           q K^T, softmax, P V
//
// Bytes expected from HBM: K and V of the tokens that are seen, q and y, once each.
#include "lab/kernels/attention/decode_merge.cuh"
#include "ptx/griddepcontrol.cuh"

static_assert(schedule::threads == LANES * schedule::warps, "whole warps");

using Rings = Stage[SLOTS * HEADS][STAGES];

// Where sums meet: beside the rings, or in them where nothing comes after the only part.
constexpr int ROOM = ALONE ? (sizeof(Rings) > sizeof(Sums) ? sizeof(Rings) : sizeof(Sums)) : sizeof(Rings) + sizeof(Sums);
struct Shared {
    alignas(ALIGNMENT) uint8_t room[ROOM];
    Merge merge;
};
constexpr int INSIDE = ROOM + schedule::inbox_rows * (DIM + 2) * int(sizeof(float)) + int(sizeof(uint64_t)) + 1;
static_assert(sizeof(Shared) == (INSIDE + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT, "what the launch asks for");

// What the launch before has written is there from here on, and the next launch may start.
__device__ __forceinline__ void follow() {
    ptx::griddepcontrol::wait();
    ptx::griddepcontrol::launch_dependents();
}

extern "C" __global__ void __launch_bounds__(schedule::threads, schedule::ctas_per_sm)
    attention_split_kv(const Activation* __restrict__ q, const Element* __restrict__ k, const Element* __restrict__ v,
                       const int32_t* __restrict__ q_starts, const int32_t* __restrict__ kv_lens,
                       const int32_t* __restrict__ where, const float* __restrict__ k_scale,
                       const float* __restrict__ v_scale, Activation* __restrict__ y, float* __restrict__ lse,
                       float* partial, float2* partial_sums, uint32_t* arrivals, int batch_size, int kv_heads,
                       int max_q_len, int max_kv_len, int pages, int table_width, int64_t page_stride, int64_t head_stride,
                       int token_stride, int64_t value_offset, float scale) {
    extern __shared__ __align__(WARPGROUP ? 1024 : ALIGNMENT) uint8_t dynamic[];
    Shared& shared = *reinterpret_cast<Shared*>(dynamic);
    const Team team;
    const int ctas = kv_heads / HEADS;  // of a stretch
    const int stretch = CLUSTER ? blockIdx.x % schedule::cluster : blockIdx.x / ctas;
    const int first_head = (CLUSTER ? blockIdx.x / schedule::cluster : blockIdx.x % ctas) * HEADS;
    const int head = first_head + team.head;
    const Cache cache{
        k + head * head_stride, PAGED ? value_offset : v - k, where, page_stride, token_stride, pages, table_width};
    const Results results{y, lse, partial, partial_sums, arrivals, v_scale, kv_heads};
    const Batch batch{q_starts, kv_lens, batch_size, max_q_len, max_kv_len};

    if constexpr (CLUSTER) begin_cluster(shared.merge);
    if constexpr (!problem::settled) follow();
    const int first_row_of_sequence = ask_ahead(cache, batch_size);
    Walk walk(batch, stretch, CLUSTER ? schedule::cluster : gridDim.x / ctas);
    Source source(cache, team, walk, first_row_of_sequence);
    Part part = walk.next();  // asked for before copies are, and before what the launch ahead writes is waited for
    Stage(&ring)[STAGES] = reinterpret_cast<Rings&>(shared.room)[team.index()];
    Sums& sums = *reinterpret_cast<Sums*>(shared.room + (ALONE ? 0 : sizeof(Rings)));
    const float scale_log2 = scale * LOG2_E * (FP8 ? k_scale[head] / QUERY_SCALE : 1);
    const int first_row = team.row_group * TILES * MMA_N;
    int stage = 0, missing = STAGES - 1;  // units that are not yet under way
    bool has_met = !CLUSTER;              // the others of the cluster, which have begun then
    if constexpr (problem::settled) {
#pragma unroll 1
        for (; missing > 0 && source.is_settled(); --missing) source.copy_next(ring[STAGES - 1 - missing]);
        follow();
    }
    for (; part.exists(); part = walk.next()) {
        OwnQueries queries;
        const Sharers sharers(part, walk.length);
        load_queries(queries, q, part.sequence, head, kv_heads * problem::group, first_row);  // or it waits for copies
        OwnSoftmax softmax;
        clear(softmax);
        add_part(softmax, source, ring, stage, missing, queries, part, team, first_row, scale_log2);
        if (!has_met) ptx::cluster::wait();
        has_met = true;
        finish(shared.merge, sums, softmax, part, sharers, stretch, first_head, results);
    }
    if (!has_met) ptx::cluster::wait();
}
