"""lab.attention: whatever way the arrays lie, each sequence attends to its own keys; what makes no sense is refused."""

import ctypes
from collections.abc import Callable, Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import lab
from lab.choice import is_solvable
from lab.execute import Plan
from lab.gpu import driver
from lab.ops import arrays as ops_arrays
from lab.ops import attention, calls
from lab.ops.arrays import TORCH
from lab.ops.attention_request import AttentionRequest, posed
from lab.problems import Attention
from sim.errors import InputError
from sim.formats import decode, encode
from sim.launch import Array, Launch, Role
from sim.machine import H100
from tests.lab.execute.conftest import fake
from tests.lab.gpu.fake_driver import DeviceArray, FakeDriver
from tests.lab.ops.attention_by_hand import Chip, attend, compute

__all__ = ["fake"]

BF16, FP8 = np.dtype(ml_dtypes.bfloat16), np.dtype(ml_dtypes.float8_e4m3fn)
NAMES = {BF16: "bf16", FP8: "fp8", np.dtype(np.float16): "fp16", np.dtype(np.float32): "fp32"}
STRANGE = {"fp8": 0x7F, "bf16": 0x7FC0, "fp16": 0x7E00, "fp32": 0x7FC00000}  # bits of a NaN


@pytest.fixture
def by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """The simulated chip computes by the definition."""
    monkeypatch.setattr(attention, "simulated", Chip)


class Call(NamedTuple):
    """A call's arguments, and the results that its sequences should have, by the slice of q's rows that they are."""

    arguments: dict[str, Any]
    expected: list[tuple[slice, NDArray, NDArray]]
    q_form: str


