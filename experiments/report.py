"""README's tables and the roofline, made of records, so that no figure is typed by hand."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments import _decode_table, _generation, gemm_bars, gemm_ladder, runner
from experiments._catalog import names
from experiments._roofline_svg import Dot, roofline_svg
from experiments._rows import CLOCKS, Row, best_peer, is_peer, question_of
from experiments._words import spell
from experiments.ceilings import read_rate
from lab import catalog
from lab.choice import schedule_words
from lab.explain import explain
from lab.kernel import Kernel
from lab.record import COMMITTED, ROOT, Archive, Record
from lab.tuned import SEARCH
from sim.errors import InputError
from sim.machine import MACHINES

README = ROOT / "README.md"
SHAPES = 4  # of each kernel in the table of kernels
_BLOCK = re.compile(r"(<!-- lab report: (\w+) -->\n).*?(<!-- end of \2 -->)", re.DOTALL)


@dataclass(frozen=True)
class Report:
    """What the report's files should hold, by path."""

    files: dict[Path, str]

    @property
    def stale(self) -> list[Path]:
        """The files that hold something else."""
        return [path for path, text in self.files.items() if not path.exists() or path.read_text() != text]

    def write(self) -> list[Path]:
        """Write the stale files and name them."""
        written = self.stale
        for path in written:
            path.write_text(self.files[path])
        return written


def report(past: Archive) -> Report:
    """README with every block between its markers made anew, and a roofline for each machine that has records.

    Raises InputError outside a checkout and for a block of an unknown name.
    """
    if not README.exists():
        raise InputError(f"{README} does not exist; lab report works in a checkout of the lab")
    charts = {COMMITTED / f"roofline-{name}.svg": chart for name, chart in rooflines(past)}
    text = _BLOCK.sub(lambda m: f"{m[1]}{block(m[2], past)}\n{m[3]}", README.read_text())
    return Report({README: text, **charts})


def block(name: str, past: Archive) -> str:
    """The Markdown of one block: an experiment's table and verdict, the kernels, or the rooflines."""
    makers: dict[str, Callable[[Archive], str]] = {
        "kernels": kernels,
        "gemm_ladder": ladder,
        "gemm_bars": bars,
        "decode_bars": decode,
        "roofline": charts,
        "generate": generation,
        "sanitizer": sanitizer,
    }
    if name in makers:
        return makers[name](past)
    if name not in names():
        blocks = dict.fromkeys((*makers, *names()))
        raise InputError(f"README has a block {name!r}; blocks: {', '.join(blocks)}")
    return experiment(name, past)


def experiment(name: str, past: Archive) -> str:
    """The table of an experiment's newest simulated run, its measured column from the newest records of a card."""
    records = past.newest_run(experiment=name, on="sim")
    if not records:
        return f"No records yet: `lab run {name} --record` makes them."
    answer = runner.conclude(name, records, past)
    return _three_columns(answer.rows, answer.verdict.sentence)


def generation(past: Archive) -> str:
    """The phases of the newest generations."""
    return _three_columns(list(_generation.rows(past)), _generation.verdict(past))


def sanitizer(past: Archive) -> str:
    """What the emulator and each tool of compute-sanitizer say of the newest wrong and right kernels."""
    found = past.newest_run(experiment="sanitizer")
    if not found:
        return "No records yet: `python -m tests.wrong.on_gpu` makes them."
    said = [{name: str(value) for name, value in r.metrics.items()} for r in found]
    tools = [name for name in said[0] if name not in ("subject", "emulator")]
    rows = [[f"`{s['subject']}`", s["emulator"], *(_brief(s[tool]) for tool in tools)] for s in said]
    wrong = [s for s in said if s["emulator"] != _CLEAN]
    silent = [s for s in wrong if all(s[tool] == _CLEAN for tool in tools)]
    right = [s for s in said if s["emulator"] == _CLEAN]
    loud = [s["subject"] for s in right if any(s[tool] != _CLEAN for tool in tools)]
    table = _table(["kernel", "emulator", *tools], rows)
    return (
        f"{table}\n\nOf {len(wrong)} wrong kernels, which the emulator all names, compute-sanitizer is silent on "
        f"{len(silent)}. Of {len(right)} runs of right kernels it complains of "
        f"{len(loud) or 'none'}. Run on {found[0].source}."
    )


_CLEAN = "clean"


