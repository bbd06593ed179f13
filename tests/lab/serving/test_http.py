"""The front door, as OpenAI's own client sees it: answers, streams, refusals, back-pressure, and clients that leave."""

import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

openai = pytest.importorskip("openai", reason="talking to the server needs the extra `test`")
pytest.importorskip("starlette", reason="serving needs the extra `serve`")
import httpx  # noqa: E402

from experiments.cli import run_command  # noqa: E402
from tests.lab.inference import tiny  # noqa: E402
from tests.lab.serving.server import Server, serving  # noqa: E402

PRESET = "smollm2-135m"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    words = ["--max-num-seqs", "4", "--max-num-batched-tokens", "64", "--max-model-len", "512", "--max-waiting", "8"]
    with serving(PRESET, *words) as found:
        yield found


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    path = tiny.write(tmp_path_factory.mktemp("model") / "tiny.gguf")
    words = ["--max-num-seqs", "4", "--max-num-batched-tokens", "64", "--max-model-len", "256", "--pace", "fast"]
    with serving(str(path), "--served-model-name", "tiny", *words) as found:
        yield found


def ask(server: Server, **changed: Any) -> Any:
    return server.client.completions.create(**{"model": PRESET, "prompt": "hello", "max_tokens": 5, **changed})


@pytest.mark.parametrize("words", [["--disaggregate", "1:1"], ["--replicas", "2"]], ids=" ".join)
def test_several_gpus_answer_as_one_does(words: list[str]) -> None:
    with serving(PRESET, *words, "--max-model-len", "512") as found:
        one, other = (ask(found, prompt=[i] * 40, max_tokens=n) for i, n in ((1, 6), (2, 1)))
        assert (one.usage.completion_tokens, other.usage.completion_tokens) == (6, 1)
        assert one.model_extra["lab"]["e2el_us"] > one.model_extra["lab"]["ttft_us"] > 0
        assert found.now()["tokens"] == 7


def test_several_gpus_serve_presets_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["serve", "--replicas", "2"]) != 0
    assert "several GPUs are served as predicted alone" in capsys.readouterr().err


def test_an_answer_has_its_text_its_reason_and_its_usage(server: Server) -> None:
    found = ask(server, n=2)
    assert len(found.choices) == 2
    for choice in found.choices:
        assert len(choice.text.split()) == 5
        assert choice.finish_reason == "length"
    assert (found.usage.prompt_tokens, found.usage.completion_tokens) == (5, 10)
    assert found.model_extra["lab"]["e2el_us"] > found.model_extra["lab"]["ttft_us"] > 0
    assert ask(server, prompt=[1, 2, 3]).usage.prompt_tokens == 3


def test_a_stream_has_a_chunk_a_token_then_usage(server: Server) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    chunks = list(ask(server, stream=True, stream_options=options))
    assert [len(c.choices) for c in chunks] == [1] * 5 + [0]
    assert [c.usage.completion_tokens for c in chunks] == [1, 2, 3, 4, 5, 5]
    assert [c.choices[0].finish_reason for c in chunks[:-1]] == [None] * 4 + ["length"]
    plain = list(ask(server, stream=True))
    assert len(plain) == 5


def test_a_preset_takes_a_chat_as_its_messages_bytes(server: Server) -> None:
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello"}]
    found = server.client.chat.completions.create(model=PRESET, messages=messages, max_completion_tokens=3)
    assert (found.usage.prompt_tokens, found.usage.completion_tokens) == (len("be brief\nhello\n"), 3)


def test_a_stop_string_ends_an_answer_before_it(server: Server) -> None:
    whole = ask(server, max_tokens=20).choices[0].text
    first, second = whole.split()[1:3]
    found = ask(server, max_tokens=20, stop=[f"{first} {second}"])
    # Tokens are made of a request's number: the next request has others, so its own text is what is looked at.
    assert found.choices[0].finish_reason in ("stop", "length")
    assert f"{first} {second}" not in found.choices[0].text
    assert ask(server, max_tokens=20, stop=" ").choices[0].text == ""


@pytest.mark.parametrize(
    ("changed", "status", "says"),
    [
        ({"model": "gpt"}, 404, "there is no model 'gpt'"),
        ({"max_tokens": 0}, 400, "max_tokens is at least 1"),
        ({"max_tokens": 508}, 400, "the context is 512"),
        ({"prompt": ""}, 400, "the prompt is empty"),
        ({"prompt": ["a", "b"]}, 400, "one prompt at a time"),
        ({"prompt": [10**6]}, 400, "tokens are from 0 to 49151"),
        ({"temperature": -1}, 400, "temperature must be from 0 to 100"),
        ({"presence_penalty": 0.5}, 400, "presence_penalty is not supported"),
        ({"logprobs": 3}, 400, "ask for 0 or 1"),
        ({"n": 100}, 400, "n is from 1 to 16"),
        ({"stop": [""]}, 400, "none of them empty"),
        ({"echo": True}, 400, "not supported"),
        ({"logit_bias": {"1": 2}}, 400, "logit_bias is not supported"),
        ({"stream_options": {"include_usage": True}}, 400, "stream_options are for streams"),
        ({"extra_body": {"guided_json": "{}"}}, 400, "unknown field `guided_json`"),
        ({"extra_body": {"top_k": "many"}}, 400, "Expected `int | null`"),
    ],
)
def test_refusals_are_openais_errors(server: Server, changed: dict[str, Any], status: int, says: str) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        ask(server, **changed)
    assert caught.value.status_code == status
    assert says in caught.value.message
    assert caught.value.body["type"] == "invalid_request_error"
    assert ask(server).choices[0].finish_reason == "length"  # nothing else is lost


