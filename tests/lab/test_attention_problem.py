"""The attention problem: its reference is the definition, its FLOPs are those of the pairs, unused slots are NaN."""

from dataclasses import replace
from math import inf

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lab.problems import QUESTIONS, Attention, protocol
from sim.errors import InputError
from sim.formats import decode


@st.composite
def attentions(draw: st.DrawFn) -> Attention:
    batch, q_len, kv_len = draw(st.integers(1, 3)), draw(st.integers(1, 5)), draw(st.integers(1, 12))
    latent = draw(st.sampled_from([0, 0, 5]))
    kv_heads = 1 if latent else draw(st.sampled_from([1, 2]))
    causal = draw(st.booleans())
    lens = st.booleans().flatmap(lambda given: st.just(()) if not given else st.none())
    q_lens = () if draw(lens) == () else tuple(draw(st.integers(0, q_len)) for _ in range(batch))
    kv_lens = () if draw(lens) == () else tuple(draw(st.integers(0, kv_len)) for _ in range(batch))
    page = draw(st.sampled_from([0, 1, 4]))
    columns = -(-kv_len // page) if page else 0
    least = 2 if page else max(1, sum(kv_lens))
    q_rows, pool, row_pages = (
        draw(st.one_of(st.just(0), st.integers(low, high)))
        for low, high in (
            (max(1, sum(q_lens)), batch * q_len + 2),
            (least, 1 + batch * (columns or kv_len)),
            (columns, columns + 2 if page else 0),
        )
    )
    return Attention(
        batch,
        kv_heads * draw(st.sampled_from([1, 3])),
        kv_heads,
        8,
        q_len,
        kv_len,
        causal=causal,
        kv=draw(st.sampled_from(["bf16", "fp16", "fp8", "fp32"])),
        page=page,
        latent=latent,
        q_lens=q_lens,
        kv_lens=kv_lens,
        window=draw(st.sampled_from([0, 1, 3])) if causal else 0,
        lse=True,
        order=draw(st.sampled_from(["shuffled", "sequential"])),
        scale=draw(st.sampled_from([0.0, 0.1])),
        q_rows=q_rows,
        pool=pool,
        row_pages=row_pages,
    )


def keys_and_values(problem: Attention, arrays: dict, b: int) -> tuple[np.ndarray, np.ndarray]:
    """[kv_len, kv_heads, dim] of one sequence, token by token."""
    k, v = [], []
    for token in range(problem.sequences[b].kv_len):
        if problem.page:
            page, slot = arrays["block_table"][b, token // problem.page], token % problem.page
            cache = arrays["cache"][page]
            both = (cache[slot][None], cache[slot][None]) if problem.latent else (cache[0, :, slot], cache[1, :, slot])
        else:
            row = arrays["kv_starts"][b] + token
            both = arrays["k"][row], arrays["k" if problem.latent else "v"][row]
        k.append(decode(both[0], problem.kv).astype(float))
        v.append(decode(both[1], problem.kv).astype(float)[:, : problem.value_dim])
    if problem.kv == "fp8":
        k = [row * arrays["k_scale"][:, None] for row in k]
        v = [row * arrays["k_scale" if problem.latent else "v_scale"][:, None] for row in v]
    return np.array(k), np.array(v)


@given(problem=attentions(), seed=st.integers(0, 99))
@settings(max_examples=60)
def test_the_reference_is_the_definition_and_flops_are_its_pairs(problem: Attention, seed: int) -> None:
    arrays = problem.draw(np.random.default_rng(seed))
    found = problem.reference(arrays)
    y, lse = found["y"].value, found["lse"].value
    assert len(y) == problem.rows
    pairs = 0
    for b, sequence in enumerate(problem.sequences):
        k, v = keys_and_values(problem, arrays, b)
        for i in range(sequence.q_len):
            last = i + sequence.kv_len - sequence.q_len
            seen = [
                j
                for j in range(sequence.kv_len)
                if not problem.causal or (j <= last and (not problem.window or j > last - problem.window))
            ]
            row = arrays["q_starts"][b] + i
            q = decode(arrays["q"][row], problem.activations).astype(float)
            for h in range(problem.q_heads):
                pairs += len(seen)
                scores = np.array([problem.score_scale * (q[h] @ k[j, h // problem.group]) for j in seen])
                weights = np.exp(scores) / np.exp(scores).sum()
                expected = sum((w * v[j, h // problem.group] for w, j in zip(weights, seen, strict=True)), np.zeros(1))
                np.testing.assert_allclose(y[row, h], expected + np.zeros_like(y[row, h]), rtol=1e-9, atol=1e-11)
                np.testing.assert_allclose(lse[row, h], np.log(np.exp(scores).sum()) if seen else -inf, rtol=1e-9)
    assert problem.flops == 2 * (8 + problem.value_dim) * pairs
    assert np.isfinite(found["y"].error).all()


@given(problem=attentions(), data=st.data())
@settings(max_examples=30)
def test_chosen_rows_are_those_of_the_whole(problem: Attention, data: st.DataObject) -> None:
    arrays = problem.draw(np.random.default_rng(0))
    rows = slice(data.draw(st.integers(0, 2)), None, data.draw(st.integers(1, 3)))
    whole, part = problem.reference(arrays), problem.reference(arrays, rows)
    for name in problem.outputs:
        np.testing.assert_allclose(part[name].value, whole[name].value[rows], rtol=1e-12, atol=1e-14)


@given(problem=attentions())
@settings(max_examples=30)
def test_records_give_the_problem_back_and_an_envelope_has_no_lengths(problem: Attention) -> None:
    fields = problem.as_dict()
    assert QUESTIONS[fields.pop("kind")](**fields) == problem
    envelope = problem.envelope()
    assert (envelope.q_lens, envelope.kv_lens) == ((), ())
    assert envelope.inputs == problem.inputs
    assert envelope.outputs == problem.outputs
    assert envelope.flops >= 0


@given(problem=attentions())
@settings(max_examples=60)
def test_arrays_have_room_for_every_sequence(problem: Attention) -> None:
    arrays = problem.draw(np.random.default_rng(0))
    assert {name: array.shape for name, array in arrays.items()} == {n: o.shape for n, o in problem.inputs.items()}
    assert problem.rows <= problem.tokens
    for b, sequence in enumerate(problem.sequences):
        assert sequence.q_len <= problem.q_len
        assert sequence.kv_len <= problem.kv_len
        if problem.page:
            used = arrays["block_table"][b, : -(-sequence.kv_len // problem.page)]
            assert ((used > 0) & (used < problem.pool_pages)).all()
        else:
            assert arrays["kv_starts"][b] + sequence.kv_len <= problem.kv_rows
    capacities = {"scale", "q_rows", "pool", "row_pages"}
    assert not capacities & problem.tuned_class().keys()


def test_capacities_that_are_usual_and_a_usual_scale_are_none() -> None:
    plain = Attention(3, 2, 1, 64, 5, 20)
    assert replace(plain, scale=0.125, q_rows=15, pool=60) == plain
    assert replace(plain, page=8, row_pages=3, pool=10) == replace(plain, page=8)
    spread = replace(plain, q_rows=7, pool=11)
    assert [(s.q_len, s.kv_len) for s in spread.sequences] == [(3, 4), (2, 4), (2, 3)]
    assert [(s.q_start, s.kv_start) for s in spread.sequences] == [(0, 0), (3, 4), (5, 8)]


def test_the_block_table_names_every_page_once_and_the_null_page_where_there_is_none() -> None:
    problem = Attention(3, 2, 1, 8, 1, 20, page=4, kv_lens=(20, 0, 5))
    table = problem.indices()["block_table"]
    used = [table[b, page] for b, length in enumerate((20, 0, 5)) for page in range(-(-length // 4))]
    assert len(set(used)) == len(used) == 7
    assert 0 not in used
    assert (table[1] == 0).all()
    assert replace(problem, order="sequential").indices()["block_table"][0].tolist() == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"q_lens": (1,)}, "q_lens are 2 lengths from 0 to 4"),
        ({"kv_lens": (9, 8)}, "kv_lens are 2 lengths from 0 to 8"),
        ({"window": -1}, "window must be 0"),
        ({"window": 2, "causal": False}, "window must be 0"),
        ({"latent": 4}, "a latent cache has one KV head"),
        ({"order": "random"}, "order is shuffled, sequential"),
        ({"activations": "fp8"}, "activations are in fp32, fp16 or bf16"),
        ({"scale": -1.0}, "scale must be above 0"),
        ({"scale": inf}, "scale must be above 0"),
        ({"q_rows": -1}, "q_rows must be from 0 to"),
        ({"q_lens": (4, 4), "q_rows": 7}, "the sequences have 8 rows; q_rows = 7"),
        ({"kv_lens": (8, 3), "pool": 10}, "the sequences have 11 rows; pool = 10"),
        ({"page": 4, "row_pages": 1}, "row_pages must be at least 2, the pages of 8 keys"),
        ({"row_pages": 2}, "row_pages are for a paged cache"),
    ],
)
def test_what_means_nothing_is_refused(fields: dict, why: str) -> None:
    with pytest.raises(InputError, match=why):
        replace(Attention(2, 4, 2, 8, 4, 8), **fields)


def test_a_part_has_the_same_options_and_fits_the_budget() -> None:
    problem = Attention(8, 32, 8, 128, 2048, 2048, page=16)
    part = problem.part(1e9)
    assert part.flops <= 1e9
    assert (part.page, part.group, part.head_dim) == (16, 4, 128)


def test_what_threads_draw_is_the_same_however_many_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "DRAWN_AT_ONCE", 1000)
    first, second = (protocol.drawn(np.random.default_rng(3), (7, 1001), "bf16") for _ in range(2))
    np.testing.assert_array_equal(first, second)
    values = decode(first, "bf16").reshape(-1)
    parts = [values[at : at + 1000] for at in range(0, 7000, 1000)]
    assert len({part.tobytes() for part in parts}) == len(parts)
    assert abs(values.mean()) < 5 / np.sqrt(values.size)
    assert abs(values.var() - 1) < 5 * np.sqrt(2 / values.size)
