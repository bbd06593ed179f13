"""A Llama-class model whose every layer is a kernel of the lab: weights, tokenizer, KV cache, step, generation."""

from lab.inference.generation import Generation, LanguageModel, generate, load
from lab.inference.step import step_us
from lab.problems.sampling import Settings

__all__ = ["Generation", "LanguageModel", "Settings", "generate", "load", "step_us"]