def _brief(text: str) -> str:
    """The first words of a tool's complaint, without addresses and files."""
    words = text.split(": ")[-1] if "CUDARuntimeError" in text else text.split(" at ")[0].split(" of size")[0]
    return "-" if text == _CLEAN else words


def _three_columns(rows: Sequence[Row], verdict: str) -> str:
    table = _table(
        ["", "", "theory", "simulated", "measured"],
        ([r.case, r.quantity, *map(_figure, (r.theory, r.simulated, r.measured))] for r in rows),
    )
    sources = sorted({r.source for r in rows if r.source})
    return f"{table}\n\n{verdict}" + (f"\n\nMeasured on {'; '.join(sources)}." if sources else "")


def kernels(past: Archive) -> str:
    """Every kernel, what it adds, and its newest measured times on the problems that it was last timed on."""
    rows = []
    for kernel in catalog.kernels():
        head = [f"`{kernel.name}`", kernel.adds]
        timed = _newest_times(past, kernel)
        for by_clock in timed:
            record = next(iter(by_clock.values()))
            floor = explain(question_of(record), MACHINES[record.machine]).roofline.floor_us
            figures = [_figure(floor), _figure(record.predicted_us)]
            for clock in CLOCKS:
                found = by_clock.get(clock)
                peer = best_peer(past.records, found) if found else None
                ratio = f"{peer.us / found.us:.2f}" if found and found.us and peer and peer.us else "-"
                figures += [_figure(found.us if found else None), ratio]
            rows.append([*head, _size(record), *figures, record.source])
            head = ["", ""]
        if not timed:
            rows.append([*head, "", *6 * ["-"], ""])
    headings = ["kernel", "adds", "problem", "floor, us", "predicted, us"]
    headings += [heading for name in CLOCKS.values() for heading in (f"{name}, us", "x best peer")]
    return _table([*headings, "on"], rows)


def ladder(past: Archive) -> str:
    """The rungs of each ladder of the newest run that timed it, else that simulated it."""
    parts = []
    for name in gemm_ladder.LADDERS:
        records = [r for r in past.where(experiment="gemm_ladder").records if r.metrics.get("ladder") == name]
        if not records:
            continue
        last = ([r for r in records if r.us is not None] or records)[-1]
        same = [r for r in records if (r.on, r.commit) == (last.on, last.commit)]  # every rung is a run of its own
        newest = {(r.kernel, str(r.problem), r.metrics["note"]): r for r in same if r.schedule is not None}
        rungs = sorted(newest.values(), key=lambda r: int(r.metrics["rung"] or 0))
        climbed = gemm_ladder.steps([*rungs, *filter(is_peer, same)], past)[name]
        rows = (
            [
                f"`{step.name}`",
                step.adds,
                *map(_figure, (step.l2_theory, step.l2_simulated, step.l2_counted, step.hbm_counted, step.tflops)),
                _share(step.of_peer),
                _share(step.of_peak),
            ]
            for step in climbed
        )
        sources = sorted({step.source for step in climbed if step.source})
        on = f", on {'; '.join(sources)}" if sources else ", not timed yet"
        shape = {key: value for key, value in (last.problem or {}).items() if key in ("m", "n", "k")}
        parts.append(f"{name}, {spell(shape)}{on}:\n\n{_table(_LADDER_HEADINGS, rows)}")
    return "\n\n".join(parts) or "No records yet: `lab run gemm_ladder --record` makes them."


_LADDER_HEADINGS = [
    "rung",
    "adds",
    "L2 to SM, MB: theory",
    "simulated",
    "counters",
    "HBM, MB: counters",
    "TFLOP/s",
    "of cuBLAS",
    "of the peak at the clock held",
]


def bars(past: Archive) -> str:
    """Every case of the newest measurement of each bar, and what the bars say."""
    measured = past.where(experiment="gemm_bars", on="gpu")
    rows, sentences, sources = [], [], set()
    for name, group in gemm_bars.by_bar(measured.records).items():
        newest = _last_of_each_problem(group)
        for record in newest:
            other = gemm_bars.rival(measured.records, record)
            ratio = gemm_bars.ratio(measured.records, record)
            words = schedule_words(record.schedule or {})
            times = [_figure(record.us), _figure(other.us if other else None)]
            case = [name, gemm_bars.name_of(record), record.clock or "-", f"`{record.kernel}` {words}"]
            rows.append([*case, *times, f"{ratio:.3f}" if ratio else "-"])
            sources.add(record.source)
        sentences.append(gemm_bars.judge(name, newest, measured.records).sentence)
    if not rows:
        return "No records yet: `lab run gemm_bars --on gpu` makes them."
    headings = ["bar", "m x n x k", "clock", "chosen", "ours, us", "rival, us", "rival over ours"]
    said = "\n".join(f"- {sentence}" for sentence in sentences)
    return f"{said}\n\n{_table(headings, rows)}\n\nMeasured on {'; '.join(sorted(sources))}."


