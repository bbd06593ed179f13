"""Work for the GPU as plain data, which travels to a worker process as JSON."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from lab import catalog
from lab.kernel import Kernel
from lab.problems import QUESTIONS
from lab.record import Value
from sim.errors import InputError


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """A kernel on a problem. `schedules` are words as --schedule takes them; `sweep` adds every candidate.

    `peers` asks for the libraries that experiments/peers/ knows, in the same run; `clocks` are "cold" and "graph",
    `paces` "burst" and "sustained". `plain` launches wait for the one before; `reads` adds what only moves as many
    bytes (`Bench.race`). `facts` join the metrics of every record.
    """

    kernel: str
    problem: dict[str, Any]
    schedules: tuple[str, ...] = ("",)
    sweep: bool = False
    peers: bool = True
    clocks: tuple[str, ...] = ("cold", "graph")
    paces: tuple[str, ...] = ("sustained",)
    plain: bool = False
    reads: bool = False
    rounds: int = 30
    experiment: str | None = None
    facts: dict[str, Value] = {}
    seed: int | None = None

    def parts(self) -> tuple[Kernel, Any]:
        """(kernel, problem)."""
        return catalog.get(self.kernel), problem_of(self.problem)


class Search(msgspec.Struct, frozen=True, kw_only=True):
    """A problem whose best schedule is sought among one kernel's candidates or, where it names none, all contenders.

    `most` makes it brief (`lab.choice.contenders`), 0 leaves its incumbents alone. What is `picked` is in its last
    race, however it did in the first. `peers` race the finalists; with `reads` not these but, beside what only moves as
    many bytes, the winner, once more.
    """

    problem: dict[str, Any]
    kernel: str = ""
    most: int | None = None
    peers: bool = True
    incumbents: tuple[tuple[str, str], ...] = ()  # kernels and schedule words that race along
    picked: tuple[str, str] | None = None  # likewise
    clock: str = "cold"
    plain: bool = False
    reads: bool = False
    rounds: int = 30
    experiment: str | None = None
    facts: dict[str, Value] = {}


class StepJob(msgspec.Struct, frozen=True, kw_only=True):
    """A whole step of a model with random weights; `peers` asks for PyTorch's on the same ones in the same run."""

    problem: dict[str, Any]
    kernel: str = ""
    peers: bool = True
    rounds: int = 30
    experiment: str | None = None
    facts: dict[str, Value] = {}


class ServeJob(msgspec.Struct, frozen=True, kw_only=True):
    """A workload for a serving loop over a model with random weights: requests as (arrival, prompt, answer).

    Arrivals are in microseconds, the rest in tokens; `policy` has fields of `lab.serving.scheduler.Policy`. The first
    `prefix` tokens of prompts are the same. Prompts of `long` tokens or more are told apart, where it is above 0.
    `attribute` asks what of the error is whose. `gpus` is a set-up of several GPUs, such as "replicas=2".
    """

    problem: dict[str, Any]
    requests: tuple[tuple[float, int, int], ...]
    policy: dict[str, Any] = {}
    prefix: int = 0
    max_concurrency: int = 0
    goodput: dict[str, float] = {}
    percentiles: tuple[float, ...] = (50.0, 90.0, 99.0)
    look_ahead: bool = True
    long: int = 0
    attribute: bool = False
    gpus: str = ""
    kernel: str = ""
    seed: int = 0
    experiment: str | None = None
    facts: dict[str, Value] = {}


class SpeakJob(msgspec.Struct, frozen=True, kw_only=True):
    """A language model that goes on from a prompt by so many tokens; `model` is a path, empty for the usual one."""

    model: str = ""
    prompt: str = "Water boils at"
    tokens: int = 400
    settings: tuple[float, int, float] = (0.0, 0, 1.0)  # temperature, top-k, top-p
    kernel: str = ""
    problem: dict[str, Any] | None = None
    rounds: int = 30
    experiment: str | None = None
    facts: dict[str, Value] = {}


class Work(msgspec.Struct, frozen=True, kw_only=True):
    """What one function does with a whole model, on a chip that the backend names."""

    on: str = "sim"
    machine: str = "h100"
    experiment: str | None = None


def problem_of(fields: Mapping[str, Any]) -> Any:
    """The problem that a record or a job describes; raises InputError for one that there is not."""
    own = dict(fields)
    kind = own.pop("kind", None)
    if kind not in QUESTIONS:
        raise InputError(f"a problem is of kind {', '.join(QUESTIONS)}; got {kind!r}")
    try:
        return QUESTIONS[kind](**own)
    except TypeError as error:
        raise InputError(f"no {kind} problem has the fields {', '.join(own)}: {error}") from error


AnyJob = Job | Search | StepJob | ServeJob | SpeakJob


def batch(jobs: Sequence[AnyJob], seconds: float) -> dict[str, Any]:
    """What the generators of on_device take: work in its order.

    What has not begun when the seconds are over is skipped, and a record says so.
    """
    return {"jobs": msgspec.to_builtins(jobs), "seconds": seconds}
