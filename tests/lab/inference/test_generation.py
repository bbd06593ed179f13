"""Generation from a loaded model: text, limits, sampling, and the bill of both phases."""

from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest

from lab import catalog, explain, inference
from lab.inference import LanguageModel, Settings
from lab.inference.generation import ON
from lab.inference.number_codec import NumberCodec
from lab.inference.sessions import StepRunner
from lab.problems import Attention, Model
from sim.errors import InputError, NoDeviceError
from sim.machine import A100, H100
from sim.roofline import roofline

LAYER = 256 * 64 + 2 * 128 * 64 + 64 * 256 + 3 * 96 * 64  # weights of one layer of the tiny model
HEAD = 272 * 64


@pytest.fixture(scope="module")
def simulated(tiny_path: Path) -> LanguageModel:
    return inference.load(tiny_path)


@pytest.fixture(scope="module")
def oracle(tiny_path: Path) -> LanguageModel:
    return inference.load(tiny_path, on="reference")


def test_pieces_are_the_text_and_the_same_every_time(oracle: LanguageModel) -> None:
    runs = [oracle.generate("the door", max_tokens=12) for _ in range(2)]
    pieces = ["".join(run) for run in runs]
    assert pieces[0] == pieces[1] == runs[0].text
    assert runs[0].tokens == runs[1].tokens
    assert len(runs[0].tokens) <= 12
    assert runs[0].stop == ("length" if len(runs[0].tokens) == 12 else "end")


def test_it_is_the_model_s_likeliest_token(oracle: LanguageModel) -> None:
    run = oracle.generate("in", max_tokens=5)
    list(run)
    llama = oracle.runner.llama
    for i, token in enumerate(run.tokens):
        before = [*run.prompt_tokens, *run.tokens[:i]]
        logits = llama.logits(llama.forward(before, llama.new_cache(len(before)))[-1:])[0]
        assert logits.argmax() == token


def test_an_end_token_ends_the_text(oracle: LanguageModel) -> None:
    first = oracle.generate("in", max_tokens=4)
    list(first)
    ends_at_second = replace(oracle, tokenizer=_Ending(oracle.tokenizer, first.tokens[1]))
    run = ends_at_second.generate("in", max_tokens=4)
    list(run)
    expected = first.tokens[: first.tokens.index(first.tokens[1])]
    assert (run.tokens, run.stop) == (expected, "end")


class _Ending:
    """A tokenizer with one more end token."""

    def __init__(self, tokenizer, end: int) -> None:
        self._tokenizer = tokenizer
        self.ends = {end}

    def __getattr__(self, name: str):
        return getattr(self._tokenizer, name)


def test_sampling_is_seeded_and_top_one_is_greedy(oracle: LanguageModel) -> None:
    def tokens(settings: Settings) -> list[int]:
        run = oracle.generate("or", max_tokens=20, settings=settings)
        list(run)
        return run.tokens

    assert tokens(Settings(temperature=1.0, top_k=1)) == tokens(Settings())
    assert tokens(Settings(temperature=5.0, seed=3)) == tokens(Settings(temperature=5.0, seed=3))
    assert len({tuple(tokens(Settings(temperature=5.0, seed=s))) for s in range(5)}) > 1


def weight_bytes(model: LanguageModel) -> int:
    """What a pass reads of the weights on the chip: all but the embedding table, of which it looks up rows."""
    assert isinstance(model.runner, StepRunner)
    arrays = model.runner.weights.arrays
    return sum(array.nbytes for name, array in arrays.items() if name not in ("embedding", "turns"))


def test_the_bill_of_both_phases(simulated: LanguageModel) -> None:
    run = simulated.generate("the inner door", max_tokens=4)
    list(run)
    prompt = len(run.prompt_tokens)
    prefill, decode = run.phases
    assert (prefill.tokens, decode.tokens) == (prompt, 3)
    layer = ["rmsnorm", "linear", "rope", "attention", "linear", "rmsnorm", "linear", "swiglu", "linear"]
    ends = ["embedding", "rmsnorm", "linear", "sample"]
    joined = [kind for kind in layer if kind not in ("rmsnorm", "swiglu")]
    assert sum(decode.launches.values()) == 3 * (2 * len(joined) + len(ends))
    assert sum(prefill.launches.values()) == 2 * len(layer) + len(ends) + 1  # the last token's row is taken out
    assert {catalog.get(name).family for name in decode.launches} == {"gemv", "attention", "rowwise"}
    assert prefill.bytes["weights"] == weight_bytes(simulated)
    assert decode.bytes["weights"] == 3 * prefill.bytes["weights"]
    token = 2 * 2 * 2 * 64 * 2  # K and V, layers, KV heads, head_dim, bytes
    assert prefill.bytes["kv"] == token * prompt
    assert decode.bytes["kv"] == token * sum(prompt + i for i in (1, 2, 3))
    assert decode.flops == decode.counts.flops
    large = 3 * 2 * (2 * LAYER + HEAD) + sum(2 * Attention(1, 4, 2, 64, 1, prompt + i).flops for i in (1, 2, 3))
    assert large < decode.flops < 1.1 * large
    for phase in (prefill, decode):
        assert phase.bytes["total"] == sum(phase.bytes[kind] for kind in ("weights", "kv", "activations"))
        issued = sum(phase.launches.values())
        assert phase.roofline == roofline(phase.flops, phase.bytes["total"], "bf16", H100, issued)
        assert phase.clock == "predicted"
        assert phase.us >= phase.roofline.memory_us


