"""Lanes of one warp."""

from tests.small import DIVERGENT, LANES, MASK, OUTSIDE, Small

SHUFFLE = "shuffle from inactive lane"
KERNELS = [
    Small(
        "reverse_in_a_warp",
        "__shared__ int s[32]; s[t] = x[t]; __syncwarp(); y[t] = s[31 - t];",
        (("__syncwarp();", "", LANES), ("__syncwarp();", "__syncwarp(0xffff);", MASK), ("31 - t", "32 - t", OUTSIDE)),
        block=32,
    ),
    Small(
        "sum_by_shuffles",
        "int v = x[t]; for (int o = 16; o; o >>= 1) v += __shfl_down_sync(~0u, v, o); if (t % 32 == 0) y[t] = v;",
        (
            ("__shfl_down_sync(~0u, v, o)", "__shfl_down_sync(0xffff, v, o)", MASK),
            ("int v = x[t]; for", "int v = x[t]; if (t % 32 < 16) for", DIVERGENT),
        ),
    ),
    Small(
        "halves_with_their_masks",
        "unsigned m = t < 16 ? 0xffff : 0xffff0000; int v = x[t]; y[t] = __shfl_xor_sync(m, v, 8) + __popc(__ballot_sync(m, v & 1));",
        (("t < 16 ?", "t < 15 ?", MASK), ("__shfl_xor_sync(m, v, 8)", "__shfl_xor_sync(m, v, 16)", SHUFFLE)),
        block=32,
    ),
    Small(
        "branch_with_its_mask",
        "if (t < 12) y[t] = __shfl_sync(0xfff, x[t], 3); else y[t] = __shfl_sync(~0xfffu, x[t], 13);",
        (
            ("__shfl_sync(0xfff, x[t], 3)", "__shfl_sync(0xfff, x[t], 13)", SHUFFLE),
            ("__shfl_sync(0xfff,", "__shfl_sync(0x7ff,", MASK),
        ),
        block=32,
    ),
    Small(
        "whole_warp_after_a_branch",
        "int v = 0; if (t & 1) v = x[t]; y[t] = __shfl_xor_sync(~0u, v, 1);",
        (("if (t & 1) v = x[t]; y[t] =", "if (t & 1) { v = __shfl_xor_sync(~0u, v, 1); } y[t] = v +", DIVERGENT),),
        block=32,
    ),
    Small(
        "vote_after_early_return",
        "if (t >= n) return; unsigned b = __ballot_sync(~0u, x[t] & 1); y[t] = __popc(b);",
        (("__ballot_sync(~0u, x[t] & 1)", "__ballot_sync(t < 32 ? ~0u : 0x0f, x[t] & 1)", MASK),),
    ),
    Small(
        "match",
        "y[t] = __match_any_sync(~0u, x[t] & 3) + __reduce_add_sync(~0u, x[t]);",
        (("__match_any_sync(~0u,", "__match_any_sync(0x00ffffff,", MASK), ("__reduce_add_sync(~0u,", "__reduce_add_sync(0xff00ffff,", MASK)),
        block=32,
    ),
    Small(
        "partial_sync",
        "__shared__ int s[32]; s[t] = x[t]; unsigned m = 0xffu << (t & 24); __syncwarp(m); y[t] = s[t ^ 3];",
        (("__syncwarp(m);", "", LANES), ("t ^ 3", "t ^ 8", LANES), ("0xffu <<", "0x7fu <<", MASK)),
        block=32,
    ),
    Small(
        "leader_tells_the_others",
        "__shared__ int s; if (t == 0) s = x[0]; __syncwarp(); y[t] = s;",
        (("__syncwarp();", "", LANES), ("if (t == 0) s = x[0];", "s = x[t];", LANES)),
        block=32,
    ),
    Small(
        "others_tell_the_leader",
        """__shared__ int s[32]; s[t] = x[t]; __syncwarp();
        if (t == 0) { int sum = 0; for (int i = 0; i < 32; ++i) sum += s[i]; y[0] = sum; }""",
        (("__syncwarp();", "", LANES), ("i < 32", "i <= 32", OUTSIDE)),
        block=32,
    ),
    Small(
        "ping_pong",
        """__shared__ int s[32]; int v = x[t];
        for (int i = 1; i < 32; i *= 2) { s[t] = v; __syncwarp(); v += s[t ^ i]; __syncwarp(); } y[t] = v;""",
        (("s[t] = v; __syncwarp();", "s[t] = v;", LANES), ("s[t ^ i]; __syncwarp();", "s[t ^ i];", LANES)),
        block=32,
    ),
    Small(
        "lock_of_a_warp",
        """while (atomicCAS(z, 0, 1) != 0) {} __threadfence(); z[1] += t; __threadfence(); atomicExch(z, 0);""",
        (("while (atomicCAS(z, 0, 1) != 0) {} ", "", LANES),),
        block=32,
    ),
    Small(
        "syncs_of_two_arms",
        "__shared__ int s[32]; if (t < 16) { s[t] = x[t]; __syncwarp(); y[t] = s[t + 16]; } else { s[t] = x[t]; __syncwarp(); y[t] = s[t - 16]; }",
        (("__syncwarp(); y[t] = s[t + 16]", "y[t] = s[t + 16]", LANES),),
        block=32,
    ),
    Small(
        "global_exchange",
        "z[t] = x[t]; __syncwarp(); y[t] = z[31 - t];",
        (("__syncwarp();", "", LANES), ("z[t] = x[t];", "z[t / 2] = x[t];", LANES)),
        block=32,
    ),
    Small(
        "warps_side_by_side",
        "__shared__ int s[2][32]; int w = t / 32, l = t % 32; s[w][l] = x[t]; __syncwarp(); y[t] = s[w][31 - l];",
        (("s[w][31 - l]", "s[1 - w][31 - l]", "race on shared memory"), ("__syncwarp();", "", LANES)),
    ),
]  # fmt: skip
