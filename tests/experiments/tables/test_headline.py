"""README's six rows and picture: one card and commit, each ratio of one run, both roofs."""

from typing import Any

from experiments.tables import headline
from lab.record import Archive, Record
from tests.experiments.examples import linear, timed

PEER = "peer:cublas"


def row(kernel: str, m: int, us: float, run: str, **fields: Any) -> Record:
    """A time of the experiment by the graph's clock; a run is one kernel and its peers on one problem."""
    return timed(kernel, us, problem=linear(m), experiment=headline.EXPERIMENT, run=run, **fields)


def six(commit: str = "new") -> list[Record]:
    return [
        row("gemm_cluster", 2048, 100.0, f"{commit}1", commit=commit),
        row(PEER, 2048, 90.0, f"{commit}1", commit=commit),
        row("gemv_vectorized", 1, 10.0, f"{commit}2", commit=commit),
        row(PEER, 1, 15.0, f"{commit}2", commit=commit),
        row("gemm_cluster", 1, 30.0, f"{commit}3", commit=commit),
        row(PEER, 1, 16.0, f"{commit}3", commit=commit),
        row("gemv_vectorized", 2048, 9000.0, f"{commit}4", commit=commit),
        row(PEER, 2048, 95.0, f"{commit}4", commit=commit),
    ]


def cells(past: list[Record]) -> list[list[str]]:
    lines = headline.table(Archive(tuple(past))).splitlines()
    return [[cell.strip() for cell in line.split(" | ")] for line in lines[2:] if line.startswith("|")]


def test_six_rows_the_fastest_of_a_phase_first_each_beside_the_peer_of_its_run() -> None:
    found = cells(six())
    assert [(line[1], line[2]) for line in found] == [
        ("`gemm_cluster`", "100"),
        ("`gemv_vectorized`", "9,000"),
        ("cuBLAS", "90"),
        ("`gemv_vectorized`", "10"),
        ("`gemm_cluster`", "30"),
        ("cuBLAS", "15"),
    ]
    assert [line[5].rstrip(" |") for line in found] == ["0.90", "0.01", "1.00", "1.50", "0.53", "1.00"]


def test_only_the_newest_commit_counts() -> None:
    old = [row("gemm_mma_sync", 2048, 1.0, "old1", commit="old")]
    assert cells([*old, *six()]) == cells(six())


def test_shares_are_of_the_peak_and_of_the_read_rate() -> None:
    prefill, decode = cells(six())[0], cells(six())[3]
    assert prefill[3] == f"{2 * 2048 * 4096**2 / 989.4e12 / 100e-6:.1%}"
    assert (
        decode[4] == f"{(2 * 4096**2 + 4 * 4096) / 3.35e12 / 10e-6:.1%}"
    )  # the data sheet's rate, where none was read


def test_the_picture_has_a_dot_for_each_phase_on_its_own_side_of_the_ridge() -> None:
    (chart,) = headline.pictures(Archive(tuple(six()))).values()
    dots = {series.label: series.points[0] for series in chart.series if series.mark == "measured"}
    assert list(dots) == ["prefill, 2,048 tokens: gemm_cluster", "decode, 1 token: gemv_vectorized"]
    (ridge,) = (series.points[0][0] for series in chart.series if series.label.startswith("ridge"))
    (many, _), (one, _) = dots.values()
    assert one < ridge < many


def test_without_records_it_says_what_makes_them() -> None:
    assert "lab run two_machines --on gpu" in headline.table(Archive(()))
    assert headline.pictures(Archive(())) == {}
