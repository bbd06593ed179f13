"""The layers of the house: from the contracts that import-linter holds, the modules' own words, and their imports."""

import ast
import re
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path

from experiments import markdown
from lab.record import ROOT, Archive

_BESIDE = re.compile(r"\s*[:|]\s*")  # the contracts' separators of modules of one layer


def table(past: Archive) -> str:  # noqa: ARG001 (what imports what is no matter of records)
    """The layers from the top, a row for each module, and the picture of who imports whom."""
    shown = layers("experiments") + layers()
    rows = [
        [str(len(shown) - depth) if module == layer[0] else "", f"`{module}`", _purpose(module)]
        for depth, layer in enumerate(shown)
        for module in layer
    ]
    return f"{markdown.table(['layer', 'module', 'what it is'], rows)}\n\n{_picture()}"


def layers(container: str = "") -> list[list[str]]:
    """The modules of each layer, the highest first: of the house, or of a package, whose contract names it so."""
    linted = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    contracts = (contract for contract in linted["contracts"] if contract["type"] == "layers")
    held = next(c for c in contracts if c.get("containers", [""]) == [container])
    return [[f"{container}.{m}".lstrip(".") for m in _BESIDE.split(layer)] for layer in held["layers"]]


def imports() -> set[tuple[str, str]]:
    """Pairs of modules of the house, of which the first imports the second somewhere in its files."""
    house = [module for layer in layers() for module in layer]
    return {
        (importer, imported)
        for root in dict.fromkeys(module.partition(".")[0] for module in house)
        for file in (ROOT / root).rglob("*.py")
        if (importer := _within(".".join(file.relative_to(ROOT).with_suffix("").parts), house))
        for name in _names(file)
        if (imported := _within(name, house)) and imported != importer
    }


def _picture() -> str:
    """A dependency structure matrix: in a module's row an x below each module that it imports, o in its own column."""
    house = [module for layer in layers() for module in layer]
    found = imports()
    width = max(map(len, house))

    def mark(row: str, column: str) -> str:
        return "o" if row == column else "x" if (row, column) in found else "."

    lines = (f"{row:{width}}  {' '.join(mark(row, column) for column in house)}" for row in house)
    return "```text\n" + "\n".join(lines) + "\n```"


def _names(file: Path) -> Iterator[str]:
    """What a file imports, wherever in it: modules, or names in them."""
    for node in ast.walk(_parsed(file)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _within(name: str, modules: Sequence[str]) -> str | None:
    """The module that is, or holds, what has this dotted name."""
    return next((module for module in modules if f"{name}.".startswith(f"{module}.")), None)


def _purpose(module: str) -> str:
    """The first line of a module's docstring, read without importing it."""
    path = ROOT.joinpath(*module.split("."))
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return (ast.get_docstring(_parsed(file)) or "").partition("\n")[0]


def _parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))
