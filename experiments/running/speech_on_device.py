"""What the worker process runs of language models: tokens a second, end to end, and what a step costs the host."""

import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

from experiments.running.jobs import SpeakJob
from experiments.running.on_device import in_time
from lab.record import Record

HOST_STEPS = 200  # whose cost to the host is measured


def speak(argument: Any) -> Iterator[Record]:
    """A record of each job: microseconds a token after the first, from the call to the text, a sample a generation."""
    from lab.gpu import device
    from lab.gpu.bench import shared_fields
    from lab.inference import Settings
    from lab.inference.generation import load

    loaded: dict[str, Any] = {}
    for job in in_time(argument, SpeakJob):
        if isinstance(job, Record):
            yield job
            continue
        if job.model not in loaded:
            loaded[job.model] = load(Path(job.model) if job.model else None, "gpu", device.machine())
        model, settings = loaded[job.model], Settings(*job.settings)
        samples = [_token_us(model.generate(job.prompt, job.tokens, settings=settings)) for _ in range(job.rounds)]
        us = median(samples)
        host_us, allocated = _host(model, settings)
        facts = {
            "model": model.name,
            "prompt": job.prompt,
            "tokens": job.tokens,
            "settings": ", ".join(f"{name} {value:g}" for name, value in _unusual(settings).items()),
            "tokens_per_s": 1e6 / us,
            "host_us": host_us,
            "allocated_bytes": allocated,
        }
        shared = {**shared_fields(None, model.machine, job.experiment), "us": us, "samples_us": samples}
        yield Record(**shared, metrics={**job.facts, **facts})


def _unusual(settings: Any) -> dict[str, float]:
    usual = type(settings)()._asdict()
    return {name: value for name, value in settings._asdict().items() if value != usual[name]}


def _token_us(generation: Any) -> float:
    """Microseconds a token from when the first is there until the last one's text is."""
    pieces = iter(generation)
    next(pieces)
    began, first = time.perf_counter(), len(generation.tokens)
    for _ in pieces:
        pass
    return (time.perf_counter() - began) / max(len(generation.tokens) - first, 1) * 1e6


def _host(model: Any, settings: Any) -> tuple[float, int]:
    """(host microseconds of a step: to ask for it, and to make text of its token; device bytes allocated meanwhile)."""
    import cupy

    tokens, text = model.tokenizer.encode("Water boils at"), model.tokenizer.stream()
    session = model.runner.session(len(tokens) + HOST_STEPS + 2)
    session.start(tokens, settings)
    session.follow(settings)
    text.feed(session.finish())
    before, spent = cupy.get_default_memory_pool().total_bytes(), []
    for draw in range(HOST_STEPS):
        began = time.perf_counter()
        session.follow(settings.drawn(draw))
        asked = time.perf_counter()
        token = session.finish()
        there = time.perf_counter()
        text.feed(token)
        spent.append((asked - began + time.perf_counter() - there) * 1e6)
    session.close()
    return median(spent), cupy.get_default_memory_pool().total_bytes() - before
