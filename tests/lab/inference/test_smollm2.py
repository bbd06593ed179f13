"""SmolLM2-135M-Instruct, where its weights are in the cache: logits against known figures, both phases on the chip."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab import catalog, inference
from lab.inference import LanguageModel, Settings
from lab.inference.download import cached_weights
from lab.inference.gguf_file import GgufFile
from lab.inference.sessions import ReferenceRunner, StepRunner
from lab.problems import MODELS, Attention
from sim.errors import InputError
from sim.formats import FORMATS, decode

PROMPT = "The capital of France is"
IDS = (504, 3575, 282, 4649, 314)
# Last position, float32 on the dequantised weights; two independent implementations agree to 8.8e-5.
TOP_FIVE = {" Paris": 17.371, " the": 14.889, " London": 13.245, " Le": 13.009, " New": 12.952}
PRINTED = 0.0005 + 1e-4  # half a unit of the third decimal, and what the implementations differ by


@pytest.fixture(scope="module", autouse=True)
def _weights() -> None:
    if cached_weights() is None:
        pytest.skip("the weights are not in the cache folder; `lab generate` fetches them")


@pytest.fixture(scope="module")
def oracle() -> LanguageModel:
    return inference.load(on="reference")


@pytest.fixture(scope="module")
def simulated() -> LanguageModel:
    return inference.load(on="sim")


def last_logits(model: LanguageModel) -> np.ndarray:
    if isinstance(model.runner, ReferenceRunner):
        llama = model.runner.llama
        return llama.logits(llama.forward(IDS, llama.new_cache(len(IDS)))[-1:])[0]
    assert isinstance(model.runner, StepRunner)
    session = model.runner.session(len(IDS))
    session.start(IDS, Settings())
    return decode(session._begun[0].steps[0].step.arrays["logits"], "bf16")[0]


def test_the_reference_gives_the_known_logits(oracle: LanguageModel) -> None:
    assert oracle.tokenizer.encode(PROMPT) == list(IDS)
    logits = last_logits(oracle)
    five = [int(i) for i in np.argsort(-logits)[:5]]
    assert [oracle.tokenizer.decode([i]) for i in five] == list(TOP_FIVE)
    np.testing.assert_allclose(logits[five], list(TOP_FIVE.values()), rtol=0, atol=PRINTED)


def test_tokens_are_those_of_the_library_on_the_file_s_own_vocabulary(oracle: LanguageModel) -> None:
    """A tokenizer as a tokenizer.json of this vocabulary would make it, its control tokens added and left as text."""
    tokenizers = pytest.importorskip("tokenizers")
    file = GgufFile(cached_weights() or Path())
    tokens = file.get("tokenizer.ggml.tokens", list)
    merges = [tuple(merge.split(" ")) for merge in file.get("tokenizer.ggml.merges", list)]
    theirs = tokenizers.Tokenizer(tokenizers.models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    theirs.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.Digits(individual_digits=True),
            tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    theirs.decoder = tokenizers.decoders.ByteLevel()
    kinds = file.get("tokenizer.ggml.token_type", np.ndarray)
    theirs.add_special_tokens([token for token, kind in zip(tokens, kinds, strict=True) if kind == 3])
    rendered = "<|im_start|>user\nHi there<|im_end|>\n"
    assert oracle.tokenizer.marked(rendered, {}) == theirs.encode(rendered).ids
    theirs.encode_special_tokens = True

    @given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=80))
    def check(text: str) -> None:
        ids = theirs.encode(text).ids
        if theirs.decode(ids) != text:  # the library leaves out what the vocabulary lacks, such as some bytes
            with pytest.raises(InputError, match="that the model's vocabulary cannot spell"):
                oracle.tokenizer.encode(text)
            return
        assert oracle.tokenizer.encode(text) == ids
        assert oracle.tokenizer.decode(ids) == text

    check()


def test_the_chat_template(oracle: LanguageModel) -> None:
    run = oracle.generate("What is the capital of France?", chat=True)
    assert "".join(run) == "The capital of France is Paris."
    assert (len(run.prompt_tokens), run.stop) == (37, "end")


def test_the_simulated_chip_stays_within_its_format(oracle: LanguageModel, simulated: LanguageModel) -> None:
    """Every call rounds its outputs to bf16, by at most u = 2^-8, and so does the head its weights.

    These are independent, so on a path of `depth` roundings their squares add: in the root mean square the logits are
    off by less than u sqrt(depth) of their own size.
    """
    expected, logits = last_logits(oracle), last_logits(simulated)
    layers = simulated.runner.config.layers
    depth = 11 * layers + 4  # norm, qkv, turn, attention, output, sum; norm, gate and up, gated, down, sum
    off = np.sqrt(np.mean((logits - expected) ** 2) / np.mean(expected**2))
    assert off < FORMATS["bf16"].unit_roundoff * np.sqrt(depth)
    assert logits.argmax() == expected.argmax()


def test_decode_reads_the_file_s_own_groups(simulated: LanguageModel) -> None:
    run = simulated.generate(PROMPT, max_tokens=3)
    assert "".join(run).startswith(" Paris.")
    prefill, decoding = run.phases
    assert sum(decoding.launches.values()) == 2 * (6 * 30 + 4)
    assert {catalog.get(name).family for name in decoding.launches} == {"gemv", "attention", "rowwise"}
    model = MODELS["smollm2-135m"]
    norms = (2 * model.layers + 1) * model.d
    head = model.vocab * model.d
    groups = model.parameters - norms - head  # Q4_1: half a byte each, four bytes for every 32
    assert prefill.bytes["weights"] == groups * 5 // 8 + 2 * (head + norms) == decoding.bytes["weights"] // 2
    assert decoding.bytes["kv"] == 23_040 * (6 + 7)
    attention = 30 * Attention(1, 9, 3, 64, 1, 6).flops + 30 * Attention(1, 9, 3, 64, 1, 7).flops
    large = 2 * 2 * (model.parameters - norms) + attention
    assert large < decoding.flops == decoding.counts.flops < 1.02 * large
    assert decoding.roofline.intensity < prefill.roofline.intensity


def test_greedy_tokens_are_the_reference_s_until_it_is_in_doubt(
    oracle: LanguageModel, simulated: LanguageModel
) -> None:
    """Up to where its two likeliest tokens are closer than rounding may move both of them.

    In the root mean square rounding moves a score by the bound above, the largest of all by sqrt(2 ln vocab)
    times that.
    """
    runs = [model.generate(PROMPT, max_tokens=6) for model in (oracle, simulated)]
    for run in runs:
        "".join(run)
    llama, depth = oracle.runner.llama, 11 * oracle.runner.config.layers + 4
    for at, (expected, found) in enumerate(zip(*(run.tokens for run in runs), strict=True)):
        if expected == found:
            continue
        before = [*IDS, *runs[0].tokens[:at]]
        scores = llama.logits(llama.forward(before, llama.new_cache(len(before)))[-1:])[0]
        moved = FORMATS["bf16"].unit_roundoff * np.sqrt(depth * np.mean(scores**2) * 2 * np.log(len(scores)))
        first, second = np.sort(scores)[[-1, -2]]
        assert first - second <= 2 * moved
        break
    assert runs[1].tokens[:2] == runs[0].tokens[:2]
