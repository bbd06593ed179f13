"""Engines on chips of their own, of a tiny model, with what is told of their requests; other processes import this."""

from collections.abc import Iterator
from collections.abc import Sequence as Sized
from contextlib import contextmanager
from typing import Any

from lab.inference.chip import Chip
from lab.inference.step_weights import StepWeights, random
from lab.problems import Model
from lab.serving.clock import Clock
from lab.serving.disaggregation.on_chips import ChipFleet, Weights
from lab.serving.engine import StepFacts
from lab.serving.policy import Policy
from lab.serving.request import Request, Sequence

MODEL = Model(2, 256, q_heads=4, kv_heads=2, head_dim=64, ffn=512, vocab=512)
POLICY = Policy(max_rows=4, max_tokens=48, pages=12, max_length=256)


def weights(chip: Chip) -> StepWeights:
    """The same ones in every process."""
    return random(MODEL, 512, chip)


class Heard:
    """What was told of each request: its tokens, and why it ended."""

    def __init__(self) -> None:
        self.sequences: dict[int, Sequence] = {}
        self.tokens: dict[int, list[int]] = {}
        self.reasons: dict[int, str] = {}

    def __call__(self, _: StepFacts, emitted: Sized[Sequence]) -> None:
        for s in emitted:
            self.sequences[s.request.id] = s
            self.tokens.setdefault(s.request.id, []).append(s.tokens[-1])
            if s.reason:
                self.reasons[s.request.id] = s.reason

    def gone(self, id: int, why: str) -> None:
        assert why == "it was killed"
        assert id not in self.reasons
        self.reasons[id] = "gone"


@contextmanager
def fleet(
    heard: Heard,
    chip: Chip,
    clock: Clock,
    prefills: int = 1,
    decodes: int = 1,
    apart: bool = False,
    layered: bool = True,
    of: Weights = weights,
) -> Iterator[ChipFleet]:
    """So many engines of each kind, all on one chip; when it ends every page of those alive was free."""
    sites = [chip] * prefills, [chip] * decodes
    found = ChipFleet.of(of, *sites, POLICY, heard, heard.gone, clock, apart, layered)
    try:
        yield found
        for scheduler in found.front.receivers.values():
            assert scheduler.pool.available == POLICY.pages - 1
            assert not scheduler.reserved
    finally:
        found.stop()


def requests(count: int, length: int = 100, tokens: int = 6, **more: Any) -> list[Request]:
    """Prompts of several pages, of one, and of other lengths."""
    asked = [tuple((j * 7 + i * 31) % 512 for j in range(length - 9 * i)) for i in range(count)]
    return [Request(i, prompt, tokens - i % 3, **more) for i, prompt in enumerate(asked)]


def kill_prompts(found: ChipFleet, heard: Heard, asked: Sized[Request], after: int) -> None:
    """Serve requests, and kill the first process of prompts when so many have a token."""
    for request in asked:
        found.add(request)
    while found.step() and len(heard.tokens) < after:
        pass
    victim = found.workers[0].process
    assert victim
    victim.kill()
    while found.step():
        pass
    victim.join()
    found.step()  # all may have been answered before the process had ended, and nobody looks when nothing is asked
    assert set(heard.reasons) == {request.id for request in asked}
    answered = {id for id, reason in heard.reasons.items() if reason == "length"}
    assert set(heard.tokens) == answered, "one that had tokens was cut off"
    if len(found.workers) > 1:
        assert len(answered) == len(asked), "those of the dead are begun again"
    assert len(found.front.senders) == len(found.workers) - 1
