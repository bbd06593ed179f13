"""Options of a serving loop that verbs share, under vLLM's names."""

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


def policy(
    model: Any,
    machine: Any,
    max_num_seqs: int,
    max_num_batched_tokens: int,
    itl_budget_ms: float,
    max_model_len: int,
    num_gpu_blocks: int,
    num_cpu_blocks: int,
    enable_prefix_caching: bool,
    preemption: str,
    continuous: bool = True,
) -> dict[str, Any]:
    """The fields of a `Policy` that these options ask for; raises InputError for what cannot be."""
    from dataclasses import asdict

    from lab.serving.scheduler import Policy
    from lab.serving.simulated import pages_within

    return asdict(
        Policy(
            max_rows=max_num_seqs,
            max_tokens=max_num_batched_tokens,
            itl_us=1e3 * itl_budget_ms,
            pages=num_gpu_blocks or pages_within(model, machine),
            host_pages=num_cpu_blocks or 1,
            max_length=max_model_len,
            prefix_caching=enable_prefix_caching,
            continuous=continuous,
            preemption=preemption,
        )
    )
