"""lab serve: a model behind OpenAI's HTTP interface, on a GPU, on the simulated chip, or on predicted times."""

import socket
import sys
from collections import Counter
from contextlib import nullcontext
from dataclasses import replace
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from experiments.cli.options import Json, On, Where
from experiments.cli.options import Machine as MachineName
from experiments.cli.output import emit, say
from experiments.cli.serving import (
    Devices,
    Disaggregate,
    LoopOptions,
    Replicas,
    TensorParallel,
    Threads,
    devices_of,
    gpus_of,
    with_loop,
)
from sim.errors import EnvironmentFailure, InputError

SIMULATED_PAGES = 256  # of a checkpoint on the simulated chip, whose memory is this computer's


class Pace(StrEnum):
    """Whether the simulated chip takes as long as it predicts."""

    REAL = "real"
    FAST = "fast"


Model = Annotated[
    str,
    typer.Argument(
        metavar="[MODEL]",
        help="A GGUF file, a Hugging Face folder, or a preset of lab explain model, of which only times are told; "
        "SmolLM2-135M-Instruct where none is named.",
    ),
]
Host = Annotated[str, typer.Option(help="The address to listen on.")]
Port = Annotated[int, typer.Option(min=0, max=65535, help="The port; 0 takes a free one.")]
PaceOf = Annotated[
    Pace, typer.Option("--pace", help="real: steps take as long as predicted; fast: only the clock says so.")
]
Name = Annotated[str, typer.Option("--served-model-name", help="What clients call the model; its own name by default.")]
Queue = Annotated[int, typer.Option(min=1, help="The most requests under way; more are refused with 429.")]


