"""The gallery of hazards: the kernels of docs/hazards, each with what the emulator calls its fault."""

import ast
from pathlib import Path

from lab.record import ROOT, Archive

FOLDER = ROOT / "docs" / "hazards"


def table(past: Archive) -> str:  # noqa: ARG001  (no record says what is wrong with a kernel)
    """A part for each kernel, ordered by the names of the hazards."""
    return "\n\n".join(_part(path) for path in sorted(FOLDER.glob("*.py"), key=lambda path: str(said(path)["FINDS"])))


def said(path: Path) -> dict[str, str]:
    """The constants of a description, and its sentence as "": it is read and not run."""
    module = ast.parse(path.read_text(encoding="utf-8"))
    found = {"": ast.get_docstring(module) or ""}
    for node in module.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            found[node.targets[0].id] = str(ast.literal_eval(node.value))
    return found


def _part(path: Path) -> str:
    constants = said(path)
    code = constants["SOURCE"].strip()
    return f"### {constants['FINDS']}\n\n{constants['']} ([{path.name}](hazards/{path.name}))\n\n```cuda\n{code}\n```"
