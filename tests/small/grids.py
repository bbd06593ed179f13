"""CTAs that meet through global memory: atomics, fences, flags, locks, scopes."""

from tests.small import EQUAL, GLOBAL, INPUT, LANES, NULL, OUTSIDE, READER, SCOPE, UNSET, UNTOLD, Small

ATOMIC = "#include <cuda/atomic>\n"
KERNELS = [
    Small(
        "sum_by_atomics",
        "atomicAdd(z, x[t]);",
        (("atomicAdd(z, x[t]);", "z[0] += x[t];", GLOBAL), ("atomicAdd(z, x[t]);", "atomicAdd(z, x[t]); if (t == 0) y[blockIdx.x] = z[0];", GLOBAL)),
        grid=3,
    ),
    Small(
        "message",
        """volatile int* f = z; if (!blockIdx.x) { z[1] = 42; __threadfence(); *f = 1; }
        else { while (!*f) {} __threadfence(); y[0] = z[1]; }""",
        (
            ("z[1] = 42; __threadfence();", "z[1] = 42;", GLOBAL),
            ("{} __threadfence();", "{}", READER),
            ("volatile int* f = z;", "int* f = z; if (blockIdx.x) { y[0] = *f; return; }", GLOBAL),
            ("*f = 1;", "*f = 0;", "livelock"),
            ("while (!*f) {}", "int v = *f;", GLOBAL),
        ),
        grid=2,
        block=1,
    ),
    Small(
        "message_of_a_cta",
        """volatile int* f = z; if (!blockIdx.x) { z[t + 1] = t; __threadfence(); __syncthreads(); if (!t) *f = 1; }
        else { if (!t) while (!*f) {} __syncthreads(); __threadfence(); y[t] = z[32 - t]; }""",
        (
            ("__threadfence(); __syncthreads(); if (!t) *f", "__threadfence(); if (!t) *f", UNTOLD),
            ("while (!*f) {} __syncthreads(); __threadfence();", "while (!*f) {} __syncthreads();", READER),
            ("z[32 - t]", "z[64 - t]", OUTSIDE),
        ),
        grid=2,
        block=32,
    ),
    Small(
        "last_cta_sums",
        """__shared__ bool last; z[8 + blockIdx.x] = x[blockIdx.x]; __threadfence();
        if (!t) last = atomicAdd(z, 1) == gridDim.x - 1; __syncthreads();
        if (last) { __threadfence(); int s = 0; for (int i = 0; i < gridDim.x; ++i) s += z[8 + i]; y[t] = s; if (!t) z[0] = 0; }""",
        (
            ("x[blockIdx.x]; __threadfence();", "x[blockIdx.x];", GLOBAL),
            ("if (last) { __threadfence();", "if (last) {", READER),
            ("atomicAdd(z, 1) == gridDim.x - 1", "z[0]++ == gridDim.x - 1", GLOBAL),
            ("gridDim.x - 1; __syncthreads();", "gridDim.x - 1;", LANES),
            ("if (last) {", "if (last || blockIdx.x == 1) {", GLOBAL),
        ),
        grid=3,
        block=32,
        kinds=(EQUAL,),  # all threads of a CTA write its x
    ),
    Small(
        "lock",
        """if (!t) { while (atomicCAS(z, 0, 1)) {} __threadfence(); z[1] += x[blockIdx.x]; __threadfence(); atomicExch(z, 0); }""",
        (
            ("while (atomicCAS(z, 0, 1)) {} ", "", GLOBAL),
            ("z[1] += x[blockIdx.x]; __threadfence();", "z[1] += x[blockIdx.x];", GLOBAL),
            ("{} __threadfence(); z[1]", "{} z[1]", READER),
            (" atomicExch(z, 0);", "", "livelock"),
        ),
        grid=4,
    ),
    Small(
        "counter_is_waited_for_and_reset",
        """if (blockIdx.x) { z[blockIdx.x] = 5; __threadfence(); atomicAdd(z, 1); }
        else { while (*(volatile int*)z < gridDim.x - 1) {} __threadfence(); y[0] = z[1] + z[2]; z[0] = 0; }""",
        (
            ("z[blockIdx.x] = 5; __threadfence();", "z[blockIdx.x] = 5;", GLOBAL),
            ("< gridDim.x - 1", "< gridDim.x - 2", GLOBAL),
            ("{} __threadfence();", "{}", READER),
        ),
        grid=3,
        block=1,
    ),
    Small(
        "released_and_acquired",
        """cuda::atomic_ref<int, cuda::thread_scope_device> f(*z);
        if (!blockIdx.x) { z[1] = 42; f.store(1, cuda::memory_order_release); }
        else { while (!f.load(cuda::memory_order_acquire)) {} y[0] = z[1]; }""",
        (
            ("cuda::memory_order_release", "cuda::memory_order_relaxed", GLOBAL),
            ("cuda::memory_order_acquire", "cuda::memory_order_relaxed", READER),
            ("cuda::thread_scope_device", "cuda::thread_scope_block", SCOPE),
        ),
        grid=2,
        block=1,
        before=ATOMIC,
    ),
    Small(
        "scope_of_a_cta_within_one",
        """__shared__ int f, d; if (!t) f = 0; __syncthreads();
        if (t == 0) { d = x[7]; __threadfence_block(); atomicExch_block(&f, 1); }
        if (t == 32) { while (!atomicAdd_block(&f, 0)) {} __threadfence_block(); y[0] = d; }""",
        (
            ("d = x[7]; __threadfence_block();", "d = x[7];", "race on shared memory"),
            ("{} __threadfence_block();", "{}", READER),
            ("f = 0; __syncthreads();", "f = 0;", "race on shared memory"),
        ),
    ),
    Small(
        "fence_of_a_gpu",
        """if (!blockIdx.x) { z[1] = 42; __threadfence(); atomicExch(z, 1); }
        else { while (!atomicAdd(z, 0)) {} __threadfence(); y[0] = z[1]; }""",
        (
            ("z[1] = 42; __threadfence();", "z[1] = 42; __threadfence_block();", GLOBAL),
            ("{} __threadfence();", "{} __threadfence_block();", READER),
            ("atomicExch(z, 1)", "atomicExch_block(z, 1)", SCOPE),
        ),
        grid=2,
        block=1,
    ),
    Small(
        "plain_store_then_atomic",
        "if (!t) { if (blockIdx.x == 0) z[1] = 1; atomicAdd(z, 1); }",
        (("z[1] = 1;", "z[0] = 0;", GLOBAL),),
        grid=2,
    ),
    Small(
        "each_its_own",
        "int i = blockIdx.x * 64 + t; y[i] = x[i];",
        (
            ("int i = blockIdx.x * 64 + t; y[i] =", "int i = blockIdx.x * 63 + t; y[i] = t +", GLOBAL),
            ("y[i] = x[i]", "y[i / 64] = 3", EQUAL),
            ("y[i] = x[i]", "const_cast<int*>(x)[i] = y[i]", INPUT),
            ("y[i] = x[i]", "y[i] = z[i]", OUTSIDE),
            ("y[i] = x[i]", "y[i] = y[(i + 1) % 256]", UNSET),
            ("y[i] = x[i]", "y[i] = *(const int*)(size_t)(4 * t)", NULL),
        ),
        grid=4,
    ),
    Small(
        "maximum",
        "atomicMax(z, x[t]); if (t == 0) atomicAdd(z + 1, 1);",
        (("atomicMax(z, x[t]);", "if (z[0] < x[t]) z[0] = x[t];", GLOBAL),),
        grid=2,
    ),
    Small(
        "ticket_lock",
        """if (!t) { int mine = atomicAdd(z, 1); while (*(volatile int*)(z + 1) != mine) {} __threadfence(); z[2] += 1;
        __threadfence(); *(volatile int*)(z + 1) = mine + 1; }""",
        (
            ("__threadfence(); *(volatile int*)(z + 1)", "*(volatile int*)(z + 1)", GLOBAL),
            ("= mine + 1;", "= mine + 2;", "livelock"),
            ("while (*(volatile int*)(z + 1) != mine) {}", "", GLOBAL),
        ),
        grid=3,
        block=32,
    ),
]  # fmt: skip
