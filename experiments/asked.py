"""What the words of a command ask about: problems, alone or as a kernel takes them, or a model by name or by file."""

from collections.abc import Mapping, Sequence
from os.path import exists
from pathlib import Path
from typing import Any

from experiments.words import parse, spread
from lab import catalog
from lab.kernel import Kernel
from lab.problems import MODELS, QUESTIONS, Model, Problem, Question
from lab.problems.hugging_face import model_in
from sim.errors import InputError

MOST = 256  # problems of one command


def kernel_named(subject: str) -> Kernel | None:
    """The kernel of that name, None for a kind of problem; raises InputError for what is neither."""
    if subject in QUESTIONS:
        return None
    if subject not in catalog.names():
        raise InputError(
            f"unknown kind {subject!r}; kinds: {', '.join(QUESTIONS)}; or a kernel's name, which lab list shows"
        )
    return catalog.get(subject)


def problem_for(kernel: Kernel, words: Sequence[str]) -> Problem:
    """The kernel's kind of problem from words; where none is given its own first format, and what it requires."""
    return parse(kernel.solves.problem, words, _usual(kernel))


def questions(subject: str, words: Sequence[str]) -> list[Question]:
    """The problems of a kind, or of a kernel's, that the words describe: lists and ranges among them make several.

    A model may start with the name of a known one, or with a folder that holds its config.json. Raises InputError for
    words that describe none, and more than MOST.
    """
    kernel = kernel_named(subject)
    cls: type[Any] = kernel.solves.problem if kernel else QUESTIONS[subject]
    known: Mapping[str, Any] = _usual(kernel) if kernel else {}
    if cls is Model:
        if not words:
            raise InputError(f"name a model or give its dimensions; known models: {', '.join(MODELS)}")
        if "=" not in words[0]:
            model = _model(words[0])
            left = ("kind", "kv") if model.kv == model.unit else ("kind",)  # the cache follows other weights
            known = {name: value for name, value in model.as_dict().items() if name not in left}
            words = words[1:]
    return [parse(cls, one, known) for one in spread(cls, words, MOST)]


def _usual(kernel: Kernel) -> dict[str, Any]:
    required = {name: values[0] for name, values in kernel.solves.required.items()}
    return {kernel.solves.problem.FORMAT: kernel.solves.formats[0], **required}


def _model(word: str) -> Model:
    if word in MODELS:
        return MODELS[word]
    if not exists(word):
        raise InputError(f"unknown model {word!r}; known models: {', '.join(MODELS)}; or a folder with a config.json")
    return model_in(Path(word))
