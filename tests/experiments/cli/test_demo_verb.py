"""The `demo` verb: progress, the headline with its legend, the model's answer up to the end of its sentence, JSON."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from experiments.cli import demo, run_command
from experiments.questions import two_machines
from tests.experiments.examples import SMALL


class Speaking:
    """A generation that would go on after its first sentence."""

    def __iter__(self) -> Iterator[str]:
        yield from ("It", " is", " Paris", ".", " And")
        raise AssertionError("asked for more than a sentence")

    def as_dict(self) -> dict[str, Any]:
        prefill = {"phase": "prefill", "tokens": 4, "us": 8.0, "clock": "predicted", "flops": 600}
        return {"text": "It is Paris.", "phases": [{**prefill, "bytes": {"weights": 100}}]}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    options = two_machines.Options(**SMALL["two_machines"])
    monkeypatch.setattr(two_machines, "Options", lambda: options)
    monkeypatch.setattr("lab.inference.generate", lambda *_, **__: Speaking())


def test_each_phase_is_told_in_its_order(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["demo"]) == 0
    out = capsys.readouterr().out
    parts = ["1 of 2:", "prefill, m = 64 by gemm_cluster: result right", "floor, us", "at m = 1", "2 of 2:", "Paris."]
    at = [out.index(part) for part in parts]
    assert at == sorted(at)
    assert "prefill: 4 tokens, 2 us a token predicted, 6 FLOPs for each byte of weights" in out


def test_the_headline_fits_a_screen_and_says_what_its_words_mean(capsys: pytest.CaptureFixture[str]) -> None:
    run_command(["demo"])
    out = capsys.readouterr().out
    screen = out[out.index("kernel") : out.index("2 of 2")].splitlines()
    assert len(screen) <= 22
    for term in ("FLOP/B ", "floor ", "predicted ", "measured ", "ridge"):
        assert any(term in line for line in screen)
    assert all(len(line) <= demo.WIDTH + 6 for line in out.splitlines())


def test_json_is_one_document(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["demo", "--json", "--machine", "h100"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [row["kernel"] for row in document["rows"]] == ["gemm_cluster", "gemv_vectorized"] * 2
    assert document["text"] == "It is Paris."
    assert all(row["floor_us"] > 0 for row in document["rows"])
