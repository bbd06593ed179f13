"""lab bench serve: a workload for a serving loop, under the flags and the JSON keys of `vllm bench serve`."""

import json
from collections import Counter
from contextlib import nullcontext
from datetime import UTC, datetime
from math import inf
from pathlib import Path
from typing import Annotated, Any

import typer

from experiments.cli.options import Json, On, Where
from experiments.cli.options import Machine as MachineName
from experiments.cli.output import emit, number, say, table
from experiments.cli.serving import (
    Devices,
    Disaggregate,
    LoopOptions,
    Model,
    Replicas,
    TensorParallel,
    devices_of,
    gpus_of,
    with_loop,
)
from experiments.cli.waiting import working
from sim.errors import InputError

Dataset = Annotated[
    str,
    typer.Option(help="random, azure-conv, azure-code, mooncake, or trace: lengths of real traffic, or of a file."),
]
Trace = Annotated[str, typer.Option("--dataset-path", metavar="FILE.jsonl", help="A trace, as Mooncake writes them.")]
Prompts = Annotated[int, typer.Option(min=1, help="How many requests.")]
Rate = Annotated[float, typer.Option(metavar="R", help="Requests a second; inf sends all at once.")]
Burstiness = Annotated[float, typer.Option(help="The shape of the gamma process of arrivals; 1 is Poisson.")]
Concurrency = Annotated[int, typer.Option(min=0, help="The most requests under way at once; 0 is any number.")]
InputLen = Annotated[int, typer.Option("--random-input-len", min=1, help="Tokens of a random prompt.")]
OutputLen = Annotated[int, typer.Option("--random-output-len", min=1, help="Tokens of a random request's answer.")]
Ratio = Annotated[float, typer.Option("--random-range-ratio", help="By which share random lengths differ.")]
Prefix = Annotated[int, typer.Option("--random-prefix-len", min=0, help="First tokens that all prompts share.")]
Goodput = Annotated[
    list[str] | None, typer.Option(metavar="SLO:MS", help="Count requests within limits, such as ttft:500 or tpot:25.")
]
Percentiles = Annotated[str, typer.Option("--metric-percentiles", metavar="P,...", help="Which of times are told.")]
Seed = Annotated[int, typer.Option(min=0, help="Of lengths, tokens and arrivals.")]
Save = Annotated[bool, typer.Option("--save-result", help="Write the document to a file, all times among it.")]
Result = Annotated[str, typer.Option("--result-filename", metavar="FILE", help="That file.")]
Static = Annotated[bool, typer.Option("--static", help="Admit a batch only when the one before is done.")]
BaseUrl = Annotated[
    str,
    typer.Option(metavar="URL", help="Send it to a server with OpenAI's interface, which serves that model."),
]

DEADLINE_S = 600.0  # of a run on a GPU
FEWEST_TOKENS = 256  # of the vocabularies of servers: prompts are of these
SHOWN = ("ttft", "tpot", "itl", "max_itl", "e2el")


