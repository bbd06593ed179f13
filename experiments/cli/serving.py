"""Options of a serving loop that verbs share, under vLLM's names."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import wraps
from typing import Annotated, Any

import typer

Model = Annotated[str, typer.Option(help="A preset of lab explain model; its weights are random.")]
MaxNumSeqs = Annotated[int, typer.Option(min=1, help="The most sequences of a step.")]
MaxBatchedTokens = Annotated[int, typer.Option(min=2, help="The most tokens of a step.")]
ItlBudget = Annotated[
    float,
    typer.Option(min=0, metavar="MS", help="Prompts enter a step only as far as it is predicted to end by then."),
]
Length = Annotated[int, typer.Option(min=2, help="The most tokens of a sequence.")]
Pages = Annotated[int, typer.Option(min=0, help="Pages of 64 tokens; 0: as many as fit beside the weights.")]
HostPages = Annotated[int, typer.Option(min=0, help="Pages of the host, which preempted sequences may go to.")]
Prefixes = Annotated[bool, typer.Option(help="Share full pages of equal prefixes.")]
Preemption = Annotated[str, typer.Option(help="recompute, swap, or cheaper: whichever is predicted to be.")]
Disaggregate = Annotated[
    str, typer.Option(metavar="P:D", help="So many GPUs for prompts and so many for answers; a preset's as predicted.")
]
Replicas = Annotated[int, typer.Option(min=0, help="So many GPUs, each with a loop of its own, as predicted.")]
TensorParallel = Annotated[int, typer.Option(min=0, help="2: both GPUs share every step, as predicted.")]
Devices = Annotated[
    str, typer.Option(metavar="P,...,D,...", help="The GPUs of --disaggregate --on gpu, prompts' first; 0,1,... else.")
]
Threads = Annotated[bool, typer.Option("--one-process", help="Prompts' engines are threads, not processes.")]
JournalFile = Annotated[str, typer.Option("--journal", metavar="FILE", help="Write every decision to a file.")]


@dataclass(frozen=True)
class LoopOptions:
    """What a loop may do, and where its decisions are written."""

    max_num_seqs: MaxNumSeqs = 256
    max_num_batched_tokens: MaxBatchedTokens = 2048
    itl_budget_ms: ItlBudget = 0.0
    max_model_len: Length = 8192
    num_gpu_blocks: Pages = 0
    num_cpu_blocks: HostPages = 0
    enable_prefix_caching: Prefixes = True
    preemption: Preemption = "recompute"
    journal: JournalFile = ""

    def policy(self, model: Any, machine: Any, continuous: bool = True, context: int = 0) -> Any:
        """The `Policy` of a model on a machine, whose pages are as many as fit where their number is not told.

        Where `context` is above 0 no sequence is longer. Raises InputError for what cannot be.
        """
        from lab.serving.policy import Policy
        from lab.serving.simulated import pages_within

        return Policy(
            max_rows=self.max_num_seqs,
            max_tokens=self.max_num_batched_tokens,
            itl_us=1e3 * self.itl_budget_ms,
            pages=self.num_gpu_blocks or pages_within(model, machine),
            host_pages=self.num_cpu_blocks or 1,
            max_length=min(self.max_model_len, context or self.max_model_len),
            prefix_caching=self.enable_prefix_caching,
            continuous=continuous,
            preemption=self.preemption,
        )


def gpus_of(disaggregate: str, replicas: int, tensor_parallel: int) -> str:
    """The set-up that was asked for, as `lab.serving.disaggregation.setups.Setup` takes it; "" for one GPU.

    Raises InputError where there is more than one, or none such.
    """
    from lab.serving.disaggregation.setups import DISAGGREGATE, REPLICAS, TENSOR_PARALLEL, Setup
    from sim.errors import InputError

    ways = ((DISAGGREGATE, disaggregate), (REPLICAS, replicas), (TENSOR_PARALLEL, tensor_parallel))
    asked = [f"{way}={number}" for way, number in ways if number]
    if len(asked) > 1:
        raise InputError(f"one set-up of several GPUs at a time; got {' and '.join(asked)}")
    return str(Setup.of(asked[0])) if asked else ""


def devices_of(text: str, prefills: int, decodes: int) -> tuple[list[int], list[int]]:
    """The GPUs of engines for prompts and for answers; raises InputError where they are not as many."""
    from sim.errors import InputError

    words = text.split(",") if text else [str(i) for i in range(prefills + decodes)]
    if len(words) != prefills + decodes or not all(word.isdigit() for word in words):
        raise InputError(f"devices are {prefills + decodes} numbers with commas between, prompts' first; got {text!r}")
    found = [int(word) for word in words]
    return found[:prefills], found[prefills:]


def with_loop(verb: Callable[..., Any]) -> Callable[..., Any]:
    """A verb with `LoopOptions`' fields for options in the place of its parameter `loop`, whose defaults they have."""
    signature, names = inspect.signature(verb), [field.name for field in fields(LoopOptions)]
    parameters: list[inspect.Parameter] = []
    for one in signature.parameters.values():
        if one.name != "loop":
            parameters.append(one)
            continue
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        for field in fields(LoopOptions):
            default = getattr(one.default, field.name)
            parameters.append(inspect.Parameter(field.name, kind, default=default, annotation=field.type))

    @wraps(verb)
    def flat(**given: Any) -> Any:
        return verb(loop=LoopOptions(**{name: given.pop(name) for name in names}), **given)

    flat.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return flat
