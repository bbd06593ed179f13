"""A sequence that a model goes on with, token by token: on a chip by steps, or by the float32 reference."""

import time
from collections import Counter, deque
from collections.abc import Callable
from collections.abc import Sequence as Sized
from dataclasses import dataclass, field
from math import isfinite
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from lab.inference.chip import Chip
from lab.inference.config import LlamaConfig
from lab.inference.layers import Forward
from lab.inference.model import Llama
from lab.inference.phases import Pass, Solved
from lab.inference.step import AHEAD, Results, Step, StepCache, require_kernels
from lab.inference.step_input import PAGE, Chunk, Layout, StepInput
from lab.inference.step_weights import StepWeights
from lab.problems import Attention
from lab.problems.sampling import Settings, sampled
from sim.counts import Counts
from sim.errors import InputError
from sim.formats import decode

BUCKET = 16  # new tokens of a step, beside 1, are rounded up to a multiple of it
MOST_TOKENS = 2048  # of a step: a longer prompt takes several


class Session(Protocol):
    """One sequence and its cache."""

    def start(self, tokens: Sized[int], settings: Settings) -> None:
        """Go on with new tokens; raises InputError where the cache is full."""

    def follow(self, settings: Settings) -> None:
        """Go on with the token that comes next, before anyone has seen it; once before each `finish`, at most."""

    def finish(self) -> int:
        """The token that comes next; raises InputError where the scores are not finite."""

    def passes(self) -> list[Pass]:
        """What each start to finish so far has cost."""

    def close(self) -> None:
        """Give the cache back."""


class Runner(Protocol):
    """A model on a chip."""

    @property
    def config(self) -> LlamaConfig: ...

    def session(self, capacity: int) -> Session:
        """A new sequence of at most `capacity` tokens."""

    def logits(self, tokens: Sized[int]) -> NDArray[np.float32]:
        """Scores [tokens, vocab] of what follows each token of a text."""


def require_context(config: LlamaConfig, capacity: int) -> None:
    """Raise InputError where a model's context is shorter than a sequence may become."""
    if capacity > config.context:
        raise InputError(f"prompt and answer take up to {capacity} tokens; the model's context is {config.context}")


@dataclass
class Room:
    """A cache of so many pages, the steps that are bound to it, and inputs of a single token for those on the way."""

    cache: StepCache
    forward: Forward
    inputs: deque[StepInput]
    steps: dict[Layout, Step] = field(default_factory=dict)

    def next_token(self, start: int, settings: Settings) -> StepInput:
        """The input of one more token of the sequence, from `start` on."""
        given = self.inputs[0]
        self.inputs.rotate()
        if given.chunks:
            given.follow(start, settings)
        else:
            given.fill([Chunk([0], start, range(1, given.layout.pages + 1), settings)])
        return given


