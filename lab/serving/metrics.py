"""What clients saw and what the loop did, under the names that `vllm bench serve` writes, and a few more."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

from lab.serving.engine import StepFacts
from lab.serving.request import ABORT
from lab.serving.request import Sequence as Served
from sim.errors import InputError

PERCENTILES = (50.0, 90.0, 99.0)
SLOS = ("ttft", "tpot", "e2el")


@dataclass
class Steps:
    """An observer that keeps every step's facts."""

    facts: list[StepFacts] = field(default_factory=list)

    def __call__(self, facts: StepFacts, emitted: Sequence[Served]) -> None:  # noqa: ARG002 (sequences know)
        self.facts.append(facts)


def goodput_of(words: Sequence[str]) -> dict[str, float]:
    """Milliseconds of each limit of words like "ttft:500"; raises InputError for others."""
    found = {}
    for word in words:
        name, _, value = word.partition(":")
        try:
            found[name] = float(value)
        except ValueError:
            found[name] = -1.0
        if name not in SLOS or not found[name] > 0:
            raise InputError(f"a goodput limit is {', '.join(SLOS)} and milliseconds, as in ttft:500; got {word!r}")
    return found


def summarise(
    sequences: Sequence[Served],
    facts: Sequence[StepFacts],
    page_tokens: int,
    kv_bytes_per_token: int,
    goodput: Mapping[str, float] | None = None,
    percentiles: Sequence[float] = PERCENTILES,
) -> dict[str, Any]:
    """One run's figures: times in milliseconds where a name ends in _ms, else in seconds and tokens.

    `itl` are the gaps between tokens, pooled over requests; `max_itl` is each request's longest, `tpot` its mean.
    `kv_bytes` are what all steps read of the cache; `kv_waste` is the share of the room in block tables that has no
    token, over all steps; `idle_fraction` the share of time in which the chip had nothing to do, `max_idle_us` the
    longest such time; `host_us` what the loop's own work on a step took, `prefix_hits` are prompt tokens found in the
    cache.
    """
    done = [s for s in sequences if s.reason and s.reason != ABORT]
    times = [np.asarray([s.request.arrival_us, *s.token_us]) / 1e3 for s in done]
    gaps = [np.diff(t[1:]) for t in times]
    ttft = np.asarray([t[1] - t[0] for t in times])
    e2el = np.asarray([t[-1] - t[0] for t in times])
    tpot = np.asarray([gap.mean() for gap in gaps if len(gap)])
    itl = np.concatenate(gaps) if gaps else np.empty(0)
    longest = np.asarray([gap.max() for gap in gaps if len(gap)])
    first = min((s.request.arrival_us for s in sequences), default=0.0)
    last = max([f.ended_us for f in facts[-1:]] + [1e3 * float(t[-1]) for t in times], default=first)
    duration = (last - first) / 1e6
    output, prompt = sum(len(s.sampled) for s in done), sum(len(s.request.prompt) for s in done)
    found: dict[str, Any] = {
        "duration": duration,
        "completed": len(done),
        "failed": len(sequences) - len(done),
        "total_input_tokens": prompt,
        "total_output_tokens": output,
        "request_throughput": _rate(len(done), duration),
        "output_throughput": _rate(output, duration),
        "total_token_throughput": _rate(output + prompt, duration),
        "max_output_tokens_per_s": _busiest(times),
        "max_concurrent_requests": _most_at_once(times),
    }
    if goodput:
        of = {"ttft": ttft, "e2el": e2el, "tpot": np.asarray([gap.mean() if len(gap) else 0.0 for gap in gaps])}
        kept = [all(of[name][i] <= limit for name, limit in goodput.items()) for i in range(len(done))]
        found["request_goodput"] = _rate(sum(kept), duration)
    for name, values in (("ttft", ttft), ("tpot", tpot), ("itl", itl), ("e2el", e2el), ("max_itl", longest)):
        found |= _spread(name, values, percentiles)
    found["max_itl_ms"] = float(longest.max()) if len(longest) else 0.0
    return found | _of_steps(facts, page_tokens, kv_bytes_per_token) if facts else found


def per_request(sequences: Sequence[Served]) -> dict[str, list[Any]]:
    """Each request's lengths and times, in seconds, under vLLM's names."""
    times = [[t / 1e6 for t in s.token_us] for s in sequences]
    return {
        "input_lens": [len(s.request.prompt) for s in sequences],
        "output_lens": [len(s.sampled) for s in sequences],
        "ttfts": [t[0] - s.request.arrival_us / 1e6 if t else None for t, s in zip(times, sequences, strict=True)],
        "itls": [[after - before for before, after in pairwise(t)] for t in times],
    }


def _of_steps(facts: Sequence[StepFacts], page_tokens: int, kv_bytes_per_token: int) -> dict[str, float]:
    """What the loop itself did."""
    host = np.asarray([f.host_us for f in facts])
    room = sum(f.table_pages for f in facts) * page_tokens
    busy = sum(f.us for f in facts)
    idle = sum(f.idle_us for f in facts[1:])  # what was before the first is not its run's
    return {
        "steps": len(facts),
        "kv_bytes": sum(f.kv_tokens for f in facts) * kv_bytes_per_token,
        "kv_waste": 1 - sum(f.table_tokens for f in facts) / room if room else 0.0,
        "host_us": float(np.median(host)),
        "p99_host_us": float(np.percentile(host, 99)),
        "max_host_us": float(host.max()),
        "idle_fraction": idle / (busy + idle) if busy else 0.0,
        "max_idle_us": max((f.idle_us for f in facts[1:]), default=0.0),
        "mean_step_ms": busy / 1e3 / len(facts),
        "mean_rows": sum(f.rows for f in facts) / len(facts),
    }


def _rate(count: float, seconds: float) -> float:
    return count / seconds if seconds else 0.0


def _spread(name: str, ms: Any, percentiles: Sequence[float]) -> dict[str, float]:
    if not len(ms):
        return {}
    found = {f"mean_{name}_ms": float(ms.mean()), f"median_{name}_ms": float(np.median(ms))}
    found[f"std_{name}_ms"] = float(ms.std())
    return found | {f"p{p:g}_{name}_ms": float(np.percentile(ms, p)) for p in percentiles}


def _busiest(times: Sequence[Any]) -> float:
    """The most tokens of one second."""
    tokens = np.concatenate([t[1:] for t in times]) if times else np.empty(0)
    return float(np.bincount((tokens // 1e3).astype(int)).max()) if len(tokens) else 0.0


def _most_at_once(times: Sequence[Any]) -> int:
    """The most requests that had arrived and had not ended."""
    changes = sorted([(t[-1], -1) for t in times] + [(t[0], 1) for t in times])
    return int(max(np.cumsum([change for _, change in changes]), default=0))