def test_generations_that_take_turns_do_not_disturb_each_other(simulated: LanguageModel) -> None:
    prompts = ("the inner door", "or")
    alone = ["".join(simulated.generate(prompt, max_tokens=5)) for prompt in prompts]
    both = [iter(simulated.generate(prompt, max_tokens=5)) for prompt in prompts]
    pieces = list(zip(*both, strict=False))
    assert ["".join(parts) for parts in zip(*pieces, strict=True)] == alone


def test_one_token_needs_no_decode_step_and_a_reference_has_a_wall_clock(oracle: LanguageModel) -> None:
    run = oracle.generate("in", max_tokens=1)
    list(run)
    (prefill,) = run.phases
    assert (prefill.name, prefill.clock, run.stop) == ("prefill", "wall", "length")
    assert prefill.us == prefill.wall_us > 0


def test_an_interrupted_run_still_has_its_bill(simulated: LanguageModel) -> None:
    run = simulated.generate("in", max_tokens=10)
    next(iter(run))
    assert run.stop == "running"
    assert [phase.name for phase in run.phases] == ["prefill"]


def test_the_document_is_plain_data(simulated: LanguageModel) -> None:
    run = simulated.generate("in", max_tokens=2, chat=True)
    list(run)
    document = msgspec.json.decode(msgspec.json.encode(run.as_dict()))
    assert document["text"] == run.text
    assert [p["phase"] for p in document["phases"]] == ["prefill", "decode"]
    assert document["phases"][0]["regime"] in ("overhead", "memory", "compute")
    assert document["phases"][0]["counts"]["mma_flops"] > 0


def test_bad_requests_are_one_sentence(simulated: LanguageModel, tiny_path: Path) -> None:
    with pytest.raises(InputError, match="the prompt is empty"):
        simulated.generate("")
    with pytest.raises(InputError, match="max_tokens must be at least 1; max_tokens = 0"):
        simulated.generate("in", max_tokens=0)
    with pytest.raises(InputError, match="the model's context is 400"):
        simulated.generate("in", max_tokens=400)
    with pytest.raises(InputError, match="temperature must be from 0 to 100"):
        simulated.generate("in", settings=Settings(temperature=-1.0))
    with pytest.raises(InputError, match=f"unknown chip 'tpu'; known: {', '.join(ON)}"):
        inference.load(tiny_path, on="tpu")  # type: ignore[arg-type]


def test_a_preset_of_random_weights_needs_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    small = Model(1, 64, q_heads=1, kv_heads=1, head_dim=64, ffn=64, vocab=256)
    monkeypatch.setattr("lab.inference.generation.model_named", {"tiny": small}.__getitem__)
    model = inference.load("tiny", random=True)
    run = model.generate("in", max_tokens=3)
    assert "".join(run) == run.text == "".join(f" {token}" for token in run.tokens)
    assert run.prompt_tokens == (105, 110)
    assert model.name == "tiny, random"
    assert model.runner.config.context == 8192
    with pytest.raises(InputError, match="weights are drawn or rounded on a chip: on sim or gpu, not reference"):
        inference.load("tiny", "reference", random=True)
    assert model.generate("in", chat=True).prompt_tokens == tuple(b"in\n")
    monkeypatch.setattr(NumberCodec, "template", "")
    with pytest.raises(InputError, match="a chat needs a model with a chat template"):
        model.generate("in", chat=True)


def test_scores_that_overflow_are_refused(tiny_path: Path) -> None:
    model = inference.load(tiny_path, on="reference", machine=A100)
    model.runner.llama._norm = model.runner.llama._norm * np.float32(1e38)
    with pytest.raises(InputError, match="gives scores that are not finite"), pytest.warns(RuntimeWarning):
        list(model.generate("in"))


def test_without_a_driver_the_gpu_is_refused_before_anything_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise NoDeviceError("there is no GPU")

    monkeypatch.setattr("lab.gpu.device.require_device", refuse)
    with pytest.raises(NoDeviceError, match="there is no GPU"):
        inference.load(Path("no such file"), on="gpu")


def test_generate_and_explain_mean_the_same_by_launch_bill_and_regime(simulated: LanguageModel) -> None:
    run = simulated.generate("the door", max_tokens=4)
    list(run)
    config = run.model.runner.config
    model = Model(
        config.layers, config.d, config.q_heads, config.kv_heads, config.head_dim, config.ffn, config.vocab, tied=True
    )
    prompt = len(run.prompt_tokens)
    steps = {
        "prefill": [replace(model, phase="prefill", context=prompt)],
        "decode": [replace(model, context=prompt + 1 + i) for i in range(len(run.tokens) - 1)],
    }
    for phase in run.phases:
        explained = [explain(step, run.model.machine) for step in steps[phase.name]]
        assert phase.roofline.launch_us == pytest.approx(sum(one.roofline.launch_us for one in explained))
        assert {phase.roofline.regime} == {one.roofline.regime for one in explained} == {"overhead"}
