"""A Llama-class model whose linear layers are the lab's kernels: weights, tokenizer, KV cache, step, generation."""

from lab.inference.generation import Generation, LanguageModel, Sampling, generate, load

__all__ = ["Generation", "LanguageModel", "Sampling", "generate", "load"]
