"""Rotary scaling: every spelling that a file may use, against the same scaling said another way."""

from math import ceil, cos, floor, log, pi, sin
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lab.inference.checkpoint import open_checkpoint
from lab.inference.model import Llama
from lab.inference.reference import Reference
from lab.inference.rotary import RopeScaling
from tests.lab.inference import tiny

TOKENS = [9, 50, 120, 7, 33]
PAIRS = tiny.HEAD_DIM // 2


def loaded(folder: Path, metadata: dict[str, Any], weights: dict[str, Any] | None = None) -> Llama:
    return Llama(open_checkpoint(tiny.write(folder / "scaled.gguf", metadata, weights)), Reference())


def logits(folder: Path, metadata: dict[str, Any], weights: dict[str, Any] | None = None) -> NDArray:
    llama = loaded(folder, metadata, weights)
    return llama.logits(llama.forward(TOKENS, llama.new_cache(len(TOKENS))))


@pytest.mark.parametrize(
    "spelling",
    [
        {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0},
        {"llama.rope.scaling.factor": 4.0},
        {"llama.rope.scale_linear": 4.0},
        {"llama.rope.scaling.factor": 4.0, "llama.rope.scale_linear": 2.0, "llama.rope.scaling.finetuned": True},
    ],
)
def test_linear_scaling_divides_every_frequency(tmp_path: Path, spelling: dict[str, Any]) -> None:
    divided = logits(tmp_path, {}, {"rope_freqs.weight": (np.full(PAIRS, 4, np.float32), "F32")})
    assert np.array_equal(logits(tmp_path, spelling), divided)
    assert not np.array_equal(divided, logits(tmp_path, {}))


@pytest.mark.parametrize(
    "spelling",
    [
        {"llama.rope.scaling.type": "none", "llama.rope.scaling.factor": 4.0},
        {"llama.rope.scaling.type": "linear"},
        {"llama.rope.scaling.factor": 0.0},
        {"llama.rope.scaling.type": "yarn"},
        {"llama.expert_count": 0, "llama.attention.causal": True, "llama.tensor_data_layout": "Meta AI original pth"},
    ],
)
def test_what_says_that_nothing_is_scaled(tmp_path: Path, spelling: dict[str, Any]) -> None:
    assert np.array_equal(logits(tmp_path, spelling), logits(tmp_path, {}))


def test_yarn_reaches_the_forward_pass(tmp_path: Path) -> None:
    """In angles and in the length of turned heads: a divisor of each pair and a larger cosine and sine."""
    asked = {
        "llama.rope.scaling.type": "yarn",
        "llama.rope.scaling.factor": 8.0,
        "llama.rope.scaling.original_context_length": 50,
        "llama.rope.scaling.attn_factor": 1.5,
        "llama.rope.scaling.yarn_beta_fast": 16.0,
        "llama.rope.scaling.yarn_beta_slow": 2.0,
    }
    llama = loaded(tmp_path, asked)
    cosine, sine = llama._turn(40, 1)
    magnitude = 1.5 * (0.1 * log(8.0) + 1)
    for pair, angle in enumerate(40 * yarn(10000.0, tiny.HEAD_DIM, 8.0, 50, 16.0, 2.0)):
        assert cosine[0, 0, pair] == pytest.approx(magnitude * cos(angle), abs=1e-6)
        assert sine[0, 0, pair] == pytest.approx(magnitude * sin(angle), abs=1e-6)


@pytest.mark.parametrize(
    ("theta", "head_dim", "factor", "context"),
    [(1e4, 64, 4.0, 2048), (5e5, 128, 32.0, 8192), (1e4, 16, 2.0, 1), (100.0, 2, 16.0, 4096)],
)
def test_yarn_frequencies(theta: float, head_dim: int, factor: float, context: int) -> None:
    scaling = RopeScaling("yarn", factor, 1.0, context)
    expected = yarn(theta, head_dim, factor, context, 32.0, 1.0)
    np.testing.assert_allclose(scaling.frequencies(theta, head_dim), expected, rtol=1e-13)


def yarn(theta: float, head_dim: int, factor: float, context: int, fast: float, slow: float) -> NDArray[np.float64]:
    """Radians a position by the paper, pair by pair: the pair that turns `turns` times in the context is a border."""

    def pair_of(turns: float) -> float:
        return head_dim * log(context / (2 * pi * turns)) / (2 * log(theta))

    first, last = max(floor(pair_of(fast)), 0), min(ceil(pair_of(slow)), head_dim - 1)
    found = []
    for pair in range(head_dim // 2):
        plain = theta ** (-2 * pair / head_dim)
        kept = 1.0 if pair <= first else 0.0 if pair >= last else 1 - (pair - first) / (last - first)
        found.append(kept * plain + (1 - kept) * plain / factor)
    return np.array(found)
