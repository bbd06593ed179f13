"""What the loop does, for Prometheus under vLLM's names, and for the live page."""

from collections import deque
from collections.abc import Sequence
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from lab.serving.engine import StepFacts
from lab.serving.request import Sequence as Served
from lab.serving.scheduler import Scheduler

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
TOKENS = (1, 8, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
RECENT = 256  # steps and gaps that the live page looks back on


class Gauges:
    """Counts of one loop; heard in its thread, read in any."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler, self._registry = scheduler, CollectorRegistry()
        r = self._registry
        self._running = Gauge("lab:num_requests_running", "Sequences that have a slot.", registry=r)
        self._waiting = Gauge("lab:num_requests_waiting", "Requests in the queue.", registry=r)
        self._usage = Gauge("lab:kv_cache_usage_perc", "Pages that tables hold, as a share of all.", registry=r)
        self._hits = Counter("lab:prefix_cache_hits", "Prompt tokens found computed.", registry=r)
        self._queries = Counter("lab:prefix_cache_queries", "Prompt tokens looked for.", registry=r)
        self._preemptions = Counter("lab:num_preemptions", "Sequences whose pages were taken.", registry=r)
        self._generated = Counter("lab:generation_tokens", "Tokens sampled.", registry=r)
        self._ttft = Histogram("lab:time_to_first_token_seconds", "From arrival on.", buckets=SECONDS, registry=r)
        self._itl = Histogram("lab:inter_token_latency_seconds", "Between two tokens.", buckets=SECONDS, registry=r)
        self._iteration = Histogram("lab:iteration_tokens_total", "Tokens of a step.", buckets=TOKENS, registry=r)
        self._counted = 0, 0
        self._steps: deque[StepFacts] = deque(maxlen=RECENT)
        self._gaps: deque[float] = deque(maxlen=RECENT)
        self._firsts: deque[float] = deque(maxlen=RECENT)
        self._tokens = 0

    def hear(self, facts: StepFacts, emitted: Sequence[Served]) -> None:
        """A step is over, and these sequences have a token more."""
        self._steps.append(facts)
        self._iteration.observe(facts.tokens)
        self._generated.inc(len(emitted))
        self._tokens += len(emitted)
        for s in emitted:
            if len(s.token_us) == 1:
                first = s.token_us[0] - s.request.arrival_us
                self._ttft.observe(first / 1e6)
                self._queries.inc(len(s.request.prompt))
                self._firsts.append(first)
            else:
                gap = s.token_us[-1] - s.token_us[-2]
                self._itl.observe(gap / 1e6)
                self._gaps.append(gap)

    def exposition(self) -> bytes:
        """The text that Prometheus reads."""
        s = self._scheduler
        self._running.set(len(s.running))
        self._waiting.set(len(s.waiting))
        self._usage.set(self._held() / (s.policy.pages - 1))
        hits, preemptions = s.hits, s.preemptions
        self._hits.inc(hits - self._counted[0])
        self._preemptions.inc(preemptions - self._counted[1])
        self._counted = hits, preemptions
        return generate_latest(self._registry)

    def now(self) -> dict[str, Any]:
        """What the live page shows: times in milliseconds, of the last steps and tokens."""
        s, steps = self._scheduler, list(self._steps)
        spent = steps[-1].ended_us - steps[0].ended_us if len(steps) > 1 else 0.0
        return {
            "tokens": self._tokens,
            "tokens_per_s": sum(f.rows for f in steps[1:]) / spent * 1e6 if spent else 0.0,
            "running": len(s.running),
            "waiting": len(s.waiting),
            "pages": self._held(),
            "all_pages": s.policy.pages - 1,
            "batches": [f.rows for f in steps],
            "steps_ms": [f.us / 1e3 for f in steps],
            "ttft_ms": [us / 1e3 for us in self._firsts],
            "itl_ms": [us / 1e3 for us in self._gaps],
        }

    def _held(self) -> int:
        """Pages that are neither free nor cached."""
        pool = self._scheduler.pool
        return self._scheduler.policy.pages - 1 - pool.available
