"""A workload for a server with OpenAI's HTTP interface: requests sent as they arrive, times as clients see them."""

import asyncio
import json
import time
from collections.abc import Sequence as Sized

import httpx
from msgspec import structs

from lab.serving.request import ABORT, LENGTH, Request, Sequence
from sim.errors import EnvironmentFailure

PATIENCE_S = 600.0  # without a byte


def load(base_url: str, model: str, requests: Sized[Request], max_concurrency: int = 0) -> list[Sequence]:
    """Send the requests to a server, each at its arrival; returns what came of them, failed ones without tokens.

    Raises EnvironmentFailure where there is no server.
    """
    return asyncio.run(_load(base_url.rstrip("/"), model, requests, max_concurrency))


async def _load(url: str, model: str, requests: Sized[Request], most: int) -> list[Sequence]:
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(timeout=httpx.Timeout(PATIENCE_S), limits=limits, base_url=url) as client:
        try:
            (await client.get("/v1/models")).raise_for_status()
        except httpx.HTTPError as error:
            raise EnvironmentFailure(f"there is no server at {url}: {error}") from None
        gate, start = asyncio.Semaphore(most or len(requests)), time.perf_counter()
        return await asyncio.gather(*(_one(client, model, request, gate, start) for request in requests))


async def _one(
    client: httpx.AsyncClient, model: str, request: Request, gate: asyncio.Semaphore, start: float
) -> Sequence:
    """One request: a token's time is that of its chunk."""

    def now_us() -> float:
        return (time.perf_counter() - start) * 1e6

    await asyncio.sleep(max(0.0, request.arrival_us - now_us()) / 1e6)
    async with gate:
        found = Sequence(structs.replace(request, arrival_us=now_us()))
        found.reason = ABORT
        asked = {"model": model, "prompt": list(request.prompt), "max_tokens": request.max_tokens, "temperature": 0.0}
        asked |= {"stream": True, "ignore_eos": True}
        try:
            async with client.stream(
                "POST", "/v1/completions", json={**asked, "stream": True, "ignore_eos": True}
            ) as got:
                async for line in got.aiter_lines():
                    said = line.removeprefix("data: ")
                    if got.status_code == 200 and said != line and said != "[DONE]" and json.loads(said).get("choices"):
                        found.tokens.append(0)
                        found.token_us.append(now_us())
        except httpx.HTTPError:
            return found
    if found.token_us:
        found.reason = LENGTH
    return found
