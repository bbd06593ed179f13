"""Generation: a prompt in one prefill pass, then one decode pass a token, with the bill of both phases."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from lab.inference.checkpoint import open_checkpoint
from lab.inference.chip import Chip, gpu, simulated
from lab.inference.codec import Codec
from lab.inference.download import default_weights
from lab.inference.model import Llama
from lab.inference.number_codec import NumberCodec
from lab.inference.phases import DECODE, PREFILL, Phase, summarise
from lab.inference.progress import progress
from lab.inference.reference import Reference
from lab.inference.sessions import ReferenceRunner, Runner, Session, StepRunner, require_context
from lab.inference.step_weights import StepWeights
from lab.inference.step_weights import random as draw
from lab.problems import model_named
from lab.problems.sampling import GREEDY, Settings
from sim.errors import InputError
from sim.machine import H100, Machine

On = Literal["sim", "gpu", "reference"]
DRAWN, DRAWN_CONTEXT = "smollm2-135m", 8192  # a preset of random weights, and the most tokens of its sequences
ON: tuple[On, ...] = ("sim", "gpu", "reference")


@dataclass(frozen=True)
class LanguageModel:
    """A model loaded onto a chip, with its tokenizer; `machine` is the one whose roofs and times are told."""

    name: str
    on: On
    machine: Machine
    tokenizer: Codec
    runner: Runner

    def generate(
        self, prompt: str, max_tokens: int = 64, chat: bool = False, settings: Settings = GREEDY
    ) -> "Generation":
        """Continue a prompt, or answer it where `chat`; raises InputError where it is empty or too long."""
        settings.words()  # refuses what means nothing
        tokens = self.tokenizer.chat(prompt) if chat else self.tokenizer.encode(prompt)
        if not tokens:
            raise InputError("the prompt is empty; give at least one character")
        if max_tokens < 1:
            raise InputError(f"max_tokens must be at least 1; max_tokens = {max_tokens}")
        require_context(self.runner.config, len(tokens) + max_tokens)
        if self.on == "gpu":  # two tokens for nothing: compiled and captured steps are not on the phases' clocks
            "".join(Generation(self, prompt, tokens, min(2, max_tokens), len(tokens) + max_tokens, settings))
        return Generation(self, prompt, tokens, max_tokens, len(tokens) + max_tokens, settings)


class Generation:
    """Iterate once for pieces of text as they come; `tokens` and `phases` tell what has happened so far.

    `stop` is "running", then "length" at the limit or "end" where the model ended the text.
    """

    def __init__(
        self,
        model: LanguageModel,
        prompt: str,
        tokens: Sequence[int],
        limit: int,
        capacity: int,
        settings: Settings,
    ) -> None:
        self.model = model
        self.prompt = prompt
        self.prompt_tokens = tuple(tokens)
        self.tokens: list[int] = []
        self.stop = "running"
        self._limit, self._capacity = limit, capacity
        self._settings = settings
        self._session: Session | None = None

    def __iter__(self) -> Iterator[str]:
        text = self.model.tokenizer.stream(self.prompt_tokens)
        session = self._session = self.model.runner.session(self._capacity)
        try:
            session.start(self.prompt_tokens, self._settings)
            while self.stop == "running":
                last = len(self.tokens) + 1 == self._limit
                if not last:
                    session.follow(self._settings.drawn(len(self.tokens) + 1))
                token = session.finish()
                if token in self.model.tokenizer.ends:
                    self.stop = "end"
                else:
                    self.tokens.append(token)
                    self.stop = "length" if last else self.stop
                    yield text.feed(token)
            yield text.finish()
        finally:
            session.close()

    @property
    def text(self) -> str:
        """The text so far."""
        return self.model.tokenizer.decode(self.tokens, self.prompt_tokens)

    @property
    def phases(self) -> tuple[Phase, ...]:
        """The bills of prefill and, once a second token was asked for, of decode."""
        passes = self._session.passes() if self._session else []
        parts = ((PREFILL, passes[:1]), (DECODE, passes[1:]))
        return tuple(summarise(name, some, self.model.machine) for name, some in parts if some)

    def as_dict(self) -> dict[str, Any]:
        """The document of `lab generate --json`."""
        return {
            "prompt": self.prompt,
            "text": self.text,
            "model": self.model.name,
            "on": self.model.on,
            "machine": self.model.machine.name,
            "prompt_tokens": list(self.prompt_tokens),
            "tokens": self.tokens,
            "stop": self.stop,
            "phases": [phase.as_dict() for phase in self.phases],
        }


def load(
    model: Path | str | None = None, on: On = "sim", machine: Machine = H100, random: bool = False, weights: str = ""
) -> LanguageModel:
    """Load a GGUF file or Hugging Face folder of a Llama-class model, SmolLM2-135M-Instruct by default, onto a chip.

    With `random` the model is a preset and its weights are drawn on the chip; tokens are then bytes and numbers.
    `weights` is the format that matrices are rounded to, by default as the file, or the preset, has them. `on` is "sim"
    (the lab's kernels on the simulated `machine`), "gpu" or "reference" (float32 NumPy). Raises InputError for files
    that are not such models, NoDeviceError, EnvironmentFailure where the weights cannot be had.
    """
    chip = _chip(on, machine)
    if chip is None and (random or weights):
        raise InputError("weights are drawn or rounded on a chip: on sim or gpu, not reference")
    if random and chip:
        name = str(model or DRAWN)
        preset = model_named(name)
        drawn = StepRunner(draw(replace(preset, weights=weights or preset.weights), DRAWN_CONTEXT, chip), chip)
        return LanguageModel(f"{name}, random", on, machine, NumberCodec(), drawn)
    checkpoint = open_checkpoint(Path(model) if model else default_weights())
    runner: Runner
    with progress("loading the weights", len(checkpoint.config.shapes), "tensors") as advance:
        if chip:
            runner = StepRunner(
                StepWeights.load(checkpoint.config, checkpoint.file, chip, weights=weights, advance=advance), chip
            )
        else:
            runner = ReferenceRunner(Llama(checkpoint, Reference(), advance))
    return LanguageModel(checkpoint.name, on, machine, checkpoint.tokenizer, runner)


def generate(
    prompt: str,
    model: Path | str | None = None,
    max_tokens: int = 64,
    chat: bool = False,
    on: On = "sim",
    machine: Machine = H100,
    settings: Settings = GREEDY,
    random: bool = False,
    weights: str = "",
) -> Generation:
    """Load a model and continue a prompt: iterate over the result for text, then ask it for `phases`.

    Raises what `load` and `LanguageModel.generate` raise.
    """
    settings.words()  # refuses what means nothing before a model is read
    return load(model, on, machine, random, weights).generate(prompt, max_tokens, chat, settings)


def _chip(on: On, machine: Machine) -> Chip | None:
    """The chip that computes, None for float32 NumPy."""
    if on not in ON:
        raise InputError(f"unknown chip {on!r}; known: {', '.join(ON)}")
    if on == "gpu":
        return gpu(machine)
    return simulated(machine) if on == "sim" else None
