"""What is asked of a kernel: shapes, formats, useful work, compulsory bytes, inputs and a reference."""

from lab.problems.attention import Attention
from lab.problems.linear import Linear
from lab.problems.model import MODELS, Model, model_named

Problem = Linear | Attention  # what a kernel solves
Question = Linear | Attention | Model  # what can be explained
QUESTIONS: dict[str, type[Question]] = {q.kind: q for q in (Linear, Attention, Model)}

__all__ = ["MODELS", "QUESTIONS", "Attention", "Linear", "Model", "Problem", "Question", "model_named"]
