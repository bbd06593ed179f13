"""What the kernels for linear layers share: the parameters x, w, y, m, n, k, in that order."""

from lab.problems import Linear
from sim.launch import Argument, Array, Role, Scalar


def arguments(problem: Linear) -> tuple[Argument, ...]:
    p = problem
    return (
        Array("x", Role.IN, (p.m, p.k), p.activations),
        Array("w", Role.IN, (p.n, p.k), p.weights),
        Array("y", Role.OUT, (p.m, p.n), p.output),
        Scalar("m", p.m),
        Scalar("n", p.n),
        Scalar("k", p.k),
    )
