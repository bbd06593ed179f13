"""What a chip is told of a plan is what one sequence after another would be told, and nobody's page beside it."""

import inspect
import sys
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from lab.inference.step_input import NULL_PAGE, PAGE, Chunk, Layout, StepInput
from lab.problems.sampling import Settings
from lab.serving import step
from lab.serving.policy import Policy
from lab.serving.request import Request, Sequence
from lab.serving.scheduler import Scheduler
from lab.serving.step import Slots, StepPlan, StepResult, pack


def rows_of(packed: Any) -> list[int]:
    return np.arange(packed.layout.rows)[packed.rows].tolist()


def require_chunks(data: Any, pack: Any) -> None:
    """Raise AssertionError where a plan is packed as anything but the chunks that it consists of."""
    policy = Policy(max_rows=5, max_tokens=160, pages=40, max_length=300)
    scheduler = Scheduler(policy)
    for i in range(data.draw(st.integers(1, 7))):
        length = data.draw(st.sampled_from([1, 2, 63, 64, 65, 130, 200]))
        chosen = Settings(temperature=data.draw(st.sampled_from([0.0, 0.5])), seed=i)
        scheduler.add(Request(i, tuple(range(i, i + length)), data.draw(st.sampled_from([2, 12])), chosen))
    known: dict[int, int] = {}
    before = None
    words = max(layout.words for layout in policy.buckets.all())
    memory = [np.zeros(words, np.int32) for _ in range(2)]
    there: list[Any] = [None, None]
    for turn in range(data.draw(st.integers(1, 12))):
        plan = scheduler.schedule()
        if plan is None:
            break
        layout, half = policy.buckets.of(plan.singles, plan.chunks, plan.tokens), turn % 2
        block = StepInput(layout, memory[half][: layout.words])  # what else the block held before must not matter
        packed, takes = pack(plan, scheduler.slots, block, before, there[half])
        there[half] = packed
        drawn = [1000 + plan.step * 10 + row for row in range(plan.rows)]
        chunks = []
        for sequence, start, count in zip(plan.sequences, plan.starts, plan.counts, strict=True):
            tokens = [*sequence.tokens, known.get(sequence.request.id, 0)][start : start + count]
            draw = max(0, start + count - len(sequence.request.prompt))
            chunks.append(Chunk(tokens, start, sequence.pages, sequence.request.settings._replace(draw=draw)))
        last = (
            {row: s.request.id for row, s in zip(rows_of(before), before.plan.sequences, strict=True)} if before else {}
        )
        for take in takes:
            values = [known[last[row]] for row in range(take.row, take.row + take.number)]
            block.fields["tokens"][take.at : take.at + take.number] = values
        assert np.array_equal(block.block, StepInput(layout).fill(chunks).block)
        padding = block.fields["slots"][plan.tokens :]
        assert (padding // PAGE == NULL_PAGE).all()
        assert not block.fields["block_table"][sorted({*range(layout.rows)} - {*rows_of(packed)})].any()
        before = packed
        known = {s.request.id: token for s, token in zip(plan.sequences, drawn, strict=True)}
        waiting = data.draw(st.booleans())
        if not waiting or len(scheduler.in_flight) == 2:
            first = scheduler.in_flight[0]
            tokens = [1000 + first.step * 10 + row for row in range(first.rows)]
            scheduler.commit(StepResult(first.step, tokens, 1.0, 1.0))


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_packed_plans_are_the_chunks_they_consist_of(data: Any) -> None:
    require_chunks(data, step.pack)


def test_a_prompt_that_goes_on_token_by_token_takes_none_that_was_sampled() -> None:
    slots, sequence, layout = Slots(1, 2), Sequence(Request(0, (7, 8, 9), 2)), Layout(1, 1, 2)
    slots.seat(sequence)
    before = None
    for start, token in enumerate(sequence.request.prompt):
        plan = StepPlan(start, [sequence], [start], [1], [start == 2], tokens=1, singles=1)
        block = StepInput(layout)
        before, takes = pack(plan, slots, block, before)
        assert block.fields["tokens"].tolist() == [token]
        assert takes == []


MUTANTS = {
    "padding in the last page": ("NULL_PAGE * PAGE + np.arange(layout.tokens - tokens, dtype=np.int32) % PAGE", "-1"),
    "block not cleared": ("    into.block[:] = 0\n", ""),
    "positions from the chunk's start": ("np.repeat(starts + counts - 1 - last, counts)", "np.repeat(-last, counts)"),
    "tokens of another row": ("[Take(0, 0, plan.rows)]", "[Take(0, 1, plan.rows - 1)]"),
    "the slots of other sequences": (" and plan.sequences == before.plan.sequences", ""),
    "the draw before": ("settings[:, DRAW] = np.maximum(ends", "settings[:, DRAW] = np.maximum(starts"),
    "what another step left": ("there.seats is seats and ", ""),
    "a new page left out": ('        fields["block_table"][new, page] = pages\n', ""),
    "on behind the page before": ('        fields["slots"][new] = pages * PAGE + offset\n', ""),
    "the draw of two steps ago": ('    fields["settings"][rows, DRAW] = ', "    _ = "),
}


@pytest.mark.parametrize("mistake", MUTANTS)
def test_mistakes_are_caught(mistake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right, wrong = MUTANTS[mistake]
    source = inspect.getsource(step)
    assert source.count(right) == 1, "the mutant changes nothing"
    made = ModuleType("mutant")
    monkeypatch.setitem(sys.modules, "mutant", made)  # where dataclasses look their annotations up
    exec(compile(source.replace(right, wrong), "mutant", "exec"), made.__dict__)

    @given(st.data())
    @settings(max_examples=200, deadline=None, phases=[Phase.generate], derandomize=True)
    def packed(data: Any) -> None:
        require_chunks(data, made.pack)

    with pytest.raises((AssertionError, KeyError, ValueError)):
        packed()
