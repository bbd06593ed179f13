"""What is asked of a kernel: shapes, formats, useful work, compulsory bytes, inputs and a reference."""

from lab.problems.linear import Linear

Problem = Linear

__all__ = ["Linear", "Problem"]
