"""Rotary frequencies as a model's file scales them: plain, linear, YaRN, Llama 3; what else is asked for is refused."""

from dataclasses import dataclass
from math import ceil, floor, log, pi
from typing import NoReturn, Protocol

import numpy as np
from numpy.typing import NDArray

KINDS = ("none", "linear", "yarn", "llama3")
_MOST = 2.0**20


@dataclass(frozen=True)
class RopeScaling:
    """How a model trained on short texts turns far positions: `factor` times as many fit its trained angles.

    `magnitude` multiplies cosine and sine. YaRN and Llama 3 leave pairs alone that turn more than `beta_fast` times in
    `original_context` tokens, scale those below `beta_slow` turns, and mix in between: YaRN evenly from pair to pair,
    Llama 3 by turns (its high_freq_factor and low_freq_factor).
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
        share = self._scaled_share(plain, theta, head_dim)
        return plain / self.factor * share + plain * (1 - share)

    def _scaled_share(self, plain: NDArray[np.float64], theta: float, head_dim: int) -> NDArray[np.float64] | float:
        """0 for a pair that is left alone, 1 for one that is scaled (Peng et al., "YaRN", 2023, section 3.2)."""
        if self.kind == "linear":
            return 1.0
        if self.kind == "llama3":
            turns = self.original_context * plain / (2 * pi)
            return ((self.beta_fast - turns) / (self.beta_fast - self.beta_slow)).clip(0, 1)
        low, high = (
            head_dim * log(self.original_context / (turns * 2 * pi)) / (2 * log(theta))
            for turns in (self.beta_fast, self.beta_slow)
        )
        first, last = max(floor(low), 0), min(ceil(high), head_dim - 1)
        return ((np.arange(head_dim // 2) - first) / max(last - first, 0.001)).clip(0, 1)


class Refusing(Protocol):
    """A file that a scaling was read from."""

    def refuse(self, reason: str) -> NoReturn:
        """Raise the InputError that names it."""


def yarn_magnitude(factor: float) -> float:
    """By what YaRN multiplies cosine and sine (Peng et al., "YaRN", 2023, section 3.4)."""
    return 1 + 0.1 * log(factor)


def require_sane(file: Refusing, scaling: RopeScaling, theta: float) -> None:
    """Raise InputError for numbers out of range."""
    s = scaling
    if not (2**-20 <= s.factor <= _MOST and 0 < s.magnitude <= _MOST):
        file.refuse(f"its rotary scaling factor {s.factor} or attention factor {s.magnitude} is out of range")
    if s.kind == "llama3" and not (s.original_context > 0 and 0 < s.beta_slow < s.beta_fast <= _MOST):
        file.refuse(
            f"Llama 3's rotary scaling needs an original context and 0 < low_freq_factor < high_freq_factor; it has "
            f"{s.original_context}, {s.beta_slow} and {s.beta_fast}"
        )
    yarn = s.kind == "yarn"
    if yarn and not (
        s.original_context > 0 and s.factor >= 1 and theta > 1 and 0 < s.beta_slow <= s.beta_fast <= _MOST
    ):
        file.refuse(
            f"YaRN needs a factor of at least 1, a rotary base above 1 and 0 < beta_slow <= beta_fast; it has factor "
            f"{s.factor}, base {theta}, {s.beta_slow} and {s.beta_fast}"
        )
