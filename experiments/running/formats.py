"""The formats in which experiments compare one linear layer, and the layer that the lab chooses a kernel for."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from experiments.running.jobs import Job
from lab.choice import choose, schedule_words
from lab.kernel import schedule_fields
from lab.problems import Linear, Problem
from lab.record import Value
from sim.errors import InputError
from sim.machine import Machine

# Fields of a linear layer by the name of its format; fp8 has bf16 activations, fp8_fp8 has both narrow.
FORMATS: Mapping[str, Mapping[str, Any]] = {
    "bf16": {"weights": "bf16"},
    "fp8": {"weights": "fp8", "scales": "row"},
    "fp8_fp8": {"weights": "fp8", "activations": "fp8", "scales": "row"},
    "int4_g128": {"weights": "int4_g128"},
    "int4_g32": {"weights": "int4_g32"},
    "gptq_g128": {"weights": "int4_g128", "offset": "zero"},  # zero points, as GPTQ and AWQ have them
}


def formats_of(words: str) -> tuple[str, ...]:
    """The names in "bf16+fp8"; raises InputError and lists the known ones for another."""
    names = tuple(words.split("+"))
    if unknown := [name for name in names if name not in FORMATS]:
        raise InputError(f"formats are {', '.join(FORMATS)}, joined by +; got {unknown[0]!r}")
    return names


def in_format(name: str, shape: Linear) -> Linear:
    return replace(shape, **FORMATS[name])


def chosen_job(problem: Problem, target: Machine, facts: Mapping[str, Value], chain: bool = False, **how: Any) -> Job:
    """A job for the kernel and schedule that the lab chooses for a problem, alone or in a chain."""
    kernel, schedule, _ = choose(problem, target, chain)
    words = schedule_words(schedule_fields(schedule))
    return Job(kernel=kernel.name, problem=problem.as_dict(), schedules=(words,), facts=dict(facts), **how)
