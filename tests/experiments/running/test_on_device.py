"""What the worker process does with the jobs it is sent, on a device that is replaced."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from experiments.running import on_device
from experiments.running.jobs import Job, Search, batch
from lab.choice import choose, contenders, schedule_words
from lab.gpu import bench as gpu_bench
from lab.gpu import device as gpu_device
from lab.gpu.bench import Candidate
from lab.kernel import schedule_fields
from lab.problems import Attention, Linear
from lab.record import Record
from sim.machine import H100
from tests.lab.gpu.fake_bench import Device, install

PROBLEM = Linear(70, 256, 256)
KERNEL, SCHEDULE, _ = choose(PROBLEM, H100)
WORDS = schedule_words(schedule_fields(SCHEDULE))


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    found = install(monkeypatch)
    monkeypatch.setattr(gpu_device, "machine", lambda: H100)
    monkeypatch.setattr(gpu_device, "card", gpu_bench.card)
    monkeypatch.setattr(on_device, "_peers", lambda _: {"cublas": found.peer})
    return found


def sent(jobs: list[Any], seconds: float = 60.0) -> Any:
    """What arrives in the worker: JSON."""
    return msgspec.json.decode(msgspec.json.encode(batch(jobs, seconds)))


def names(records: list[Record]) -> list[str | None]:
    return [record.kernel for record in records]


def test_a_batch_is_timed_job_by_job(device: Device) -> None:
    jobs = [
        Job(
            kernel=KERNEL.name, problem=PROBLEM.as_dict(), schedules=(WORDS,), clocks=("cold",), paces=(pace,), rounds=2
        )
        for pace in ("burst", "sustained")
    ]
    found = list(on_device.bench(sent(jobs)))
    assert names(found) == [KERNEL.name, "peer:cublas"] * 2
    assert [r.metrics["pace"] for r in found] == ["burst", "burst", "sustained", "sustained"]
    assert [len(r.samples_us) for r in found] == [2] * 4
    assert len({r.run for r in found}) == len(device.measured) == 2
    assert all(r.check and r.check.passed for r in found)


@pytest.mark.usefixtures("device")
def test_only_fewer_rows_of_the_same_problem_take_its_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_bench, "Bench", lambda problem, *_: SimpleNamespace(problem=problem, wider=_[-1]))
    fewer = replace(PROBLEM, m=7)
    problems = [Attention(2, 4, 2, 64, 1, 40), Attention(1, 4, 2, 64, 1, 40), PROBLEM, fewer, PROBLEM]
    last, wider = None, []
    for problem in problems:
        last = on_device._arena(problem, Job(kernel="", problem=problem.as_dict()), last)
        wider.append(last.wider.problem if last.wider else None)
    assert wider == [None, None, None, PROBLEM, None]


@pytest.mark.usefixtures("device")
def test_a_sweep_adds_every_candidate_once() -> None:
    job = Job(kernel=KERNEL.name, problem=PROBLEM.as_dict(), sweep=True, peers=False, clocks=("cold",), rounds=1)
    found = list(on_device.bench(sent([job])))
    schedules = [r.schedule for r in found]
    assert schedules[0] == schedule_fields(KERNEL.best_guess(PROBLEM, H100))
    assert len({str(s) for s in schedules}) == len(schedules) > 1


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("function", [on_device.bench, on_device.search])
def test_what_has_not_begun_in_time_is_skipped_and_says_so(function: Any) -> None:
    fields = {"problem": PROBLEM.as_dict(), "facts": {"part": "large"}, "experiment": "x"}
    jobs = [Search(**fields)] if function is on_device.search else [Job(kernel=KERNEL.name, **fields)]
    (found,) = function(sent(jobs, seconds=0.0))
    assert (found.us, found.check, found.problem, found.experiment) == (None, None, PROBLEM.as_dict(), "x")
    assert found.metrics == {"part": "large", "failure": on_device.OVER}


@pytest.mark.usefixtures("device")
def test_a_search_of_all_contenders_ends_with_the_best_beside_the_peers() -> None:
    held = (("gemm_removed", ""), (KERNEL.name, WORDS))
    job = Search(problem=PROBLEM.as_dict(), incumbents=held, rounds=3, facts={"part": "large"})
    found = list(on_device.search(sent([job])))
    assert {r.metrics["part"] for r in found} == {"large"}
    (searched,) = [r for r in found if r.metrics["stage"] == "search"]
    assert searched.tried is not None
    assert searched.tried.keys() == {Candidate(*pair).name for pair in [*contenders(PROBLEM, H100), (KERNEL, SCHEDULE)]}
    final = [r for r in found if r.metrics["stage"] == "final"]
    assert len(final) == 6
    assert names(final)[-1] == "peer:cublas"


@pytest.mark.usefixtures("device")
def test_a_search_of_one_kernel_stays_with_it() -> None:
    job = Search(problem=PROBLEM.as_dict(), kernel="gemm_wgmma", rounds=3)
    found = list(on_device.search(sent([job])))
    assert {r.kernel for r in found} == {None, "gemm_wgmma", "peer:cublas"}


@pytest.mark.usefixtures("device")
def test_a_search_may_end_with_its_winner_beside_the_peers_and_the_read() -> None:
    job = Search(problem=PROBLEM.as_dict(), most=2, rounds=3, plain=True, reads=True, facts={"bar": "bf16"})
    found = list(on_device.search(sent([job])))
    stages = [r.metrics.get("stage") for r in found]
    assert stages == ["search", *["final"] * (len(found) - 4), None, None, None]
    assert not any(name.startswith("peer:") for name in names(found[1:-3]))
    assert names(found[-3:]) == [found[1].kernel, "peer:cublas", "peer:read"]
    assert all(r.metrics["bar"] == "bf16" and r.metrics["plain"] for r in found)


@pytest.mark.usefixtures("device")
def test_a_brief_search_tries_the_best_guesses_alone() -> None:
    job = Search(problem=PROBLEM.as_dict(), most=2, rounds=3)
    searched, *_ = on_device.search(sent([job]))
    assert list(searched.tried or {}) == [Candidate(*pair).name for pair in contenders(PROBLEM, H100, 2)]


def test_what_is_picked_is_in_the_last_race_however_slow(device: Device) -> None:
    device.usual_us = 10.0
    device.us = {Candidate(KERNEL, SCHEDULE).name: 100.0}
    job = Search(problem=PROBLEM.as_dict(), picked=(KERNEL.name, WORDS), rounds=3)
    _, *final = on_device.search(sent([job]))
    slow = [r for r in final if (r.kernel, r.schedule) == (KERNEL.name, schedule_fields(SCHEDULE))]
    assert len(slow) == 1
    assert (slow[0].us or 0) > 5 * min(r.us or 0 for r in final)


@pytest.mark.usefixtures("device")
def test_a_check() -> None:
    job = Job(kernel=KERNEL.name, problem=PROBLEM.as_dict(), schedules=(WORDS,))
    found = on_device.check(msgspec.to_builtins(job))
    assert (found["passed"], found["rows_checked"]) == (True, PROBLEM.m)
