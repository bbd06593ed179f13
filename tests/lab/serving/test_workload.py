"""Workloads: the same for a seed, as many and as long as asked for, at the times that a rate means."""

import json
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab.serving.workload import TRACES, Workload
from sim.errors import InputError


@given(
    st.sampled_from(["random", *TRACES]),
    st.integers(1, 40),
    st.sampled_from([0.5, 20.0, inf]),
    st.sampled_from([0.3, 1.0, 4.0]),
    st.integers(0, 3),
    st.integers(2, 500),
)
def test_requests_fit_arrive_in_order_and_are_the_same_again(
    dataset: str, count: int, rate: float, burstiness: float, seed: int, longest: int
) -> None:
    workload = Workload(dataset, count, rate, burstiness, 100, 20, 0.5, prefix_len=3, max_length=longest, seed=seed)
    found = workload.requests(1000)
    assert found == workload.requests(1000)
    assert len(found) == count
    arrivals = [r.arrival_us for r in found]
    assert arrivals == sorted(arrivals)
    assert arrivals[-1] == pytest.approx(0.0 if rate == inf else count / rate * 1e6)
    for request in found:
        assert request.prompt
        assert request.max_tokens >= 1
        assert len(request.prompt) + request.max_tokens <= longest
        assert request.prompt[:3] == found[0].prompt[: len(request.prompt[:3])]
        assert max(request.prompt) < 1000


@pytest.mark.parametrize("dataset", TRACES)
def test_lengths_of_traces_have_the_means_of_their_figures(dataset: str) -> None:
    # 64 figures drawn evenly: the mean of n draws is within 5 standard errors, once in 1.7 million it is not.
    n = 2000
    found = Workload(dataset, n, max_length=10**6).requests(2)
    for drawn, figures in (
        ([len(r.prompt) for r in found], TRACES[dataset].prompt),
        ([r.max_tokens for r in found], TRACES[dataset].answer),
    ):
        assert len(figures) == 64
        assert abs(np.mean(drawn) - np.mean(figures)) <= 5 * np.std(figures) / n**0.5


def test_a_trace_file_is_read_in_the_order_of_its_times(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    lines = [{"timestamp": 2000, "input_length": 7, "output_length": 3, "hash_ids": [1]}]
    lines += [{"timestamp": 1500, "input_length": 5, "output_length": 2}]
    path.write_text("\n".join(map(json.dumps, lines)))
    found = Workload("trace", 5, file=str(path)).requests(10)
    assert [(r.arrival_us, len(r.prompt), r.max_tokens) for r in found] == [(0.0, 5, 2), (500_000.0, 7, 3)]
    path.write_text('{"timestamp": 1}')
    with pytest.raises(InputError, match="line 1 is no line of a trace"):
        Workload("trace", 5, file=str(path)).requests(10)
    path.write_text("\n")
    with pytest.raises(InputError, match="no requests"):
        Workload("trace", 5, file=str(path)).requests(10)
    with pytest.raises(InputError, match="cannot be read"):
        Workload("trace", 5, file=str(tmp_path / "none")).requests(10)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"dataset": "sharegpt"}, "unknown dataset 'sharegpt'"),
        ({"file": "x"}, "read from a file, and only that one"),
        ({"dataset": "trace"}, "read from a file, and only that one"),
        ({"num_prompts": 0}, "at least 1"),
        ({"range_ratio": 1.0}, "below 1"),
        ({"request_rate": 0.0}, "above 0"),
        ({"request_rate": float("nan")}, "above 0"),
        ({"burstiness": inf}, "above 0"),
    ],
)
def test_what_cannot_be_asked_is_refused(changed: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        Workload(**changed)
