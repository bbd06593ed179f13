"""Prefill and decode on chips of their own: tokens are one engine's, and whoever dies takes no page along."""

from collections.abc import Iterator
from collections.abc import Sequence as Sized
from typing import Any

import pytest

from lab.inference import chip as chips
from lab.serving.clock import VirtualClock
from lab.serving.disaggregation.prefill import Site
from lab.serving.disaggregation.pushing import Pusher
from lab.serving.disaggregation.remote import Worker
from lab.serving.engine import serve
from lab.serving.models import engine_of
from lab.serving.request import Request
from lab.serving.scheduler import Scheduler
from sim.errors import EnvironmentFailure
from sim.machine import H100
from tests.lab.serving.sites import POLICY, Heard, fleet, kill_prompts, requests, weights

CHIP = chips.simulated(H100)


def alone(asked: Sized[Request]) -> dict[int, list[int]]:
    """The tokens that one engine gives to each."""
    engine = engine_of(weights(CHIP), Scheduler(POLICY), CHIP, lambda *_: None, VirtualClock())
    return {s.request.id: s.sampled for request in asked for s in serve(engine, [request])}


@pytest.mark.parametrize(
    ("prefills", "decodes", "apart", "layered"), [(1, 1, False, True), (2, 1, False, False), (1, 2, True, True)]
)
def test_tokens_are_those_of_one_engine(prefills: int, decodes: int, apart: bool, layered: bool) -> None:
    heard, asked = Heard(), [*requests(5), Request(5, (1, 2, 3), 1)]
    with fleet(heard, CHIP, VirtualClock(), prefills, decodes, apart, layered) as found:
        for request in asked:
            found.add(request)
        while found.step():
            pass
    assert heard.tokens == alone(asked)
    assert heard.reasons == {request.id: "length" for request in asked}


def test_layers_are_pushed_one_by_one_and_the_flag_comes_with_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    pushed: list[tuple[int, int]] = []
    by_layers = Pusher.by_layers

    def noted(self: Pusher, pages: Sized[int], *to: Any) -> Iterator[Any]:
        for layer, mark in enumerate(by_layers(self, pages, *to)):
            pushed.append((len(pages), layer))
            yield mark

    monkeypatch.setattr(Pusher, "by_layers", noted)
    monkeypatch.setattr(Pusher, "push", lambda *_: pytest.fail("pages were pushed whole"))
    heard, asked = Heard(), requests(1, length=150)
    with fleet(heard, CHIP, VirtualClock()) as found:
        found.add(asked[0])
        while found.step():
            pass
    # 150 tokens are steps of 48, 48, 48 and 6, on pages of 64 each
    assert pushed == [(pages, layer) for pages in (1, 2, 2, 1) for layer in (0, 1)]
    assert heard.tokens == alone(asked)


@pytest.mark.parametrize("layered", [True, False])
def test_a_request_is_given_up_wherever_it_is(layered: bool) -> None:
    heard, asked = Heard(), requests(4)
    with fleet(heard, CHIP, VirtualClock(), layered=layered) as found:
        for request in asked:
            found.add(request)
        found.abort(0)
        found.abort(3)
        while found.step():
            if len(heard.tokens.get(1, ())) == 2:
                found.abort(1)
    assert {2: heard.tokens[2]} == alone(asked[2:3])
    assert len(heard.tokens[1]) < asked[1].max_tokens


DEEP = pytest.mark.deep


@pytest.mark.parametrize(
    ("prefills", "after"), [(1, 3), (2, 1), pytest.param(1, 0, marks=DEEP), pytest.param(2, 3, marks=DEEP)]
)
def test_a_killed_process_of_prompts_takes_nothing_along(prefills: int, after: int) -> None:
    """Those that decode go on, those that were with it are begun again elsewhere or end, every page comes back."""
    heard, asked = Heard(), requests(6)
    with fleet(heard, CHIP, VirtualClock(), prefills, apart=True) as found:
        kill_prompts(found, heard, asked, after)
        if prefills == 1:
            found.add(requests(7)[6])
            assert heard.reasons[6] == "gone"
    assert heard.tokens == alone([request for request in asked if request.id in heard.tokens])


def test_an_engine_of_prompts_that_cannot_begin_says_why() -> None:
    worker = Worker(Site(H100.name, None, weights, POLICY, ((b"/no/such/file", 8),)), apart=True)
    with pytest.raises(EnvironmentFailure, match=r"cannot begin: FileNotFoundError: .*/no/such/file"):
        worker.wait()
