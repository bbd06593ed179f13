"""Several engines by one time: tokens are those of one engine, times follow from inputs alone, links carry one push."""

import time
from collections.abc import Sequence as Sized
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_engine import Pace, loads

from lab.problems import MODELS
from lab.serving.clock import VirtualClock
from lab.serving.disaggregation import parallel
from lab.serving.disaggregation.fleet import Disaggregated, Fleet, Replicas, serve
from lab.serving.disaggregation.handover import Receiver, Sender
from lab.serving.disaggregation.link import Link, push_us
from lab.serving.disaggregation.live import LiveFleet
from lab.serving.disaggregation.setups import Setup, fleet_of
from lab.serving.engine import Engine, StepFacts
from lab.serving.executor import PredictedExecutor, scripted
from lab.serving.metrics import Steps
from lab.serving.policy import Policy
from lab.serving.request import Request, Sequence
from lab.serving.scheduler import Scheduler
from lab.serving.times import StepTimes
from sim.errors import InputError
from sim.machine import H200

MODEL = MODELS["llama-3-8b"]
POLICY = Policy(max_rows=4, max_tokens=12, pages=14, page_tokens=2, max_length=24)


def fleet(setup: str, policy: Policy = POLICY) -> Fleet:
    way, _, engines = setup.partition("=")
    steps = Steps()

    def engine(kind: type[Scheduler]) -> Engine:
        return Engine(kind(policy, Pace()), PredictedExecutor(Pace(), scripted(50)), VirtualClock(), steps)

    if way == "replicas":
        return Replicas([engine(Scheduler) for _ in range(int(engines))])
    prefills, decodes = map(int, engines.split(":"))
    link = Link(MODEL, H200)
    return Disaggregated([engine(Sender) for _ in range(prefills)], [engine(Receiver) for _ in range(decodes)], link)


SETUPS = ["replicas=1", "replicas=3", "disaggregate=1:1", "disaggregate=2:1", "disaggregate=1:3"]


@settings(max_examples=40, deadline=None)
@given(requests=loads(), setup=st.sampled_from(SETUPS), most=st.integers(0, 3))
def test_every_request_gets_its_own_tokens_in_time(requests: list[Request], setup: str, most: int) -> None:
    served = fleet(setup)
    found = serve(served, requests, most)
    token = scripted(50)
    for request, sequence in zip(requests, found, strict=True):
        assert sequence.reason == "length"
        assert sequence.sampled == [token(sequence, place) for place in range(request.max_tokens)]
        times = [sequence.request.arrival_us, *sequence.token_us]
        assert times == sorted(times)
        assert times[1] > times[0] >= request.arrival_us
    for engine in served.engines:
        assert engine.scheduler.pool.available == POLICY.pages - 1
    if most:
        changes = sorted((t, d) for s in found for t, d in ((s.request.arrival_us, 1), (s.token_us[-1], -1)))
        under_way = [sum(d for _, d in changes[: i + 1]) for i in range(len(changes))]
        assert max(under_way) <= most


@settings(max_examples=10, deadline=None)
@given(requests=loads(), setup=st.sampled_from(SETUPS))
def test_times_depend_on_nothing_but_inputs(requests: list[Request], setup: str) -> None:
    def times() -> list[list[float]]:
        return [s.token_us for s in serve(fleet(setup), requests)]

    before = times()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "perf_counter", lambda: pytest.fail("the wall's clock was read"))
        assert times() == before


def test_one_replica_is_the_loop_itself() -> None:
    from lab.serving.engine import serve as by_one

    requests = [Request(i, (1,) * 9, 5, arrival_us=20.0 * i) for i in range(6)]
    alone = Engine(Scheduler(POLICY, Pace()), PredictedExecutor(Pace(), scripted(50)), VirtualClock(), Steps())
    expected = [s.token_us for s in by_one(alone, requests)]
    assert [s.token_us for s in serve(fleet("replicas=1"), requests)] == expected


