"""A workload on engines of prompts and of answers, here on simulated chips: the figures of any loop."""

from dataclasses import asdict

import msgspec

from experiments.running.jobs import ServeJob
from experiments.running.pair_on_device import FleetWork, serve_fleet
from lab.problems import Model
from lab.serving.policy import Policy

MODEL = Model(2, 256, q_heads=4, kv_heads=2, head_dim=64, ffn=512, vocab=512)


def test_a_workload_is_served_by_a_pair() -> None:
    requests = tuple((1000.0 * i, 40 + 20 * i, 4) for i in range(5))
    policy = asdict(Policy(max_rows=4, max_tokens=64, pages=12, max_length=256))
    job = ServeJob(
        problem=MODEL.as_dict(), requests=requests, policy=policy, gpus="disaggregate=1:1", max_concurrency=3
    )
    work = FleetWork(job=job, prompts=(None,), answers=(None,), machine="h200")
    (record,) = serve_fleet(msgspec.to_builtins(work))
    found = record.metrics
    assert (found["completed"], found["gpus"]) == (5, "disaggregate=1:1")
    assert found["total_output_tokens"] == 20
    assert 0 < float(found["median_itl_ms"] or 0) <= float(found["max_itl_ms"] or 0)
    assert float(found["median_ttft_ms"] or 0) > 0
    assert float(found["push_exposed_us"] or 0) > 0
