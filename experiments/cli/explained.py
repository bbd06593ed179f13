"""The tables of lab explain: machines side by side, or a row for each of several problems."""

from collections.abc import Iterator, Sequence
from typing import Any

from experiments.cli.output import number, say, table
from experiments.cli.units import duration, quantity
from experiments.words import spell
from lab.kernel import NOT_HIDDEN, RANKING_CLOCK
from sim.machine import machine

Document = dict[str, Any]  # of `lab explain --json`
Row = list[str]

_ADVICE = {
    "compute": "feed the tensor cores",
    "memory": "move fewer bytes",
    "overhead": "launch less: both bills are below the launch bill",
}
_STEP = {"decode": "inter-token latency", "prefill": "time to first token"}
_CLOCKS = {"cold": "with a cold L2", "graph": "in a graph", "chain": "in a chain"}


def title(problem: Document) -> str:
    """A problem in one line, its kind first."""
    return f"{problem['kind']} {spell({name: value for name, value in problem.items() if name != 'kind'})}"


def render(documents: Sequence[Document]) -> None:
    """Print them, which are of one problem on several machines, or of several problems."""
    first = documents[0]
    if any(document["problem"] != first["problem"] for document in documents):
        _several(documents)
        return
    say(f"{title(first['problem'])}, at data-sheet rates")
    rows = _model(documents) if first["problem"]["kind"] == "model" else _problem(documents)
    table(["", *_titles(documents)], rows)
    if first.get("parts"):
        table(*_parts(documents))
        say("floor and prediction are of one of each, in a chain of launches")
    if any(document["kernel"] for document in documents):
        say("what binds and what is paid beside no other add up to the time in a graph; (in brackets) passes meanwhile")
    for document in documents:
        if document["schedule"]:
            say(f"{document['machine']}: {document['kernel']} with {spell(document['schedule'])}")


def _titles(documents: Sequence[Document]) -> list[str]:
    return [machine(document["machine"]).title for document in documents]


def _roofline(documents: Sequence[Document]) -> Iterator[Row]:
    yield ["compute bill", *(duration(d["compute_us"]) for d in documents)]
    yield ["memory bill", *(duration(d["memory_us"]) for d in documents)]
    yield ["launch bill", *(duration(d["launch_us"]) for d in documents)]
    yield ["bound by", *(f"{d['regime']}: {_ADVICE[d['regime']]}" for d in documents)]
    yield ["intensity, FLOP/B", *(f"{number(d['intensity'])} (ridge {number(d['ridge'])})" for d in documents)]


def _sizes(documents: Sequence[Document]) -> Iterator[Row]:
    yield ["work", *(quantity(d["flops"], "FLOP") for d in documents)]
    yield ["bytes", *(_bytes(d["bytes"]["total"]) for d in documents)]
    for name, label in (("weights", "weights"), ("kv", "KV cache"), ("activations", "activations")):
        if documents[0]["bytes"][name]:
            shares = ((d["bytes"][name], d["bytes"][name] / d["bytes"]["total"]) for d in documents)
            yield [f"  {label}", *(f"{_bytes(nbytes)} ({share:.1%})" for nbytes, share in shares)]
    yield ["fits the memory", *(_fits(d) for d in documents)]


def _bytes(nbytes: float) -> str:
    return quantity(nbytes, "B")


def _fits(document: Document) -> str:
    return f"{'yes' if document['fits'] else 'no'}, it has {_bytes(machine(document['machine']).hbm_bytes)}"


