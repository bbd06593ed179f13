"""A serving job as the worker runs it, here on the simulated chip: checked, and its error split."""

import pytest
from msgspec import structs

from experiments.running.jobs import ServeJob
from experiments.running.serving import policy_of
from experiments.running.serving_on_device import Loop, widest
from lab.inference import chip as chips
from lab.inference.step_weights import random
from lab.problems import Model
from lab.serving.policy import Policy
from sim.machine import H100

MODEL = Model(2, 256, q_heads=4, kv_heads=2, head_dim=64, ffn=512, vocab=512)
JOB = ServeJob(
    problem=MODEL.as_dict(),
    requests=((0.0, 70, 4), (0.0, 5, 3), (10.0, 130, 2)),
    policy={"max_rows": 4, "max_tokens": 64, "pages": 16, "max_length": 256},
    long=100,
    attribute=True,
)


def test_a_job_is_served_checked_and_attributed() -> None:
    chip = chips.simulated(H100)
    loop = Loop(MODEL, policy_of(JOB), True, chip, random(MODEL, 512, chip))
    run = loop.serve(JOB)
    found = run.figures
    assert found["completed"] == 2  # the others are told apart
    assert found["total_output_tokens"] == 7
    assert found["long_median_ttft_ms"] > 0
    assert found["host_us"] > 0
    told = run.attributed()
    assert told["measured_over_predicted_mixed"] == pytest.approx(1.0)
    assert told["measured_over_predicted_decode"] == pytest.approx(1.0)
    assert told["steps_total_output_tokens"] == told["host_total_output_tokens"] == 7
    assert told["host_median_ttft_ms"] >= told["steps_median_ttft_ms"]
    check = loop.check()
    assert check.passed
    loop.sequences[0].tokens[-1] ^= 1
    loop.sequences[:] = loop.sequences[:1]
    assert not loop.check().passed


def test_a_loop_serves_jobs_of_smaller_steps_by_their_own_limits() -> None:
    small = structs.replace(JOB, policy={**JOB.policy, "max_tokens": 32, "itl_us": 1e6})
    policy = widest(policy_of(small), [policy_of(JOB), Policy(max_rows=64, pages=17, max_length=256)])
    assert (policy.max_rows, policy.max_tokens) == (4, 64)
    chip = chips.simulated(H100)
    loop = Loop(MODEL, policy, True, chip, random(MODEL, 512, chip))
    assert all(map(loop.serves, (small, JOB)))
    assert not loop.serves(structs.replace(JOB, policy={**JOB.policy, "max_tokens": 128}))
    assert not loop.serves(structs.replace(JOB, policy={**JOB.policy, "pages": 17}))
    assert max(fact.tokens for fact in loop.serve(small).facts) == 32
    assert max(fact.tokens for fact in loop.serve(JOB).facts) == 64
