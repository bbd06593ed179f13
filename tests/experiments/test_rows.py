"""Rows of tables: the fastest schedule of the newest run, beside its peers and its counters."""

import msgspec

import experiments
from experiments.rows import kernel_rows
from lab.record import Archive
from tests.experiments.examples import SMALL, measured


def test_rows_show_the_fastest_schedule_of_the_newest_run_and_its_peers() -> None:
    mine = experiments.run("two_machines", **SMALL["two_machines"]).records[0]
    past = Archive(
        (
            measured(msgspec.structs.replace(mine, run="old"), 1.0),
            measured(msgspec.structs.replace(mine, run="new"), 7.0),
            measured(msgspec.structs.replace(mine, run="new"), 6.0),
            measured(msgspec.structs.replace(mine, run="new", kernel="peer:cublas"), 5.0),
            measured(msgspec.structs.replace(mine, run="old", kernel="peer:cublas"), 4.0),
            msgspec.structs.replace(mine, on="gpu", time="2100", counters={"hbm_read_bytes": 2e6}),
        )
    )
    rows = {row.quantity: row for row in kernel_rows(mine, past, "case")}
    assert rows["time in a graph, us"].measured == 6.0
    assert rows["peer:cublas in a graph, us"].measured == 5.0
    assert rows["HBM read, MB"].measured == 2.0
    assert rows["HBM read, MB"].theory == rows["HBM read, MB"].simulated == (mine.theory or {})["hbm_read_bytes"] / 1e6
    assert rows["time in a graph, us"].source.startswith("a card, ")
