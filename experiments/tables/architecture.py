"""The layers of the house, made of the contract that import-linter holds and of what each module says of itself."""

import ast
import re
import tomllib

from experiments import markdown
from lab.record import ROOT, Archive

_BESIDE = re.compile(r"\s*[:|]\s*")  # the contract's separators of modules of one layer


def table(past: Archive) -> str:  # noqa: ARG001 (the layers are no matter of records)
    """The layers from the top, a row for each module."""
    rows = [
        [str(height) if module == layer[0] else "", f"`{module}`", _purpose(module)]
        for height, layer in reversed(list(enumerate(reversed(layers()), start=1)))
        for module in layer
    ]
    return markdown.table(["layer", "module", "what it is"], rows)


def layers() -> list[list[str]]:
    """The modules of each layer, the highest first, as the contracts of layers in pyproject.toml name them."""
    linted = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    contracts = [contract for contract in linted["contracts"] if contract["type"] == "layers"]
    return [
        [f"{container}.{module}" if container else module for module in _BESIDE.split(layer)]
        for contract in sorted(contracts, key=lambda contract: "containers" not in contract)  # rooms, then the house
        for container in contract.get("containers", [""])
        for layer in contract["layers"]
    ]


def _purpose(module: str) -> str:
    """The first line of a module's docstring, read without importing it."""
    path = ROOT.joinpath(*module.split("."))
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return (ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or "").partition("\n")[0]
