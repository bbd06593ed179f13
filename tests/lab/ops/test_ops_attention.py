"""lab.attention: whatever way the arrays lie, each sequence attends to its own keys."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import lab
from lab.ops import attention
from lab.ops.attention_request import AttentionRequest, posed
from lab.problems import Attention
from sim.errors import InputError
from sim.formats import decode, encode
from tests.lab.ops.attention_by_hand import ByHand, attend
from tests.lab.ops.attention_calls import BF16, CACHE, FP8, PACKED, PAGED, ROWS, K, Q, V

NAMES = {BF16: "bf16", FP8: "fp8", np.dtype(np.float16): "fp16", np.dtype(np.float32): "fp32"}
STRANGE = {"fp8": 0x7F, "bf16": 0x7FC0, "fp16": 0x7E00, "fp32": 0x7FC00000}  # bits of a NaN


@pytest.fixture
def by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """The simulated chip computes by the definition."""
    monkeypatch.setattr(attention, "simulated", ByHand)


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
def test_numbers_are_scales_of_every_head_and_queries_in_fp8_have_one_too() -> None:
    k, v = K.astype(FP8), V.astype(FP8)
    arrayed = lab.attention(Q, k, v, k_scale=np.full(2, 0.5, np.float32), v_scale=np.full(2, 2, np.float32))
    assert np.array_equal(lab.attention(Q, k, v, k_scale=0.5, v_scale=2), arrayed)
    assert np.array_equal(lab.attention(Q, k, v, k_scale=1, v_scale=1.0), lab.attention(Q, k, v))
    q = Q.astype(FP8)
    assert np.array_equal(lab.attention(q, k, v, q_scale=0.5), lab.attention(q, k, v, k_scale=0.5))
    assert lab.attention(q, k, v).dtype == BF16


@pytest.mark.parametrize("latent", [0, 512])
def test_one_token_of_sequences_of_one_length_is_what_their_lengths_as_an_array_make(latent: int) -> None:
    """On the simulated chip, by decode's kernels, whose launches take no lengths where all are alike."""
    rng, dim = np.random.default_rng(0), latent + 64 if latent else 128
    heads = () if latent else (2,)
    q, k, v = (rng.standard_normal((2, n, *rest, dim)).astype(BF16) for n, rest in ((1, (16,)), *[(40, heads)] * 2))
    given = {"q": q, "k": k, "latent": latent} if latent else {"q": q, "k": k, "v": v}
    assert np.array_equal(lab.attention(**given), lab.attention(**given, kv_lens=np.full(2, 40, np.int32)))


def test_lengths_and_tables_are_no_part_of_a_plan() -> None:
    """Calls that differ in the values of their index arrays alone pose one problem; capacities that are usual none."""
    kinds = tuple((name, PAGED[name].shape, "int32" if name in attention.INDICES else "bf16", 0) for name in PAGED)
    problem, names = posed(AttentionRequest(kinds))
    assert problem == Attention(2, 4, 2, 8, 3, 8, page=4, pool=9)
    assert problem.pool_pages == CACHE.shape[0]
    assert names["cache"] == "k"
    assert problem.tuned_class() == Attention(2, 4, 2, 8, 4, 8, page=4).tuned_class()
