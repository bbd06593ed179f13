"""Records: whole lines in, whole lines out, foreign ones refused, provenance without git."""

import os
import threading
from pathlib import Path

import msgspec
import pytest

from lab import record as records
from lab.record import Archive, Checked, Record, append, provenance, read
from sim.errors import EnvironmentFailure, InputError


def a_record(**fields: object) -> Record:
    """A record of a kernel, with some fields changed."""
    base = Record(
        **provenance(),
        on="gpu",
        machine="h100",
        card="NVIDIA H100 80GB HBM3",
        experiment="bench",
        kernel="gemv_vectorized",
        problem={"kind": "linear", "m": 1, "n": 8, "k": 8, "weights": "bf16"},
        schedule={"rows": 1, "mode": "a"},
        clock="cold",
        us=2.5,
        samples_us=[2.4, 2.5, 2.6],
        check=Checked(True, 0.5),
        theory={"flops": 128, "exp_count": None},
        metrics={"pace": "sustained", "read_bytes_per_s": 3.1e12},
    )
    return msgspec.structs.replace(base, **fields)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "bench.jsonl"
    written = [a_record(us=float(i), time=f"2026-01-01T00:00:0{i}+00:00") for i in range(3)]
    for one in written:
        append(one, path)
    assert read([path]) == Archive(tuple(written))


def test_every_field_of_the_contract_is_in_the_line() -> None:
    line = msgspec.json.decode(msgspec.json.encode(a_record()))
    contract = {
        "schema",
        "run",
        "time",
        "commit",
        "dirty",
        "command",
        "card",
        "driver",
        "versions",
        "clocks",
        "throttle",
    }
    contract |= {"power_w", "experiment", "kernel", "problem", "schedule", "clock", "us", "samples_us", "predicted_us"}
    contract |= {"check", "theory", "simulated", "counters", "metrics"}
    assert contract <= line.keys()
    assert line["check"] == {"passed": True, "error": 0.5}


def test_infinite_error_is_null() -> None:
    line = msgspec.json.decode(msgspec.json.encode(a_record(check=Checked(False, float("inf")))))
    assert line["check"] == {"passed": False, "error": None}


@pytest.mark.parametrize("keep", [1, 40, -2])
def test_a_truncated_last_line_is_skipped_and_named(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "bench.jsonl"
    append(a_record(), path)
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:keep])
    found = read([path])
    assert len(found.records) == 1
    assert found.complaints == ("bench.jsonl line 2 is not a whole record and was skipped",)


def test_a_record_after_a_truncated_line_is_not_glued_to_it(tmp_path: Path) -> None:
    path = tmp_path / "bench.jsonl"
    append(a_record(us=1.0), path)
    path.write_bytes(path.read_bytes()[:-30])
    append(a_record(us=2.0), path)
    found = read([path])
    assert [r.us for r in found.records] == [2.0]
    assert len(found.complaints) == 1


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b'{"schema": 99}', "line 1 has schema 99; this version of the lab reads 1"),
        (b'{"name": "not ours"}', "line 1 is not a record"),
        (b'{"schema": 1, "run": 5}', "line 1 is not a record"),
        (b"[1, 2]", "line 1 is not a record"),
    ],
)
def test_foreign_lines_are_refused_in_a_sentence(tmp_path: Path, line: bytes, says: str) -> None:
    path = tmp_path / "foreign.jsonl"
    path.write_bytes(line + b"\n")
    with pytest.raises(InputError, match=says):
        read([path])


def test_files_and_lines_beyond_the_limits_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "big.jsonl"
    append(a_record(), path)
    size = path.stat().st_size
    monkeypatch.setattr(records, "MAX_LINE", size - 10)
    with pytest.raises(InputError, match="a line of more than"):
        read([path])
    monkeypatch.setattr(records, "MAX_FILE", size - 1)
    with pytest.raises(InputError, match="a records file has at most"):
        read([path])


def test_a_missing_file_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read: No such file"):
        read([tmp_path / "nowhere.jsonl"])


def test_a_folder_that_cannot_be_made_is_an_environment_failure(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file, no folder")
    with pytest.raises(EnvironmentFailure, match="the record cannot be written"):
        append(a_record(), tmp_path / "taken" / "bench.jsonl")


def test_writers_at_the_same_time_leave_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "bench.jsonl"

    def write(who: int) -> None:
        for i in range(20):
            append(a_record(run=f"{who}-{i}", samples_us=[1.0] * 500), path)

    threads = [threading.Thread(target=write, args=(who,)) for who in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = read([path])
    assert not found.complaints
    assert {r.run for r in found.records} == {f"{who}-{i}" for who in range(4) for i in range(20)}


def test_older_records_say_in_their_metrics_how_launches_followed_each_other(tmp_path: Path) -> None:
    facts = [{"plain": True}, {"layers": 8, "launches": "dependent"}, {"layers": 8, "launches": "plain"}, {}]
    for metrics in facts:
        append(a_record(clock="graph", metrics=metrics), tmp_path / "old.jsonl")
    peer = {"kernel": "peer:cublas", "schedule": None}
    append(a_record(clock="graph", metrics={"plain": True}, **peer), tmp_path / "old.jsonl")
    append(a_record(clock="graph", metrics={"plain": True}, overlapping=True), tmp_path / "old.jsonl")
    found = read([tmp_path / "old.jsonl"]).records
    assert [r.overlapping for r in found] == [False, True, False, None, None, True]
    assert [r.clock for r in found] == ["graph", "chain", "chain", "graph", "graph", "graph"]


def test_queries() -> None:
    times = [f"2026-01-01T00:00:0{i}+00:00" for i in range(4)]
    past = Archive(
        (
            a_record(run="a", time=times[0], us=1.0),
            a_record(run="b", time=times[1], us=3.0),
            a_record(run="b", time=times[2], us=2.0, clock="graph"),
            a_record(run="c", time=times[3], us=None, check=Checked(False, None)),
            a_record(run="c", time=times[3], us=9.0, metrics={"layers": 8}),
        )
    )
    assert past.newest(kernel="gemv_vectorized").run == "c"
    assert past.newest(kernel="nobody") is None
    assert [r.us for r in past.newest_run(run="b")] == [3.0, 2.0]
    assert [r.us for r in past.timed(kernel="gemv_vectorized")] == [3.0, 2.0]  # run c timed a chain alone
    assert [r.us for r in past.timed(clock="cold")] == [3.0]
    assert past.where(on="sim").records == ()


def test_commit_comes_from_the_environment_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAB_COMMIT", "abc123-dirty")
    assert (provenance()["commit"], provenance()["dirty"]) == ("abc123", True)
    monkeypatch.setenv("LAB_COMMIT", "abc123")
    assert (provenance()["commit"], provenance()["dirty"]) == ("abc123", False)


def test_without_git_the_commit_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LAB_COMMIT", raising=False)
    monkeypatch.setenv("PATH", os.devnull)
    assert provenance()["commit"] == "unknown"


def test_records_go_to_the_working_folder_outside_a_checkout(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert records.folder() == records.COMMITTED
    monkeypatch.setattr(records, "ROOT", tmp_path)
    monkeypatch.chdir(tmp_path)
    assert records.folder() == tmp_path / "lab-records"


def test_a_citation_names_card_and_commit() -> None:
    assert a_record(commit="0123456789abcdef", dirty=True).source == "NVIDIA H100 80GB HBM3, 01234567+"
