"""The front door of a pair of engines: a file's prompts are computed elsewhere, and answers go on when that is gone."""

import os
import signal
from pathlib import Path

import pytest

openai = pytest.importorskip("openai", reason="talking to the server needs the extra `test`")
pytest.importorskip("starlette", reason="serving needs the extra `serve`")

from experiments.cli import run_command  # noqa: E402
from tests.lab.inference import tiny  # noqa: E402
from tests.lab.serving.server import serving  # noqa: E402

ASKED = {"model": "tiny", "prompt": "the in or the", "temperature": 0}
WORDS = ["--max-num-seqs", "4", "--max-num-batched-tokens", "64", "--max-model-len", "256", "--pace", "fast"]
WORDS += ["--served-model-name", "tiny"]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny.write(tmp_path_factory.mktemp("model") / "tiny.gguf"))


def test_a_pair_answers_as_one_engine_does(path: str) -> None:
    texts = []
    for way in ([], ["--disaggregate", "1:1"]):
        with serving(path, *WORDS, *way) as found:
            texts.append(found.client.completions.create(**ASKED, max_tokens=6).choices[0].text)
    assert texts[0] == texts[1]


def test_answers_go_on_when_the_process_of_prompts_is_killed(path: str) -> None:
    with serving(path, "--disaggregate", "1:1", *WORDS) as found:
        with found.client.completions.create(**ASKED, max_tokens=60, stream=True) as stream:
            next(iter(stream))
            children = Path(f"/proc/{found.process.pid}/task/{found.process.pid}/children").read_text().split()
            (victim,) = (pid for pid in children if "spawn_main" in Path(f"/proc/{pid}/cmdline").read_text())
            os.kill(int(victim), signal.SIGKILL)
            assert len(list(stream)) == 59
        with pytest.raises(openai.InternalServerError, match="is gone: it was killed") as caught:
            found.client.completions.create(**ASKED)
        assert caught.value.status_code == 503


@pytest.mark.parametrize(
    "words", [["--disaggregate", "1:1", "--devices", "0,1"], ["--one-process"]], ids=lambda words: words[-1]
)
def test_options_of_a_pair_are_for_a_pair(path: str, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["serve", path, *words]) == 2
    assert "--devices and --one-process are for --disaggregate" in capsys.readouterr().err
