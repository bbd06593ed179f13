"""Generation: a prompt in one prefill pass, then one decode pass a token, with the bill of both phases."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from lab.gpu import device
from lab.inference.config import read_config
from lab.inference.download import default_weights
from lab.inference.gguf_file import GgufFile
from lab.inference.model import KVCache, Llama
from lab.inference.phases import DECODE, PREFILL, Phase, Step, summarise
from lab.inference.progress import progress
from lab.inference.tokenizer import Tokenizer
from lab.inference.units import LinearUnit, Reference, SimulatedChip
from lab.problems import Attention
from sim.errors import InputError
from sim.folders import unicode
from sim.machine import H100, Machine

On = Literal["sim", "gpu", "reference"]
ON: tuple[On, ...] = ("sim", "gpu", "reference")


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn: temperature 0 takes the likeliest; top_k 0 allows all."""

    temperature: float = 0.0
    top_k: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature <= 100 or self.top_k < 0 or self.seed < 0:
            raise InputError(
                f"temperature must be from 0 to 100, top_k and seed at least 0; temperature = {self.temperature}, "
                f"top_k = {self.top_k}, seed = {self.seed}"
            )


@dataclass(frozen=True)
class LanguageModel:
    """A model loaded onto a chip, with its tokenizer; `machine` is the one whose roofs and times are told."""

    name: str
    on: On
    machine: Machine
    tokenizer: Tokenizer
    llama: Llama

    def generate(
        self, prompt: str, max_tokens: int = 64, chat: bool = False, sampling: Sampling = Sampling()
    ) -> "Generation":
        """Continue a prompt, or answer it where `chat`; raises InputError where it is empty or too long."""
        tokens = self.tokenizer.chat(prompt) if chat else self.tokenizer.encode(prompt)
        if not tokens:
            raise InputError("the prompt is empty; give at least one character")
        if max_tokens < 1:
            raise InputError(f"max_tokens must be at least 1; max_tokens = {max_tokens}")

        def start(limit: int) -> Generation:
            return Generation(self, prompt, tokens, limit, self.llama.new_cache(len(tokens) + max_tokens), sampling)

        if self.on == "gpu":  # two tokens for nothing: compiled and loaded code is not on the phases' clocks
            "".join(start(min(2, max_tokens)))
        return start(max_tokens)


class Generation:
    """Iterate once for pieces of text as they come; `tokens` and `phases` tell what has happened so far.

    `stop` is "running", then "length" at the limit or "end" where the model ended the text.
    """

    def __init__(
        self, model: LanguageModel, prompt: str, tokens: Sequence[int], limit: int, cache: KVCache, sampling: Sampling
    ) -> None:
        self.model = model
        self.prompt = prompt
        self.prompt_tokens = tuple(tokens)
        self.tokens: list[int] = []
        self.stop = "running"
        self._limit = limit
        self._cache = cache
        self._sampling = sampling
        self._rng = np.random.default_rng(sampling.seed)
        self._steps: list[Step] = []

    def __iter__(self) -> Iterator[str]:
        text = self.model.tokenizer.stream()
        logits = self._step(self.prompt_tokens)
        while (token := self._draw(logits)) not in self.model.tokenizer.ends:
            self.tokens.append(token)
            yield text.feed(token)
            if len(self.tokens) == self._limit:
                self.stop = "length"
                break
            logits = self._step([token])
        else:
            self.stop = "end"
        yield text.finish()

    @property
    def text(self) -> str:
        """The text so far."""
        return self.model.tokenizer.decode(self.tokens)

    @property
    def phases(self) -> tuple[Phase, ...]:
        """The bills of prefill and, once a second token was asked for, of decode."""
        parts = ((PREFILL, self._steps[:1]), (DECODE, self._steps[1:]))
        return tuple(summarise(name, steps, self.model.machine) for name, steps in parts if steps)

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

    def _step(self, tokens: Sequence[int]) -> Any:
        """Logits [vocab] after some new tokens, whose cost joins the bill."""
        llama = self.model.llama
        llama.unit.drain()  # what the unit did for others is not on this bill
        started = time.perf_counter()
        logits = llama.logits(llama.forward(tokens, self._cache)[-1:])[0]
        finite = bool(llama.unit.xp.isfinite(logits).all())  # waits for the chip, so the wall clock has it all
        wall_us = (time.perf_counter() - started) * 1e6
        if not finite:
            raise InputError(f"the model {self.model.name} gives scores that are not finite")
        c = llama.config
        attention = Attention(
            1, c.q_heads, c.kv_heads, c.head_dim, len(tokens), self._cache.length, kv=llama.unit.format
        )
        self._steps.append(Step(tuple(llama.unit.drain()), attention, c.layers, wall_us))
        return logits

    def _draw(self, logits: Any) -> int:
        """The next token; a sample is the largest of logits / temperature plus Gumbel noise (Gumbel, 1954)."""
        xp, s = self.model.llama.unit.xp, self._sampling
        if s.temperature > 0:
            if 0 < s.top_k < len(logits):
                logits = xp.where(logits < xp.sort(logits)[-s.top_k], np.float32(-np.inf), logits)
            noise = self._rng.gumbel(size=len(logits)).astype(np.float32)
            logits = logits / np.float32(s.temperature) + xp.asarray(noise)
        return int(logits.argmax())


def load(model: Path | str | None = None, on: On = "sim", machine: Machine = H100) -> LanguageModel:
    """Load a GGUF file of the Llama architecture, SmolLM2-135M-Instruct where none is named, onto a chip.

    `on` is "sim" (the lab's kernels on the simulated `machine`), "gpu" or "reference" (float32 NumPy). Raises
    InputError for files that are not such models, NoDeviceError, EnvironmentFailure where the weights cannot be had.
    """
    unit = _unit(on, machine)
    file = GgufFile(Path(model) if model else default_weights())
    config = read_config(file)
    tokenizer = Tokenizer(file)
    with progress("loading the weights", len(config.shapes), "tensors") as advance:
        llama = Llama(config, file, unit, advance)
    return LanguageModel(unicode(file.path.stem), on, machine, tokenizer, llama)


def generate(
    prompt: str,
    model: Path | str | None = None,
    max_tokens: int = 64,
    chat: bool = False,
    on: On = "sim",
    machine: Machine = H100,
    sampling: Sampling = Sampling(),
) -> Generation:
    """Load a model and continue a prompt: iterate over the result for text, then ask it for `phases`.

    Raises what `load` and `LanguageModel.generate` raise.
    """
    return load(model, on, machine).generate(prompt, max_tokens, chat, sampling)


def _unit(on: On, machine: Machine) -> LinearUnit:
    if on == "sim":
        return SimulatedChip(machine)
    if on == "reference":
        return Reference()
    if on == "gpu":
        device.require_device()
        from lab.inference.units.gpu import GpuLinears  # loads CuPy; only here is it needed

        return GpuLinears(machine)
    raise InputError(f"unknown chip {on!r}; known: {', '.join(ON)}")