def _problem(documents: Sequence[Document]) -> Iterator[Row]:
    yield from _sizes(documents)
    for name, value in documents[0]["details"].items():
        yield [name.replace("_", " "), *(number(value) for _ in documents)]
    yield from _roofline(documents)
    yield ["floor: the largest bill", *(duration(d["floor_us"]) for d in documents)]
    if not any(d["kernel"] for d in documents):
        return
    yield ["kernel", *(d["kernel"] or "-" for d in documents)]
    for clock, words in _CLOCKS.items():
        yield [
            f"predicted {words}",
            *(duration(d["predicted"][clock]["us"]) if d["kernel"] else "-" for d in documents),
        ]
    yield ["model's error, worst", *(_error(d) for d in documents)]
    for clock in dict.fromkeys(clock for d in documents for clock in d["measured"]):
        yield [f"measured {_CLOCKS[clock]}", *(_measured(d["measured"].get(clock)) for d in documents)]
    nothing: Document = {"binds": "-", "parts": {}, "waterfall": {}}
    paid = [d["predicted"][RANKING_CLOCK] if d["kernel"] else nothing for d in documents]
    yield ["what binds", *(bills["binds"] for bills in paid)]
    for part in dict.fromkeys([*(name for bills in paid for name in bills["parts"]), NOT_HIDDEN]):
        yield [f"  {part}", *(_bill(bills, part) for bills in paid)]
    launches = [d["launches"] or [] for d in documents]
    for index in range(max(map(len, launches))):
        yield from _launch([of[index] if index < len(of) else None for of in launches])


def _bill(bills: Document, part: str) -> str:
    """A part of a prediction; in brackets where its time passes beside the longest part's."""
    if part in bills["waterfall"]:
        return duration(bills["waterfall"][part])
    return f"({duration(bills['parts'][part])})" if part in bills["parts"] else "-"


def _measured(found: Document | None) -> str:
    return f"{duration(found['us'])} ({found['source']})" if found else "-"


def _error(document: Document) -> str:
    """How far predictions of the kernel were off on such cards, or why nobody knows."""
    found = document["model_error"]
    if found:
        return f"{found['mean']:.1%}, {found['worst']:.1%} ({found['launches']:,} launches {_CLOCKS[found['clock']]})"
    return "-" if document["calibrated"] else "unknown: an estimate from data sheets"


def _launch(launches: Sequence[Document | None]) -> Iterator[Row]:
    def row(label: str, cell: Any) -> Row:
        return [label, *(cell(launch) if launch else "-" for launch in launches)]

    yield row("launch", lambda at: at["entry"])
    yield row("  grid", lambda at: _shape(at["grid"]) + " CTAs")
    if any(launch and max(launch["cluster"]) > 1 for launch in launches):
        yield row("  cluster", lambda at: _shape(at["cluster"]) + " CTAs")
    yield row("  block", lambda at: _shape(at["block"]) + " threads")
    yield row("  shared memory of a CTA", lambda at: f"{at['shared_bytes']:,} B")
    if any(launch and launch["registers"] for launch in launches):
        yield row("  registers of a thread", lambda at: number(at["registers"]))
    yield row("  CTAs an SM holds", _resident)
    yield row("  waves", lambda at: number(at["waves"]))


def _resident(launch: Document) -> str:
    most = "" if launch["registers"] else "at most "  # registers may leave room for fewer
    return f"{most}{launch['ctas_per_sm']} ({launch['limit']}), {launch['warps']:.0%} of its warps"


def _shape(extents: Sequence[int]) -> str:
    """Three extents without those after the last that is not 1."""
    used = max((i for i, extent in enumerate(extents) if extent > 1), default=0)
    return " x ".join(f"{extent:,}" for extent in extents[: used + 1])


