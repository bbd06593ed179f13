"""The serving loop on the GPU: tokens of each request are those of its own run; steps follow one another by marks."""

import pytest

from experiments.running.jobs import ServeJob
from experiments.running.serving import policy_of
from experiments.running.serving_on_device import Loop
from lab.inference import chip as chips
from lab.inference.step_weights import random
from lab.problems import Model
from sim.machine import Machine

MODEL = Model(2, 256, q_heads=4, kv_heads=2, head_dim=64, ffn=512, vocab=512)


@pytest.mark.parametrize("preemption", ["recompute", "swap"])
@pytest.mark.parametrize("look_ahead", [True, False])
@pytest.mark.usefixtures("cupy")
def test_a_loop_serves_what_single_sequences_get(chip: Machine, preemption: str, look_ahead: bool) -> None:
    policy = {
        "max_rows": 8,
        "max_tokens": 96,
        "pages": 13,
        "host_pages": 24,
        "max_length": 256,
        "preemption": preemption,
    }
    requests = tuple((50.0 * i, 20 + 5 * i, 110 - 3 * i) for i in range(9))
    job = ServeJob(problem=MODEL.as_dict(), requests=requests, policy=policy, look_ahead=look_ahead, attribute=True)
    gpu = chips.gpu(chip)
    loop = Loop(MODEL, policy_of(job), look_ahead, gpu, random(MODEL, 512, gpu))
    for _ in range(2):
        run = loop.serve(job)
        found = run.figures
        assert found["completed"] == len(requests)
        assert found["preemptions"]
        assert all(fact.us > 0 and fact.idle_us > -1 for fact in run.facts)
        assert loop.check().passed
        assert not loop.scheduler.busy
        assert run.attributed()["measured_over_predicted_decode"] > 0
