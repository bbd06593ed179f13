"""A problem's arrays by name and by what is done with them: the inputs, and the outputs."""

from collections.abc import Mapping
from typing import Any, NamedTuple


class Operand(NamedTuple):
    """An array of a problem: its shape, and its format, a name of sim.formats."""

    shape: tuple[int, ...]
    format: str


def inputs(problem: Any) -> Mapping[str, Operand]:
    """What a kernel reads."""
    return {name: Operand(*described) for name, described in problem.operands.items()}


def outputs(problem: Any) -> Mapping[str, Operand]:
    """What a kernel writes for the caller."""
    return {"y": Operand((problem.m, problem.columns), problem.output)}
