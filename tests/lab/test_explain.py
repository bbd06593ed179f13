"""Explain and its problems: the article's figures, closed forms against brute force, bad shapes."""

import dataclasses
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lab
from lab.problems import MODELS, Attention, Linear, Model, model_named
from sim.errors import InputError
from sim.machine import A100, B200, H100, MACHINES


def test_the_articles_prefill_and_decode() -> None:
    prefill, decode_step = (lab.explain(Linear(m, 4096, 4096)).as_dict() for m in (2048, 1))
    assert prefill["flops"] == 68_719_476_736
    assert (prefill["weight_intensity"], decode_step["weight_intensity"]) == (2048, 1)
    assert round(prefill["ridge"]) == 295
    assert (prefill["regime"], decode_step["regime"]) == ("compute", "memory")


def test_the_document_has_the_keys_of_the_contract() -> None:
    contract = {"problem", "flops", "bytes", "intensity", "weight_intensity", "ridge", "regime", "floor_us"}
    for question in (Linear(1, 8, 8), Attention(1, 2, 1, 8, 1, 8), MODELS["smollm2-135m"]):
        document = lab.explain(question).as_dict()
        assert contract <= document.keys()
        assert document["bytes"].keys() == {"weights", "kv", "activations", "total"}
        assert document["bytes"]["total"] == sum(document["bytes"][k] for k in ("weights", "kv", "activations"))
        assert document["problem"]["kind"] == question.kind


@given(
    m=st.integers(1, 5000),
    n=st.integers(1, 5000),
    k=st.integers(1, 5000),
    machine=st.sampled_from(list(MACHINES.values())),
)
def test_the_regime_names_the_larger_bill(m: int, n: int, k: int, machine: object) -> None:
    document = lab.explain(Linear(m, n, k), machine).as_dict()
    bills = {"compute": document["compute_us"], "memory": document["memory_us"], "overhead": document["launch_us"]}
    assert document["floor_us"] == max(bills.values())
    if document["regime"] == "overhead":
        assert max(bills["compute"], bills["memory"]) < bills["overhead"]
    else:
        assert document["floor_us"] == bills[document["regime"]]
        assert (document["intensity"] > document["ridge"]) == (bills["compute"] > bills["memory"])


def test_a_tiny_problem_is_bound_by_its_launch() -> None:
    assert lab.explain(Linear(1, 64, 64)).roofline.regime == "overhead"


def test_a_machine_without_the_unit_refuses() -> None:
    machine = dataclasses.replace(A100, peaks={"fp32": 1e12})
    with pytest.raises(InputError, match="has no bf16 unit"):
        lab.explain(Linear(1, 8, 8), machine)


@given(
    q_heads=st.sampled_from([1, 2, 4]),
    group=st.sampled_from([1, 2]),
    q_len=st.integers(1, 6),
    more=st.integers(0, 6),
    causal=st.booleans(),
)
def test_pairs_are_those_that_the_mask_leaves(q_heads: int, group: int, q_len: int, more: int, causal: bool) -> None:
    kv_len = q_len + more
    problem = Attention(2, q_heads * group, q_heads, 8, q_len, kv_len, causal)
    visible = sum(not causal or j <= i + kv_len - q_len for i, j in product(range(q_len), range(kv_len)))
    assert problem.pairs == 2 * q_heads * group * visible
    assert problem.flops == 4 * 8 * problem.pairs


def test_attention_bytes_and_variants() -> None:
    mha = Attention(1, 32, 32, 128, 1, 8192)
    assert mha.bytes["kv"] == 2 * 2 * 8192 * 4096
    assert Attention(1, 32, 8, 128, 1, 8192).bytes["kv"] * 4 == mha.bytes["kv"]
    assert Attention(1, 32, 32, 128, 1, 8192, kv="fp8").bytes["kv"] * 2 == mha.bytes["kv"]
    mla = Attention(1, 32, 1, 576, 1, 8192, latent=512)
    assert mla.bytes["kv"] == 2 * 8192 * 576
    assert mla.flops == 2 * 32 * 8192 * (576 + 512)
    paged = Attention(1, 32, 32, 128, 1, 8192, page=16)
    assert paged.bytes["activations"] - mha.bytes["activations"] == 4 * 512


def test_parameters_of_the_known_models() -> None:
    # As their publishers count them.
    expected = {
        "llama-2-7b": 6_738_415_616,
        "llama-2-13b": 13_015_864_320,
        "llama-3-8b": 8_030_261_248,
        "smollm2-135m": 134_515_008,
    }
    assert {name: model.parameters for name, model in MODELS.items()} == expected