def decode(past: Archive) -> str:
    """Decode's layers against the plain read and their peers, and what the bars say."""
    records = _decode_table.newest(past)
    rows = list(_decode_table.rows(records))
    if not rows:
        return "No records yet: `lab run decode_bars --on gpu` makes them."
    said = "\n".join(f"- {sentence}" for sentence in _decode_table.sentences(records))
    sources = "; ".join(sorted({r.source for r in records if r.us}))
    return f"{said}\n\n{_table(_decode_table.HEADINGS, rows)}\n\nMeasured on {sources}."


def _last_of_each_problem(records: Sequence[Record]) -> list[Record]:
    newest = {str(record.problem): record for record in records}
    return list(newest.values())


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def charts(past: Archive) -> str:
    """Links to the rooflines."""
    links = [
        f"![Roofline of the {MACHINES[name].title}](experiments/records/roofline-{name}.svg)"
        for name, _ in rooflines(past)
    ]
    return "\n\n".join(links) or "No records yet: `lab run two_machines --record` makes them."


def rooflines(past: Archive) -> Iterator[tuple[str, str]]:
    """(machine, SVG) for each machine with records of kernels."""
    for name, machine in MACHINES.items():
        dots = list(_dots(past.where(machine=name)))
        if dots:
            yield name, roofline_svg(machine, dots, read_rate(past, name)[0])


def _dots(past: Archive) -> Iterator[Dot]:
    """Of each kernel the last few problems: the newest measured dot of each, else the newest predicted one."""
    found: dict[str, dict[str, Dot]] = {}
    for record in past.records:
        if not record.kernel or is_peer(record) or (record.check and not record.check.passed):
            continue
        us = record.us if record.us is not None else record.predicted_us
        if not us or record.metrics.get("stage") == SEARCH:
            continue
        key, measured = str(record.problem), record.us is not None
        dots = found.setdefault(record.kernel, {})
        old = dots.pop(key, None)  # put back at the end: the order is that of the last time
        if old and old.measured and not measured:
            dots[key] = old
            continue
        problem = question_of(record)
        intensity = problem.flops / problem.bytes["total"]
        dots[key] = Dot(record.kernel, _size(record), intensity, problem.flops / us * 1e6, measured)
    for dots in found.values():
        yield from list(dots.values())[-SHAPES:]


def _newest_times(past: Archive, kernel: Kernel) -> list[dict[str, Record]]:
    """By clock, the fastest schedule of the newest run for each of the last few problems, the smallest work first.

    Problems that the kernel has left to another one since are not among them.
    """
    found: dict[str, dict[str, Record]] = {}
    for record in past.where(kernel=kernel.name, on="gpu").records:
        if record.us is None or record.clock is None or record.experiment in _NO_SHAPES_OF_INTEREST:
            continue
        if record.metrics.get("stage") == SEARCH or kernel.solves.refusal(question_of(record)):
            continue
        key = str(record.problem)
        by_clock = found.pop(key, {})  # put back at the end: the order is that of the last time
        old = by_clock.get(record.clock)
        if old is None or record.run != old.run or record.us < (old.us or 0.0):
            by_clock[record.clock] = record
        found[key] = by_clock
    last = list(found.values())[-SHAPES:]
    return sorted(last, key=lambda by_clock: question_of(next(iter(by_clock.values()))).flops)


_NO_SHAPES_OF_INTEREST = ("fp8_error", "decode_chain")  # a narrow layer that is quick to check; several layers at once


def _size(record: Record) -> str:
    return spell({name: value for name, value in (record.problem or {}).items() if name != "kind"})


def _figure(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [" | ".join(("", *headings, "")).strip(), "| " + " | ".join("---" for _ in headings) + " |"]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join(lines)
