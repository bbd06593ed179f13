"""A model of integers in pages: each token's key depends on all keys before it, the next token on all of them.

So a page that is shared, copied, evicted or handed out wrongly changes tokens, and what is right is exact.
"""

from collections import deque
from collections.abc import Sequence as Sized

import numpy as np

from lab.inference.step_input import NULL_PAGE
from lab.serving.policy import Policy
from lab.serving.scheduler import Scheduler
from lab.serving.step import StepPlan, StepResult

PRIME, BASE, VOCAB = 2_147_483_629, 1_000_003, 4


def key(before: int, token: int) -> int:
    return (before * BASE + token + 1) % PRIME


def token_of(keys: Sized[int]) -> int:
    """What follows a token with these keys up to it."""
    return sum((i + 1) * int(k) for i, k in enumerate(keys)) % 1_000_033 % VOCAB


def expected(prompt: Sized[int], count: int, ends: Sized[int] = ()) -> list[int]:
    """The tokens of one request on its own."""
    keys: list[int] = []
    tokens = list(prompt)
    for token in tokens:
        keys.append(key(keys[-1] if keys else 7, token))
    for _ in range(count):
        tokens.append(token_of(keys))
        if tokens[-1] in ends:
            break
        keys.append(key(keys[-1], tokens[-1]))
    return tokens[len(prompt) :]


class ReferenceExecutor:
    """Runs plans in order, in one memory of pages and one of the host's."""

    def __init__(self, scheduler: Scheduler) -> None:
        p: Policy = scheduler.policy
        self.scheduler = scheduler
        self.memory = np.full((p.pages, p.page_tokens), -1, np.int64)
        self.host = np.full((p.host_pages, p.page_tokens), -1, np.int64)
        self.results: deque[StepResult] = deque()
        self._sampled: dict[int, int] = {}
        self._clock = 0.0

    def submit(self, plan: StepPlan) -> None:
        """Compute a step at once; its results are taken later."""
        for source, target in plan.swapped_out:
            self.host[target] = self.memory[source]
        for source, target in plan.swapped_in:
            self.memory[target] = self.host[source]
        for source, target in plan.copies:
            self.memory[target] = self.memory[source]
        size, tokens, sampled = self.scheduler.policy.page_tokens, [], {}
        for sequence, start, count in zip(plan.sequences, plan.starts, plan.counts, strict=True):
            ident, table = sequence.request.id, self.scheduler.slots.tables[sequence.slot]
            for i in range(start, start + count):
                token = sequence.tokens[i] if i < len(sequence.tokens) else self._sampled[ident]
                before = self.memory[table[(i - 1) // size], (i - 1) % size] if i else 7
                assert table[i // size] != NULL_PAGE
                self.memory[table[i // size], i % size] = key(int(before), token)
            keys = [self.memory[table[i // size], i % size] for i in range(start + count)]
            sampled[ident] = token_of(keys)
            tokens.append(sampled[ident])
        self._sampled = sampled
        self.results.append(StepResult(plan.step, tokens, self._clock + 1, 1.0))
        self._clock += 1
