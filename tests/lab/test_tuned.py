"""The tuned table: classes, what is put in is found again, bad lines are one sentence."""

import dataclasses
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from lab import catalog, tuned
from lab.problems import Attention, Linear, Problem
from lab.problems.linear import MORE_ROWS
from lab.record import Record, provenance
from lab.tuned import TunedClass, incumbents, is_tuned, load, lookup, put, winner
from sim.errors import EnvironmentFailure, InputError
from sim.machine import H100, H200


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "tuned.jsonl"
    monkeypatch.setattr(tuned, "TABLE", path)
    return path


def entry(problem: Problem, kernel: str = "gemm_wgmma", us: float = 9.0, **schedule: int) -> TunedClass:
    where = {"run": "one", "commit": "abc", "card": "a card"}
    return TunedClass(
        machine="h100",
        problem_class=problem.tuned_class(),
        kernel=kernel,
        schedule=schedule or {"stages": 3},
        us=us,
        **where,
    )


def test_the_committed_table_is_sorted_and_names_known_kernels() -> None:
    entries = load(tuned.TABLE)
    assert [e.key for e in entries] == sorted(e.key for e in entries)
    assert {e.kernel for e in entries} <= set(catalog.names())


@given(st.integers(1, 2**31 - 1))
def test_a_class_holds_the_m_up_to_a_power_of_two(m: int) -> None:
    most = Linear(m, 8, 16).tuned_class()["m"]
    assert isinstance(most, int)
    assert most & (most - 1) == 0
    assert most / 2 < m <= most


def test_what_is_put_is_found_by_its_whole_class(table: Path) -> None:
    put([entry(Linear(300, 4096, 4096))])
    found = ("gemm_wgmma", {"stages": 3})
    assert lookup(Linear(257, 4096, 4096), H100) == lookup(Linear(512, 4096, 4096), H100) == found
    for other in (
        Linear(256, 4096, 4096),
        Linear(513, 4096, 4096),
        Linear(300, 4096, 4104),
        Linear(300, 4096, 4096, "fp16"),
        Linear(300, 4096, 4096, epilogue="residual"),
    ):
        assert lookup(other, H100) is None
    assert lookup(Linear(300, 4096, 4096), H200) is None
    assert [file.name for file in table.parent.iterdir()] == [table.name]


def test_a_class_of_flags_is_found_too(table: Path) -> None:
    problem = Attention(4, 8, 2, 128, 1, 1000, page=16)
    put([entry(problem, "attention_split_kv")])
    assert lookup(dataclasses.replace(problem, kv_len=900), H100) == ("attention_split_kv", {"stages": 3})
    assert lookup(dataclasses.replace(problem, causal=False), H100) is None
    assert table.exists()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.integers(0, 9), st.floats(1, 9), max_size=6), st.integers(0, 9))
def test_a_search_races_its_own_entry_and_those_of_more_rows_that_took_less(
    table: Path, times: dict[int, float], asked: int
) -> None:
    table.unlink(missing_ok=True)
    put(entry(Linear(1 << rows, 64, 64), us=us, stages=rows + 2) for rows, us in times.items())
    found = [schedule["stages"] - 2 for _, schedule in incumbents(Linear(1 << asked, 64, 64), H100)]
    own = times.get(asked, 0.0)
    wider = [rows for rows in sorted(times) if asked < rows <= asked + MORE_ROWS and times[rows] < own]
    assert found == [asked] * (asked in times) + wider


@pytest.mark.usefixtures("table")
def test_a_search_races_what_other_matrices_took_for_as_many_rows() -> None:
    put([entry(Linear(3, 64, 64), stages=3), entry(Linear(4, 128, 64), stages=4), entry(Linear(4, 64, 128), stages=4)])
    put([entry(Linear(8, 128, 64), stages=5), entry(Linear(4, 128, 64, "fp16"), stages=6)])
    assert [s["stages"] for _, s in incumbents(Linear(4, 64, 64), H100)] == [3, 4]
    assert [s["stages"] for _, s in incumbents(Linear(4, 256, 64), H100)] == [3, 4]
    assert incumbents(Linear(4, 64, 64), H200) == []


