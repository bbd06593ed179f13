"""FlashAttention: the scores of naive attention go through HBM, those of fused attention never leave the SM."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from experiments.chart import Chart
from experiments.lookup import drawn, times
from experiments.questions.attention_runs import CLOCK, attention_of, hbm_bytes, job, run_rows, runs_of, times_of
from experiments.questions.duel import spelled
from experiments.rows import MEGA, Row, Verdict
from experiments.running.backends import Backend
from lab.problems import Attention
from lab.record import Archive, Record
from sim.errors import InputError

QUESTION = "What does it cost to write the scores of attention to HBM, as prompts grow?"

NAIVE = "attention_naive"


@dataclass(frozen=True)
class Options:
    """The causal attention of one layer over prompts of `shortest`, twice as many, ... up to `longest` tokens."""

    q_heads: int = 32
    kv_heads: int = 8
    head_dim: int = 128
    shortest: int = 512
    longest: int = 4096
    rounds: int = 10
    seconds: int = 120

    def __post_init__(self) -> None:
        if not 1 <= self.shortest < self.longest:
            raise InputError(f"shortest is at least 1 and below longest; got {self.shortest}, {self.longest}")


def measure(options: Options, backend: Backend) -> Iterator[Record]:
    """Naive and fused at every length."""
    o, length, jobs = options, options.shortest, []
    while length <= o.longest:
        problem = Attention(1, o.q_heads, o.kv_heads, o.head_dim, length, length)
        jobs += [job(problem, backend.machine, "flash_attention", o.rounds, kernel) for kernel in (NAIVE, "")]
        length *= 2
    yield from backend.timed(jobs, o.seconds)


def rows(records: Sequence[Record], past: Archive) -> Iterator[Row]:
    """Time and HBM bytes of both at every length."""
    for length, (naive, fused) in _pairs(records).items():
        for record in (naive, fused):
            yield from run_rows(record, past, f"S = {length:,}")


def verdict(records: Sequence[Record], past: Archive) -> Verdict:
    """How bytes grow with the prompt, and how many times as long the naive kernel takes."""
    pairs = _pairs(records)
    if len(pairs) < 2:
        return Verdict(None, "There are not two lengths to compare.")
    (shorter, longer), pair = list(pairs)[-2:], list(pairs.values())[-1]
    grown = [hbm_bytes(pairs[longer][i].theory) / hbm_bytes(pairs[shorter][i].theory) for i in (0, 1)]
    more = hbm_bytes(pair[0].theory) / hbm_bytes(pair[1].theory)
    us, source = times(pair, past, (CLOCK,))
    slower = us[0] / us[1]
    held = grown[0] > grown[1] and slower > 1
    return Verdict(
        held if source == "measured" else None,
        f"From {shorter:,} to {longer:,} tokens HBM bytes grow {spelled(grown[0])} times in {NAIVE} and "
        f"{spelled(grown[1])} times in {pair[1].kernel}; there the scores cost {spelled(more)} times the bytes and "
        f"{spelled(slower)} times the time ({source}).",
    )


def pictures(past: Archive) -> dict[str, Chart]:
    """Time and HBM bytes against the length of the prompt."""
    pairs = _pairs(past.where(experiment="flash_attention", on="sim").newest_run())
    if not pairs:
        return {}
    both = [[(float(n), pair[i]) for n, pair in pairs.items()] for i in (0, 1)]
    names = [points[-1][1].kernel or "" for points in both]
    timed = [s for name, points in zip(names, both, strict=True) for s in times_of(name, points, past)]
    moved = [
        each
        for name, points in zip(names, both, strict=True)
        for each in drawn(name, ((x, hbm_bytes(r.theory) / MEGA, r) for x, r in points), "theory")
    ]
    x = "tokens of the prompt"
    return {
        "flash_attention_time": Chart("Attention with its scores in HBM, and fused", x, "us", tuple(timed)),
        "flash_attention_bytes": Chart("What attention moves between HBM and the chip", x, "MB", tuple(moved)),
    }


def _pairs(records: Sequence[Record]) -> dict[int, tuple[Record, Record]]:
    """(naive, fused) by the length of the prompt, the shortest first."""
    naive, fused = (
        {attention_of(r).q_len: r for r in runs_of(records) if (r.kernel == NAIVE) is alone} for alone in (True, False)
    )
    return {length: (naive[length], fused[length]) for length in sorted(naive.keys() & fused.keys())}