def test_bodies_that_are_too_large_or_no_json_are_refused(server: Server) -> None:
    post = {"url": f"{server.url}/v1/completions", "timeout": 30}
    assert httpx.post(**post, content=b"x" * (4 * 2**20 + 1)).status_code == 413
    for body in (b"", b"{", b"[]", b'{"model": "m"}', b'{"prompt": "\xff"}'):
        found = httpx.post(**post, content=body)
        assert found.status_code == 400
        assert "the request is wrong" in found.json()["error"]["message"]


def test_a_full_queue_asks_to_come_again(server: Server) -> None:
    with ask(server, n=8, max_tokens=400, stream=True) as stream:
        next(iter(stream))
        with pytest.raises(openai.RateLimitError) as caught:
            ask(server)
        assert caught.value.response.headers["Retry-After"] == "1"
    settle(server)
    assert ask(server).choices[0].finish_reason == "length"


@pytest.mark.parametrize("stream", [True, False])
def test_clients_that_leave_leave_nothing_behind(server: Server, stream: bool) -> None:
    asked = {"model": PRESET, "prompt": "hello", "max_tokens": 500, "stream": stream}
    before, client = server.now()["tokens"], httpx.Client(timeout=httpx.Timeout(30, read=0.2))
    # The pace is real: 500 tokens take longer than this client waits for the first, or than it takes to leave.
    with (
        client,
        suppress(httpx.ReadTimeout),
        client.stream("POST", f"{server.url}/v1/completions", json=asked) as found,
    ):
        next(found.iter_bytes())
    settle(server)
    assert server.now()["tokens"] - before < 500


def settle(server: Server) -> None:
    """Return when no request is under way and no page is held; fails where that never comes."""
    for _ in range(100):
        now = server.now()
        if not now["running"] and not now["waiting"] and not now["pages"]:
            return
        time.sleep(0.05)
    raise AssertionError(now)


def test_many_clients_at_once_are_all_answered(server: Server) -> None:
    found: list[int] = []
    threads = [
        threading.Thread(target=lambda i=i: found.append(ask(server, prompt="x" * (i + 1)).usage.prompt_tokens))
        for i in range(7)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == list(range(1, 8))


def test_what_the_server_is_and_does_can_be_read(server: Server) -> None:
    (model,) = server.client.models.list().data
    assert (model.id, model.root, model.max_model_len) == (PRESET, PRESET, 512)
    assert httpx.get(f"{server.url}/health").status_code == 200
    before = server.now()["tokens"]
    ask(server)
    assert server.now()["tokens"] == before + 5
    text = httpx.get(f"{server.url}/metrics").text
    for name in ("num_requests_running", "kv_cache_usage_perc", "time_to_first_token_seconds_bucket"):
        assert f"lab:{name}" in text
    assert "<title>" in httpx.get(server.url).text


def test_a_checkpoint_speaks_its_own_tokens(real: Server) -> None:
    def chat(**more: Any) -> Any:
        messages = [{"role": "user", "content": "in the"}]
        return real.client.chat.completions.create(
            model="tiny",
            messages=messages,
            max_completion_tokens=4,
            temperature=0,
            extra_body={"ignore_eos": True},
            **more,
        )

    whole = chat(logprobs=True)
    (choice,) = whole.choices
    assert choice.finish_reason == "length"
    assert len(choice.logprobs.content) == 4
    assert all(one.logprob <= 0 for one in choice.logprobs.content)
    chunks = list(chat(stream=True))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == choice.message.content
    again = [
        real.client.completions.create(model="tiny", prompt="in", max_tokens=6, seed=7).choices[0].text for _ in "ab"
    ]
    assert again[0] == again[1]
    url = real.url
    tokens = httpx.post(f"{url}/tokenize", json={"prompt": "in the"}).json()["tokens"]
    assert httpx.post(f"{url}/detokenize", json={"tokens": tokens}).json()["prompt"] == "in the"


def test_a_checkpoint_has_its_own_context_and_a_journal_that_is_made_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, lines = tiny.write(tmp_path / "tiny.gguf"), tmp_path / "decisions.jsonl"
    words = ["--served-model-name", "tiny", "--itl-budget-ms", "50", "--pace", "fast"]
    words += ["--max-num-seqs", "4", "--max-num-batched-tokens", "64"]
    with serving(str(path), *words, "--journal", str(lines)) as server:
        with pytest.raises(openai.BadRequestError, match=f"the context is {tiny.CONTEXT}"):
            server.client.completions.create(model="tiny", prompt="in", max_tokens=tiny.CONTEXT)
        server.client.completions.create(model="tiny", prompt="in", max_tokens=3)
    assert run_command(["journal", str(lines)]) == 0
    assert "decisions are the same made again" in capsys.readouterr().out


def test_a_loop_that_dies_tells_its_clients_and_its_exit_code(tmp_path: Path) -> None:
    path = tiny.write(tmp_path / "broken.gguf", weights={"output_norm.weight": (tiny.np.full(64, 3e38, "f4"), "F32")})
    with serving(str(path), "--pace", "fast", stops=False) as server:
        with pytest.raises(openai.InternalServerError) as caught:
            server.client.completions.create(model=str(path), prompt="in", max_tokens=4)
        assert caught.value.status_code == 503
        assert "not finite" in caught.value.message
        assert server.process.wait(30) == 4
        assert "the loop failed" in server.process.stderr.read()
