"""Asynchronous copies, mbarriers, named barriers and clusters."""

from tests.small import DEADLOCK, OUTSIDE, SHARED, Small

COPY = "access before cp.async arrival"
TMA = "access before TMA arrival"
HEADERS = """
#include "ptx/address.cuh"
#include "ptx/barrier.cuh"
#include "ptx/bulk.cuh"
#include "ptx/cluster.cuh"
#include "ptx/cp_async.cuh"
#include "ptx/fence.cuh"
#include "ptx/mbarrier.cuh"
"""
KERNELS = [
    Small(
        "copy_and_wait",
        """__shared__ alignas(16) int s[256]; ptx::cp_async::copy_16(ptx::address::shared(&s[4 * t]), x + 4 * t); ptx::cp_async::commit_group();
        ptx::cp_async::wait_group<0>(); __syncthreads(); y[t] = s[255 - t];""",
        (
            ("ptx::cp_async::wait_group<0>();", "", COPY),
            ("ptx::cp_async::wait_group<0>();", "ptx::cp_async::wait_group<1>();", COPY),
            ("__syncthreads();", "", COPY),
            ("ptx::cp_async::commit_group();", "", COPY),
            ("x + 4 * t", "x + 4 * t + 4", OUTSIDE),
        ),
        before=HEADERS,
    ),
    Small(
        "copy_within_a_warp",
        """__shared__ alignas(16) int s[128]; ptx::cp_async::copy_16(ptx::address::shared(&s[4 * t]), x + 4 * t); ptx::cp_async::commit_group();
        ptx::cp_async::wait_group<0>(); __syncwarp(); y[t] = s[127 - t];""",
        (("__syncwarp();", "", COPY), ("x + 4 * t", "x + 4 * t + 1", "misaligned")),
        block=32,
        before=HEADERS,
    ),
    Small(
        "two_stages",
        """__shared__ alignas(16) int s[2][128]; int sum = 0; ptx::cp_async::copy_16(ptx::address::shared(&s[0][4 * t]), x + 4 * t); ptx::cp_async::commit_group();
        for (int i = 0; i < 2; ++i) {
            if (i < 1) ptx::cp_async::copy_16(ptx::address::shared(&s[1][4 * t]), x + 128 + 4 * t);
            ptx::cp_async::commit_group(); ptx::cp_async::wait_group<1>(); __syncthreads(); sum += s[i][127 - t]; __syncthreads();
        } y[t] = sum;""",
        (
            ("ptx::cp_async::wait_group<1>();", "ptx::cp_async::wait_group<2>();", COPY),
            ("wait_group<1>(); __syncthreads();", "wait_group<1>();", COPY),
            ("ptx::address::shared(&s[1][4 * t])", "ptx::address::shared(&s[0][4 * t])", COPY),
        ),
        block=32,
        before=HEADERS,
    ),
    Small(
        "bulk_load",
        """__shared__ alignas(16) int s[64]; __shared__ uint64_t b; if (!t) { ptx::mbarrier::init(b, 1); ptx::fence::mbarrier_init();
        ptx::mbarrier::arrive_expect_tx(b, 256); ptx::bulk::load(s, x, 256, b); } __syncthreads(); ptx::mbarrier::wait(b, 0); y[t] = s[63 - t];""",
        (
            ("ptx::mbarrier::wait(b, 0);", "", TMA),
            ("ptx::mbarrier::wait(b, 0);", "ptx::mbarrier::wait(b, 1);", TMA),
            ("expect_tx(b, 256)", "expect_tx(b, 272)", DEADLOCK),
            ("expect_tx(b, 256)", "expect_tx(b, 240)", "mbarrier bytes"),
            ("init(b, 1)", "init(b, 2)", DEADLOCK),
            ("ptx::fence::mbarrier_init();", "", "mbarrier not published"),
            ("load(s, x, 256, b)", "load(s, x + 1, 256, b)", "misaligned"),
            ("} __syncthreads();", "}", "mbarrier not initialised"),
            ("load(s, x, 256, b); }", "load(s, x, 256, b); s[0] = 1; }", TMA),
        ),
        before=HEADERS,
    ),
    Small(
        "mbarrier_as_a_barrier",
        """__shared__ int s[64]; __shared__ uint64_t b; if (!t) ptx::mbarrier::init(b, 64); __syncthreads();
        s[t] = x[t]; ptx::mbarrier::arrive(b); ptx::mbarrier::wait(b, 0); y[t] = s[63 - t];""",
        (
            ("ptx::mbarrier::wait(b, 0);", "", SHARED),
            ("s[t] = x[t]; ptx::mbarrier::arrive(b);", "ptx::mbarrier::arrive(b); s[t] = x[t];", SHARED),
            ("init(b, 64)", "init(b, 32)", SHARED),
            ("init(b, 64)", "init(b, 65)", DEADLOCK),
        ),
        before=HEADERS,
    ),
    Small(
        "named_barriers",
        """__shared__ int s[64]; if (t < 64) { s[t] = x[t]; ptx::barrier::arrive<128>(1); }
        else { ptx::barrier::sync<128>(1); y[t - 64] = s[127 - t]; }""",
        (
            ("ptx::barrier::sync<128>(1);", "", SHARED),
            ("ptx::barrier::sync<128>(1);", "ptx::barrier::sync<128>(2);", DEADLOCK),
            ("arrive<128>(1)", "arrive<96>(1)", "barrier mismatch"),
            ("s[t] = x[t]; ptx::barrier::arrive<128>(1);", "ptx::barrier::arrive<128>(1); s[t] = x[t];", SHARED),
        ),
        block=128,
        before=HEADERS,
    ),
    Small(
        "ring",
        """__shared__ int s[2]; __shared__ uint64_t full[2], empty[2];
        if (!t) for (int i = 0; i < 2; ++i) { ptx::mbarrier::init(full[i], 1); ptx::mbarrier::init(empty[i], 32); } __syncthreads();
        if (t == 32) for (int i = 0; i < 5; ++i) { ptx::mbarrier::wait(empty[i % 2], (i / 2 & 1) ^ 1); s[i % 2] = x[i]; ptx::mbarrier::arrive(full[i % 2]); }
        if (t < 32) for (int i = 0; i < 5; ++i) { ptx::mbarrier::wait(full[i % 2], i / 2 & 1); y[32 * i + t] = s[i % 2]; ptx::mbarrier::arrive(empty[i % 2]); }""",
        (
            ("ptx::mbarrier::wait(empty[i % 2], (i / 2 & 1) ^ 1);", "", SHARED),
            ("ptx::mbarrier::wait(full[i % 2], i / 2 & 1);", "", SHARED),
            ("(i / 2 & 1) ^ 1", "i / 2 & 1", DEADLOCK),
            ("init(empty[i], 32)", "init(empty[i], 33)", DEADLOCK),
            ("ptx::mbarrier::arrive(empty[i % 2]); }", "}", DEADLOCK),
        ),
        before=HEADERS,
    ),
    Small(
        "cluster_sum",
        """__shared__ int s; if (!t) s = x[blockIdx.x]; ptx::cluster::arrive(); ptx::cluster::wait();
        if (!t) { int v; asm volatile("ld.shared::cluster.u32 %0, [%1];" : "=r"(v) : "r"(ptx::address::shared_of_cta(&s, blockIdx.x ^ 1))); y[blockIdx.x] = v; }
        ptx::cluster::arrive(); ptx::cluster::wait();""",
        (
            ("x[blockIdx.x]; ptx::cluster::arrive(); ptx::cluster::wait();", "x[blockIdx.x];", SHARED),
            ("y[blockIdx.x] = v; }\n        ptx::cluster::arrive(); ptx::cluster::wait();", "y[blockIdx.x] = v; }", "cluster CTA exited"),
        ),
        grid=2,
        cluster=2,
        before=HEADERS,
    ),
]  # fmt: skip
