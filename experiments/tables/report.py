"""README, docs and their pictures, made of records, so that no figure is typed by hand.

A page is README.md or a Markdown file in docs. What stands in it between two markers is made anew:

    <!-- lab report: NAME -->              the table of an experiment, or of a module of experiments/tables or cli
    <!-- end of NAME -->
    <!-- lab report: pictures NAME -->     its pictures, drawn into docs/pictures
    <!-- end of pictures NAME -->
    <!-- lab report: source FILE NAME -->  a function of a CUDA file of lab/kernels, with the comment above it
    <!-- end of source FILE NAME -->
    <!-- lab report: output COMMAND -->    a command of lab, as `explain linear m=1 n=4096 k=4096`, and what it prints
    <!-- end of output COMMAND -->

An experiment's table are its `rows` and `verdict` for its newest simulated run, unless it has a
`table(past: Archive) -> str`. Pictures are what `pictures(past: Archive) -> dict[str, Picture]` gives, by file name.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from experiments import runner
from experiments.catalog import module_of, names, tables
from experiments.chart import Picture
from experiments.lookup import MARKS
from experiments.markdown import three_columns
from experiments.tables.drawing import digest, draw
from experiments.tables.quotation import quoted
from lab.record import ROOT, Archive
from sim.errors import InputError
from sim.folders import write_whole

FOLDER = "docs/pictures"
BLOCK = re.compile(
    r"(?P<start>^<!-- lab report: (?P<kind>pictures |source |output )?(?P<name>[^\n]+?) -->\n)(?P<text>.*?)"
    r"(?P<end>^<!-- end of (?(kind)(?P=kind))(?P=name) -->)",
    re.DOTALL | re.MULTILINE,
)


@dataclass(frozen=True)
class Report:
    """What pages and pictures should hold, by path, and what the tables say is the matter with their figures."""

    pages: dict[Path, str]
    pictures: dict[Path, Picture]
    doubts: tuple[str, ...] = ()

    @property
    def outdated(self) -> list[Path]:
        """The pages that hold something else, and the pictures that were drawn of something else."""
        pages = [path for path, text in self.pages.items() if path.read_bytes() != text.encode()]
        drawn = [path for path, chart in self.pictures.items() if not path.exists() or digest(chart) not in _text(path)]
        return pages + drawn

    def write(self) -> list[Path]:
        """Write the outdated files and name them."""
        written = self.outdated
        for path in written:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, (self.pages[path] if path in self.pages else draw(self.pictures[path])).encode())
        return written


def report(past: Archive) -> Report:
    """Every page with what stands between its markers made anew, and the pictures that they show.

    Raises InputError outside a checkout and for a block of an unknown name.
    """
    texts: dict[Path, str] = {}
    charts: dict[Path, Picture] = {}
    doubts: dict[str, None] = {}
    for page in pages():

        def made(block: re.Match[str], page: Path = page) -> str:
            name = block["name"]
            match block["kind"]:
                case "pictures ":
                    drawn = _module(name, page).pictures(past)
                    shown = {ROOT / FOLDER / f"{file}.svg": chart for file, chart in drawn.items()}
                    charts.update(shown)
                    links = (f"![{chart.title}]({path.relative_to(page.parent)})" for path, chart in shown.items())
                    text = "\n\n".join(links)
                case "source ":
                    text = quoted(name)
                case "output ":
                    text = _module("examples", page).shown(name)
                case _:
                    module = _module(name, page)
                    text = module.table(past) if hasattr(module, "table") else experiment(name, past)
                    doubts.update(dict.fromkeys(_doubts(name, text)))
            return f"{block['start']}{text}\n{block['end']}"

        texts[page] = BLOCK.sub(made, _text(page))
    return Report(texts, charts, tuple(doubts))


def pages() -> list[Path]:
    """README and the pages of docs; raises InputError outside a checkout."""
    readme = ROOT / "README.md"
    if not readme.exists():
        raise InputError(f"{readme} does not exist; lab report works in a checkout of the lab")
    return [readme, *sorted((ROOT / "docs").glob("*.md"))]


def experiment(name: str, past: Archive) -> str:
    """The table of an experiment's newest simulated run, its measured column from the newest records of a card."""
    records = past.newest_run(experiment=name, on="sim")
    if not records:
        return f"No records yet: `lab run {name} --record` makes them."
    answer = runner.conclude(name, records, past)
    return three_columns(answer.rows, answer.verdict.sentence)


def _module(name: str, page: Path) -> Any:
    """The module that makes a page's block; raises InputError where there is none."""
    found = tables() | {name: module_of(name) for name in names()}
    if name not in found:
        raise InputError(f"{page.name} has a block {name!r}; blocks: {', '.join(found)}")
    return import_module(found[name])


def _doubts(name: str, text: str) -> Iterator[str]:
    """A sentence for each mark that rows of a block have."""
    for mark, meaning in MARKS.items():
        rows = sum(mark in line for line in text.splitlines() if line.startswith("|"))
        if rows:
            yield f"{name}: {rows} row{'s' if rows > 1 else ''} marked {mark}: {meaning}"


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")
