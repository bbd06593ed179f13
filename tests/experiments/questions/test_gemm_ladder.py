"""The GEMM ladder's table: the newest of each rung, in order."""

import msgspec

from experiments.questions import gemm_ladder
from lab.record import Archive, Record
from tests.experiments.examples import linear, timed


def rung(number: int, kernel: str, us: float | None, **changes: object) -> Record:
    facts = {"ladder": "bf16", "rung": number, "note": ""}
    counts = {"l2_to_sm_bytes": 2 * 10**6}
    fields = {
        "theory": counts,
        "simulated": counts,
        "clocks": {"sm": 915.0},
        "clock": "cold",
        "experiment": "gemm_ladder",
    }
    made = timed(kernel, us=us, problem=linear(4096), metrics=facts, run=f"run {number}")
    return msgspec.structs.replace(made, **{**fields, **changes})


def test_the_ladder_shows_the_newest_of_each_rung_in_order() -> None:
    counted = {"l2_to_sm_bytes": 2.5e6, "hbm_read_bytes": 3e6, "hbm_write_bytes": 1e6}
    past = Archive(
        (
            rung(1, "gemm_wgmma", 400.0),
            rung(0, "gemm_naive", 4000.0),
            rung(0, "peer:cublas", 200.0, schedule=None),
            rung(1, "gemm_wgmma", 250.0, run="later"),
            rung(1, "peer:cublas", 200.0, schedule=None, run="later"),
            rung(1, "gemm_wgmma", None, experiment="counters", metrics={}, counters=counted, clock=None),
        )
    )
    naive, wgmma = (line for line in gemm_ladder.table(past).splitlines() if line.startswith("| `"))
    assert naive.startswith("| `gemm_naive, stale` |")  # its theory is none of today's
    assert naive.endswith("| 2 | 2 | - | - | 34.36 | 5.0% | 6.9% |")
    assert wgmma.endswith("| 2 | 2 | 2.5 | 4 | 549.8 | 80.0% | 111.1% |")
    assert "No records yet" in gemm_ladder.table(Archive(()))