def test_a_link_carries_one_push_at_a_time_and_the_last_layer_comes_after_its_step() -> None:
    whole, layer = push_us(MODEL, H200, 8), push_us(MODEL, H200, 8, layers=1)
    behind = Link(MODEL, H200)
    first = behind.push(0, 0, 8, now_us=10_000.0, step_us=9000.0)
    assert first.exposed_us == pytest.approx(layer)
    second = behind.push(0, 1, 8, now_us=10_000.0, step_us=9000.0)
    assert second.exposed_us == pytest.approx(2 * layer)
    at_once = Link(MODEL, H200, layered=False)
    assert [at_once.push(0, r, 8, 10_000.0, 9000.0).exposed_us for r in range(2)] == pytest.approx([whole, 2 * whole])
    apart = Link(MODEL, H200, layered=False)
    assert [apart.push(i, i, 8, 10_000.0, 0.0).exposed_us for i in range(2)] == pytest.approx([whole, whole])


def test_ranks_share_a_model_and_add_two_sums_a_layer() -> None:
    share = parallel.share_of(MODEL, 2)
    assert (2 * share.kv_bytes_per_token, 2 * share.ffn) == (MODEL.kv_bytes_per_token, MODEL.ffn)
    buckets = POLICY.buckets
    both, alone = parallel.ParallelTimes(MODEL, H200, buckets), StepTimes(share, H200, buckets)
    sums = 2 * MODEL.layers * parallel.all_reduce_us(H200, 1, MODEL.d, "bf16")
    assert both.rows_us([10], [1]) == pytest.approx(alone.rows_us([10], [1]) + sums)
    with pytest.raises(InputError, match="2 ranks cannot share q_heads = 9 evenly"):
        parallel.share_of(MODELS["smollm2-135m"], 2)


@pytest.mark.parametrize("text", ["disaggregate=1", "replicas=0", "tensor_parallel=4", "replicas=x", "nothing=2"])
def test_a_setup_that_cannot_be_is_refused(text: str) -> None:
    with pytest.raises(InputError):
        Setup.of(text)


def test_setups_run_a_model_by_predicted_times() -> None:
    policy = replace(POLICY, page_tokens=64, max_length=512, max_tokens=256, pages=40)
    requests = [Request(i, (i,) * 200, 3, arrival_us=0.0) for i in range(4)]
    firsts: dict[str, Any] = {}
    for text in ("replicas=2", "disaggregate=1:1", "tensor_parallel=2"):
        steps = [Steps(), Steps()]
        served = fleet_of(Setup.of(text), MODEL, H200, policy, steps.__getitem__)
        firsts[text] = [s.token_us[0] for s in serve(served, requests)]
        assert all(s.token_us for s in served.sequences.values())
    assert max(firsts["disaggregate=1:1"]) > max(firsts["replicas=2"])  # one GPU computes all prompts, which share none


@pytest.mark.parametrize("text", ["replicas=2", "disaggregate=1:1"])
def test_a_live_fleet_tells_every_token_once_and_in_order(text: str) -> None:
    told: dict[int, list[tuple[int, float]]] = {}

    def hear(_: StepFacts, emitted: Sized[Sequence]) -> None:
        for s in emitted:
            told.setdefault(s.request.id, []).append((s.tokens[-1], s.token_us[-1]))

    policy = replace(POLICY, page_tokens=64, max_length=512, max_tokens=256, pages=40)
    live = LiveFleet(Setup.of(text), MODELS["smollm2-135m"], H200, policy, hear, real=False)
    for i in range(4):
        live.add(Request(i, (i,) * 100, 1 + 3 * (i % 2)))
    assert live.scheduler.policy.pages == 2 * 39 + 1
    live.abort(3)
    while live.step():
        assert live.scheduler.pool.available <= 78
    assert set(told) - {3} == {0, 1, 2}
    for id in range(3):
        sequence = live.fleet.sequences[id]
        assert [token for token, _ in told[id]] == sequence.sampled
        assert [us for _, us in told[id]] == sequence.token_us
    assert not live.scheduler.running
    assert not live.scheduler.waiting
