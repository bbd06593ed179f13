"""Every architecture from every kind of file: the reference against the definitions, a step's calls against bounds."""

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lab.inference.checkpoint import Checkpoint, open_checkpoint
from lab.inference.chip import simulated
from lab.inference.folder import _translated
from lab.inference.layers import Forward
from lab.inference.model import Llama
from lab.inference.reference import Reference
from lab.inference.step import Step, StepCache
from lab.inference.step_input import Chunk, Layout
from lab.inference.step_weights import ROUNDED, StepWeights
from sim import int4
from sim.counts import disagreements
from sim.errors import InputError
from sim.formats import FORMATS, decode
from sim.machine import H100
from tests.lab.inference import tiny, tiny_folder
from tests.lab.inference.textbook import rounding, textbook

TOKENS = [9, 50, 120, 7, 33, 200, 100]
GGUF = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
SCALINGS: dict[str, dict[str, Any]] = {
    "none": {},
    "linear": {"rope_scaling": {"type": "linear", "factor": 4.0}},
    "llama3": {
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 50,
        }
    },
    "yarn": {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 5e5, "beta_fast": 16.0}},
}


def as_gguf(path: Path, architecture: str) -> Path:
    """The folder's model as a GGUF file: q and k rows of `llama` in the order that turns neighbours."""
    folder = tiny_folder.tensors(architecture)
    made: dict[str, Any] = {}
    for name, values in folder.items():
        new = _translated(name)
        if architecture == "llama" and new.endswith(("attn_q.weight", "attn_k.weight")):
            values = values.reshape(-1, 2, tiny.HEAD_DIM // 2, tiny.D).swapaxes(1, 2).reshape(values.shape)
        made[new] = (values, "F32" if values.ndim == 1 else "BF16")
    keys = {key.replace("llama.", f"{architecture}."): v for key, v in tiny.METADATA.items() if key[:6] == "llama."}
    leave = dict.fromkeys((key for key in tiny.METADATA if key[:6] == "llama."), None)
    return tiny.write(path, {**leave, **keys}, made, GGUF[architecture])


def opened(folder: Path, architecture: str, kind: str) -> Checkpoint:
    if kind == "gguf":
        return open_checkpoint(as_gguf(folder / "model.gguf", architecture))
    return open_checkpoint(tiny_folder.write(folder / "model", architecture, SCALINGS[kind]))


CASES = [
    *((name, "gguf") for name in GGUF),
    *((name, "none") for name in tiny_folder.ARCHITECTURES),
    *(("llama", scaling) for scaling in SCALINGS if scaling != "none"),
]
every_case = pytest.mark.parametrize(("architecture", "kind"), CASES)


def logits(checkpoint: Checkpoint) -> np.ndarray:
    llama = Llama(checkpoint, Reference())
    return llama.logits(llama.forward(TOKENS, llama.new_cache(len(TOKENS))))


@every_case
def test_the_reference_is_the_textbook(tmp_path: Path, architecture: str, kind: str) -> None:
    checkpoint = opened(tmp_path, architecture, kind)
    expected = textbook(checkpoint, TOKENS)
    assert np.abs(logits(checkpoint) - expected).max() <= rounding(checkpoint.config, len(TOKENS), expected)


@pytest.mark.parametrize("architecture", GGUF)
def test_both_kinds_of_file_are_the_same_model(tmp_path: Path, architecture: str) -> None:
    gguf, folder = (logits(opened(tmp_path, architecture, kind)) for kind in ("gguf", "none"))
    config = opened(tmp_path, architecture, "none").config
    assert np.abs(gguf - folder).max() <= rounding(config, len(TOKENS), folder)


@every_case
def test_every_call_of_a_step_is_within_its_bound(tmp_path: Path, architecture: str, kind: str) -> None:
    """On the inputs that it had, as the step's own arrays hold them; and all of them together count as theory says."""
    checkpoint = opened(tmp_path, architecture, kind)
    step, counts = a_step(checkpoint)
    solved = step.solved(step.input.q_lens, step.input.kv_lens)
    for (problem, arrays), (_, actual) in zip(step.calls, solved, strict=True):
        own = {name: step.arrays[array] for name, array in arrays.items()}
        again = {name: own[name].copy() for name in problem.outputs}
        step.plans[problem].bind({**own, **again}, None).run()
        inputs = {name: own[name].reshape(operand.shape) for name, operand in problem.inputs.items()}
        for name, estimate in actual.reference(inputs).items():
            found, stored = again[name][: len(estimate.value)], problem.outputs[name].format
            found = found if stored == "int32" else decode(found, stored)
            there = ~np.isnan(estimate.value)
            assert (np.abs(found - estimate.value)[there] <= estimate.error[there]).all(), (problem, name)
    assert disagreements(counts, step.theory(step.input.q_lens, step.input.kv_lens)) == {}


def a_step(checkpoint: Checkpoint) -> tuple[Step, Any]:
    chip = simulated(H100)
    weights = StepWeights.load(checkpoint.config, checkpoint.file, chip)
    forward = Forward(weights.config, weights.matrices, 3)
    step = Step(weights, StepCache(forward, chip), forward, Layout(1, len(TOKENS), 1), chip)
    step.input.fill([Chunk(TOKENS, 0, [2])])
    return step, step.run()


@every_case
def test_logits_of_a_step_are_the_reference_s_within_its_format(tmp_path: Path, architecture: str, kind: str) -> None:
    """Independent roundings to bf16, u = 2^-8, on a path of so many: in the root mean square u sqrt(depth), relative.

    The divergence of one distribution from the other is half the variance of the logits' difference under it (its
    Taylor series), at most half of that bound squared on average; twice that is allowed here.
    """
    checkpoint = opened(tmp_path, architecture, kind)
    expected = logits(checkpoint)[-1]
    step, _ = a_step(checkpoint)
    found = decode(step.arrays["logits"], "bf16")[0]
    depth = 12 * checkpoint.config.layers + 4
    bound = FORMATS["bf16"].unit_roundoff * np.sqrt(depth) * np.sqrt(np.mean(expected**2))
    assert np.sqrt(np.mean((found - expected) ** 2)) < bound
    p, q = (np.exp(x - x.max()) / np.exp(x - x.max()).sum() for x in (expected.astype(float), found.astype(float)))
    assert 0 <= (p * np.log(p / q)).sum() < bound**2


@pytest.mark.parametrize("form", ROUNDED)
def test_matrices_are_rounded_to_the_format_that_is_asked_for(tmp_path: Path, form: str) -> None:
    """Within half a step of it: of fp8 relative, or of its smallest number, of int4 of a group's 15 steps."""
    checkpoint = open_checkpoint(tiny_folder.write(tmp_path / "model", "qwen3"))
    weights = StepWeights.load(checkpoint.config, checkpoint.file, simulated(H100), weights=form)
    assert {problem.weights for problem in weights.matrices.values()} == {form}
    parts = [checkpoint.file.rows(f"blk.0.attn_{name}.weight").astype(np.float64) for name in "qkv"]
    exact = np.concatenate(parts)
    w, scale = weights.arrays["layers.0.qkv.w"], weights.arrays.get("layers.0.qkv.w_scale")
    if form == "bf16":
        np.testing.assert_array_equal(decode(w, "bf16"), exact)
    elif form == "fp8":
        found, smallest = decode(w, "fp8") * scale[:, None].astype(np.float64), FORMATS["fp8"].smallest / 2
        bound = FORMATS["fp8"].unit_roundoff * np.abs(exact) + smallest * scale[:, None]
        assert (np.abs(found - exact) <= bound * (1 + 2.0**-20)).all()
        assert (np.abs(decode(w, "fp8")).max(axis=1) == 448).all(), "rows fill the range"
    else:
        group = FORMATS[form].group
        groups = int4.unpack(w, scale, *exact.shape, group)
        steps = groups.each(groups.scale).astype(np.float64)
        assert (np.abs(groups.values - exact) <= 0.5 * steps + 2.0**-9 * np.abs(exact).max()).all()
    for name in ("embedding", "layers.0.attention_norm", "layers.0.norms"):
        assert weights.arrays[name].dtype == np.uint16, "everything else is bf16"
    with pytest.raises(InputError, match="weights are rounded to bf16, fp8, int4_g32, int4_g64, int4_g128; got 'int2'"):
        StepWeights.load(checkpoint.config, checkpoint.file, simulated(H100), weights="int2")


@settings(max_examples=6, deadline=None)
@given(ranks=st.sampled_from([2]), architecture=st.sampled_from(["llama", "qwen2", "qwen3"]), dtype=st.booleans())
def test_shards_make_up_the_whole(
    tmp_path_factory: pytest.TempPathFactory, ranks: int, architecture: str, dtype: bool
) -> None:
    """Rows one below the other, columns side by side, everything else alike."""
    path = tmp_path_factory.mktemp("shards") / "model"
    kind = np.float32 if dtype else ml_dtypes.bfloat16
    checkpoint = open_checkpoint(tiny_folder.write(path, architecture, dtype=kind))
    chip, c = simulated(H100), checkpoint.config
    whole = StepWeights.load(checkpoint.config, checkpoint.file, chip)
    parts = [StepWeights.load(checkpoint.config, checkpoint.file, chip, rank, ranks) for rank in range(ranks)]
    q, kv = c.q_heads * c.head_dim, c.kv_heads * c.head_dim
    for name, array in whole.arrays.items():
        found = [part.arrays[name] for part in parts]
        if name.endswith(("qkv.w", "bias")):
            joined = _in_sections(found, [q // ranks, kv // ranks, kv // ranks])
        elif name.endswith("gate_up.w"):
            joined = _in_sections(found, [c.ffn // ranks] * 2)
        elif name.endswith(("output.w", "down.w")):
            joined = np.concatenate(found, axis=1)
        else:
            assert all(np.array_equal(one, array) for one in found), name
            continue
        np.testing.assert_array_equal(joined, array, name)


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1"])
def test_shards_of_groups_are_groups(tmp_path: Path, kind: str) -> None:
    """Rows and columns of the whole matrices' own values, taken out where ranks divide them; a cut group is refused."""
    rng = np.random.default_rng(0)

    def model(ffn: int) -> Checkpoint:
        wide = {f"blk.{i}.ffn_{name}.weight": (ffn, tiny.D) for i in range(2) for name in ("gate", "up")}
        shapes = tiny.shapes() | wide | {f"blk.{i}.ffn_down.weight": (tiny.D, ffn) for i in range(2)}
        made = {
            name: (rng.standard_normal(shape, np.float32), kind)
            for name, shape in shapes.items()
            if len(shape) == 2 and "embd" not in name
        }
        return open_checkpoint(tiny.write(tmp_path / f"{ffn}.gguf", {"llama.feed_forward_length": ffn}, made))

    def values(weights: StepWeights, name: str) -> np.ndarray:
        problem = weights.matrices[name]
        assert problem.weights == "int4_g32"
        packed = (weights.arrays[f"{name}.{part}"] for part in ("w", "w_scale"))
        return int4.unpack(*packed, problem.n, problem.k, 32, problem.zero_points).values

    checkpoint, chip = model(192), simulated(H100)
    c, whole = checkpoint.config, StepWeights.load(checkpoint.config, checkpoint.file, chip)
    parts = [StepWeights.load(checkpoint.config, checkpoint.file, chip, rank, 2) for rank in range(2)]
    q, kv = c.q_heads * c.head_dim // 2, c.kv_heads * c.head_dim // 2
    for i in range(c.layers):
        for name, sizes in (("qkv", [q, kv, kv]), ("gate_up", [c.ffn // 2] * 2)):
            found = [values(part, f"layers.{i}.{name}") for part in parts]
            np.testing.assert_array_equal(_in_sections(found, sizes), values(whole, f"layers.{i}.{name}"))
        for name in ("output", "down"):
            found = [values(part, f"layers.{i}.{name}") for part in parts]
            np.testing.assert_array_equal(np.concatenate(found, axis=1), values(whole, f"layers.{i}.{name}"))
    cut = model(96)
    with pytest.raises(InputError, match=r"48 columns of blk.0.ffn_down.weight cut its groups of 32"):
        StepWeights.load(cut.config, cut.file, chip, 1, 2)
    with pytest.raises(InputError, match="a model of q_heads = 4 cannot be divided among 3 ranks"):
        StepWeights.load(c, checkpoint.file, chip, 0, 3)
    with pytest.raises(InputError, match="a rank is one of 0 to 1; got 2"):
        StepWeights.load(c, checkpoint.file, chip, 2, 2)


def _in_sections(parts: list[np.ndarray], sizes: list[int]) -> np.ndarray:
    """Each rank has its own part of each section."""
    split = [np.split(part, np.cumsum(sizes)[:-1]) for part in parts]
    return np.concatenate([section for sections in zip(*split, strict=True) for section in sections])
