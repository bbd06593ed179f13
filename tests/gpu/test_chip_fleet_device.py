"""Prefill and decode on one GPU as if on two: threads, then processes over IPC; one is killed, and no page is lost."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lab.inference import chip as chips
from lab.inference.chip import Chip
from lab.serving.clock import WallClock
from lab.serving.disaggregation.on_chips import Weights
from lab.serving.engine import serve
from lab.serving.models import engine_of, weights_of
from lab.serving.request import Request
from lab.serving.scheduler import Scheduler
from sim.formats import decode
from sim.machine import Machine
from tests.lab.serving.sites import POLICY, Heard, fleet, kill_prompts, requests, weights

CLOSE = 2.0**-4  # of the largest logit: steps of other sizes, rounded to bf16 in each layer


def require_likeliest(heard: Heard, chip: Chip, of: Weights = weights) -> None:
    """Each token is the likeliest, within the bound, where the sequence is computed by one engine at once."""
    engine = engine_of(of(chip), Scheduler(POLICY), chip, lambda *_: None, WallClock())
    number = 1000
    for sequence in heard.sequences.values():
        for place, token in enumerate(sequence.sampled):
            prompt, number = (*sequence.request.prompt, *sequence.sampled[:place]), number + 1
            serve(engine, [Request(number, prompt, 1, salt=str(number))])
            executor: Any = engine.executor
            logits = decode(chip.read(executor.logits)[0], "bf16")
            assert logits[token] >= logits.max() - 2 * CLOSE * np.abs(logits).max(), (sequence.request.id, place)


@pytest.mark.parametrize(
    ("prefills", "decodes", "apart", "layered"),
    [(1, 1, False, False), (1, 1, False, True), (1, 1, True, False), (2, 2, True, True)],
)
@pytest.mark.usefixtures("cupy")
def test_tokens_are_those_of_one_engine(chip: Machine, prefills: int, decodes: int, apart: bool, layered: bool) -> None:
    gpu, heard, asked = chips.gpu(chip), Heard(), [*requests(6), Request(6, (1, 2, 3), 1)]
    with fleet(heard, gpu, WallClock(), prefills, decodes, apart, layered) as found:
        for request in asked:
            found.add(request)
        while found.step():
            pass
    assert heard.reasons == {request.id: "length" for request in asked}
    require_likeliest(heard, gpu)


@pytest.mark.usefixtures("cupy")
def test_a_files_model_is_loaded_by_each_process(chip: Machine, tmp_path: Path) -> None:
    from tests.lab.inference import tiny

    of = partial(weights_of, tiny.write(tmp_path / "tiny.gguf"))
    gpu, heard = chips.gpu(chip), Heard()
    asked = [Request(i, tuple(range(5 + i, 105 - 9 * i)), 5) for i in range(4)]
    with fleet(heard, gpu, WallClock(), apart=True, of=of) as found:
        for request in asked:
            found.add(request)
        while found.step():
            pass
    assert heard.reasons == {request.id: "length" for request in asked}
    require_likeliest(heard, gpu, of)


@pytest.mark.parametrize(("prefills", "after"), [(1, 0), (1, 3), (2, 1), (2, 3)])
@pytest.mark.usefixtures("cupy")
def test_a_killed_process_of_prompts_takes_nothing_along(chip: Machine, prefills: int, after: int) -> None:
    gpu, heard = chips.gpu(chip), Heard()
    with fleet(heard, gpu, WallClock(), prefills, apart=True) as found:
        kill_prompts(found, heard, requests(8), after)
    require_likeliest(heard, gpu)