@st.composite
def drawn_calls(draw: st.DrawFn) -> Call:
    """Sequences, laid out as a caller may have them: everything that is no sequence's is NaN."""
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    layout = draw(st.sampled_from(["dense", "rows", "paged"]))
    packed_q = layout == "rows" or draw(st.booleans())
    q_type = draw(st.sampled_from([BF16, np.dtype(np.float16), np.dtype(np.float32)]))
    kv_type = FP8 if q_type == BF16 and draw(st.booleans()) else q_type
    batch, dim, page = draw(st.integers(1, 3)), 8, draw(st.sampled_from([1, 4]))
    latent = draw(st.sampled_from([0, 5]))
    kv_heads = 1 if latent else draw(st.integers(1, 2))
    heads = kv_heads * draw(st.sampled_from([1, 3]))
    most = draw(st.integers(1, 6))
    q_lens = [draw(st.integers(0, most)) if packed_q else most for _ in range(batch)]
    kv_lens = [draw(st.integers(0, q if layout == "rows" else 9)) for q in q_lens]
    causal = draw(st.booleans())
    window = draw(st.sampled_from([0, 2])) if causal else 0
    scale = draw(st.sampled_from([None, 0.25]))

    def values(shape: tuple[int, ...], dtype: np.dtype) -> tuple[NDArray, NDArray]:
        """(an array, its values in float64)."""
        bits = encode(rng.standard_normal(shape).astype(np.float32), NAMES[dtype])
        return bits.view(dtype), decode(bits, NAMES[dtype]).astype(np.float64)

    def blank(shape: tuple[int, ...], dtype: np.dtype) -> NDArray:
        form = NAMES[dtype]
        return np.full(shape, STRANGE[form], f"uint{8 * dtype.itemsize}").view(dtype)

    starts = np.concatenate(([0], np.cumsum(q_lens)))
    spare = draw(st.integers(0, 2))
    q_rows = int(starts[-1]) + spare if packed_q else batch * most
    q = blank((q_rows, heads, dim), q_type)
    rows = int(starts[-1]) + spare
    longest = max(1, *kv_lens)
    columns = -(-longest // page) + draw(st.integers(0, 1))
    shapes = {"rows": (rows,), "dense": (batch, longest), "paged": (1 + batch * columns, 2, kv_heads, page, dim)}
    one = () if latent else (kv_heads,)
    shape = (*shapes[layout], *one, dim) if layout != "paged" else shapes["paged"]
    if layout == "paged" and latent:
        shape = (shape[0], page, dim)
    k, v = blank(shape, kv_type), blank(shape, kv_type)
    table = rng.permutation(np.arange(1, shape[0], dtype=np.int32))[: batch * columns] if layout == "paged" else None
    k_scale, v_scale = (rng.uniform(0.5, 2, kv_heads).astype(np.float32) for _ in "kv")
    scales = {"k_scale": k_scale, "v_scale": v_scale} if kv_type == FP8 and draw(st.booleans()) else {}
    expected = []
    for b in range(batch):
        here = slice(starts[b], starts[b + 1])
        q[here], q_b = values((q_lens[b], heads, dim), q_type)
        k_bits, k_b = values((kv_lens[b], kv_heads, dim), kv_type)
        v_bits, v_b = (k_bits, k_b[..., :latent]) if latent else values((kv_lens[b], kv_heads, dim), kv_type)
        for token in range(kv_lens[b]):
            for cache, both, found in ((k, 0, k_bits), (v, 1, v_bits)):
                row = found[token, 0] if latent else found[token]
                if layout == "paged":
                    at, slot = table.reshape(batch, columns)[b, token // page], token % page
                    if latent:
                        k[at, slot] = row
                    else:
                        k[at, both, :, slot] = row
                elif layout == "rows":
                    cache[starts[b] + token] = row
                else:
                    cache[b, token] = row
        if scales:
            k_b = k_b * k_scale[:, None]
            v_b = v_b * (k_scale if latent else v_scale)[:, None]
        expected.append((here, *attend(q_b, k_b, v_b, scale or dim**-0.5, causal, window)))
    q = q if packed_q else q.reshape(batch, most, heads, dim)
    single = min(q.size // (heads * dim), 2 if layout == "paged" else k.size // (kv_heads * dim)) < 2  # dense anyhow
    if kv_type == q_type and not latent and not single and draw(st.booleans()):
        cut = (q, k, v) if layout != "paged" else (q,)
        widths = heads, kv_heads, kv_heads
        offsets = 0, heads, heads + kv_heads
        q, *kv = (parts(blank, array, o, sum(widths)) for array, o in zip(cut, offsets, strict=False))
        k, v = kv or (k, v)
    arguments: dict[str, Any] = {"q": q, "k": k}
    arguments |= {"causal": causal, "window": window, "scale": scale, "latent": latent}
    arguments |= {name: scales[name] for name in scales if not (latent and name == "v_scale")}
    if not latent and layout != "paged":
        arguments["v"] = v
    if packed_q:
        arguments["q_starts"] = starts.astype(np.int32)
        if draw(st.booleans()):
            arguments["max_q_len"] = max(1, *q_lens)
    if layout != "dense" or min(kv_lens) < longest or draw(st.booleans()):
        arguments["kv_lens"] = np.array(kv_lens, np.int32)
    if table is not None:
        arguments["block_table"] = table.reshape(batch, columns)
        if draw(st.booleans()):
            arguments["max_kv_len"] = longest
    return Call(arguments, expected, NAMES[q_type])


def parts(blank: Callable[..., NDArray], array: NDArray, head: int, heads: int) -> NDArray:
    """The same values from a head on of rows that have more heads."""
    rows = blank((*array.shape[:-2], heads, array.shape[-1]), array.dtype)
    found = rows[..., head : head + array.shape[-2], :]
    found[...] = array
    return found


@pytest.mark.usefixtures("by_hand")
@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(call=drawn_calls(), asked=st.sampled_from(["", "lse", "both"]))
def test_every_layout_gives_each_sequence_its_own_attention(call: Call, asked: str) -> None:
    q = call.arguments["q"]
    value_dim = call.arguments["latent"] or q.shape[-1]
    given: dict[str, Any] = {"lse": True} if asked == "lse" else {}
    if asked == "both":
        given = {"out": np.empty((*q.shape[:-1], value_dim), q.dtype), "lse": np.empty(q.shape[:-1], np.float32)}
    found = lab.attention(**call.arguments, **given)
    y, lse = found if asked else (found, None)
    assert (y.shape, y.dtype) == ((*q.shape[:-1], value_dim), q.dtype)
    assert asked != "both" or (y is given["out"] and lse is given["lse"])
    flat = y.reshape(-1, *y.shape[-2:])
    for rows, expected, log_sums in call.expected:
        bits = encode(expected.astype(np.float32), call.q_form)
        np.testing.assert_array_equal(flat[rows].view(bits.dtype), bits)
        if lse is not None:
            np.testing.assert_array_equal(lse.reshape(-1, lse.shape[-1])[rows], log_sums.astype(np.float32))


def arrays(*shapes: tuple[int, ...], dtype: Any = BF16) -> list[NDArray]:
    rng = np.random.default_rng(0)
    return [rng.standard_normal(shape).astype(np.float32).astype(dtype) for shape in shapes]


Q, K, V = arrays((2, 3, 4, 8), (2, 5, 2, 8), (2, 5, 2, 8))
ROWS, K_ROWS = arrays((6, 4, 8), (6, 2, 8))
(CACHE,) = arrays((9, 2, 2, 4, 8))
STARTS, LENS = np.array([0, 2, 6], np.int32), np.array([2, 4], np.int32)
TABLE = np.array([[1, 2], [8, 3]], np.int32)
PACKED: dict[str, Any] = {"q": ROWS, "k": K_ROWS, "v": K_ROWS, "q_starts": STARTS, "kv_lens": LENS}
PAGED: dict[str, Any] = {"q": Q, "k": CACHE, "block_table": TABLE, "kv_lens": LENS}
LATENT: dict[str, Any] = {"q": Q, "k": K[:, :, 0].copy(), "latent": 4}
(QKV,) = arrays((2, 5, 8, 8))
VIEWS: dict[str, Any] = {"q": QKV[:, :, :4], "k": QKV[:, :, 4:6], "v": QKV[:, :, 6:]}
APART = "q, k and v must be dense, or parts of rows of 64 elements, as one projection to heads . 2 kv_heads has them; "


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


@pytest.mark.usefixtures("by_hand")
def test_no_queries_make_no_results() -> None:
    assert lab.attention(Q[:, :0].copy(), K, V).shape == (2, 0, 4, 8)
    assert lab.attention(Q[:0], K[:0], V[:0]).shape == (0, 3, 4, 8)
    nothing = {**PACKED, "q": ROWS[:0], "q_starts": np.zeros(1, np.int32), "kv_lens": np.zeros(0, np.int32)}
    y, lse = lab.attention(**nothing, lse=True)
    assert (y.shape, lse.shape) == ((0, 4, 8), (0, 4))
    with pytest.raises(InputError, match="v must be"):
        lab.attention(Q[:, :0].copy(), K, K[:, :1].copy())


@pytest.mark.usefixtures("by_hand")
def test_numbers_are_scales_of_every_head() -> None:
    k, v = K.astype(FP8), V.astype(FP8)
    arrayed = lab.attention(Q, k, v, k_scale=np.full(2, 0.5, np.float32), v_scale=np.full(2, 2, np.float32))
    assert np.array_equal(lab.attention(Q, k, v, k_scale=0.5, v_scale=2), arrayed)
    assert np.array_equal(lab.attention(Q, k, v, k_scale=1, v_scale=1.0), lab.attention(Q, k, v))


def test_lengths_and_tables_are_no_part_of_a_plan() -> None:
    """Calls that differ in the values of their index arrays alone pose one problem; capacities that are usual none."""
    kinds = tuple((name, PAGED[name].shape, "int32" if name in attention.INDICES else "bf16", 0) for name in PAGED)
    problem, names = posed(AttentionRequest(kinds))
    assert problem == Attention(2, 4, 2, 8, 3, 8, page=4, pool=9)
    assert problem.pool_pages == CACHE.shape[0]
    assert names["cache"] == "k"
    assert problem.tuned_class() == Attention(2, 4, 2, 8, 4, 8, page=4).tuned_class()


@pytest.mark.skipif(not is_solvable(Attention(2, 4, 2, 64, 4, 4), H100), reason="no kernel takes it yet")
def test_the_simulated_chip_runs_what_is_chosen() -> None:
    q, k, v = arrays((6, 4, 64), (6, 2, 64), (6, 2, 64))
    y = lab.attention(q, k, v, q_starts=STARTS, kv_lens=LENS, scale=0.1)
    for start, end in ((0, 2), (2, 6)):
        here = [array[start:end].astype(np.float64) for array in (q, k, v)]
        assert np.allclose(y[start:end].astype(np.float64), attend(*here, 0.1)[0], rtol=2.0**-6, atol=2.0**-6)


@pytest.mark.parametrize("page", [0, 1, 16])
def test_the_simulated_chip_takes_parts_of_a_projection_as_they_are(page: int) -> None:
    """As dense copies, which another kernel may take; what is behind a row is never looked at."""
    (qkv,) = arrays((6, 8, 64))
    q, k, v = qkv[:, :4], qkv[:, 4:6], qkv[:, 6:]
    (pool,) = arrays((9, 2, 2, page, 64)) if page else (None,)
    cache = {"k": pool, "block_table": np.arange(1, 9, dtype=np.int32).reshape(2, 4)} if page else {"k": k, "v": v}
    lengths = {"q_starts": STARTS, "kv_lens": LENS}
    found = lab.attention(q, **cache, **lengths)
    dense = lab.attention(q.copy(), **{name: array.copy() for name, array in cache.items()}, **lengths)
    assert np.allclose(found.astype(np.float64), dense.astype(np.float64), rtol=2.0**-6, atol=2.0**-6)


@settings(max_examples=25, deadline=None)
@given(
    dtype=st.sampled_from([BF16, np.dtype(np.float16)]),
    dim=st.sampled_from([64, 128]),
    page=st.sampled_from([0, 1, 16, 64, 128]),
    q_lens=st.tuples(st.integers(17, 70), st.integers(0, 70)),
    more=st.integers(0, 90),
    window=st.sampled_from([None, 0, 40]),
    group=st.sampled_from([1, 3, 4]),
    packed=st.booleans(),
)
def test_every_option_of_prefill_reaches_the_simulated_chip(
    dtype: Any, dim: int, page: int, q_lens: tuple[int, int], more: int, window: int | None, group: int, packed: bool
) -> None:
    """`window` None: no causal mask. Keys are `more` than queries where they are paged, else q's own."""
    starts = np.array([0, q_lens[0], sum(q_lens)], np.int32)
    lens = np.array([n + more if page and n else n for n in q_lens], np.int32)
    columns = -(-int(lens.max()) // max(page, 1))
    rows = (sum(q_lens), (group + 2), dim)
    (qkv,) = arrays(rows, dtype=dtype)
    parts = qkv[:, :group], qkv[:, group : group + 1], qkv[:, group + 1 :]
    q, k, v = parts if packed else [part.copy() for part in parts]
    given: dict[str, Any] = {"q": q, "k": k, "v": v}
    if page:
        (cache,) = arrays((1 + 2 * columns, 2, 1, page, dim), dtype=dtype)
        table = np.random.default_rng(0).permutation(np.arange(1, len(cache), dtype=np.int32)).reshape(2, columns)
        given = {"q": q, "k": cache, "block_table": table}
    causal = {"causal": False} if window is None else {"window": window}
    y, lse = lab.attention(**given, **causal, q_starts=starts, kv_lens=lens, lse=True)
    for b in range(2):
        here, token = slice(*starts[b : b + 2]), np.arange(lens[b])
        own = (k[here], v[here])
        if page:
            own = tuple(cache[table[b, token // page], i, :, token % page] for i in (0, 1))
        wide = [array.astype(np.float64) for array in (q[here], *own)]
        expected, log_sums = attend(*wide, dim**-0.5, window is not None, window or 0)
        assert np.allclose(y[here].astype(np.float64), expected, rtol=2.0**-6, atol=2.0**-6)
        assert np.allclose(lse[here], log_sums, rtol=2.0**-16, atol=2.0**-16)


class Tensor:
    """It looks like PyTorch's, on a GPU, as far as a repeated call looks."""

    def __init__(
        self, shape: tuple[int, ...], pointer: int, dtype: str = "torch.bfloat16", strides: tuple[int, ...] = ()
    ) -> None:
        self.shape, self.pointer, self.dtype, self.strides = shape, pointer, dtype, strides

    def stride(self) -> tuple[int, ...]:
        return self.strides

    def data_ptr(self) -> int:
        return self.pointer

    def is_contiguous(self) -> bool:
        return not self.strides

    def get_device(self) -> int:
        return 0


def test_a_repeated_call_runs_at_once_and_what_differs_goes_the_long_way(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []
    q, cache, out = Tensor(Q.shape, 1 << 12), Tensor(CACHE.shape, 1 << 16), Tensor(Q.shape, 1 << 20)
    lens, table = Tensor((2,), 1 << 21, "torch.int32"), Tensor((2, 2), 1 << 22, "torch.int32")
    call = {"q": q, "k": cache, "kv_lens": lens, "block_table": table}
    monkeypatch.setattr(ops_arrays, "_raw_stream", lambda: lambda device: 7 + device)
    key = attention._key(TORCH, {**call, "y": out}, (True, 0, 0.0, None, None, 0, False), None)
    monkeypatch.setattr(attention, "_ready", {key: partial(ran.append, "again")})
    monkeypatch.setattr(attention, "_libraries", {Tensor: TORCH})
    assert lab.attention(**call, out=out) is out
    assert ran == ["again"]
    changes: tuple[dict[str, Any], ...] = (
        {"window": 2},
        {"scale": 0.5},
        {"stream": 8},
        {"check": True},
        {"lse": True},
        {"out": None},
        {"q": Tensor(Q.shape, 0)},
        {"q": Tensor(Q.shape, 1 << 12, strides=(96, 24, 8, 1))},  # a part of a projection
        {"out": Tensor(Q.shape, (1 << 12) + 64)},
        {"kv_lens": Tensor((2,), (1 << 20) + 16, "torch.int32")},
        {"kv_lens": Tensor((2,), (1 << 21) + 4, "torch.int32")},
        {"k": Tensor((8, *CACHE.shape[1:]), 1 << 16)},
    )
    for change in changes:
        with pytest.raises((AttributeError, InputError)):  # these tensors do not look like PyTorch's on the long way
            lab.attention(**{**call, "out": out, **change})
    assert len(ran) == 1


class Device(NamedTuple):
    """A GPU that computes by hand, and the arrays of a paged call there."""

    driver: FakeDriver
    call: dict[str, Any]


@pytest.fixture
def gpu(fake: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> Iterator[Device]:
    def planned(problem: Attention, machine: Any) -> Plan:
        arguments = [Array(name, Role.IN, *operand) for name, operand in problem.inputs.items()]
        arguments += [Array(name, Role.OUT, *operand) for name, operand in problem.outputs.items()]
        fake.kernel, fake.arguments = (lambda device: run(device, problem)), len(arguments)
        launch = Launch("rmsnorm", "rmsnorm", problem, None, (1, 1, 1), (32, 1, 1), tuple(arguments))
        return Plan(problem, machine, SimpleNamespace(), None, (launch,))

    def run(device: FakeDriver, problem: Attention) -> None:
        operands = problem.inputs | problem.outputs
        compute(problem, {name: at(device.pointer(i), o) for i, (name, o) in enumerate(operands.items())})

    monkeypatch.setattr(calls, "plan", planned)
    monkeypatch.setattr(calls, "machine", lambda _: H100)
    attention._bound.cache_clear()
    out, lse = np.zeros(Q.shape, np.uint16), np.zeros(Q.shape[:-1], np.float32)
    here = {**PAGED, "q": Q.view(np.uint16), "k": CACHE.view(np.uint16), "out": out, "lse": lse}
    yield Device(fake, {name: DeviceArray(array) for name, array in here.items()} | {"stream": 5})
    attention._bound.cache_clear()


def at(pointer: int, operand: Any) -> NDArray:
    raw = np.ctypeslib.as_array((ctypes.c_uint8 * operand.nbytes).from_address(pointer))
    return raw.view(operand.storage).reshape(operand.shape)


def right(call: dict[str, Any]) -> bool:
    host = {name: array.host for name, array in call.items() if isinstance(array, DeviceArray)}
    problem = Attention(2, 4, 2, 8, 3, 8, page=4, pool=9, lse=True)
    y, lse = np.zeros_like(host["out"]), np.zeros_like(host["lse"])
    operands = {name: host[name] for name in ("q", "kv_lens", "block_table")} | {"cache": host["k"]}
    compute(problem, {**operands, "q_starts": np.array([0, 3, 6], np.int32), "y": y, "lse": lse})
    return np.array_equal(y, host["out"]) and np.array_equal(lse, host["lse"])


def test_a_graph_replays_as_lengths_and_tables_change(gpu: Device) -> None:
    """What a call does not give, here where queries start, is made once and kept."""
    driver.call("cuStreamBeginCapture", 5, None)
    lab.attention(**gpu.call)
    graph = driver.call("cuGraphInstantiate", driver.call("cuStreamEndCapture", 5), 0)
    for lens, table in (((2, 4), ((1, 2), (8, 3))), ((8, 0), ((4, 5), (0, 0))), ((1, 7), ((6, 0), (7, 2)))):
        gpu.call["kv_lens"].host[...] = lens
        gpu.call["block_table"].host[...] = table
        gpu.call["out"].host[...] = 0xFFFF
        driver.call("cuGraphLaunch", graph, 5)
        assert right(gpu.call)
    assert attention._bound.cache_info().misses == 1


def test_the_gpu_is_given_the_arrays_themselves(gpu: Device) -> None:
    lab.attention(**gpu.call)
    assert right(gpu.call)
    assert gpu.driver.configs[-1]["stream"] == 5
    used = {gpu.driver.pointer(i) for i in range(gpu.driver.arguments)}
    assert {array.data.ptr for name, array in gpu.call.items() if name != "stream"} <= used
    moved = {name: DeviceArray(array.host) for name, array in gpu.call.items() if name != "stream"}
    lab.attention(**moved, stream=5)
    assert right(moved)
    lab.attention(**moved, stream=6)
    assert attention._bound.cache_info().misses == 2  # a stream has workspaces of its own


def test_check_reads_what_is_on_the_gpu(gpu: Device) -> None:
    lab.attention(**gpu.call, check=True)
    assert right(gpu.call)
    gpu.call["block_table"].host[1, 0] = 9
    launches = len(gpu.driver.configs)
    with pytest.raises(InputError, match=r"pages are from 1 to 8; block_table\[1, 0\] = 9"):
        lab.attention(**gpu.call, check=True)
    gpu.call["kv_lens"].host[1] = 9
    with pytest.raises(InputError, match=r"kv_lens are from 0 to 8; kv_lens\[1\] = 9"):
        lab.attention(**gpu.call, check=True)
    assert len(gpu.driver.configs) == launches


def test_check_is_refused_while_a_graph_is_captured(gpu: Device) -> None:
    driver.call("cuStreamBeginCapture", 5, None)
    with pytest.raises(InputError, match="not while a graph is captured"):
        lab.attention(**gpu.call, check=True)


def test_arrays_that_start_off_a_boundary_are_refused(gpu: Device) -> None:
    interface = gpu.call["kv_lens"].__cuda_array_interface__
    pointer, read_only = interface["data"]
    for shift, fine in ((4, True), (2, False)):
        shifted = SimpleNamespace(__cuda_array_interface__={**interface, "data": (pointer + shift, read_only)})
        changed = {**gpu.call, "kv_lens": shifted}
        if fine:
            lab.attention(**changed)
            continue
        with pytest.raises(InputError, match="kv_lens must start at a multiple of 4 B"):
            lab.attention(**changed)
