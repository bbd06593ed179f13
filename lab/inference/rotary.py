"""Rotary frequencies as a GGUF file's metadata scale them: plain, linear, YaRN; what else is asked for is refused."""

from dataclasses import dataclass
from math import ceil, floor, log, pi

import numpy as np
from numpy.typing import NDArray

from lab.inference.gguf_file import GgufFile

KINDS = ("none", "linear", "yarn")
_MOST = 2.0**20


@dataclass(frozen=True)
class RopeScaling:
    """How a model trained on short texts turns far positions: `factor` times as many fit its trained angles.

    `magnitude` multiplies cosine and sine. YaRN leaves pairs alone that turn more than `beta_fast` times in
    `original_context` tokens, scales those below `beta_slow` turns, and mixes in between.
    """

    kind: str = "none"
    factor: float = 1.0
    magnitude: float = 1.0
    original_context: int = 0
    beta_fast: float = 32.0
    beta_slow: float = 1.0

    def frequencies(self, theta: float, head_dim: int) -> NDArray[np.float64]:
        """Radians a position, one for each pair of a head."""
        plain = theta ** (-np.arange(0, head_dim, 2) / head_dim)
        if self.kind == "none":
            return plain
        share = self._scaled_share(theta, head_dim) if self.kind == "yarn" else 1.0
        return plain / self.factor * share + plain * (1 - share)

    def _scaled_share(self, theta: float, head_dim: int) -> NDArray[np.float64]:
        """0 for a pair that is left alone, 1 for one that is scaled (Peng et al., "YaRN", 2023, section 3.2)."""
        low, high = (
            head_dim * log(self.original_context / (turns * 2 * pi)) / (2 * log(theta))
            for turns in (self.beta_fast, self.beta_slow)
        )
        first, last = max(floor(low), 0), min(ceil(high), head_dim - 1)
        return ((np.arange(head_dim // 2) - first) / max(last - first, 0.001)).clip(0, 1)


def read_scaling(file: GgufFile, context: int, theta: float) -> RopeScaling:
    """The scaling that a Llama file's metadata ask for, as llama.cpp reads them; InputError for what is not supported.

    A factor without a type is linear, under its older name too; 0 is none.
    """
    kind = file.get("llama.rope.scaling.type", str, default="linear")
    if kind not in KINDS:
        file.refuse(f"its rotary scaling is {kind!r}; supported: {', '.join(KINDS)}")
    older = file.get("llama.rope.scale_linear", float, default=0.0)
    factor = file.get("llama.rope.scaling.factor", float, default=older) or 1.0
    magnitude = file.get("llama.rope.scaling.attn_factor", float, default=1.0)
    if not (2**-20 <= factor <= _MOST and 0 < magnitude <= _MOST):
        file.refuse(f"its rotary scaling factor {factor} or attention factor {magnitude} is out of range")
    if kind != "yarn":
        return RopeScaling(kind, factor, magnitude)
    scaling = RopeScaling(
        kind,
        factor,
        magnitude * (1 + 0.1 * log(factor)),
        file.integer("llama.rope.scaling.original_context_length", 1, 2**31 - 1, default=context),
        file.get("llama.rope.scaling.yarn_beta_fast", float, default=32.0),
        file.get("llama.rope.scaling.yarn_beta_slow", float, default=1.0),
    )
    if not (factor >= 1 and theta > 1 and 0 < scaling.beta_slow <= scaling.beta_fast <= _MOST):
        file.refuse(
            f"YaRN needs a factor of at least 1, a rotary base above 1 and 0 < beta_slow <= beta_fast; it has factor "
            f"{factor}, base {theta}, {scaling.beta_slow} and {scaling.beta_fast}"
        )
    return scaling
