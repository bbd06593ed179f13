"""Threads of a CTA that meet at barriers, and bounds of what they touch."""

from tests.small import DIVERGENT, LANES, OUTSIDE, SHARED, UNSET, Small

KERNELS = [
    Small(
        "reverse",
        "__shared__ int s[64]; s[t] = x[t]; __syncthreads(); y[t] = s[63 - t];",
        (
            ("__syncthreads();", "", SHARED),
            ("63 - t", "64 - t", OUTSIDE),
            ("s[t] = x[t];", "if (t != 5) s[t] = x[t];", UNSET),
            ("__syncthreads();", "__syncwarp();", SHARED),
        ),
    ),
    Small(
        "stencil",
        """__shared__ int s[66]; s[t + 1] = x[t]; if (t == 0) { s[0] = 0; s[65] = 0; } __syncthreads();
        y[t] = s[t] + s[t + 1] + s[t + 2];""",
        (
            ("__syncthreads();", "", SHARED),
            ("s[65] = 0;", "", UNSET),
            ("s[t + 2]", "s[t + 3]", OUTSIDE),
            ("s[0] = 0; s[65] = 0; } __syncthreads();", "} __syncthreads(); if (t == 0) { s[0] = 0; s[65] = 0; }", SHARED),
        ),
    ),
    Small(
        "tree",
        """__shared__ int s[64]; s[t] = x[t]; __syncthreads();
        for (int o = 32; o; o >>= 1) { if (t < o) s[t] += s[t + o]; __syncthreads(); } if (!t) y[0] = s[0];""",
        (
            ("s[t] = x[t]; __syncthreads();", "s[t] = x[t];", SHARED),
            ("s[t + o]; __syncthreads(); }", "s[t + o]; }", LANES),
            ("if (t < o) s[t] += s[t + o]; __syncthreads();", "if (t < o) { s[t] += s[t + o]; __syncthreads(); }", DIVERGENT),
            ("o = 32", "o = 64", OUTSIDE),
            ("if (t < o) s[t]", "s[t]", OUTSIDE),
        ),
    ),
    Small(
        "tree_ends_in_a_warp",
        """__shared__ int s[64]; s[t] = x[t]; __syncthreads(); if (t < 32) { s[t] += s[t + 32]; __syncwarp();
        for (int o = 16; o; o >>= 1) { if (t < o) s[t] += s[t + o]; __syncwarp(); } if (!t) y[0] = s[0]; }""",
        (
            ("s[t + 32]; __syncwarp();", "s[t + 32];", LANES),
            ("s[t + o]; __syncwarp();", "s[t + o];", LANES),
            ("s[t] = x[t]; __syncthreads();", "s[t] = x[t]; __syncwarp();", SHARED),
        ),
    ),
    Small(
        "scan",
        """__shared__ int s[2][64]; int at = 0; s[0][t] = x[t]; __syncthreads();
        for (int o = 1; o < 64; o *= 2) { s[1 - at][t] = s[at][t] + (t >= o ? s[at][t - o] : 0); at = 1 - at; __syncthreads(); }
        y[t] = s[at][t];""",
        (
            ("s[1 - at][t] =", "s[at][t] =", SHARED),
            ("at = 1 - at; __syncthreads();", "at = 1 - at;", SHARED),
            ("(t >= o ? s[at][t - o] : 0)", "s[at][t - o]", OUTSIDE),
        ),
    ),
    Small(
        "transpose",
        "__shared__ int s[8][8]; s[t / 8][t % 8] = x[t]; __syncthreads(); y[t] = s[t % 8][t / 8];",
        (
            ("__syncthreads();", "", SHARED),
            ("s[t / 8][t % 8] = x[t];", "if (t < 60) s[t / 8][t % 8] = x[t];", UNSET),
            ("y[t] = s[t % 8][t / 8]", "y[t] = s[t % 8][t / 8 + 1]", OUTSIDE),
        ),
    ),
    Small(
        "buffer_used_again",
        """__shared__ int s[64]; int sum = 0;
        for (int i = 0; i < 3; ++i) { s[t] = x[64 * i + t]; __syncthreads(); sum += s[63 - t]; __syncthreads(); } y[t] = sum;""",
        (
            ("sum += s[63 - t]; __syncthreads();", "sum += s[63 - t];", SHARED),
            ("x[64 * i + t]; __syncthreads();", "x[64 * i + t];", SHARED),
            ("64 * i + t", "64 * i + 80 + t", OUTSIDE),
        ),
    ),
    Small(
        "two_buffers",
        """__shared__ int s[2][64]; int sum = 0;
        for (int i = 0; i < 4; ++i) { s[i & 1][t] = x[64 * i + t]; __syncthreads(); sum += s[i & 1][63 - t]; } y[t] = sum;""",
        (("s[i & 1][t] =", "s[0][t] =", UNSET), ("__syncthreads();", "", SHARED), ("sum += s[i & 1][63 - t]", "sum += s[0][63 - t]", SHARED)),
    ),
    Small(
        "early_return",
        "__shared__ int s[64]; if (t >= n) return; s[t] = x[t]; __syncthreads(); y[t] = s[n - 1 - t];",
        (
            ("if (t >= n) return;", "", OUTSIDE),
            ("__syncthreads();", "", SHARED),
            ("if (t >= n) return; s[t] = x[t]; __syncthreads(); y[t]", "if (t < n) { s[t] = x[t]; __syncthreads(); } y[t]", DIVERGENT),
        ),
    ),
    Small(
        "early_return_of_a_warp",
        "__shared__ int s[32]; if (t >= 32) return; s[t] = x[t]; __syncthreads(); y[t] = s[31 - t];",
        (("__syncthreads();", "", LANES), ("if (t >= 32)", "if (t > 32)", OUTSIDE)),
    ),
    Small(
        "counted_barrier",
        "__shared__ int s[64]; s[t] = x[t]; int c = __syncthreads_count(x[t] & 1); y[t] = c + s[63 - t];",
        (("__syncthreads_count(x[t] & 1)", "__popc(__ballot_sync(~0u, x[t] & 1))", SHARED), ("s[t] = x[t];", "if (t) s[t] = x[t];", UNSET)),
    ),
    Small(
        "or_barrier",
        "__shared__ int s[64]; s[t] = x[t]; int any = __syncthreads_or(x[t] > 200); y[t] = any + s[63 - t];",
        (("__syncthreads_or(x[t] > 200)", "__any_sync(~0u, x[t] > 200)", SHARED),),
    ),
    Small(
        "matrix_product",
        """__shared__ int a[8][8], b[8][8]; int r = t / 8, c = t % 8, sum = 0;
        for (int k = 0; k < 2; ++k) { a[r][c] = x[64 * k + t]; b[r][c] = x[128 + 64 * k + t]; __syncthreads();
        for (int i = 0; i < 8; ++i) sum += a[r][i] * b[i][c]; __syncthreads(); } y[t] = sum;""",
        (
            ("* b[i][c]; __syncthreads();", "* b[i][c];", SHARED),
            ("64 * k + t]; __syncthreads();", "64 * k + t];", SHARED),
            ("i < 8", "i < 9", OUTSIDE),
            ("b[r][c] = x[128", "if (r < 7) b[r][c] = x[128", UNSET),
        ),
    ),
    Small(
        "dynamic_memory",
        "extern __shared__ int s[]; s[t] = x[t]; __syncthreads(); y[t] = s[(t + 1) % 64];",
        (("(t + 1) % 64", "t + 1", OUTSIDE), ("__syncthreads();", "", SHARED)),
        shared=256,
    ),
    Small(
        "wide_loads",
        "int4 v = ((const int4*)x)[t]; __shared__ int4 s[64]; s[t] = v; __syncthreads(); v = s[63 - t]; ((int4*)y)[t] = v;",
        (
            ("((const int4*)x)[t]", "*(const int4*)(x + 3 * t)", "misaligned"),
            ("((const int4*)x)[t]", "((const int4*)x)[t + 1]", OUTSIDE),
            ("__syncthreads();", "", SHARED),
        ),
    ),
    Small(
        "histogram",
        """__shared__ int h[16]; if (t < 16) h[t] = 0; __syncthreads(); atomicAdd(&h[x[t] & 15], 1); __syncthreads();
        if (t < 16) y[t] = h[t];""",
        (
            ("h[t] = 0; __syncthreads();", "h[t] = 0;", SHARED),
            ("atomicAdd(&h[x[t] & 15], 1)", "h[x[t] & 15] += 1", SHARED),
            ("1); __syncthreads();", "1);", SHARED),
            ("& 15], 1)", "& 31], 1)", OUTSIDE),
        ),
    ),
    Small(
        "ragged",
        "int i = blockIdx.x * 32 + t; if (i < n) y[i] = x[i];",
        (("if (i < n) ", "", OUTSIDE), ("y[i] = x[i]", "y[i] = x[i + 250]", OUTSIDE)),
        grid=9,
        block=32,
    ),
    Small(
        "queue_of_a_cta",
        """__shared__ int count, s[64]; if (!t) count = 0; __syncthreads(); if (x[t] & 1) s[atomicAdd(&count, 1)] = t; __syncthreads();
        if (t < count) y[t] = s[t];""",
        (
            ("count = 0; __syncthreads();", "count = 0;", SHARED),
            ("= t; __syncthreads();", "= t;", SHARED),
            ("atomicAdd(&count, 1)", "count++", SHARED),
            ("if (t < count) y", "if (t <= count) y", UNSET),
        ),
    ),
]  # fmt: skip
