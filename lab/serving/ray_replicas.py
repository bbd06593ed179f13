"""Loops as Ray Serve replicas behind one router: where one machine is outgrown."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from ray import serve

from lab.serving.http.protocol import Refusal
from lab.serving.http.service import Service, sink_of
from lab.serving.models import Served
from lab.serving.request import Request
from lab.serving.routing import PrefixRouter

Make = Callable[[Callable[..., None]], Served]  # a loop whose steps are told to what it is given
MOST_WAITING = 1024  # requests of a replica


@serve.deployment(max_ongoing_requests=MOST_WAITING)
class Replica:
    """One loop in a process of its own."""

    def __init__(self, make: Make) -> None:
        self._service: Any = None
        served = make(lambda facts, emitted: self._service.hear(facts, emitted))
        self._service = Service(served.engine, MOST_WAITING, lambda *_: None, lambda: None)
        self._service.start()

    async def complete(self, request: Request) -> dict[str, Any]:
        """The tokens of an answer, why it ended, and how many of its prompt were found computed."""
        queue: asyncio.Queue[tuple[int, Any]] = asyncio.Queue()
        ids = self._service.submit([request], sink_of(asyncio.get_running_loop(), queue))
        tokens: list[int] = []
        try:
            while True:
                _, item = await queue.get()
                if isinstance(item, Refusal):
                    raise RuntimeError(str(item))
                tokens.append(item.token)
                if item.reason:
                    return {"tokens": tokens, "reason": item.reason, "cached": item.cached}
        except asyncio.CancelledError:
            self._service.abort(ids)
            raise

    def check_health(self) -> None:
        """Raise where the loop has died, so that Ray starts another."""
        if self._service.failed:
            raise RuntimeError(self._service.failed)


@serve.deployment(max_ongoing_requests=8 * MOST_WAITING)
class Router:
    """Sends each request to the loop that has most of its prefix."""

    def __init__(self, replicas: Sequence[Any]) -> None:
        self._replicas, self._router = list(replicas), PrefixRouter(len(replicas))

    async def complete(self, request: Request) -> dict[str, Any]:
        """As a replica's, and which replica it was."""
        chosen = self._router.choose(request.prompt)
        try:
            found: dict[str, Any] = await self._replicas[chosen].complete.remote(request)
        finally:
            self._router.done(chosen)
        return {**found, "replica": chosen}


def application(make: Make, replicas: int) -> Any:
    """What `ray.serve.run` takes: so many loops behind a router."""
    router: Any = Router  # deployments, which the decorator makes of classes
    replica: Any = Replica
    return router.bind([replica.options(name=f"loop-{i}").bind(make) for i in range(replicas)])
