"""lab.attention: what makes no sense is refused in one sentence, which says what would."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import lab
from lab.ops import attention
from lab.problems import Attention
from sim.errors import InputError
from tests.lab.ops.attention_calls import BF16, CACHE, FP8, LATENT, PACKED, PAGED, QKV, TABLE, VIEWS, K, Q, V, arrays

APART = "q, k and v must be dense, or parts of rows of 64 elements, as one projection to heads . 2 kv_heads has them; "

CACHED_FP8 = {"k": K.astype(FP8), "v": V.astype(FP8)}


@pytest.mark.parametrize(
    ("base", "changes", "sentence"),
    [
        ({}, {"q": Q[0]}, r"q must be \[batch, q_len, heads, dim\], or packed beside q_starts; it is \[3, 4, 8\]"),
        ({}, {"q": Q[:, :, :, ::2]}, "q must be dense and row-major; it is strided"),
        ({}, {"q": Q.tolist()}, "q must be an array on the GPU, or all arrays NumPy's"),
        ({}, {"k": None}, "k must be a NumPy array as the first is"),
        ({}, {"k": K[:1]}, r"k must be \[2, kv_len, kv_heads, dim\], or \[rows, .* it is \[1, 5, 2, 8\]"),
        ({}, {"v": None}, "v must be given, unless k is a paged cache with its block_table, or latent"),
        ({}, {"v": V[:, :4].copy()}, r"v must be \[2, 5, 2, 8\] in bf16; it is \[2, 4, 2, 8\]"),
        ({}, {"k": K.astype(np.float16)}, "k must be in bf16 as q is, or in fp8; it is in fp16"),
        ({}, {"q": Q[:, :, :3].copy()}, "q_heads must be a multiple of kv_heads; q_heads = 3, kv_heads = 2"),
        ({}, {"out": Q[:1].copy()}, r"out must be \[2, 3, 4, 8\] in bf16; it is \[1, 3, 4, 8\]"),
        ({}, {"out": Q}, "out must not overlap q, which is still read while out is written"),
        ({}, {"lse": np.zeros((2, 3, 4), BF16)}, r"lse must be \[2, 3, 4\] in fp32; it is .* in bf16"),
        ({}, {"kv_lens": np.array([1, 2])}, "kv_lens must be in int32; it is in int64"),
        ({}, {"kv_lens": np.array([1], np.int32)}, r"kv_lens must be \[2\] in int32; it is \[1\]"),
        ({}, {"kv_lens": np.array([1, 6], np.int32)}, r"kv_lens are from 0 to 5; kv_lens\[1\] = 6"),
        ({}, {"max_kv_len": 4}, "max_kv_len must be 5, as the array has it, or left out; it is 4"),
        ({}, {"scale": 0}, "scale must be a number above 0; it is 0"),
        ({}, {"scale": float("nan")}, "scale must be a number above 0; it is nan"),
        ({}, {"window": 2, "causal": False}, "window must be 0"),
        ({}, {"k_scale": 2.0}, "k_scale has no place here: scales are for a cache in fp8"),
        ({}, {**CACHED_FP8, "q_scale": 2.0}, "q_scale has no place here: it is for queries in fp8"),
        ({}, {"q": Q.astype(FP8)}, "k must be in fp8 as q is, or in fp8; it is in bf16"),
        (PACKED, {"kv_lens": None}, "kv_lens must be given beside a block_table, and beside packed keys"),
        (PACKED, {"q": Q}, r"q must be \[tokens, heads, dim\] beside q_starts; it is \[2, 3, 4, 8\]"),
        (PACKED, {"q_starts": None}, "q must be .* or packed beside q_starts"),
        (PACKED, {"q_starts": np.array([0, 3, 2], np.int32)}, r"must ascend .*; q_starts\[2\] = 2 follows 3"),
        (PACKED, {"q_starts": np.array([0, 3, 7], np.int32)}, r"at most 6, the rows of q; q_starts\[2\] = 7"),
        (PACKED, {"q_starts": np.array([-1, 3, 6], np.int32)}, r"ascend from 0 .*; q_starts\[0\] = -1"),
        (PACKED, {"max_q_len": 3}, "sequences have at most 3 queries; sequence 1 has 4"),
        (PACKED, {"max_q_len": 0}, "max_q_len must be at least 1; it is 0"),
        (PACKED, {"kv_lens": np.array([2, 5], np.int32)}, "k has 6 rows; the keys of sequence 1 end at 7"),
        (PAGED, {"v": K}, "v has no place here: k holds the values too"),
        (PAGED, {"kv_lens": None}, "kv_lens must be given beside a block_table"),
        (PAGED, {"k": CACHE[:, :1].copy()}, r"k must be \[pages, 2, kv_heads, page, dim\] beside block_table"),
        (PAGED, {"block_table": TABLE[0]}, r"block_table must be \[batch, pages of a sequence\]; it is \[2\]"),
        (PAGED, {"max_kv_len": 9}, "block_table has 2 pages of 4 tokens a sequence; max_kv_len = 9"),
        (PAGED, {"block_table": TABLE[:1]}, r"block_table must be \[2, 2\] in int32; it is \[1, 2\]"),
        (PAGED, {"block_table": TABLE + 1}, r"pages are from 1 to 8; block_table\[1, 0\] = 9, of a sequence of 4 keys"),
        (PAGED, {"block_table": TABLE - 1}, r"pages are from 1 to 8; block_table\[0, 0\] = 0"),
        (LATENT, {"v": K}, "v has no place here: k holds the values too"),
        (LATENT, {"k": K}, r"latent k must be \[2, kv_len, dim\], or \[rows, dim\] beside q_starts, or paged beside"),
        (LATENT, {"latent": 9}, "latent must be from 0 to head_dim = 8; latent = 9"),
        (VIEWS, {"v": V}, APART + "v is dense"),
        (VIEWS, {"q": arrays((2, 5, 9, 8))[0][:, :, :4]}, APART + "those of q are 72 elements apart"),
        (VIEWS, {"q": QKV[:, :4, :4]}, "q must be dense and row-major; it is strided"),
        (VIEWS, {"k": QKV[:, ::-1, 4:6]}, "k must be dense and row-major; it is strided"),
        (VIEWS, {"k": QKV[:, :, 4:8:2]}, "k must be dense and row-major; it is strided"),
        (VIEWS, {"out": QKV.copy()[:, :, :4]}, "out must be dense and row-major; it is strided"),
        (VIEWS, {"out": QKV.reshape(-1)[-320:].reshape(2, 5, 4, 8)}, "out must not overlap q, which is still read"),
        (PAGED, {"k": arrays((9, 2, 2, 8, 8))[0][:, :, :, :4]}, "k must be dense and row-major; it is strided"),
    ],
)
def test_what_makes_no_sense_is_refused(base: dict[str, Any], changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        lab.attention(**{"q": Q, "k": K, "v": V, **({"v": None} if base else {}), **base, **changes})


def test_pages_that_no_query_sees_may_be_gone() -> None:
    problem = Attention(1, 1, 1, 8, 1, 12, page=4, window=4, row_pages=3)
    indices = {**problem.indices(), "block_table": np.array([[0, -7, 2]], np.int32)}
    attention.require_legal(problem, indices)
    indices["kv_lens"] = np.array([11], np.int32)  # now the query's window begins on the page before
    with pytest.raises(InputError, match=r"block_table\[0, 1\] = -7"):
        attention.require_legal(problem, indices)


def test_only_pages_that_no_query_s_key_is_on_are_shared() -> None:
    problem = Attention(3, 1, 1, 8, 2, 12, page=4, row_pages=3, pool=8)
    table = np.array([[1, 2, 3], [1, 2, 4], [1, 5, 0]], np.int32)
    indices = {**problem.indices(), "block_table": table, "kv_lens": np.array([10, 11, 8], np.int32)}
    attention.require_legal(problem, indices)  # queries at 8 and 9, at 9 and 10, at 6 and 7
    indices["kv_lens"] = np.array([9, 9, 8], np.int32)  # the first of the queries at 7 and 8 are on page 2
    with pytest.raises(InputError, match="page 2 has such keys of sequences 0 and 1"):
        attention.require_legal(problem, indices)
    attention.require_legal(replace(problem, causal=False), indices)  # queries of other tokens than the keys
