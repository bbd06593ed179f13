"""Sampling: the next token of each row of logits, and its log-probability."""

from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from lab.problems._rowwise import RowWise
from lab.problems.protocol import EVERY_ROW, UNIT, Arrays, Estimate, Operand
from sim.errors import InputError
from sim.formats import decode, encode

FLOPS = 6  # an element: a difference, a comparison, two products and two sums; exponentials are counted apart
SETTINGS = 8  # words of a row's settings
DRAW = 6  # of these, the one that says which draw it is
ROWS = ("mixed", "greedy", "plain", "filtered")
P_ROUNDINGS = 4  # of a weight beside 5 for each unit of its exponent: ex2.approx has 2^-22.5 (PTX ISA, ex2)
E_ROUNDINGS = 10  # of an exponential variate, beside its uniform's: a logarithm, a quotient, a product
_ROUNDS, _MULTIPLIERS, _WEYL = 10, (0xD2511F53, 0xCD9E8D57), (0x9E3779B9, 0xBB67AE85)


class Settings(NamedTuple):
    """How one row is sampled.

    Temperature 0 takes the likeliest token, the first of equals. Of all others a token is kept where fewer than `top_k`
    are likelier (0: any), where likelier ones have less than `top_p` of all probability (1: any), and where it has at
    least `min_p` of the likeliest one's probability; each is judged on the whole row at its temperature. `seed` and
    `draw`, which draw of it this is, choose the random numbers.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0
    draw: int = 0

    def words(self) -> NDArray[np.int32]:
        """As kernels read it; raises InputError for what means nothing."""
        s = self
        if not (0 <= s.temperature <= 100 and 0 < s.top_p <= 1 and 0 <= s.min_p <= 1):
            raise InputError(
                "temperature must be from 0 to 100, top_p above 0 and up to 1, min_p from 0 to 1; got "
                f"{s.temperature}, {s.top_p}, {s.min_p}"
            )
        if not (0 <= s.top_k < 2**31 and 0 <= s.seed < 2**64 and 0 <= s.draw < 2**32):
            raise InputError(
                f"top_k, seed and draw must be at least 0 and of 31, 64 and 32 bits; got {s.top_k}, {s.seed}, {s.draw}"
            )
        floats = np.array([s.temperature, s.top_p, s.min_p], np.float32).view(np.uint32)
        words = [floats[0], s.top_k, floats[1], floats[2], s.seed & 0xFFFFFFFF, s.seed >> 32, s.draw, 0]
        return np.array(words, np.uint32).view(np.int32)

    def drawn(self, draw: int) -> "Settings":
        """The same for another draw."""
        temperature, top_k, top_p, min_p, seed, _ = self
        return Settings(temperature, top_k, top_p, min_p, seed, draw)

    @classmethod
    def of_words(cls, words: NDArray[np.int32]) -> "Settings":
        """The inverse of `words`."""
        w = np.ascontiguousarray(words).view(np.uint32)
        temperature, top_p, min_p = (float(x) for x in w[[0, 2, 3]].view(np.float32))
        return cls(temperature, int(w[1]), top_p, min_p, int(w[4]) | int(w[5]) << 32, int(w[6]))


GREEDY = Settings()


@dataclass(frozen=True)
class Sampling(RowWise):
    """`token`[m], drawn from logits [m, n] as each row's `settings` say, and its `log_probability` at temperature 1.

    `settings`, int32 [m, 8], are `Settings.words`. A row's token does not depend on the others: it is the one of those
    kept with the largest weight / E (an exponential race), weights being exp((logit - largest) / temperature) and
    E = -log(1 - (r + 1/2) / 2^32), r the 32-bit words of Philox4x32-10 (Salmon et al., "Parallel Random Numbers", 2011)
    with the seed as its key and (index / 4, draw, 0, 0) as its counter. `rows` says what `draw` makes settings of.
    Logits are finite or -infinity, one of each row at least finite. Raises InputError for extents outside 1 to
    2^31 - 1 and unknown words.
    """

    kind: ClassVar[str] = "sampling"

    settings: str = "mixed"  # mixed, greedy, plain, filtered

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.settings not in ROWS:
            raise InputError(f"settings are {', '.join(ROWS)}; got {self.settings!r}")

    @property
    def inputs(self) -> dict[str, Operand]:
        return {
            "logits": Operand((self.m, self.n), self.activations),
            "settings": Operand((self.m, SETTINGS), "int32"),
        }

    @property
    def outputs(self) -> dict[str, Operand]:
        return {"token": Operand((self.m,), "int32"), "log_probability": Operand((self.m,), "fp32")}

    @property
    def flops(self) -> int:
        return FLOPS * self.m * self.n

    def envelope(self) -> Self:
        return replace(self, settings=ROWS[0])

    def draw(self, rng: np.random.Generator, special: str = "") -> dict[str, NDArray]:
        """N(0, 4^2) logits; where values are to be special, one in 64 is -infinity."""
        logits = 4 * rng.standard_normal((self.m, self.n), np.float32)
        if special:
            logits[:, 1:][rng.random((self.m, self.n - 1)) < 1 / 64] = -np.inf
        settings = np.stack([self._draw_settings(rng).words() for _ in range(self.m)])
        return {"logits": encode(logits, self.activations), "settings": settings}

    def _draw_settings(self, rng: np.random.Generator) -> Settings:
        mixed, seed = self.settings == "mixed", int(rng.integers(2**63))
        if self.settings == "greedy" or (mixed and rng.random() < 0.25):
            return Settings(seed=seed)
        temperature, draw = float(rng.choice([0.5, 1.0, 2.0])), int(rng.integers(2**32))
        if self.settings == "plain" or (mixed and rng.random() < 0.25):
            return Settings(temperature, seed=seed, draw=draw)
        top_k, top_p, min_p = rng.choice([0, 1, 5, 50]), rng.choice([1.0, 0.9, 0.5]), rng.choice([0.0, 0.05])
        return Settings(temperature, int(top_k), float(top_p), float(min_p), seed, draw)

    def reference(self, arrays: Arrays, rows: slice = EVERY_ROW) -> dict[str, Estimate]:
        """In float64, from the same random words.

        Where rounding, of weights (5 |exponent| + 4 units), of variates and of sums of n terms in any order (n units),
        may decide between tokens, all of these are within the bound of `token`.
        """
        logits, settings = decode(arrays["logits"][rows], self.activations), arrays["settings"][rows]
        found = [_of_row(row, Settings.of_words(words)) for row, words in zip(logits, settings, strict=True)]
        token, off, log_probability, error = (np.array(column, np.float64) for column in zip(*found, strict=True))
        return {"token": Estimate(token, off), "log_probability": Estimate(log_probability, error).stored("fp32")}


def sampled(logits: NDArray[np.float32], settings: Settings) -> int:
    """The token of one row of logits."""
    return _of_row(logits, settings)[0]


def _of_row(logits: NDArray[np.float32], settings: Settings) -> tuple[int, int, float, float]:
    """(token, how far others lie that are as right, log-probability, its error)."""
    x = logits.astype(np.float64)
    away = x - x.max()  # exponents at temperature 1
    total, sure = np.exp(away).sum(), int(x.argmax())
    off = _slack(away) @ np.exp(away) / total + x.size * UNIT
    right = np.array([sure])
    if settings.temperature > 0:
        sure, right = _race(away / np.float32(settings.temperature), settings)
    log_probability = away[sure] - np.log(total)
    error = np.abs(away[right] - away[sure]).max() + off + 4 * UNIT * (abs(away[sure]) + abs(np.log(total)) + 1)
    return sure, int(np.abs(right - sure).max()), float(log_probability), float(error)


def _slack(exponents: NDArray) -> NDArray:
    """Relative errors of their exponentials."""
    return np.where(np.isfinite(exponents), (5 * np.abs(exponents) + P_ROUNDINGS) * UNIT, 0.0)


def _race(exponents: NDArray, s: Settings) -> tuple[int, NDArray]:
    """The token that wins, and all those that may win where sums and quotients are rounded."""
    weight, slack = np.exp(exponents), _slack(exponents)
    order = np.argsort(-exponents, kind="stable")
    first = np.searchsorted(-exponents[order], -exponents, "left")  # how many are likelier
    before = np.concatenate([[0.0], np.cumsum(weight[order])])[first]
    total, blur = weight.sum(), 2 * (weight.size * UNIT + slack @ weight / weight.sum())
    share, least = float(np.float32(s.top_p)), float(np.float32(s.min_p))
    few = (first < s.top_k) | (s.top_k == 0)

    def kept(by: float) -> NDArray[np.bool_]:
        likely = (s.top_p >= 1) | (before < share * total + by * blur * total)
        able: NDArray[np.bool_] = first == 0
        able |= few & likely & (weight * (1 + by * slack) >= least) & (weight > 0)
        return able

    variate, wide = variates(s, weight.size)
    score = weight / variate
    with np.errstate(divide="ignore", invalid="ignore"):
        near = np.where(weight > 0, score * (1 - np.minimum(slack + wide / variate + 3 * UNIT, 1)), 0.0)
        far = np.where(weight > 0, score * (1 + slack + wide / np.maximum(variate - wide, 0) + 3 * UNIT), 0.0)
    far = np.where(np.isnan(far), np.inf, far)
    best = near[kept(-1)].max()
    return int(np.where(kept(0), score, -1).argmax()), np.flatnonzero(kept(1) & (far >= best))


def variates(settings: Settings, n: int) -> tuple[NDArray, NDArray]:
    """(E of each of n tokens in float64, how far float32's is off)."""
    v = (random_words(settings, n) + 0.5) / 2.0**32
    exact, rounding = -np.log1p(-v), v * UNIT
    left = 1 - v - rounding
    with np.errstate(divide="ignore"):
        return exact, E_ROUNDINGS * UNIT * exact + np.where(left > 0, rounding / np.maximum(left, 0), np.inf)


def random_words(settings: Settings, n: int) -> NDArray[np.uint64]:
    """The 32-bit word r of each of n tokens."""
    blocks = np.arange(-(-n // 4), dtype=np.uint64)
    zeros = np.zeros_like(blocks)
    words = philox((blocks, zeros + np.uint64(settings.draw), zeros, zeros), settings.seed)
    return np.stack(words, axis=1).reshape(-1)[:n]


def philox(counter: tuple[NDArray[np.uint64], ...], key: int) -> tuple[NDArray[np.uint64], ...]:
    """Philox4x32-10 of counters of four 32-bit words each, and a 64-bit key, its low word first."""
    low, high = key & 0xFFFFFFFF, key >> 32
    mask, shift = np.uint64(0xFFFFFFFF), np.uint64(32)
    a, b, c, d = counter
    for _ in range(_ROUNDS):
        first, second = (np.uint64(m) * x for m, x in zip(_MULTIPLIERS, (a, c), strict=True))
        a, b, c, d = (
            (second >> shift) ^ b ^ np.uint64(low), second & mask, (first >> shift) ^ d ^ np.uint64(high), first & mask
        )  # fmt: skip
        low, high = (low + _WEYL[0]) & 0xFFFFFFFF, (high + _WEYL[1]) & 0xFFFFFFFF
    return a, b, c, d