def test_the_articles_decode_floor_and_cache() -> None:
    model = dataclasses.replace(model_named("llama-2-13b"), context=1)
    assert round(model.bytes["weights"] / 1e9, 2) == 26.03
    assert round(model.bytes["weights"] / H100.hbm_bandwidth * 1e3, 1) == 7.8
    article = Model(32, 4096, 32, 32, 128, 11008, 32000, context=8192)
    assert article.bytes["kv"] == 4 * 1 * 32 * 8192 * 4096


def test_a_models_step_is_its_layers() -> None:
    model = dataclasses.replace(model_named("llama-3-8b"), batch=4, context=100)
    layers = [Linear(4, n, k) for n, k in model.layer_matrices.values()]
    head = Linear(4, model.vocab, model.d)
    assert model.flops == 32 * (sum(p.flops for p in layers) + model.attention.flops) + head.flops
    prefill = dataclasses.replace(model, phase="prefill")
    assert prefill.attention.q_len == 100
    assert lab.explain(dataclasses.replace(prefill, context=2048)).roofline.regime == "compute"
    assert lab.explain(model).roofline.regime == "memory"


def test_quantised_weights_shrink_a_model() -> None:
    bf16, fp8, int4 = (
        dataclasses.replace(model_named("llama-2-7b"), weights=w).bytes["weights"] for w in ("bf16", "fp8", "int4_g128")
    )
    assert bf16 / fp8 == pytest.approx(2, rel=1e-4)
    assert bf16 / int4 == pytest.approx(16 / 4.25, rel=1e-3)


def test_whether_it_fits() -> None:
    model = dataclasses.replace(model_named("llama-2-13b"), batch=64, context=4096)
    assert not lab.explain(model, H100).fits
    assert lab.explain(dataclasses.replace(model, batch=16), B200).fits


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Attention(0, 1, 1, 8, 1, 8), "batch must be from 1 to"),
        (lambda: Attention(1, 3, 2, 8, 1, 8), "q_heads must be a multiple of kv_heads"),
        (lambda: Attention(1, 2, 2, 8, 1, 8, kv="fp5"), "unknown format 'fp5'; known formats: fp32"),
        (lambda: Attention(1, 2, 2, 8, 1, 8, page=-1), "page must be 0"),
        (lambda: Attention(1, 2, 2, 8, 1, 8, latent=9), "latent must be from 0 to head_dim = 8"),
        (lambda: dataclasses.replace(MODELS["llama-2-7b"], phase="train"), "phase must be decode or prefill"),
        (lambda: dataclasses.replace(MODELS["llama-2-7b"], context=2**31), "context must be from 1 to 2,147,483,647"),
        (lambda: dataclasses.replace(MODELS["llama-2-7b"], kv_heads=5), "q_heads must be a multiple"),
        (lambda: model_named("gpt-5"), "unknown model 'gpt-5'; known models: llama-2-7b"),
    ],
)
def test_bad_shapes_are_one_sentence(make: object, says: str) -> None:
    with pytest.raises(InputError, match=says):
        make()  # type: ignore[operator]


def test_from_python_a_machine_is_named_and_nonsense_is_refused() -> None:
    assert lab.explain(lab.Linear(1, 4096, 4096), "H200").machine.name == "h200"
    for problem in (3, None, "linear", lab.Linear):
        with pytest.raises(lab.InputError, match="is explained; got"):
            lab.explain(problem)
    with pytest.raises(lab.InputError, match="a machine is named, such as h100; got 3"):
        lab.explain(lab.Linear(1, 8, 8), 3)


@pytest.mark.parametrize("wrong", [1.0, "1", True, None])
def test_sizes_are_integers_of_any_library(wrong: object) -> None:
    m, n, k = np.arange(3) + 8
    problem = lab.Linear(m, n, k)
    assert problem == lab.Linear(8, 9, 10)
    assert all(type(size) is int for size in (problem.m, problem.n, problem.k))
    with pytest.raises(lab.InputError, match="m takes integers; got"):
        lab.Linear(wrong, 8, 8)
    lengths = lab.Attention(2, 8, 8, 64, 1, 16, kv_lens=np.array([3, 16]))
    assert lengths == lab.Attention(2, 8, 8, 64, 1, 16, kv_lens=(3, 16))
    with pytest.raises(lab.InputError, match="kv_lens takes integers; got"):
        lab.Attention(2, 8, 8, 64, 1, 16, kv_lens=(3, wrong))
