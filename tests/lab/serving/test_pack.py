"""What a chip is told of a plan is what one sequence after another would be told, and nobody's page beside it."""

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from lab.inference.step_input import NULL_PAGE, PAGE, Chunk, StepInput
from lab.problems.sampling import Settings
from lab.serving.request import Request
from lab.serving.scheduler import Policy, Scheduler
from lab.serving.step import StepResult, pack


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_packed_plans_are_the_chunks_they_consist_of(data: Any) -> None:
    policy = Policy(max_rows=5, max_tokens=160, pages=40, max_length=300)
    scheduler = Scheduler(policy)
    for i in range(data.draw(st.integers(1, 7))):
        length = data.draw(st.sampled_from([1, 2, 63, 64, 65, 130, 200]))
        chosen = Settings(temperature=data.draw(st.sampled_from([0.0, 0.5])), seed=i)
        scheduler.add(Request(i, tuple(range(i, i + length)), 12, chosen))
    known: dict[int, int] = {}
    before: dict[int, int] = {}
    blocks = {}
    for _ in range(data.draw(st.integers(1, 12))):
        plan = scheduler.schedule()
        if plan is None:
            break
        layout = policy.buckets.of(plan.rows, plan.tokens)
        step = blocks.setdefault(layout, StepInput(layout))  # what the block held before must not matter
        takes = pack(plan, scheduler.slots, step, before)
        drawn = [1000 + plan.step * 10 + row for row in range(plan.rows)]
        chunks = []
        for sequence, start, count in zip(plan.sequences, plan.starts, plan.counts, strict=True):
            tokens = [*sequence.tokens, known.get(sequence.request.id, 0)][start : start + count]
            draw = max(0, start + count - len(sequence.request.prompt))
            chunks.append(Chunk(tokens, start, sequence.pages, sequence.request.settings._replace(draw=draw)))
        last = list(before)
        for take in takes:
            values = [known[last[row]] for row in range(take.row, take.row + take.number)]
            step.fields["tokens"][take.at : take.at + take.number] = values
        assert np.array_equal(step.block, StepInput(layout).fill(chunks).block)
        padding = step.fields["slots"][plan.tokens :]
        assert (padding // PAGE == NULL_PAGE).all()
        assert not step.fields["block_table"][plan.rows :].any()
        before = {sequence.request.id: row for row, sequence in enumerate(plan.sequences)}
        known = dict(zip(before, drawn, strict=True))
        waiting = data.draw(st.booleans())
        if not waiting or len(scheduler.in_flight) == 2:
            first = scheduler.in_flight[0]
            tokens = [1000 + first.step * 10 + row for row in range(first.rows)]
            scheduler.commit(StepResult(first.step, tokens, 1.0, 1.0))
