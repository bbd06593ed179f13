"""Serving jobs on several GPUs, by predicted times."""

from typing import Any

from experiments.running.jobs import ServeJob
from experiments.running.serving import asked, model_of, policy_of
from lab.problems import Model
from lab.record import Value
from lab.serving.disaggregation.fleet import Disaggregated, serve
from lab.serving.disaggregation.setups import Setup, fleet_of
from lab.serving.metrics import Steps, per_request, summarise
from sim.machine import Machine

NEEDS_TWO = "several GPUs are predicted here, not measured; `lab bench serve --disaggregate P:D --on gpu` alone is"


def pages_of(gpus: str, model: Model, machine: Machine) -> int:
    """Pages of each engine's cache that fit beside its weights, in a set-up or on one GPU."""
    return (Setup.of(gpus) if gpus else Setup()).pages(model, machine)


def predicted_fleet(job: ServeJob, machine: Machine, every: dict[str, list[Any]] | None = None) -> dict[str, Value]:
    """The figures of a job on several GPUs; `every` is given each request's times in seconds, as vLLM names them.

    Of pushes: `push_us` of the mean one, `push_exposed_us` that its flag comes after its step, and `push_share` of the
    time that engines of prefill computed. `busy_<engine>` is the share of the run in which an engine computed.
    """
    setup, model, policy = Setup.of(job.gpus), model_of(job), policy_of(job)
    steps = [Steps() for _ in range(setup.gpus)]
    fleet = fleet_of(setup, model, machine, policy, steps.__getitem__)
    sequences = serve(fleet, asked(job), job.max_concurrency)
    if every is not None:
        every.update(per_request(sequences))
    facts = sorted((f for one in steps for f in one.facts), key=lambda f: f.ended_us)
    kv = model.kv_bytes_per_token
    found = summarise(sequences, facts, policy.page_tokens, kv, job.goodput, job.percentiles)
    for name in ("idle_fraction", "host_us", "p99_host_us"):  # of one engine
        found.pop(name, None)
    if job.long:
        long = summarise([s for s in sequences if len(s.request.prompt) >= job.long], facts, policy.page_tokens, kv)
        found |= {f"long_{name}": value for name, value in long.items() if "ttft" in name}
    schedulers = [engine.scheduler for engine in fleet.engines]
    found |= {"gpus": job.gpus, "preemptions": sum(s.preemptions for s in schedulers)}
    found["prefix_hits"] = sum(s.hits for s in schedulers)
    whole_us = 1e6 * found["duration"]
    names = [f"{i}" for i in range(len(fleet.engines))]
    if isinstance(fleet, Disaggregated):
        prefills = setup.engines[0]
        names = [f"prefill_{i}" for i in range(prefills)] + [f"decode_{i}" for i in range(setup.engines[1])]
        computing = sum(f.us for one in steps[:prefills] for f in one.facts)
        pushes = fleet.pushes
        if pushes:
            found["push_us"] = sum(p.us for p in pushes) / len(pushes)
            found["push_exposed_us"] = sum(p.exposed_us for p in pushes) / len(pushes)
            found["push_share"] = sum(p.us for p in pushes) / computing
    return found | {
        f"busy_{name}": sum(f.us for f in one.facts) / whole_us for name, one in zip(names, steps, strict=False)
    }