@with_loop
def bench_serve(
    model: Model = "llama-3-8b",
    dataset_name: Dataset = "random",
    dataset_path: Trace = "",
    num_prompts: Prompts = 200,
    request_rate: Rate = inf,
    burstiness: Burstiness = 1.0,
    max_concurrency: Concurrency = 0,
    input_len: InputLen = 1024,
    output_len: OutputLen = 128,
    range_ratio: Ratio = 0.0,
    prefix_len: Prefix = 0,
    goodput: Goodput = None,
    metric_percentiles: Percentiles = "50,90,99",
    seed: Seed = 0,
    loop: LoopOptions = LoopOptions(),  # noqa: B008 (it is frozen)
    static: Static = False,
    disaggregate: Disaggregate = "",
    replicas: Replicas = 0,
    tensor_parallel: TensorParallel = 0,
    devices: Devices = "",
    save_result: Save = False,
    result_filename: Result = "",
    base_url: BaseUrl = "",
    on: On = Where.SIM,
    machine: MachineName = "h200",
    as_json: Json = False,
) -> None:
    """Serve a workload by one scheduler, on predicted times or on this machine's GPU, or send it to a server.

    On the simulated chip nothing is computed: time is virtual and tokens are made up, answers have the length asked
    for. On a GPU weights are random. Output has the keys that vllm bench serve writes, and more.
    """
    from dataclasses import asdict, replace

    from experiments.running import backends
    from experiments.running.fleets import NEEDS_TWO, pages_of, predicted_fleet
    from experiments.running.jobs import ServeJob
    from experiments.running.pair_on_device import FleetWork, serve_fleet
    from experiments.running.serving import predicted
    from lab.problems.model import model_named
    from lab.record import provenance
    from lab.serving.disaggregation.setups import Setup
    from lab.serving.metrics import goodput_of, per_request, summarise
    from lab.serving.simulated import pages_within
    from lab.serving.workload import Workload
    from sim.machine import machine as machine_named

    limits, asked = goodput_of(goodput or ()), _percentiles(metric_percentiles)
    if (loop.journal and base_url) or (on is Where.GPU and (loop.journal or save_result)):
        raise InputError("a journal is written of predicted loops, all times of them and of servers")
    gpus = gpus_of(disaggregate, replicas, tensor_parallel)
    if (gpus and base_url) or (on is Where.GPU and (replicas or tensor_parallel)):
        raise InputError(NEEDS_TWO)
    if devices and not (disaggregate and on is Where.GPU):
        raise InputError("--devices are for --disaggregate --on gpu")
    prompts, answers = devices_of(devices, *Setup.of(gpus).engines) if disaggregate else ([], [])
    if gpus and loop.journal:
        raise InputError("a journal is of one loop's decisions; this set-up has several")
    chip = backends.real_machine() if on is Where.GPU else machine_named(machine)
    lengths = (input_len, output_len, range_ratio, prefix_len, loop.max_model_len)
    workload = Workload(dataset_name, num_prompts, request_rate, burstiness, *lengths, seed, dataset_path)
    every: dict[str, list[Any]] = {}
    rules: dict[str, Any] | None = None
    with working(f"serving {num_prompts} requests"):
        if base_url:
            sequences = _load()(base_url, model, workload.requests(FEWEST_TOKENS), max_concurrency)
            found, every = summarise(sequences, (), 1, 0, limits, asked), per_request(sequences)
        else:
            chosen = model_named(model)
            most = max(Counter([*prompts, *answers]).values(), default=1)  # engines of a GPU
            pages = loop.num_gpu_blocks or (
                pages_within(chosen, chip, most) if most > 1 else pages_of(gpus, chosen, chip)
            )
            rules = asdict(replace(loop, num_gpu_blocks=pages).policy(chosen, chip, continuous=not static))
            job = ServeJob(
                problem=chosen.as_dict(),
                requests=tuple((r.arrival_us, len(r.prompt), r.max_tokens) for r in workload.requests(2)),
                policy=rules,
                max_concurrency=max_concurrency,
                prefix=prefix_len,
                goodput=limits,
                percentiles=asked,
                seed=seed,
                gpus=gpus,
                experiment="bench_serve",
            )
            if on is Where.GPU and gpus:
                work = FleetWork(job=job, prompts=tuple(prompts), answers=tuple(answers))
                records = backends.GpuBackend(chip, "bench_serve", provenance()).worked(serve_fleet, work, DEADLINE_S)
                (record,) = records
                found = dict(record.metrics)
            elif on is Where.GPU:
                records = backends.GpuBackend(chip, "bench_serve", provenance()).served([job], DEADLINE_S)
                found = next(dict(r.metrics) for r in records if r.on == "gpu")
            elif gpus:
                found = dict(predicted_fleet(job, chip, every))
            else:
                with Path(loop.journal).open("wb") if loop.journal else nullcontext() as file:
                    found = dict(predicted(job, chip, file=file, every=every))
    document = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "backend": "openai" if base_url else f"lab-{on.value}",
        "model_id": model,
        "tokenizer_id": model,
        "num_prompts": num_prompts,
        "request_rate": "inf" if request_rate == inf else request_rate,
        "burstiness": burstiness,
        "max_concurrency": max_concurrency or None,
        "machine": None if base_url else chip.name,
        "clock": "wall" if base_url or on is Where.GPU else "predicted",
        "policy": rules,
        **found,
    }
    if save_result:
        path = Path(result_filename or f"lab-{model}-{dataset_name}-{num_prompts}.json")
        path.write_text(json.dumps(document | every) + "\n")
    emit(document, as_json, lambda d: _render(d, asked, base_url or chip.title))


def _load() -> Any:
    """What sends a workload to a server; raises InputError where its package is missing."""
    try:
        from experiments.running.http_load import load
    except ImportError:
        raise InputError("measuring a server needs the package httpx: pip install 'kernel-lab[serve]'") from None
    return load


def _percentiles(words: str) -> tuple[float, ...]:
    try:
        found = tuple(float(word) for word in words.split(","))
    except ValueError:
        found = (-1.0,)
    if not all(0 <= p <= 100 for p in found):
        raise InputError(f"percentiles are numbers from 0 to 100 with commas between; got {words!r}")
    return found


def _render(document: dict[str, Any], percentiles: tuple[float, ...], title: str) -> None:
    several = f", {document['gpus']}" if "gpus" in document else ""
    say(f"{document['model_id']}, {title}{several}, times by the {document['clock']} clock")
    names = ["mean", "median", *(f"p{p:g}" for p in percentiles)]
    rows = [[f"{name}, ms", *(number(document.get(f"{of}_{name}_ms")) for of in names)] for name in SHOWN]
    table(["", *names], rows)
    figures = {
        "requests completed": document["completed"],
        "seconds": document["duration"],
        "requests a second": document["request_throughput"],
        "of them within the limits": document.get("request_goodput"),
        "output tokens a second": document["output_throughput"],
        "tokens a second": document["total_token_throughput"],
        "longest gap between tokens, ms": document["max_itl_ms"],
        "steps": document.get("steps"),
        "sequences of a step": document.get("mean_rows"),
        "bytes read of the cache": document.get("kv_bytes"),
        "room in block tables that is empty": document.get("kv_waste"),
        "preemptions": document.get("preemptions"),
        "prompt tokens found in the cache": document.get("prefix_hits"),
        "host, us a step": document.get("host_us"),
        "share of time without a step": document.get("idle_fraction"),
        "pushes, us each": document.get("push_us"),
        "of them after prefill's step": document.get("push_exposed_us"),
        "pushes as a share of prefill's time": document.get("push_share"),
    }
    table(["", ""], [[name, number(value)] for name, value in figures.items() if value is not None])
