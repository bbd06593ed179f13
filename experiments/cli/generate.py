"""lab generate: a language model whose every layer is a kernel of the lab, and the bill of each phase."""

import unicodedata
from enum import StrEnum
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

import typer

from experiments.cli.options import Json, Keep, Machine
from experiments.cli.output import emit, number, say, table
from experiments.cli.waiting import working


class Unit(StrEnum):
    """What computes; "reference" is plain float32 NumPy."""

    SIM = "sim"
    GPU = "gpu"
    REFERENCE = "reference"


Prompt = Annotated[str, typer.Argument(metavar="PROMPT", help="The text to go on from.", show_default=False)]
Model = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE.gguf|FOLDER",
        help="A Llama-class model, GGUF or Hugging Face's; SmolLM2-135M-Instruct by default.",
    ),
]
Random = Annotated[bool, typer.Option("--random", help="Draw the weights of the preset that --model names.")]
Weights = Annotated[str, typer.Option(help="Round matrices to bf16, fp8, int4_g32, int4_g64 or int4_g128.")]
MaxTokens = Annotated[int, typer.Option(min=1, help="How many tokens to generate at most.")]
Chat = Annotated[bool, typer.Option("--chat", help="Put the prompt into the model's chat template.")]
Temperature = Annotated[float, typer.Option(help="0 takes the likeliest token each time.")]
TopK = Annotated[int, typer.Option(help="Draw from this many likeliest tokens; 0 allows all.")]
TopP = Annotated[float, typer.Option(help="Keep a token where likelier ones have less than this much probability.")]
MinP = Annotated[float, typer.Option(help="Keep a token with at least this share of the likeliest one's probability.")]
Seed = Annotated[int, typer.Option(help="Of the draws.")]
On = Annotated[Unit, typer.Option("--on", help="The simulated chip, this machine's GPU, or plain NumPy.")]


def generate(
    prompt: Prompt,
    model: Model = None,
    random: Random = False,
    weights: Weights = "",
    max_tokens: MaxTokens = 32,
    chat: Chat = False,
    temperature: Temperature = 0.0,
    top_k: TopK = 0,
    top_p: TopP = 1.0,
    min_p: MinP = 0.0,
    seed: Seed = 0,
    on: On = Unit.SIM,
    machine: Machine = "h100",
    record: Keep = None,
    as_json: Json = False,
) -> None:
    """Generate text with a model made of these kernels, then print what prefill and decode cost."""
    from experiments.running import backends
    from experiments.running.generation import records
    from lab.inference import Settings
    from lab.inference import generate as start
    from lab.record import append, folder, provenance
    from sim.machine import machine as machine_named

    chip = backends.real_machine() if on is Unit.GPU else machine_named(machine)
    settings = Settings(temperature, top_k, top_p, min_p, seed)
    generation = start(prompt, model, max_tokens, chat, on.value, chip, settings, random, weights)
    pieces = iter(generation)
    with working("reading the prompt: the simulated chip's kernels are compiled at first"):
        first = next(pieces, "")
    for piece in chain([first] if chat else [prompt, first], pieces):
        if not as_json:
            print(printable(piece), end="", flush=True)
    if record or (record is None and on is Unit.GPU):
        for kept in records(generation, provenance()):
            append(kept, folder() / "generate.jsonl")
    document = generation.as_dict()
    emit(document, as_json, lambda d: _render(d, chip.title))


def printable(text: str) -> str:
    """Text from a model as a terminal may show it: without control characters other than line breaks and tabs."""
    return "".join(c for c in text if unicodedata.category(c) != "Cc" or c in "\n\t")


def _render(document: dict[str, Any], title: str) -> None:
    say("\n")
    say(f"{document['model']} on {document['on']}, {title}")
    phases = document["phases"]
    rows: list[tuple[str, list[str]]] = [
        ("tokens", [number(p["tokens"]) for p in phases]),
        *[(f"launches: {name}", [number(p["launches"].get(name)) for p in phases]) for name in _kernels(phases)],
        *[(f"bytes: {name}", [number(p["bytes"][name]) for p in phases]) for name in ("weights", "kv", "activations")],
        ("FLOPs", [number(p["flops"]) for p in phases]),
        ("intensity, FLOP/B", [f"{number(p['intensity'])} (ridge {p['ridge']:.0f})" for p in phases]),
        ("regime", [p["regime"] for p in phases]),
        ("time, us", [f"{number(p['us'])} ({p['clock']})" for p in phases]),
        ("us a token", [number(p["us"] / p["tokens"]) for p in phases]),
        *[(f"{bill} bill, us", [number(p[f"{bill}_us"]) for p in phases]) for bill in ("compute", "memory", "launch")],
        ("floor, us: the largest bill", [number(p["floor_us"]) for p in phases]),
        ("tokens/s here, wall clock", [number(p["tokens"] / p["wall_us"] * 1e6) for p in phases]),
    ]
    table(["", *(p["phase"] for p in phases)], ([name, *values] for name, values in rows))
    for phase in phases:
        say(f"{phase['phase']} is {phase['regime']}-bound: {_because(phase)}")


def _kernels(phases: list[dict[str, Any]]) -> list[str]:
    return sorted({name for phase in phases for name in phase["launches"]})


def _because(phase: dict[str, Any]) -> str:
    """The bill that decides, in words."""
    use = number(round(phase["flops"] / phase["bytes"]["weights"], 2))
    if phase["regime"] == "overhead":
        larger = "compute" if phase["compute_us"] > phase["memory_us"] else "memory"
        return f"launches take longer than either bill, of which {larger} is the larger; {use} FLOPs a weight byte"
    return f"{use} FLOPs a weight byte"
