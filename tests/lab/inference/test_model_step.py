"""A step of a whole model: its parts make it up, its limits are where one more does not fit."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

import lab
from lab.inference.step import step_us
from lab.problems import MODELS, Attention, Linear, Model
from sim.errors import InputError
from sim.machine import H100, H200, Machine

MACHINES = st.sampled_from([H100, H200])


@st.composite
def models(draw: st.DrawFn) -> Model:
    size = st.integers(1, 40)
    kv_heads = draw(st.integers(1, 4))
    return Model(
        layers=draw(st.integers(1, 5)),
        d=8 * draw(size),
        q_heads=kv_heads * draw(st.integers(1, 4)),
        kv_heads=kv_heads,
        head_dim=8 * draw(st.integers(1, 8)),
        ffn=8 * draw(size),
        vocab=8 * draw(size),
        tied=draw(st.booleans()),
        batch=draw(st.integers(1, 50)),
        context=draw(st.integers(1, 300)),
        weights=draw(st.sampled_from(["bf16", "fp16", "fp8", "fp32"])),
        kv=draw(st.sampled_from(["", "fp8"])),
        phase=draw(st.sampled_from(["decode", "prefill"])),
    )


@given(model=models())
def test_a_step_is_its_parts(model: Model) -> None:
    step = lab.explain(model, H100, lambda *_: None).step
    assert step is not None
    large = [(times, problem) for _, times, problem, _ in step.parts if isinstance(problem, Linear | Attention)]
    assert model.launches == sum(part.times for part in step.parts)
    assert model.flops == sum(times * problem.flops for times, problem in large)
    assert model.bytes["kv"] == sum(times * problem.bytes["kv"] for times, problem in large)
    weights = sum(part.times * part.problem.bytes["weights"] for part in step.parts if part.name != "embedding")
    assert model.bytes["weights"] == weights + model.lookup_bytes
    assert model.streamed_bytes == model.bytes["total"] - model.lookup_bytes


@given(model=models(), machine=MACHINES)
def test_one_more_than_what_fits_does_not(model: Model, machine: Machine) -> None:
    small = replace(machine, hbm_bytes=4 * model.bytes["weights"])
    step = lab.explain(model, small, lambda *_: None).step
    assert step is not None
    for extent, most in (("batch", step.largest_batch), ("context", step.longest_context)):
        if most:
            assert replace(model, **{extent: most}).bytes["total"] <= small.hbm_bytes
        assert replace(model, **{extent: most + 1}).bytes["total"] > small.hbm_bytes
        assert most < 10**9, "not what limits it"


@given(model=models(), machine=MACHINES)
def test_the_ridge_is_crossed_at_that_batch_and_not_before(model: Model, machine: Machine) -> None:
    step = lab.explain(model, machine, lambda *_: None).step
    assert step is not None

    def crossed(batch: int) -> bool:
        placed = lab.explain(replace(model, batch=batch), machine, lambda *_: None).roofline
        return placed.compute_us >= placed.memory_us * (1 - 1e-12)

    if step.ridge_batch is None:
        assert not crossed(10**6)
    else:
        assert crossed(step.ridge_batch)
        assert step.ridge_batch == 1 or not crossed(step.ridge_batch - 1)


def test_its_prediction_is_the_sum_of_its_parts() -> None:
    explained = lab.explain(MODELS["smollm2-135m"], H200).as_dict()
    assert explained["predicted_us"] == pytest.approx(
        sum(part["times"] * part["predicted_us"] for part in explained["parts"])
    )
    assert explained["predicted_tokens_per_s"] == pytest.approx(1e6 / explained["predicted_us"])
    assert explained["tokens_per_s"] == pytest.approx(1e6 / explained["floor_us"])
    assert sum(part["share"] for part in explained["parts"]) == pytest.approx(1, abs=0.001)
    names = [part["part"] for part in explained["parts"]]
    assert {"qkv", "output", "gate_up", "down", "head", "attention", "rmsnorm"} <= set(names)


@pytest.mark.parametrize("phase", ["decode", "prefill"])
def test_it_is_the_prediction_of_the_step_that_runs(phase: str) -> None:
    model = replace(MODELS["smollm2-135m"], batch=2, context=100, phase=phase)
    rows = [(100 if phase == "prefill" else 1, 100)] * 2
    assert lab.explain(model, H100).as_dict()["predicted_us"] == step_us(model, rows, H100)


def test_what_does_not_fit_or_has_no_kernel_is_not_predicted() -> None:
    large = replace(MODELS["llama-2-13b"], batch=10**6)
    assert lab.explain(large).as_dict()["predicted_us"] is None
    wide = lab.explain(replace(MODELS["smollm2-135m"], head_dim=1024)).as_dict()
    assert wide["predicted_us"] is None
    assert {part["part"]: part["kernel"] for part in wide["parts"]}["attention"] is None
    assert lab.explain(replace(MODELS["smollm2-135m"], kv="int4_g32")).as_dict()["parts"] == [], "nothing appends to it"


def test_the_cache_is_in_the_format_of_the_activations() -> None:
    sizes = {"layers": 1, "d": 8, "q_heads": 1, "kv_heads": 1, "head_dim": 8, "ffn": 8, "vocab": 8}
    found = {weights: Model(**sizes, weights=weights).kv for weights in ("bf16", "fp16", "fp32", "fp8", "int4_g32")}
    assert found == {"bf16": "bf16", "fp16": "fp16", "fp32": "fp32", "fp8": "bf16", "int4_g32": "bf16"}


def test_absurd_sizes_take_no_memory() -> None:
    huge = replace(MODELS["llama-2-7b"], batch=2**31 - 1, context=2**31 - 1)
    assert not lab.explain(huge).as_dict()["fits"]
    assert not lab.explain(replace(huge, batch=1, phase="prefill")).as_dict()["fits"]
    with pytest.raises(InputError, match="tokens of a step must be at most"):
        replace(huge, phase="prefill")
