"""Serving jobs on either chip: what they ask, what is predicted of them, and the figures of a run."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.running.jobs import ServeJob, problem_of
from lab.record import Value
from lab.serving.engine import StepFacts, serve
from lab.serving.executor import Pace
from lab.serving.metrics import Steps, summarise
from lab.serving.request import Request
from lab.serving.request import Sequence as Served
from lab.serving.scheduler import Policy, Scheduler
from lab.serving.simulated import Overheads, simulated
from sim.machine import Machine


def model_of(job: ServeJob) -> Any:
    """The job's model."""
    return problem_of(job.problem)


def policy_of(job: ServeJob) -> Policy:
    """The job's policy."""
    return Policy(**job.policy)


def asked(job: ServeJob, salt: str = "", most: int | None = None) -> list[Request]:
    """The job's requests, of random tokens, or the first few; they share pages with none of another salt."""
    rng, vocab = np.random.default_rng(job.seed), model_of(job).vocab
    return [
        Request(id, tuple(rng.integers(0, vocab, prompt).tolist()), answer, arrival_us=at, salt=salt)
        for id, (at, prompt, answer) in enumerate(job.requests[:most])
    ]


def predicted(
    job: ServeJob, machine: Machine, overheads: Overheads | None = None, pace: Pace | None = None
) -> dict[str, Value]:
    """The figures of a job by predicted times, or by those that `pace` says."""
    steps, model = Steps(), model_of(job)
    engine = simulated(model, machine, policy_of(job), steps, overheads, pace, look_ahead=job.look_ahead)
    sequences = serve(engine, asked(job), job.max_concurrency)
    return metrics_of(job, sequences, steps.facts, engine.scheduler)


def metrics_of(
    job: ServeJob, sequences: Sequence[Served], facts: Sequence[StepFacts], scheduler: Scheduler
) -> dict[str, Value]:
    """The figures of a run; where the job tells long prompts apart, theirs begin with `long_`."""
    model, size = model_of(job), scheduler.policy.page_tokens
    short = [s for s in sequences if not job.long or len(s.request.prompt) < job.long]
    found = summarise(short, facts, size, model.kv_bytes_per_token)
    if job.long:
        others = [s for s in sequences if len(s.request.prompt) >= job.long]
        long = summarise(others, facts, size, model.kv_bytes_per_token)
        found |= {f"long_{name}": value for name, value in long.items() if "ttft" in name}
    return found | {"preemptions": scheduler.preemptions}