def test_a_newer_entry_takes_the_place_of_its_class_and_lines_are_sorted(table: Path) -> None:
    problems = [Linear(64, n, k) for n in (8192, 512) for k in (1024, 256)]
    put(entry(problem) for problem in problems)
    put([entry(problems[0], "gemm_cluster")])
    lines = [msgspec.json.decode(line) for line in table.read_bytes().splitlines()]
    assert [(line["class"]["n"], line["class"]["k"]) for line in lines] == [
        (512, 256),
        (512, 1024),
        (8192, 256),
        (8192, 1024),
    ]
    assert [line["kernel"] for line in lines] == ["gemm_wgmma"] * 3 + ["gemm_cluster"]
    assert set(lines[0]) == {"machine", "class", "kernel", "schedule", "us", "run", "commit", "card"}
    assert lookup(problems[0], H100) == ("gemm_cluster", {"stages": 3})


def test_a_chain_has_an_entry_of_its_own_and_each_serves_where_the_other_is_missing(table: Path) -> None:
    one, other, alone = Linear(1, 64, 64), Linear(1, 64, 128), Linear(1, 64, 256)
    put([entry(one, stages=3), replace(entry(one, stages=4), chain=True)])
    put([entry(alone, stages=3), replace(entry(other, stages=4), chain=True)])
    found = {p.k: [lookup(p, H100, chain) for chain in (False, True)] for p in (one, other, alone)}
    stages = {k: [held and held[1]["stages"] for held in pair] for k, pair in found.items()}
    assert stages == {64: [3, 4], 128: [4, 4], 256: [3, 3]}
    assert [is_tuned(p, H100, chain=True) for p in (one, other, alone)] == [True, True, False]
    assert [s["stages"] for _, s in incumbents(one, H100)] == [3, 4]
    assert [s["stages"] for _, s in incumbents(one, H100, chain=True)] == [4, 3]
    lines = [msgspec.json.decode(line) for line in table.read_bytes().splitlines()]
    assert [line.get("chain") for line in lines] == [None, True, True, None]


@pytest.mark.parametrize("clock", ["cold", "graph", "chain"])
def test_the_clock_of_a_search_says_what_it_is_for(clock: str) -> None:
    found = winner([record(3.0, clock=clock)], Linear(1, 8, 8))
    assert found
    assert found.chain is (clock == "chain")


def test_no_table_is_an_empty_one(table: Path) -> None:
    assert load(table) == []
    assert lookup(Linear(1, 8, 8), H100) is None


@pytest.mark.parametrize(
    ("text", "sentence"),
    [("{", "line 1 is not an entry"), ('{"machine": "h100"}', "line 1 is not an entry.*class"), ("twice", "repeats")],
)
def test_a_bad_line_is_refused(text: str, sentence: str, table: Path) -> None:
    good = msgspec.json.encode(entry(Linear(1, 8, 8))).decode()
    table.write_text(f"{good}\n{good}\n" if text == "twice" else text)
    with pytest.raises(InputError, match=sentence):
        lookup(Linear(1, 8, 8), H100)


def test_a_table_that_cannot_be_written_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(tuned, "TABLE", tmp_path / "file" / "tuned.jsonl")
    with pytest.raises(EnvironmentFailure, match="cannot be written"):
        put([entry(Linear(1, 8, 8))])


def record(us: float | None, stage: str = "final", **changes: Any) -> Record:
    fields = {"kernel": "gemm_wgmma", "schedule": {"stages": 3}, "card": "a card", **changes}
    return Record(**{**provenance(), "on": "gpu", "machine": "h100", "us": us, "metrics": {"stage": stage}, **fields})


def test_the_winner_is_the_fastest_of_ours_in_the_last_race() -> None:
    problem = Linear(300, 4096, 4096)
    slow, fast = record(10.0), record(9.0004, kernel="gemm_cluster", run="two")
    others = [record(8.0, stage="search"), record(7.0, kernel="peer:cublas", schedule=None), record(None)]
    found = winner([slow, fast, *others], problem)
    assert found is not None
    assert (found.kernel, found.us, found.run, found.problem_class) == (
        "gemm_cluster",
        9.0,
        fast.run,
        problem.tuned_class(),
    )
    assert winner(others, problem) is None
