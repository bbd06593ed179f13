"""Pointers among a launch's arguments: to an operand, or null where a problem has none of that name."""

from lab.problems.protocol import Problem
from sim.launch import Argument, Array, Role, Scalar


def pointer(problem: Problem, name: str) -> Argument:
    """An input, or a null pointer where the problem has none of that name."""
    return Array(name, Role.IN, *problem.inputs[name]) if name in problem.inputs else null(name)


def result(problem: Problem, name: str) -> Argument:
    """An output, or a null pointer where the problem has none of that name."""
    return Array(name, Role.OUT, *problem.outputs[name]) if name in problem.outputs else null(name)


def null(name: str) -> Argument:
    """A null pointer."""
    return Scalar(name, 0, "int64")
