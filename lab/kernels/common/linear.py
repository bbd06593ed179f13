"""What the kernels for linear layers share: their parameters, in that order."""

from lab.kernels.common.pointers import pointer
from lab.problems import Linear
from sim.launch import Argument, Array, Role, Scalar
from sim.machine import Machine

EPILOGUE = ("residual", "x_scale", "w_scale", "y_scale")  # pointers, null where the problem has no such operand


def arguments(problem: Linear) -> tuple[Argument, ...]:
    """x, w, y, m, n, k."""
    p = problem
    return (
        *(Array(name, Role.IN, *p.inputs[name]) for name in ("x", "w")),
        Array("y", Role.OUT, (p.m, p.columns), p.output),
        *(Scalar(name, getattr(p, name)) for name in ("m", "n", "k")),
    )


def epilogue_arguments(problem: Linear) -> tuple[Argument, ...]:
    """The operands of an epilogue: residual, x_scale, w_scale, y_scale."""
    return tuple(pointer(problem, name) for name in EPILOGUE)


def scaled_arguments(problem: Linear) -> tuple[Argument, ...]:
    """x, w, w_scale (null where there is none), y, m, n, k."""
    x, w, *rest = arguments(problem)
    return (x, w, pointer(problem, "w_scale"), *rest)


def overlaps(machine: Machine) -> bool:
    """Whether launches on a machine can overlap (PTX ISA 9.0, griddepcontrol: sm_90 and newer)."""
    return int(machine.arch.strip("sm_a")) >= 90
