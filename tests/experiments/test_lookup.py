"""Look-ups: only what is of the same machine, kernel, problem, schedule, clock and launches; stale and disputed."""

from dataclasses import replace

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.lookup import comparable, counted, disputed, measured, note, question_of, source_of, stale, times
from experiments.tables import kernels
from lab import catalog
from lab.compile import code_digest
from lab.kernel import recorded_schedule
from lab.record import Archive, Record
from sim.machine import machine
from tests.experiments.examples import NOTHING, linear, timed

WANTED = timed(overlapping=True)
OTHER = {
    "machine": "h200",
    "kernel": "gemv_streamed",
    "problem": linear(2),
    "schedule": {**(WANTED.schedule or {}), "rows": 8},
    "clock": "cold",
    "overlapping": False,
    "on": "sim",
    "us": None,
    "metrics": {"stage": "search"},
}
MORE = [{"metrics": {"pace": "burst"}}, {"metrics": {"layers": 8}}]
DIFFERENT = st.sampled_from([{name: value} for name, value in OTHER.items()] + MORE)


@given(st.lists(DIFFERENT, max_size=6), st.lists(DIFFERENT, max_size=6))
def test_a_time_is_found_only_where_nothing_differs(before: list[dict], after: list[dict]) -> None:
    faster = msgspec.structs.replace(WANTED, us=1.0, run="other")
    others = [[msgspec.structs.replace(faster, **one) for one in some] for some in (before, after)]
    assert measured(Archive((*others[0], *others[1])), WANTED, "graph") is None
    found = measured(Archive((*others[0], WANTED, *others[1])), WANTED, "graph")
    assert found is WANTED


@pytest.mark.parametrize("field", ["machine", "kernel", "problem", "schedule"])
def test_counters_are_of_the_same_kernel_schedule_and_machine(field: str) -> None:
    read = timed(us=None, counters={"hbm_read_bytes": 1.0})
    assert counted(Archive((read,)), WANTED) is read
    assert counted(Archive((timed(us=None, counters=read.counters, **{field: OTHER[field]}),)), WANTED) is None


def test_unknown_launches_are_shown_with_a_note_and_never_set_against_known_ones() -> None:
    unknown, gemm = timed(us=9.0), timed("gemm_wgmma", 20.0, overlapping=False)
    assert measured(Archive((unknown,)), WANTED, "graph") is unknown
    assert note(WANTED, unknown) == "launches unknown"
    assert measured(Archive((WANTED, unknown)), WANTED, "graph") is WANTED  # though the other one is newer
    assert note(WANTED, WANTED) == ""
    assert measured(Archive((WANTED,)), unknown, "graph") is None
    assert not comparable([unknown, gemm])
    assert times([WANTED, gemm], Archive((unknown, gemm))) == ([10.0, 10.0], "predicted")
    assert times([WANTED, gemm], Archive((WANTED, gemm))) == ([12.0, 20.0], "measured")


def theory_of(record: Record) -> dict[str, int | None]:
    kernel = catalog.get(record.kernel or "")
    schedule = recorded_schedule(kernel, record.schedule or {})
    return kernel.module.theory(question_of(record), schedule, machine(record.machine)).as_dict()


def test_a_record_is_stale_where_its_kernel_is_another_today() -> None:
    current = timed(theory=theory_of(timed()))
    assert (current.theory or {})["global_load_sectors"]
    assert stale(current) == ""
    assert stale(timed(theory={**(current.theory or {}), "dropped": 1, "flops": None})) == ""  # one side says nothing
    words = {
        "is of another theory: flops 1, now 33,554,432": {"theory": {**(current.theory or {}), "flops": 1}},
        "gemv_vectorized has the schedule fields rows, ": {"schedule": {"rows": 1}},
        "rows must be one of 1, 2, 4, 8": {"schedule": {**(current.schedule or {}), "rows": 3}},
        "unknown kernel 'gemv_gone'": {"kernel": "gemv_gone"},
        "unknown machine 'h1'": {"machine": "h1"},
        "no linear problem has the fields m": {"problem": {"kind": "linear", "m": 1}},
    }
    for says, changes in words.items():
        old = msgspec.structs.replace(current, **changes)
        assert says in stale(old)
        assert note(current, old) == "stale"
        assert not comparable([old])
    assert stale(timed("peer:cublas")) == ""


def test_a_record_of_fewer_schedule_fields_is_of_the_kernel_as_it_was() -> None:
    early = {"rows": 1, "split_k": 4, "teams": 1, "unroll": 4}
    kernel = catalog.get("gemv_vectorized")
    assert recorded_schedule(kernel, early) == kernel.module.Schedule(**early, block_m=1, ctas_per_sm=1)
    assert stale(timed(schedule=early, theory=theory_of(timed(schedule=early)))) == ""


def test_a_row_says_that_its_kernel_changed_since() -> None:
    now = code_digest(catalog.get("gemv_vectorized").source)
    for code, said in ((None, ""), (now, ""), ("0123456789abcdef", "kernel changed since")):
        old = timed(theory=theory_of(timed()), overlapping=True, code=code)
        assert note(old) == note(WANTED, old) == said
        assert source_of(old) == ", ".join(filter(None, (old.source, said)))
        assert not stale(old)
    assert note(timed(theory={"flops": 1}, code="0123456789abcdef")) == "stale, kernel changed since"


def test_a_peer_is_disputed_by_its_own_time_in_another_run() -> None:
    slow, quick = timed("peer:cublas", 57.7, clock="cold"), timed("peer:cublas", 16.7, clock="cold", run="two")
    assert disputed([slow, quick], slow) is quick
    assert disputed([slow, quick], quick) is None
    for other in ({"clock": "graph"}, {"machine": "h200"}, {"problem": linear(2)}, {"kernel": "peer:cudnn"}):
        assert disputed([slow, msgspec.structs.replace(quick, **other)], slow) is None
    mine = timed("gemv_vectorized", 19.0, clock="cold")
    (line,) = [row for row in kernels.table(Archive((mine, slow, quick))).splitlines() if "gemv_vectorized" in row]
    assert "| 19 | disputed |" in line


def test_a_row_of_the_kernels_is_of_one_machine_schedule_and_way_to_launch() -> None:
    slower = {**(WANTED.schedule or {}), "rows": 8}
    past = Archive(
        (
            timed(us=12.0, clock="cold", schedule=slower, overlapping=True),
            timed(us=11.0, overlapping=True, run="two"),
            timed(us=10.0, overlapping=False, run="three"),
            timed(us=9.0, overlapping=False, machine="h200", run="four"),
        )
    )
    rows = [row.split(" | ")[3:10] for row in kernels.table(past).splitlines()[2:]]
    assert [(launches, cold, graph) for launches, _, _, cold, _, graph, _ in rows] == [
        ("overlapping", "-", "11"),
        ("plain", "-", "10"),
        ("plain", "-", "9"),
    ]


def test_a_kernel_without_records_changes_no_table(monkeypatch: pytest.MonkeyPatch) -> None:
    past = Archive((timed(),))
    before, known = kernels.table(past), catalog.kernels()
    assert before.count("\n") == 2
    monkeypatch.setattr(catalog, "kernels", lambda: (*known, replace(known[0], name="gemv_new")))
    assert kernels.table(past) == before
    assert kernels.table(NOTHING).count("\n") == 1
