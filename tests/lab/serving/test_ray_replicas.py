"""Loops as Ray Serve replicas on a local Ray: answers are the loop's own, equal beginnings meet in one replica."""

import asyncio
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

ray = pytest.importorskip("ray", reason="replicas need the extra `ray`")
serve = pytest.importorskip("ray.serve", reason="replicas need the extra `ray`")

from lab.problems import MODELS  # noqa: E402
from lab.serving.models import of_preset  # noqa: E402
from lab.serving.policy import Policy  # noqa: E402
from lab.serving.ray_replicas import application  # noqa: E402
from lab.serving.request import Request  # noqa: E402
from sim.machine import H200  # noqa: E402

POLICY = Policy(max_rows=4, max_tokens=256, pages=64, max_length=512)
pytestmark = pytest.mark.deep  # a Ray of its own takes half a minute and a gigabyte


MAKE = partial(of_preset, MODELS["smollm2-135m"], H200, POLICY, pace_real=False)


@pytest.fixture(scope="module")
def handle() -> Iterator[Any]:
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, configure_logging=False)
    try:
        yield serve.run(application(MAKE, 2), route_prefix=None)
    finally:
        serve.shutdown()
        ray.shutdown()


def test_requests_with_one_prefix_meet_in_one_replica_and_find_it(handle: Any) -> None:
    first, second = (1,) * 200, (2,) * 200

    async def ask(prompt: tuple[int, ...]) -> Any:
        return await handle.complete.remote(Request(0, prompt, 5))

    async def all_of_them() -> list[Any]:
        begun = await asyncio.gather(ask(first), ask(second))
        return [*begun, await ask((*first, 7)), await ask((*second, 7))]

    found = asyncio.run(all_of_them())
    assert all(len(one["tokens"]) == 5 and one["reason"] == "length" for one in found)
    assert {one["replica"] for one in found[:2]} == {0, 1}
    assert [one["replica"] for one in found[2:]] == [one["replica"] for one in found[:2]]
    assert [one["cached"] for one in found] == [0, 0, 192, 192]
