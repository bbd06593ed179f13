"""What is asked of a kernel: shapes, formats, useful work, compulsory bytes, inputs and a reference."""

from importlib import import_module
from pathlib import Path
from typing import Any

from lab.problems.attention import Attention
from lab.problems.linear import Linear
from lab.problems.model import MODELS, Model, model_named
from lab.problems.protocol import Estimate, Operand, Problem

for _module in sorted(Path(__file__).parent.glob("[a-z]*.py")):  # a new kind of problem is a file here, and no edit
    import_module(f"lab.problems.{_module.stem}")

Question = Problem | Model  # what can be explained


def _kinds(of: Any) -> dict[str, type[Problem]]:
    """A class that is a kind of problem, or those below it."""
    if hasattr(of, "kind"):
        return {of.kind: of}
    return {name: kind for base in of.__subclasses__() for name, kind in _kinds(base).items()}


QUESTIONS: dict[str, type[Question]] = {Model.kind: Model} | _kinds(Problem)

__all__ = [
    "MODELS",
    "QUESTIONS",
    "Attention",
    "Estimate",
    "Linear",
    "Model",
    "Operand",
    "Problem",
    "Question",
    "model_named",
]
