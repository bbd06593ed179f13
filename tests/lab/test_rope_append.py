"""rope_append and embedding: references are the definitions, slots that no token has stay, heads come in any number."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lab import catalog
from lab.problems.embedding import Embedding
from lab.problems.protocol import SPECIALS
from lab.problems.rope_append import PAIRS, RopeAppend
from lab.verify import compare, simulator, verify
from sim.counts import disagreements
from sim.errors import InputError
from sim.formats import decode
from sim.machine import H100

ROPE, EMBEDDING = catalog.get("rope_append"), catalog.get("embedding")


@given(pairs=st.sampled_from(PAIRS), position=st.integers(0, 50), dim=st.sampled_from([2, 4, 10]))
def test_a_pair_turns_as_a_complex_number_does(pairs: str, position: int, dim: int) -> None:
    problem = RopeAppend(1, 1, 1, dim, "fp32", pairs=pairs)
    angles = position * 10000.0 ** (-np.arange(0, dim, 2) / dim)
    arrays = problem.draw(np.random.default_rng(position))
    arrays["turns"] = np.stack([np.cos(angles), np.sin(angles)], axis=-1).astype(np.float32)[None]
    head = arrays["qkv"][0, :dim].astype(float)
    x, y = (head[0::2], head[1::2]) if pairs == "neighbours" else (head[: dim // 2], head[dim // 2 :])
    turned = (x + 1j * y) * np.exp(1j * angles)
    found = problem.reference(arrays)["q"].value[0, 0]
    order = slice(0, None, 2) if pairs == "neighbours" else slice(0, dim // 2)
    np.testing.assert_allclose(found[order], turned.real, atol=1e-6)
    assert np.isclose(np.linalg.norm(found), np.linalg.norm(head), atol=1e-6)


@settings(max_examples=25)
@given(
    m=st.integers(1, 9),
    q_heads=st.integers(1, 40),
    kv_heads=st.integers(1, 17),
    form=st.sampled_from(["bf16", "fp16", "fp8"]),
    page=st.sampled_from([0, 16]),
    dim=st.sampled_from([64, 128, 256]),
    spare=st.integers(0, 3),
    bias=st.booleans(),
    norm=st.booleans(),
    settled=st.booleans(),
    data=st.data(),
)
def test_any_number_of_heads_is_turned_and_appended(
    m: int,
    q_heads: int,
    kv_heads: int,
    form: str,
    page: int,
    dim: int,
    spare: int,
    bias: bool,
    norm: bool,
    settled: bool,
    data: st.DataObject,
) -> None:
    pool = (m if not page else 1) + spare
    sizes = {"page": page, "pool": pool, "context": m + spare}
    problem = RopeAppend(m, q_heads, kv_heads, dim, form, **sizes, bias=bias, norm=norm, settled=settled)
    schedule = data.draw(st.sampled_from(list(ROPE.module.candidates(problem, H100))))
    found = verify(ROPE, problem, schedule, H100, simulator(ROPE, H100))
    assert found.passed, found
    counted = ROPE.count(problem, schedule, H100)
    assert disagreements(counted, ROPE.module.theory(problem, schedule, H100)) == {}


@given(seed=st.integers(0, 50), pairs=st.sampled_from(PAIRS))
def test_bias_comes_first_and_heads_are_normalised_before_they_turn(seed: int, pairs: str) -> None:
    """A head as a program of the definition has it: nothing turned, the norm's root of the biased head's own."""
    problem = RopeAppend(1, 2, 1, 8, "fp32", pairs=pairs, bias=True, norm=True, eps=1e-3)
    arrays = problem.draw(np.random.default_rng(seed))
    arrays["turns"][...] = (1, 0)
    heads = (arrays["qkv"][0].astype(float) + arrays["bias"]).reshape(4, 8)
    weights = arrays["norms"].astype(float)
    found = problem.reference(arrays)
    for head, estimate in ((0, found["q"].value[0, 0]), (1, found["q"].value[0, 1]), (2, found["k"].value[0, 0])):
        root = np.sqrt(np.mean(heads[head] ** 2) + 1e-3)
        np.testing.assert_allclose(estimate, heads[head] / root * weights[head // 2], rtol=1e-12)
    np.testing.assert_allclose(found["v"].value[0, 0], heads[3], rtol=1e-12)


def test_slots_that_no_token_has_stay_as_they_are() -> None:
    problem = RopeAppend(3, 2, 1, page=16, pool=4)
    inputs = problem.draw(np.random.default_rng(0))
    cache = problem.reference(inputs)["cache"].value
    used = {(int(slot) // 16, int(slot) % 16) for slot in inputs["slots"]}
    kept = ~np.isnan(cache).any(axis=(1, 2, 4))
    assert {(int(page), int(token)) for page, token in np.argwhere(kept)} == used

    def writes_one_more(launches, arrays):
        counts = simulator(ROPE, H100)(launches, arrays)
        page, token = np.argwhere(~kept)[0]
        arrays["cache"][page, 0, 0, token, 5] = 0
        return counts

    schedule = ROPE.best_guess(problem, H100)
    assert not verify(ROPE, problem, schedule, H100, writes_one_more).passed


@pytest.mark.parametrize("special", SPECIALS)
@pytest.mark.parametrize("form", ["bf16", "fp8"])
@pytest.mark.parametrize("norm", [False, True])
def test_special_values_go_through_the_kernel_as_through_the_reference(special: str, form: str, norm: bool) -> None:
    problem = RopeAppend(8, 4, 2, kv=form, bias=norm, norm=norm)
    inputs = problem.draw(np.random.default_rng(0), special)
    outputs = {name: np.full(o.shape, -1).astype(o.storage) for name, o in problem.outputs.items()}
    simulator(ROPE, H100)(ROPE.launches(problem, ROPE.best_guess(problem, H100), H100), {**inputs, **outputs})
    found = compare(problem, problem.reference(inputs), outputs)
    assert found.passed, found


@given(m=st.integers(1, 20), vocab=st.integers(1, 30))
def test_an_embedding_is_the_rows_that_ids_name_and_ids_beyond_the_table_its_last(m: int, vocab: int) -> None:
    problem = Embedding(m, 8, vocab=vocab)
    arrays = problem.draw(np.random.default_rng(m))
    table = decode(arrays["table"], "bf16")
    expected = problem.reference(arrays)["y"]
    assert not expected.error.any()
    np.testing.assert_array_equal(expected.value, table[arrays["ids"]])
    y = np.zeros((m, 8), np.uint16)
    arrays["ids"][0] = vocab + 5
    launches = EMBEDDING.launches(problem, EMBEDDING.best_guess(problem, H100), H100)
    simulator(EMBEDDING, H100)(launches, {**arrays, "y": y})
    np.testing.assert_array_equal(decode(y[0], "bf16"), table[-1])


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"kv": "int4_g32"}, "in that format or fp8, not int4_g32"),
        ({"pairs": "odd"}, "pairs are halves, neighbours"),
        ({"head_dim": 63}, "head_dim is even"),
        ({"page": 16, "pool": 1, "m": 17}, "pool must be at least 2 for 17 tokens"),
        ({"norm": True, "eps": 0.0}, "eps must be between 0 and 1"),
        ({"page": -1}, "page, context and pool are at least 0"),
    ],
)
def test_what_means_nothing_is_refused(fields: dict, says: str) -> None:
    with pytest.raises(InputError, match=says):
        RopeAppend(**{"m": 1, "q_heads": 2, "kv_heads": 1, **fields})
