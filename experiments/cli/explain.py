"""lab explain: a problem's bills, intensity, regime and floor, before anything runs."""

from collections.abc import Sequence
from typing import Annotated, Any

import typer

from experiments.cli.options import Json, Machine, Words
from experiments.cli.output import emit, number, predicted, say, table
from sim.errors import InputError

Kind = Annotated[str, typer.Argument(metavar="KIND", help="linear, attention or model.", show_default=False)]


def explain(kind: Kind, words: Words = None, machine: Machine = "h100", as_json: Json = False) -> None:
    """Explain a problem: lab explain linear m=1 n=4096 k=4096; attention batch=..; model llama-2-13b context=4096."""
    import lab
    from sim.machine import machine as machine_named

    emit(lab.explain(question(kind, words or []), machine_named(machine)).as_dict(), as_json, _render)


def question(kind: str, words: Sequence[str]) -> Any:
    """The problem of that kind which the words describe; a model may start with the name of a known one."""
    from experiments.words import parse
    from lab.problems import MODELS, QUESTIONS, model_named

    if kind not in QUESTIONS:
        raise InputError(f"unknown kind {kind!r}; kinds: {', '.join(QUESTIONS)}")
    cls = QUESTIONS[kind]
    if kind != "model":
        return parse(cls, words)
    if words and "=" not in words[0]:
        known = {name: value for name, value in model_named(words[0]).as_dict().items() if name != "kind"}
        return parse(cls, words[1:], known)
    if not words:
        raise InputError(f"name a model or give its dimensions; known models: {', '.join(MODELS)}")
    return parse(cls, words)


def _render(document: dict[str, Any]) -> None:
    from experiments.words import spell
    from sim.machine import machine

    title = machine(document["machine"]).title
    say(f"{spell(document['problem'])} on the {title}, data-sheet rates")
    size = document["bytes"]
    rows = [
        ["FLOPs", number(document["flops"]), "useful work"],
        *([f"bytes: {name}", number(size[name]), "each once"] for name in ("weights", "kv", "activations", "total")),
        ["intensity", number(document["intensity"]), "FLOP per byte"],
        ["weight intensity", number(document["weight_intensity"]), "FLOP per weight byte"],
        ["ridge", number(document["ridge"]), "FLOP per byte at which both bills take equally long"],
        ["compute bill", number(document["compute_us"]), "us"],
        ["memory bill", number(document["memory_us"]), "us"],
        ["launch", number(document["launch_us"]), "us"],
        ["floor", number(document["floor_us"]), "us: the largest of the three"],
        *([name.replace("_", " "), number(value), ""] for name, value in document["details"].items()),
    ]
    table(["", "", ""], ([name, value, note] for name, value, note in rows), numbers_from=1)
    advice = {
        "compute": "feed the tensor cores",
        "memory": "move fewer bytes",
        "overhead": "launch less: both bills are below the launch time",
    }
    say(f"{document['regime']}-bound: {advice[document['regime']]}")
    if document["predicted"]:
        say(f"{document['kernel']} with {spell(document['schedule'])}")
        say(predicted(document["predicted"]))
    if not document["fits"]:
        say(f"its {number(size['total'])} B do not fit into the HBM of one {title}")
