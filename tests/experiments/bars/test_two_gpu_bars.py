"""Two GPUs against their bars: what is missed is said, one card proves no bar, and one GPU is refused in a sentence."""

from typing import Any

import msgspec
import pytest

from experiments import runner
from experiments.bars import two_gpu_bars
from lab.record import Archive, Checked, Record, provenance
from sim.errors import InputError
from tests.experiments.examples import NOTHING


def pushed(gb_per_s: float, right: bool = True, **facts: Any) -> Record:
    metrics = {"what": "push", "tokens": 8192, "layers": 32, "same_card": False, "us": 1.0, **facts}
    metrics["bytes_per_s"] = 1e9 * gb_per_s
    return Record(
        **provenance(), on="gpu", machine="h200", card="two cards", experiment="two_gpu_bars",
        check=Checked(right, None), metrics=metrics,
    )  # fmt: skip


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
