"""Requests to serve: how long, how many, when; by a distribution of real traffic, at random, or out of a file."""

from dataclasses import dataclass
from math import ceil, floor, inf, isfinite
from pathlib import Path

import msgspec
import numpy as np

from lab.serving.request import Request
from sim.errors import InputError


class Lengths(msgspec.Struct, frozen=True):
    """Tokens of prompts and of answers, which depend little on each other; each figure is as likely."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]


class _Traces(msgspec.Struct):
    about: str
    sources: dict[str, str]
    traces: dict[str, Lengths]


TRACES = msgspec.json.decode(Path(__file__).with_name("traces.json").read_bytes(), type=_Traces).traces
DATASETS = ("random", *TRACES, "trace")


class Line(msgspec.Struct):
    """A line of a trace file, as Mooncake writes them: when, in milliseconds, and tokens of prompt and answer."""

    timestamp: float
    input_length: int
    output_length: int


@dataclass(frozen=True)
class Workload:
    """`num_prompts` requests of a dataset.

    Arrivals are a gamma process of `request_rate` a second, all at once where it is infinite, stretched so that the
    last arrives when it should; `burstiness` is its shape, 1 is Poisson. Random lengths lie evenly within
    `range_ratio` of `input_len` and `output_len`; the first `prefix_len` tokens of all prompts are the same. Longer
    sequences than `max_length` lose tokens of their prompt, then of their answer. Raises InputError for what cannot be.
    """

    dataset: str = "random"
    num_prompts: int = 1000
    request_rate: float = inf
    burstiness: float = 1.0
    input_len: int = 1024
    output_len: int = 128
    range_ratio: float = 0.0
    prefix_len: int = 0
    max_length: int = 8192
    seed: int = 0
    file: str = ""

    def __post_init__(self) -> None:
        if self.dataset not in DATASETS:
            raise InputError(f"unknown dataset {self.dataset!r}; datasets: {', '.join(DATASETS)}")
        if (self.dataset == "trace") != bool(self.file):
            raise InputError("the dataset trace is read from a file, and only that one")
        counts = (self.num_prompts, self.input_len, self.output_len)
        if min(counts) < 1 or self.prefix_len < 0 or not 0 <= self.range_ratio < 1 or self.max_length < 2:
            raise InputError(
                "num_prompts, input_len and output_len are at least 1, prefix_len at least 0, range_ratio from 0 and "
                f"below 1, max_length at least 2; got {self}"
            )
        if not self.request_rate > 0 or not 0 < self.burstiness < inf:
            raise InputError(f"request_rate and burstiness are above 0; got {self.request_rate}, {self.burstiness}")

    def requests(self, vocab: int, ends: tuple[int, ...] = ()) -> list[Request]:
        """The requests in the order of their arrival, of random tokens; the same for the same seed."""
        rng = np.random.default_rng(self.seed)
        if self.dataset == "trace":
            lines = _lines(Path(self.file))[: self.num_prompts]
            arrivals = [1e3 * (line.timestamp - lines[0].timestamp) for line in lines]
            lengths = [(line.input_length, line.output_length) for line in lines]
        else:
            arrivals, lengths = self._arrivals(rng), self._lengths(rng)
        prefix = rng.integers(0, vocab, self.prefix_len).tolist()
        found = []
        for id, (at, (prompt, answer)) in enumerate(zip(arrivals, lengths, strict=True)):
            prompt = max(1, min(prompt, self.max_length - 1))
            tokens = (prefix + rng.integers(0, vocab, prompt).tolist())[: self.max_length - 1]
            answer = max(1, min(answer, self.max_length - len(tokens)))
            found.append(Request(id, tuple(tokens), answer, ends=ends, arrival_us=float(at)))
        return found

    def _arrivals(self, rng: np.random.Generator) -> list[float]:
        if not isfinite(self.request_rate):
            return [0.0] * self.num_prompts
        waits = rng.gamma(self.burstiness, 1.0, self.num_prompts).cumsum()
        return (waits * (1e6 * self.num_prompts / self.request_rate / waits[-1])).tolist()  # type: ignore[no-any-return]

    def _lengths(self, rng: np.random.Generator) -> list[tuple[int, int]]:
        n = self.num_prompts
        if self.dataset in TRACES:
            drawn = rng.choice(TRACES[self.dataset].prompt, n), rng.choice(TRACES[self.dataset].answer, n)
        else:
            ratio = self.range_ratio
            bounds = [
                (max(1, floor(x * (1 - ratio))), ceil(x * (1 + ratio))) for x in (self.input_len, self.output_len)
            ]
            drawn = rng.integers(*bounds[0], n, endpoint=True), rng.integers(*bounds[1], n, endpoint=True)
        return list(zip(drawn[0].tolist(), drawn[1].tolist(), strict=True))


def _lines(path: Path) -> list[Line]:
    """A trace in the order of its arrivals; raises InputError for a file that is none."""
    found = []
    try:
        text = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                found.append(msgspec.json.decode(line, type=Line))
            except msgspec.DecodeError as error:
                raise InputError(f"{path.name} line {number} is no line of a trace: {error}") from error
    if not found:
        raise InputError(f"{path.name} has no requests")
    return sorted(found, key=lambda line: line.timestamp)
