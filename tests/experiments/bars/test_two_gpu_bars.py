"""Two GPUs against their bars: what is missed is said, one card proves no bar, and one GPU is refused in a sentence."""

from typing import Any, ClassVar

import msgspec
import pytest

from experiments import runner
from experiments.bars import two_gpu_bars
from lab.record import Archive, Checked, Record, provenance
from sim.errors import EnvironmentFailure, InputError
from sim.machine import H200
from tests.experiments.examples import NOTHING


def pushed(gb_per_s: float, right: bool = True, **facts: Any) -> Record:
    metrics = {"what": "push", "tokens": 8192, "layers": 32, "same_card": False, "us": 1.0, **facts}
    metrics["bytes_per_s"] = 1e9 * gb_per_s
    return Record(
        **provenance(), on="gpu", machine="h200", card="two cards", experiment="two_gpu_bars",
        check=Checked(right, None), metrics=metrics,
    )  # fmt: skip


def told(right: bool = True, **metrics: Any) -> Record:
    return Record(
        **provenance(), on="gpu", machine="h200", card="two cards", experiment="two_gpu_bars",
        check=Checked(right, None), metrics={"same_card": False, **metrics},
    )  # fmt: skip


ENGINES = {"what": "engines", "prompts_kept_us": 100.0, "prompts_us": 102.0, "p99_itl_alone_us": 50.0}


def summed(us: float) -> Record:
    metrics = {"what": "sum", "rows": 1, "rank_bytes": 8192, "same_card": False, "us": us}
    return Record(
        **provenance(), on="gpu", machine="h200", card="two cards", experiment="two_gpu_bars",
        check=Checked(True, None), metrics=metrics,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("records", "passed", "sentence"),
    [
        ([pushed(331.0), summed(9.0), summed(3.4)], True, "All bars that were measured are kept."),
        ([pushed(329.0)], False, "8,192 tokens, GB/s of one push: 329, bar 330"),
        ([summed(3.6)], False, "8 KB, us of a sum in a graph: 3.6, bar 3.5"),
        ([pushed(340.0, layers=1, us=101.0)], False, "us after prefill's last layer: 101, bar 100"),
        ([pushed(340.0, right=False)], False, "1 of 1 transfers and sums brought wrong results"),
        ([pushed(900.0, same_card=True)], None, "within one card, which no bar is for"),
        ([told(what="step", us=2340.0)], True, "are kept"),
        ([told(what="step", us=2400.0)], False, "ms of a step, batch 1, 2,048 tokens: 2.4, bar 2.35"),
        ([told(**ENGINES, p99_itl_pushed_us=51.0)], True, "are kept"),
        ([told(**ENGINES, p99_itl_pushed_us=52.0)], False, "p99 of gaps beside prefill, of alone: 1.04, bar 1.03"),
        ([told(**ENGINES | {"prompts_us": 104.0}, p99_itl_pushed_us=51.0)], False, "while pushing, %: 4, bar 3"),
        ([told(what="rung", rung="NCCL", tokens=8192, bytes_per_s=1e9)], True, "are kept"),
        ([pushed(340.0), told(part="step", failed="it hung")], False, "step failed: it hung"),
        ([], None, "two GPUs that reach each other are needed"),
    ],
)
def test_the_verdict_follows_the_records(records: list[Record], passed: bool | None, sentence: str) -> None:
    found = two_gpu_bars.verdict(records, NOTHING)
    assert found.passed is passed
    assert sentence in found.sentence


def test_every_part_is_predicted_beside_its_bar() -> None:
    found = runner.run("two_gpu_bars", machine="h200", part="sum")
    rows = list(two_gpu_bars.rows(found.records, NOTHING))
    assert [row.case for row in rows] == ["8 KB", "16 KB", "33 KB"]
    assert all(row.theory == 3.5 and row.simulated and row.measured is None for row in rows)


@pytest.mark.parametrize("options", [{"part": "x"}, {"devices": "0"}, {"devices": "0,x"}, {"rounds": 0}])
def test_options_that_cannot_be_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        two_gpu_bars.Options(**options)


def test_one_card_is_told_apart_from_two() -> None:
    told = runner.run("two_gpu_bars", machine="h200", part="sum").records
    both = (pushed(750.0, same_card=True), pushed(700.0, same_card=True, layers=1))
    within = [msgspec.structs.replace(record, run="one") for record in both]
    table = two_gpu_bars.table(Archive((*told, *within)))
    assert "Nothing is measured: two GPUs that reach each other are needed." in table
    assert "Within one card, where no link is crossed (two cards" in table
    assert "pushes at 750 to 750 GB/s; all right." in table
    assert "(two cards" not in two_gpu_bars.table(Archive(told))
    assert "No records yet" in two_gpu_bars.table(NOTHING)


def test_a_part_that_fails_takes_no_other_along() -> None:
    class Broken:
        on, machine = "gpu", H200
        asked: ClassVar[list[str]] = []

        def closed_form(self, metrics: Any, problem: Any = None) -> Record:  # noqa: ARG002
            return msgspec.structs.replace(told(**metrics), on="sim")

        def worked(self, _: Any, work: Any, seconds: float) -> Any:
            assert seconds == 120
            self.asked.append("sum" if work.rows else "step" if work.step else "engines" if work.engines else "pages")
            raise EnvironmentFailure("it hung")
            yield

    found = list(two_gpu_bars.measure(two_gpu_bars.Options(), Broken()))  # type: ignore[arg-type]
    assert Broken.asked == ["pages", "sum", "step", "engines"]
    assert [r.metrics["part"] for r in found if "failed" in r.metrics] == list(two_gpu_bars.PARTS)


def test_rungs_are_predicted_beside_the_links_rate() -> None:
    told = runner.run("two_gpu_bars", machine="h200", part="hand_over")
    rates = {
        r.quantity: (r.theory, r.simulated) for r in two_gpu_bars.rows(told.records, NOTHING) if "by" in r.quantity
    }
    link, copies = rates["GB/s by copies one by one"]
    assert copies < 0.1 * link
    assert rates["GB/s by NCCL"][1] < link
