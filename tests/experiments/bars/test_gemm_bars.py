"""The bars of prefill: by mean, by least, by what a search of all schedules finds."""

import re

import msgspec
import pytest

from experiments.bars import gemm_bars
from lab.record import Archive, Record
from tests.experiments.examples import linear, timed


def barred(m: int, ours: float | None, peer: float, bar: str = "ragged") -> list[Record]:
    facts = {"part": "ragged", "bar": bar}
    shared = {"problem": linear(m), "experiment": "gemm_bars", "run": f"{bar} {m}", "metrics": facts}
    return [timed("gemm_wgmma", ours, **shared), timed("peer:cublas", peer, schedule=None, **shared)]


def test_the_bars_show_the_newest_measurement_of_each_case() -> None:
    past = Archive((*barred(8, 20.0, 10.0), *barred(16, 10.0, 9.9), *barred(8, 10.0, 10.0)))
    text = gemm_bars.table(past)
    assert "- ragged: 0.995 of cuBLAS (geometric mean of 2, bar 0.95), least 0.990 at 16 x 4096 x 4096" in text
    assert len([line for line in text.splitlines() if line.startswith("| ragged |")]) == 2
    assert "No records yet" in gemm_bars.table(Archive(()))


def test_each_machine_has_its_own_means() -> None:
    other = [msgspec.structs.replace(record, machine="h200", run="other") for record in barred(8, 40.0, 10.0)]
    text = gemm_bars.table(Archive((*other, *barred(8, 10.0, 10.0))))
    assert "- ragged: 0.250 of cuBLAS (geometric mean of 1, " in text
    assert "- ragged: 1.000 of cuBLAS (geometric mean of 1, " in text


@pytest.mark.parametrize(
    ("cases", "passed", "says"),
    [
        ([(8, 10.0, 10.0), (16, 10.0, 9.4)], False, r"0.970 of cuBLAS .*least 0.940 at 16 x 4096 x 4096 \(bar 0.95\)"),
        ([(8, 10.0, 9.6), (16, 10.0, 9.5)], True, "0.955 of cuBLAS"),
        ([(8, 10.0, 10.0), (16, None, 9.0)], False, r"1 of 2 have no figure \(it spills\)"),
    ],
)
def test_a_bar_holds_by_its_mean_and_by_its_least(
    cases: list[tuple[int, float, float]], passed: bool, says: str
) -> None:
    records = [record for case in cases for record in barred(*case)]
    records = [
        r if r.us else msgspec.structs.replace(r, metrics={**r.metrics, "failure": "it spills"}, check=None)
        for r in records
    ]
    judged = gemm_bars.verdict(records, Archive(()))
    assert judged.passed is passed
    assert re.search(says, judged.sentence)
