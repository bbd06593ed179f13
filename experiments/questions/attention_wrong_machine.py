"""Attention's wrong machine: prefill's kernel decodes a token, decode's kernel reads a prompt token by token."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from experiments.lookup import times
from experiments.questions.attention_runs import CLOCK, attention_of, job, run_rows, runs_of
from experiments.questions.duel import spelled
from experiments.rows import Row, Verdict
from experiments.running.backends import Backend
from lab.problems import Attention
from lab.record import Archive, Record
from sim.errors import InputError

QUESTION = "What does it cost to decode by prefill's attention kernel, or to prefill by decode's?"

PREFILL, DECODE = "attention_pingpong", "attention_split_kv"
PAGE = 16  # tokens of a page that the rows of a prompt share


@dataclass(frozen=True)
class Options:
    """A prompt of `prompt` tokens, and one token that attends to `context` of them, `batch` sequences together.

    Decode's kernel takes a prompt as that many sequences of a token each, all behind the same pages.
    """

    prompt: int = 1024
    batch: int = 16
    context: int = 8192
    q_heads: int = 32
    kv_heads: int = 8
    head_dim: int = 128
    rounds: int = 10
    seconds: int = 120

    def __post_init__(self) -> None:
        if min(self.prompt, self.batch, self.context) < 1:
            raise InputError(
                f"prompt, batch and context are at least 1; got {self.prompt}, {self.batch}, {self.context}"
            )


def measure(options: Options, backend: Backend) -> Iterator[Record]:
    """Each kernel on its own ground, then each on the other's."""
    o, heads = options, (options.q_heads, options.kv_heads, options.head_dim)
    prompt, token = Attention(1, *heads, o.prompt, o.prompt), Attention(o.batch, *heads, 1, o.context)
    lengths = tuple(range(1, o.prompt + 1))
    one_by_one = Attention(
        o.prompt, *heads, 1, o.prompt, kv_lens=lengths, page=PAGE, pool=1 + -(-o.prompt // PAGE), order="sequential"
    )
    asked = ((PREFILL, prompt), (DECODE, token), (PREFILL, token), (DECODE, one_by_one))
    jobs = [job(problem, backend.machine, "attention_wrong_machine", o.rounds, kernel) for kernel, problem in asked]
    yield from backend.timed(jobs, o.seconds)


def rows(records: Sequence[Record], past: Archive) -> Iterator[Row]:
    """Time and traffic of each kernel on each ground, and FLOPs issued for each useful one."""
    for record in runs_of(records):
        case = f"{record.kernel}, {_ground(record)}"
        yield from run_rows(record, past, case)
        yield Row(case, "FLOP issued for each useful one", _issued(record), None, None)


def verdict(records: Sequence[Record], past: Archive) -> Verdict:
    """How many times as long the wrong kernel takes, and what for."""
    found = runs_of(records)
    if len(found) < 4:
        return Verdict(None, "Not every kernel ran on every ground.")
    prefill, decode, prefill_decodes, decode_reads = found[:4]
    us, source = times(found[:4], past, (CLOCK,))
    slower = us[2] / us[1], us[3] / us[0]
    moved = (decode_reads.theory or {}).get("l2_to_sm_bytes") or 0
    again = moved / ((prefill.theory or {}).get("l2_to_sm_bytes") or 1)
    return Verdict(
        min(slower) > 1 if source == "measured" else None,
        f"On {_ground(decode)} {PREFILL} takes {spelled(slower[0])} times as long as {DECODE} and issues "
        f"{spelled(_issued(prefill_decodes))} FLOPs for each useful one ({DECODE} {spelled(_issued(decode))}); on "
        f"{_ground(prefill)} {DECODE} takes {spelled(slower[1])} times as long as {PREFILL} and moves {spelled(again)} "
        f"times the bytes from L2 ({source}).",
    )


def _ground(record: Record) -> str:
    p = attention_of(record)
    if p.q_len > 1:
        return f"a prompt of {p.q_len:,}"
    return f"a prompt of {p.batch:,}, token by token" if p.kv_lens else f"{p.batch:,} x {p.kv_len:,} of context"


def _issued(record: Record) -> float:
    return float((record.theory or {}).get("mma_flops") or 0) / attention_of(record).flops
