"""The routes: OpenAI's completions and chat, models, tokens, health, metrics, and the live page."""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request as HttpRequest
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from lab.inference.codec import Codec
from lab.serving.http.answer import Answer, choice, chunk
from lab.serving.http.gauges import Gauges
from lab.serving.http.protocol import Asked, ChatCompletion, Completion, Refusal, decoded
from lab.serving.http.service import Service, Token, sink_of
from lab.serving.request import Request
from sim.errors import InputError

MOST_BODY = 4 * 2**20  # bytes
RETRY_S = 1  # after which a full queue may be asked again
PAGE = Path(__file__).with_name("page.html")


class Front:
    """One model behind HTTP."""

    def __init__(self, name: str, service: Service, codec: Codec, vocab: int, gauges: Gauges) -> None:
        self.name, self._service, self._codec, self._gauges = name, service, codec, gauges
        self._vocab = vocab
        self._since = int(time.time())

    def app(self) -> Starlette:
        """The application."""
        return Starlette(
            routes=[
                Route("/v1/completions", self._guarded(self._completions), methods=["POST"]),
                Route("/v1/chat/completions", self._guarded(self._chat), methods=["POST"]),
                Route("/v1/models", self._guarded(self._models), methods=["GET"]),
                Route("/tokenize", self._guarded(self._tokenize), methods=["POST"]),
                Route("/detokenize", self._guarded(self._detokenize), methods=["POST"]),
                Route("/health", self._health, methods=["GET"]),
                Route("/metrics", self._metrics, methods=["GET"]),
                Route("/now", self._now, methods=["GET"]),
                Route("/", self._page, methods=["GET"]),
            ]
        )

    def _guarded(self, handler: Callable[[HttpRequest], Awaitable[Response]]) -> Callable[[HttpRequest], Any]:
        """A handler whose refusals are OpenAI's error objects."""

        async def answer(request: HttpRequest) -> Response:
            try:
                return await handler(request)
            except Refusal as refusal:
                headers = {"Retry-After": str(RETRY_S)} if refusal.status in (429, 503) else None
                return JSONResponse(refusal.document(), refusal.status, headers)
            except InputError as error:
                return JSONResponse(Refusal(400, str(error)).document(), 400)

        return answer

    async def _completions(self, request: HttpRequest) -> Response:
        asked = decoded(await _body(request), Completion)
        asked.require()
        most = 16 if asked.max_tokens is None else asked.max_tokens
        return await self._answer(request, asked, asked.tokens(self._codec), most, False)

    async def _chat(self, request: HttpRequest) -> Response:
        asked = decoded(await _body(request), ChatCompletion)
        asked.require()
        tokens = self._codec.conversation([message.plain() for message in asked.messages])
        limits = [n for n in (asked.max_completion_tokens, asked.max_tokens) if n is not None]
        room = self._service.engine.scheduler.policy.max_length - len(tokens)
        return await self._answer(request, asked, tokens, limits[0] if limits else max(room, 1), True)

    async def _answer(self, request: HttpRequest, asked: Asked, tokens: list[int], most: int, chat: bool) -> Response:
        if asked.model not in ("", self.name):
            raise Refusal(404, f"there is no model {asked.model!r}; this is {self.name!r}", "model", "model_not_found")
        self._require_fits(tokens, most)
        settings = asked.settings(int.from_bytes(os.urandom(8), "little"))
        ends = () if asked.ignore_eos else tuple(sorted(self._codec.ends))
        draws = [settings._replace(seed=(settings.seed + i) % 2**64) for i in range(asked.choices)]
        requests = [Request(0, tuple(tokens), most, draw, ends) for draw in draws]
        queue: asyncio.Queue[tuple[int, Any]] = asyncio.Queue()
        ids = self._service.submit(requests, sink_of(asyncio.get_running_loop(), queue))
        kind = "chatcmpl" if chat else "cmpl"
        head = {"id": f"{kind}-{os.urandom(12).hex()}", "created": int(time.time()), "model": self.name}
        answers = [Answer(self._codec, tokens, asked.stops) for _ in ids]
        tokens_of = self._tokens(queue, ids, answers)
        if asked.stream:
            lines = self._lines(tokens_of, asked, answers, head, chat, ids)
            return StreamingResponse(lines, media_type="text/event-stream")
        return await self._whole(request, tokens_of, asked, answers, head, chat, ids)

    def _require_fits(self, tokens: list[int], most: int) -> None:
        policy, vocab = self._service.engine.scheduler.policy, self._vocab
        if not tokens:
            raise Refusal(400, "the prompt is empty", "prompt")
        if most < 1:
            raise Refusal(400, f"max_tokens is at least 1; max_tokens = {most}", "max_tokens")
        if len(tokens) + most > policy.max_length:
            raise Refusal(
                400,
                f"prompt and answer take up to {len(tokens) + most} tokens; the context is {policy.max_length}",
                "prompt",
                "context_length_exceeded",
            )
        if not all(0 <= token < vocab for token in tokens):
            raise Refusal(400, f"tokens are from 0 to {vocab - 1}", "prompt")

    async def _tokens(
        self, queue: "asyncio.Queue[tuple[int, Any]]", ids: list[int], answers: list[Answer]
    ) -> AsyncIterator[tuple[int, str]]:
        """(choice, new text) of each token as it comes, until all answers have ended; gives up what is left unread."""
        open_ids = dict(enumerate(ids))
        try:
            while open_ids:
                at, item = await queue.get()
                if isinstance(item, Refusal):
                    raise item
                if at not in open_ids:
                    continue  # it came after a stop string
                assert isinstance(item, Token)
                text = answers[at].take(item)
                if answers[at].reason:
                    if not item.reason:
                        self._service.abort([open_ids[at]])
                    del open_ids[at]
                yield at, text
        finally:
            if open_ids:
                self._service.abort(list(open_ids.values()))

    async def _lines(
        self,
        tokens_of: AsyncIterator[tuple[int, str]],
        asked: Asked,
        answers: list[Answer],
        head: dict[str, Any],
        chat: bool,
        ids: list[int],
    ) -> AsyncIterator[bytes]:
        """Server-sent events: a chunk a token, also where its text is held back."""
        options = asked.stream_options
        usage = bool(options and options.include_usage)
        always = bool(options and options.continuous_usage_stats)
        if chat:
            for at in range(len(ids)):
                yield _event(chunk(head, at, "", None, chat, role=True, usage=_none(usage)))
        try:
            async for at, text in tokens_of:
                told = _usage(answers) if always else _none(usage)
                yield _event(chunk(head, at, text, answers[at], chat, scored=asked.scored, usage=told))
        except Refusal as refusal:
            yield _event(refusal.document())
            return
        if usage:
            kind = "chat.completion.chunk" if chat else "text_completion"
            yield _event({**head, "object": kind, "choices": [], "usage": _usage(answers)})
        yield b"data: [DONE]\n\n"

    async def _whole(
        self,
        request: HttpRequest,
        tokens_of: AsyncIterator[tuple[int, str]],
        asked: Asked,
        answers: list[Answer],
        head: dict[str, Any],
        chat: bool,
        ids: list[int],
    ) -> Response:
        """All answers in one document; they are given up where the client leaves."""

        async def gather() -> None:
            async for _ in tokens_of:
                pass

        work, gone = asyncio.ensure_future(gather()), asyncio.ensure_future(_left(request))
        done, _ = await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        gone.cancel()
        if work not in done:
            work.cancel()
            with suppress(asyncio.CancelledError):
                await work
            self._service.abort(ids)
            return Response(status_code=499)
        work.result()
        kind = "chat.completion" if chat else "text_completion"
        choices = [choice(at, answer, chat, asked.scored) for at, answer in enumerate(answers)]
        last = answers[0].last
        lab = {"ttft_us": answers[0].first_us, "e2el_us": last and last.at_us}
        return JSONResponse({**head, "object": kind, "choices": choices, "usage": _usage(answers), "lab": lab})

    async def _models(self, _: HttpRequest) -> Response:
        length = self._service.engine.scheduler.policy.max_length
        one = {"id": self.name, "object": "model", "created": self._since, "owned_by": "lab", "root": self.name}
        return JSONResponse({"object": "list", "data": [{**one, "max_model_len": length}]})

    async def _tokenize(self, request: HttpRequest) -> Response:
        tokens = self._codec.encode(decoded(await _body(request), _Text).prompt)
        length = self._service.engine.scheduler.policy.max_length
        return JSONResponse({"tokens": tokens, "count": len(tokens), "max_model_len": length})

    async def _detokenize(self, request: HttpRequest) -> Response:
        tokens = decoded(await _body(request), _Tokens).tokens
        if not all(0 <= token < self._vocab for token in tokens):
            raise Refusal(400, f"tokens are from 0 to {self._vocab - 1}", "tokens")
        return JSONResponse({"prompt": self._codec.decode(tokens)})

    async def _health(self, _: HttpRequest) -> Response:
        return Response(status_code=503 if self._service.failed else 200)

    async def _metrics(self, _: HttpRequest) -> Response:
        return Response(self._gauges.exposition(), media_type="text/plain; version=0.0.4")

    async def _now(self, _: HttpRequest) -> Response:
        return JSONResponse({"model": self.name, **self._gauges.now()})

    async def _page(self, _: HttpRequest) -> Response:
        return HTMLResponse(PAGE.read_text(encoding="utf-8"))


class _Text(msgspec.Struct):
    prompt: str


class _Tokens(msgspec.Struct):
    tokens: list[int]


async def _body(request: HttpRequest) -> bytes:
    """A request's body; raises Refusal for one that is too large."""
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > MOST_BODY:
            raise Refusal(413, f"a request has at most {MOST_BODY:,} bytes")
        parts.append(part)
    return b"".join(parts)


async def _left(request: HttpRequest) -> None:
    """Return when the client has gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _event(document: Any) -> bytes:
    return b"data: " + msgspec.json.encode(document) + b"\n\n"


def _none(usage: bool) -> Any:
    """What a chunk says of usage before the last: null where it was asked for, else nothing."""
    return None if usage else msgspec.UNSET


def _usage(answers: list[Answer]) -> dict[str, Any]:
    prompt, answer = len(answers[0].prompt), sum(answer.count for answer in answers)
    cached = {"cached_tokens": answers[0].cached}
    totals = {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}
    return {**totals, "prompt_tokens_details": cached}