def _model(documents: Sequence[Document]) -> Iterator[Row]:
    phase = documents[0]["problem"]["phase"]
    yield [f"{_STEP[phase]}, at least", *(duration(d["floor_us"]) for d in documents)]
    yield ["tokens/s, at most", *(number(round(d["tokens_per_s"], 1)) for d in documents)]
    yield [f"{_STEP[phase]}, predicted", *(duration(d["predicted_us"]) for d in documents)]
    yield ["tokens/s, predicted", *(_rate(d["predicted_tokens_per_s"]) for d in documents)]
    yield from _roofline(documents)
    yield ["launches", *(number(d["launches"]) for d in documents)]
    yield from _sizes(documents)
    yield ["parameters", *(quantity(d["details"]["parameters"], "") for d in documents)]
    yield ["KV cache of a token", *(_bytes(d["details"]["kv_bytes_per_token"]) for d in documents)]
    if documents[0]["details"]["lookup_bytes"]:
        yield ["embedding table, not streamed", *(_bytes(d["details"]["lookup_bytes"]) for d in documents)]
    yield ["largest batch of this context", *(number(d["largest_batch"]) for d in documents)]
    yield ["longest context of this batch", *(number(d["longest_context"]) for d in documents)]
    never = "none: the KV cache grows with it"
    yield [
        "batch that reaches the ridge",
        *(number(d["ridge_batch"]) if d["ridge_batch"] else never for d in documents),
    ]


def _rate(tokens_per_s: float | None) -> str:
    return number(tokens_per_s and round(tokens_per_s, 1))


def _parts(documents: Sequence[Document]) -> tuple[list[str], list[Row]]:
    """The parts of a model's step: sizes, then floor and prediction of one of each on every machine."""
    one = len(documents) == 1
    headings = ["part", "shape", "times", "bytes", "share"]
    for document in documents:
        of = "" if one else f", {document['machine']}"
        headings += [f"floor{of}", f"predicted{of}"]
    rows = []
    for index, part in enumerate(documents[0]["parts"]):
        row = [part["part"], _size(part["problem"]), number(part["times"])]
        row += [_bytes(part["bytes"]["total"]), f"{part['share']:.1%}"]
        for document in documents:
            there = document["parts"][index]
            row += [duration(there["floor_us"]), duration(there["predicted_us"])]
        rows.append([*row, part["kernel"] or "-"] if one else row)
    return [*headings, *(["kernel"] if one else [])], rows


def _size(problem: Document) -> str:
    if problem["kind"] == "attention":
        return f"{problem['batch']:,} x {max(problem['q_lens']):,} on {max(problem['kv_lens']):,}"
    return " x ".join(f"{problem[name]:,}" for name in ("m", "n", "k") if name in problem)


def _several(documents: Sequence[Document]) -> None:
    """A row a problem: what differs, the floor and what binds it, the prediction."""
    machines = list(dict.fromkeys(document["machine"] for document in documents))
    groups = [documents[at : at + len(machines)] for at in range(0, len(documents), len(machines))]
    problems = [group[0]["problem"] for group in groups]
    known = dict.fromkeys(name for problem in problems for name in problem)  # unusual options are not in each
    names = [name for name in known if any(p.get(name) != problems[0].get(name) for p in problems)]
    fixed = {name: value for name, value in problems[0].items() if name not in names}
    say(f"{title(fixed)}, at data-sheet rates")
    of_model = "tokens_per_s" in documents[0]
    headings = ["problem", *(["weights", "KV cache"] if of_model else [])]
    for name in machines:
        of = "" if len(machines) == 1 else f", {name}"
        headings += [f"floor{of}", *([f"tokens/s{of}"] if of_model else []), f"predicted{of}", f"bound by{of}"]
    if len(machines) == 1:
        headings.append("fits" if of_model else "kernel")
    rows = []
    for problem, group in zip(problems, groups, strict=True):
        row = [spell({name: problem[name] for name in names if name in problem}) or "as usual"]
        row += [_bytes(group[0]["bytes"][of]) for of in ("weights", "kv")] if of_model else []
        for d in group:
            rate = [_rate(d["tokens_per_s"])] if of_model else []
            row += [duration(d["floor_us"]), *rate, duration(d["predicted_us"]), d["regime"]]
        if len(machines) == 1:
            row.append(("yes" if group[0]["fits"] else "no") if of_model else group[0]["kernel"] or "-")
        rows.append(row)
    table(headings, rows)