@with_loop
def serve(
    model: Model = "",
    host: Host = "127.0.0.1",
    port: Port = 8000,
    pace: PaceOf = Pace.REAL,
    served_model_name: Name = "",
    max_waiting: Queue = 1024,
    loop: LoopOptions = LoopOptions(max_num_seqs=64),  # noqa: B008 (it is frozen)
    disaggregate: Disaggregate = "",
    replicas: Replicas = 0,
    tensor_parallel: TensorParallel = 0,
    devices: Devices = "",
    one_process: Threads = False,
    on: On = Where.SIM,
    machine: MachineName = "h200",
    as_json: Json = False,
) -> int:
    """Serve a model: /v1/completions, /v1/chat/completions, /v1/models, /health, /metrics, and a live page at /.

    On the simulated chip clients measure the GPU that it simulates: steps take as long as predicted. Ctrl-C ends it.
    """
    try:
        import uvicorn

        from lab.serving.http.app import Front
        from lab.serving.http.gauges import Gauges
        from lab.serving.http.service import Service
    except ImportError as error:
        raise InputError(f"serving needs the extra serve ({error.name}): pip install 'kernel-lab[serve]'") from None
    from experiments.running import backends
    from lab.inference.chip import chip_of, gpu, simulated
    from lab.inference.download import default_weights
    from lab.inference.number_codec import NumberCodec
    from lab.problems import MODELS
    from lab.serving.clock import VirtualClock, WallClock
    from lab.serving.disaggregation.live import LiveFleet
    from lab.serving.disaggregation.on_chips import ChipFleet
    from lab.serving.disaggregation.setups import DISAGGREGATE, Setup
    from lab.serving.journal import Journal
    from lab.serving.models import Served, load, of_checkpoint, of_preset, weights_of
    from lab.serving.simulated import pages_within
    from lab.serving.times import StepTimes
    from sim.machine import machine as machine_named

    card = backends.real_machine() if on is Where.GPU else machine_named(machine)
    preset = MODELS.get(model)
    gpus = gpus_of(disaggregate, replicas, tensor_parallel)
    setup = Setup.of(gpus) if gpus else Setup()
    pair = bool(gpus) and not preset and setup.way == DISAGGREGATE
    if (gpus and not pair and not (preset and on is Where.SIM)) or (gpus and loop.journal):
        raise InputError(
            "several GPUs are served as predicted alone: a preset, on the simulated chip, without a journal; "
            "a file's model is by --disaggregate"
        )
    if (devices and not (pair and on is Where.GPU)) or (one_process and not pair):
        raise InputError("--devices and --one-process are for --disaggregate of a file's model, --devices --on gpu")
    if preset and on is Where.GPU:
        raise InputError(f"{model} is a preset without weights; on a GPU name a file")
    listening = _listen(host, port)
    path = Path(model) if model else default_weights()
    loaded, prompts, answers = None, [], []
    if pair:
        numbers: Any = [[None] * n for n in setup.engines]
        if on is Where.GPU:
            numbers = devices_of(devices, *setup.engines)
        prompts, answers = ([chip_of(card.name, number) for number in some] for some in numbers)
    if not preset:
        chip = answers[0] if pair else gpu(card) if on is Where.GPU else simulated(card)
        with chip.apart():
            loaded = load(path, chip)
        if on is Where.SIM and not loop.num_gpu_blocks:
            loop = replace(loop, num_gpu_blocks=SIMULATED_PAGES)
    sizes = preset or loaded.model
    if pair and not loop.num_gpu_blocks:
        most = max(Counter(chip.device for chip in (*prompts, *answers)).values())
        loop = replace(loop, num_gpu_blocks=pages_within(sizes, card, most))
    if gpus and not loop.num_gpu_blocks:
        loop = replace(loop, num_gpu_blocks=setup.pages(sizes, card))
    rules = loop.policy(sizes, card, context=loaded.checkpoint.config.context if loaded else 0)
    with Path(loop.journal).open("wb") if loop.journal else nullcontext() as file:
        lines = Journal(file, rules, StepTimes(sizes, card, rules.buckets)) if file else None
        service: Any = None

        def hear(facts: Any, emitted: Any) -> None:
            service.hear(facts, emitted)

        real = pace is Pace.REAL
        fleet: Any = None
        if pair:
            clock = WallClock() if real or on is Where.GPU else VirtualClock()
            known = {loaded.chip.device: loaded.weights}
            fleet = ChipFleet.of(
                partial(weights_of, path), prompts, answers, rules, hear, lambda *lost: service.gone(*lost), clock,
                not one_process, known=known,
            )  # fmt: skip
            served = Served(fleet, loaded.checkpoint.tokenizer, sizes.vocab)
        elif loaded:
            served = of_checkpoint(loaded, rules, hear, real, lines)
        elif gpus:
            fleet = LiveFleet(setup, sizes, card, rules, hear, real)
            served = Served(fleet, NumberCodec(), sizes.vocab)
        else:
            served = of_preset(preset, card, rules, hear, real, lines)
        gauges = Gauges(served.engine.scheduler)

        def died() -> None:
            server.should_exit = True

        service = Service(served.engine, max_waiting, gauges.hear, died)
        name = served_model_name or model or path.stem
        front = Front(name, service, served.codec, served.vocab, gauges)
        server = uvicorn.Server(uvicorn.Config(front.app(), log_level="warning", lifespan="off"))
        service.start()
        bound = listening.getsockname()
        by = f"predicted for the {card.title}" if on is Where.SIM else f"on {card.title}"
        by += f", {gpus}" if gpus else ""
        address = {"model": name, "url": f"http://{bound[0]}:{bound[1]}", "on": on.value, "card": card.name}
        emit(address, as_json, lambda a: say(f"{a['model']} is served at {a['url']}, {by}"))
        sys.stdout.flush()  # whoever reads it waits for this line
        try:
            server.run(sockets=[listening])
        finally:
            dead = service.failed
            service.stop()
            if pair:
                fleet.stop()
    if dead:
        raise EnvironmentFailure(f"the loop failed: {dead}")
    return 0


def _listen(host: str, port: int) -> socket.socket:
    """A socket that listens; raises EnvironmentFailure where the address cannot be had."""
    try:
        return socket.create_server((host, port), backlog=1024)
    except OSError as error:
        raise EnvironmentFailure(f"cannot listen on {host}:{port}: {error.strerror or error}") from None
