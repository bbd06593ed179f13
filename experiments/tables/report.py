"""README's tables and the rooflines, made of records, so that no figure is typed by hand."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from experiments import runner
from experiments.catalog import module_of, names, tables
from experiments.lookup import MARKS
from experiments.markdown import three_columns
from experiments.tables import roofline
from lab.record import COMMITTED, ROOT, Archive
from sim.errors import InputError
from sim.folders import write_whole

README = ROOT / "README.md"
_BLOCK = re.compile(r"(<!-- lab report: (\w+) -->\n).*?(<!-- end of \2 -->)", re.DOTALL)


@dataclass(frozen=True)
class Report:
    """What the report's files should hold, by path, and what its tables say is the matter with their figures."""

    files: dict[Path, str]
    doubts: tuple[str, ...] = ()

    @property
    def outdated(self) -> list[Path]:
        """The files that hold something else."""
        return [path for path, text in self.files.items() if not path.exists() or path.read_bytes() != text.encode()]

    def write(self) -> list[Path]:
        """Write the outdated files and name them."""
        written = self.outdated
        for path in written:
            write_whole(path, self.files[path].encode())
        return written


def report(past: Archive) -> Report:
    """README with every block between its markers made anew, and a roofline for each machine that has records.

    Raises InputError outside a checkout and for a block of an unknown name.
    """
    if not README.exists():
        raise InputError(f"{README} does not exist; lab report works in a checkout of the lab")
    charts = {COMMITTED / f"roofline-{name}.svg": chart for name, chart in roofline.charts(past)}
    before = README.read_text(encoding="utf-8")
    blocks = {name: block(name, past) for _, name, _ in _BLOCK.findall(before)}
    text = _BLOCK.sub(lambda m: f"{m[1]}{blocks[m[2]]}\n{m[3]}", before)
    return Report({README: text, **charts}, tuple(doubt for made in blocks.items() for doubt in _doubts(*made)))


def _doubts(name: str, text: str) -> Iterator[str]:
    """A sentence for each mark that rows of a block have."""
    for mark, meaning in MARKS.items():
        rows = sum(mark in line for line in text.splitlines() if line.startswith("|"))
        if rows:
            yield f"{name}: {rows} row{'s' if rows > 1 else ''} marked {mark}: {meaning}"


def block(name: str, past: Archive) -> str:
    """The Markdown of one block: a table of experiments/tables, or an experiment's; raises InputError for no such."""
    if name in tables():
        module = f"experiments.tables.{name}"
    elif name in names():
        module = module_of(name)
    else:
        raise InputError(f"README has a block {name!r}; blocks: {', '.join((*tables(), *names()))}")
    own = getattr(import_module(module), "table", None)
    return own(past) if own else experiment(name, past)


def experiment(name: str, past: Archive) -> str:
    """The table of an experiment's newest simulated run, its measured column from the newest records of a card."""
    records = past.newest_run(experiment=name, on="sim")
    if not records:
        return f"No records yet: `lab run {name} --record` makes them."
    answer = runner.conclude(name, records, past)
    return three_columns(answer.rows, answer.verdict.sentence)