class StepRunner:
    """A model whose every layer is a kernel of the lab, on a GPU or the simulated chip.

    Caches and captured graphs are kept for later sequences. Raises InputError where a layer has no kernel.
    """

    def __init__(self, weights: StepWeights, chip: Chip) -> None:
        require_kernels(Forward(weights.config, weights.matrices, 2), chip.machine)
        self.weights, self.chip = weights, chip
        self._free: dict[int, list[Room]] = {}

    @property
    def config(self) -> LlamaConfig:
        return self.weights.config

    def session(self, capacity: int) -> "StepSession":
        """A sequence with a cache of its own; raises InputError where the model's context is shorter."""
        require_context(self.config, capacity)
        pages = 1 << (-(-capacity // PAGE) - 1).bit_length()  # few sizes, so that rooms are found again
        free = self._free.setdefault(pages, [])
        return StepSession(self, pages, free.pop() if free else self._new_room(pages))

    def logits(self, tokens: Sized[int]) -> NDArray[np.float32]:
        """Scores [tokens, vocab] of what follows each token of a text.

        In one step, in which each token is a sequence of its own over the same pages: all append before any attends.
        """
        n, session = len(tokens), self.session(len(tokens))
        pages = -(-n // PAGE)
        step = self.step(session.room, Layout(n, n, pages))
        step.input.fill([Chunk([token], at, range(1, pages + 1)) for at, token in enumerate(tokens)])
        step.run()
        found: NDArray[np.float32] = decode(self.chip.read(step.arrays["logits"]), "bf16")
        session.close()
        return found

    def step(self, room: Room, layout: Layout) -> Step:
        """The step of a bucket."""
        if layout not in room.steps:
            room.steps[layout] = Step(self.weights, room.cache, room.forward, layout, self.chip)
        return room.steps[layout]

    def give_back(self, pages: int, room: Room) -> None:
        """Take a room that no sequence is in any more."""
        self._free[pages].append(room)

    def _new_room(self, pages: int) -> Room:
        forward, chip = Forward(self.config, self.weights.matrices, 1 + pages), self.chip
        layout, words = Layout(1, 1, pages), np.dtype(np.int32)
        inputs = deque(StepInput(layout, chip.host((layout.words,), words)) for _ in range(AHEAD))
        return Room(StepCache(forward, chip), forward, inputs)


class _Ran(NamedTuple):
    """A step that runs, with the lengths it has."""

    step: Step
    q_lens: tuple[int, ...]
    kv_lens: tuple[int, ...]
    counts: Counts


class _Begun(NamedTuple):
    """The steps from some tokens on to the one that comes next."""

    steps: list[_Ran]
    results: Results
    at: float


class StepSession:
    """A sequence in a room of a runner's. A GPU has its next step before the host knows the token of the last."""

    def __init__(self, runner: StepRunner, pages: int, room: Room) -> None:
        self._runner, self.room = runner, room
        self._pages = range(1, pages + 1)
        self._length = 0
        self._last: Step | None = None
        self._next: Step | None = None  # of one token
        self._waiting: deque[Callable[[], None]] = deque()  # what the simulated chip runs when it is asked
        self._begun: deque[_Begun] = deque()
        self._ran: list[tuple[list[_Ran], float]] = []
        self._seen = 0.0  # when the last token was
        self._closed = False

    def start(self, tokens: Sized[int], settings: Settings) -> None:
        at, parts = time.perf_counter(), range(0, len(tokens), MOST_TOKENS)
        steps = [self._step(tokens[first : first + MOST_TOKENS], settings) for first in parts]
        self._begun.append(_Begun(steps, steps[-1].step.send(), at))

    def follow(self, settings: Settings) -> None:
        def begin() -> None:
            at, last = time.perf_counter(), self._last
            step = self._last = self._next = self._next or self._runner.step(self.room, Layout(1, 1, len(self._pages)))
            counts = step.run(last, self.room.next_token(self._length, settings))
            self._length += 1
            ran = _Ran(step, (1,), (self._length,), counts)
            self._begun.append(_Begun([ran], ran.step.send(), at))

        if self._runner.chip.device is None:
            self._waiting.append(begin)
        else:
            begin()

    def finish(self) -> int:
        if not self._begun:
            self._waiting.popleft()()
        begun = self._begun.popleft()
        results = begun.results.wait()
        if not isfinite(results.scores[0]):
            raise InputError("the model gives scores that are not finite")
        now = time.perf_counter()
        self._ran.append((begun.steps, (now - max(begun.at, self._seen)) * 1e6))
        self._seen = now
        return int(results.tokens[0])

    def passes(self) -> list[Pass]:
        return [_bill(steps, wall_us) for steps, wall_us in self._ran]

    def close(self) -> None:
        if not self._closed:
            self._runner.give_back(len(self._pages), self.room)
        self._closed = True

    def _step(self, tokens: Sized[int], settings: Settings) -> _Ran:
        bucket = 1 if len(tokens) == 1 else -(-len(tokens) // BUCKET) * BUCKET
        step = self._last = self._runner.step(self.room, Layout(1, bucket, len(self._pages)))
        step.input.fill([Chunk(tokens, self._length, self._pages, settings)])
        counts = step.run()
        self._length += len(tokens)
        return _Ran(step, (len(tokens),), (self._length,), counts)


def _bill(steps: Sized[_Ran], wall_us: float) -> Pass:
    """What steps cost: counted on the simulated chip, closed forms on a GPU, whose time is measured."""
    solved, counts, tokens = [], Counts.zero(), 0
    for ran in steps:
        simulated = ran.step.chip.device is None
        counts += ran.counts if simulated else ran.step.theory(ran.q_lens, ran.kv_lens)
        tokens += sum(ran.q_lens)
        for (plan, problem), times in Counter(ran.step.solved(ran.q_lens, ran.kv_lens)).items():
            us = plan.kernel.predicted_us(problem, plan.schedule, plan.machine, "chain") if simulated else None
            solved.append(Solved(plan.kernel.name, len(plan.launches), problem, times, us))
    return Pass(tokens, tuple(solved), counts, wall_us)


class ReferenceRunner:
    """A model in float32 array code."""

    def __init__(self, llama: Llama) -> None:
        self.llama = llama

    @property
    def config(self) -> LlamaConfig:
        return self.llama.config

    def session(self, capacity: int) -> "ReferenceSession":
        """A sequence with a cache of its own; raises InputError where the model's context is shorter."""
        return ReferenceSession(self.llama, capacity)

    def logits(self, tokens: Sized[int]) -> NDArray[np.float32]:
        """Scores [tokens, vocab] of what follows each token of a text."""
        found: NDArray[np.float32] = self.llama.logits(self.llama.forward(tokens, self.llama.new_cache(len(tokens))))
        return found


class ReferenceSession:
    """A sequence of the reference's."""

    def __init__(self, llama: Llama, capacity: int) -> None:
        self._llama, self._cache = llama, llama.new_cache(capacity)
        self._next: deque[tuple[Sized[int], Settings]] = deque()  # no tokens: the last one
        self._last = 0
        self._passes: list[Pass] = []

    def start(self, tokens: Sized[int], settings: Settings) -> None:
        self._next.append((tokens, settings))

    def follow(self, settings: Settings) -> None:
        self._next.append(((), settings))

    def finish(self) -> int:
        llama, c = self._llama, self.config
        started = time.perf_counter()
        tokens, settings = self._next.popleft()
        tokens = tokens or (self._last,)
        logits = llama.logits(llama.forward(tokens, self._cache)[-1:])[0]
        if not np.isfinite(logits).all():
            raise InputError("the model gives scores that are not finite")
        token = self._last = sampled(logits, settings)
        wall_us = (time.perf_counter() - started) * 1e6
        new, length = len(tokens), self._cache.length
        attention = Attention(1, c.q_heads, c.kv_heads, c.head_dim, new, length, kv=llama.unit.format)
        linear = Counter(llama.unit.drain())
        solved = [Solved("numpy", 1, problem, times, None) for problem, times in linear.items()]
        solved.append(Solved("numpy", 1, attention, c.layers, None))
        counts = Counts(flops=sum(s.times * s.problem.flops for s in solved))
        self._passes.append(Pass(new, tuple(solved), counts, wall_us))
        return token

    @property
    def config(self) -> LlamaConfig:
        return self._llama.config

    def passes(self) -> list[Pass]:
        return self._passes

    def close(self) -> None:
        """The cache goes with the session."""
