"""Figures of a run, by hand."""

import pytest

from lab.serving.engine import StepFacts
from lab.serving.metrics import goodput_of, summarise
from lab.serving.request import ABORT, LENGTH, Request, Sequence
from sim.errors import InputError


def served(id: int, arrival_us: float, times_us: list[float], reason: str = LENGTH, prompt: int = 3) -> Sequence:
    found = Sequence(Request(id, tuple(range(prompt)), len(times_us) or 1, arrival_us=arrival_us))
    found.tokens.extend([1] * len(times_us))
    found.token_us, found.reason = times_us, reason
    return found


FACTS = [
    StepFacts(10_000.0, 9_000.0, 1_000.0, 100.0, 2, 6, 6, 3, 150),
    StepFacts(20_000.0, 9_000.0, 1_000.0, 300.0, 2, 2, 8, 3, 152),
]
RUN = [served(0, 0.0, [10_000.0, 20_000.0, 50_000.0]), served(1, 5_000.0, [20_000.0]), served(2, 0.0, [], ABORT)]


def test_times_are_what_clients_see() -> None:
    found = summarise(RUN, FACTS, 64, 100, goodput_of(["ttft:12", "tpot:20"]), (50, 100))
    assert (found["completed"], found["failed"]) == (2, 1)
    assert (found["total_input_tokens"], found["total_output_tokens"]) == (6, 4)
    assert found["mean_ttft_ms"] == 12.5
    assert (found["mean_itl_ms"], found["p100_itl_ms"], found["mean_tpot_ms"]) == (20.0, 30.0, 20.0)
    assert (found["max_itl_ms"], found["median_max_itl_ms"]) == (30.0, 30.0)
    assert found["p100_e2el_ms"] == 50.0
    assert found["duration"] == 0.05
    assert found["output_throughput"] == 80.0
    assert found["request_goodput"] == 20.0  # the second waits 15 ms for its first token
    assert found["max_concurrent_requests"] == 2


def test_steps_are_summed() -> None:
    found = summarise(RUN, FACTS, 64, 100)
    assert found["kv_bytes"] == 1400
    assert found["kv_waste"] == pytest.approx(1 - 302 / 384)
    assert (found["host_us"], found["max_host_us"], found["max_idle_us"]) == (200.0, 300.0, 1000.0)
    assert found["idle_fraction"] == pytest.approx(5 / 95)  # what was before the first step is not its time
    assert (found["steps"], found["mean_rows"]) == (2, 2.0)


def test_nothing_served_has_no_times() -> None:
    found = summarise([], [], 64, 100)
    assert found["completed"] == found["output_throughput"] == found["max_itl_ms"] == 0
    assert "mean_ttft_ms" not in found


@pytest.mark.parametrize("word", ["ttft", "ttft:x", "ttft:0", "speed:3"])
def test_limits_are_named(word: str) -> None:
    with pytest.raises(InputError, match="a goodput limit is ttft, tpot, e2el"):
        goodput_of([word])
