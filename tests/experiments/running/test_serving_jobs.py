"""A serving job as the worker runs it, here on the simulated chip: checked, and its error split."""

import pytest

from experiments.running.jobs import ServeJob
from experiments.running.serving import policy_of
from experiments.running.serving_on_device import Loop
from lab.inference import chip as chips
from lab.inference.step_weights import random
from lab.problems import Model
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
    found = loop.serve(JOB)
    assert found["completed"] == 2  # the others are told apart
    assert found["total_output_tokens"] == 7
    assert found["long_median_ttft_ms"] > 0
    assert found["host_us"] > 0
    told = loop.attributed(JOB)
    assert told["measured_over_predicted_mixed"] == pytest.approx(1.0)
    assert told["measured_over_predicted_decode"] == pytest.approx(1.0)
    assert told["steps_total_output_tokens"] == told["host_total_output_tokens"] == 7
    assert told["host_median_ttft_ms"] >= told["steps_median_ttft_ms"]
    check = loop.check()
    assert check.passed
    loop.sequences[0].tokens[-1] ^= 1
    loop.sequences[:] = loop.sequences[:1]
    assert not loop.check().passed
