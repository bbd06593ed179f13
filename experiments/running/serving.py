"""Serving jobs on either chip: what they ask, what is predicted of them, and the figures of a run."""

from collections.abc import Sequence
from typing import IO, Any

import numpy as np

from experiments.running.jobs import ServeJob, problem_of
from lab.record import Value
from lab.serving.engine import StepFacts, serve
from lab.serving.executor import Pace
from lab.serving.journal import Journal
from lab.serving.metrics import Steps, per_request, summarise
from lab.serving.policy import Policy
from lab.serving.request import Request
from lab.serving.request import Sequence as Served
from lab.serving.scheduler import Scheduler
from lab.serving.simulated import Overheads, simulated
from lab.serving.times import StepTimes
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
    first = rng.integers(0, vocab, job.prefix).tolist()
    found = []
    for id, (at, prompt, answer) in enumerate(job.requests[:most]):
        tokens = (first + rng.integers(0, vocab, max(prompt - job.prefix, 0)).tolist())[:prompt]
        found.append(Request(id, tuple(tokens), answer, arrival_us=at, salt=salt))
    return found


def predicted(
    job: ServeJob,
    machine: Machine,
    overheads: Overheads | None = None,
    pace: Pace | None = None,
    file: IO[bytes] | None = None,
    every: dict[str, list[Any]] | None = None,
) -> dict[str, Value]:
    """The figures of a job by predicted times, or by those that `pace` says.

    Its journal goes to `file`; `every` is given each request's times in seconds, as vLLM names them.
    """
    steps, model, policy = Steps(), model_of(job), policy_of(job)
    journal = Journal(file, policy, StepTimes(model, machine, policy.buckets)) if file else None
    loop = simulated(model, machine, policy, steps, overheads, pace, look_ahead=job.look_ahead, journal=journal)
    sequences = serve(loop, asked(job), job.max_concurrency)
    if every is not None:
        every.update(per_request(sequences))
    return metrics_of(job, sequences, steps.facts, loop.scheduler)


def metrics_of(
    job: ServeJob, sequences: Sequence[Served], facts: Sequence[StepFacts], scheduler: Scheduler
) -> dict[str, Value]:
    """The figures of a run; where the job tells long prompts apart, theirs begin with `long_`."""
    kv, size = model_of(job).kv_bytes_per_token, scheduler.policy.page_tokens
    short = [s for s in sequences if not job.long or len(s.request.prompt) < job.long]
    found = summarise(short, facts, size, kv, job.goodput, job.percentiles)
    if job.long:
        others = [s for s in sequences if len(s.request.prompt) >= job.long]
        long = summarise(others, facts, size, kv)
        found |= {f"long_{name}": value for name, value in long.items() if "ttft" in name}
    return found | {"preemptions": scheduler.preemptions, "prefix_hits": scheduler.hits}
