"""Two sets of records compared: by time, by peer, within what samples can tell apart."""

from pathlib import Path

import msgspec
import pytest

from experiments.cli import run_command
from experiments.comparison import compare, load
from lab.record import Checked, append
from sim.errors import InputError
from tests.experiments.examples import timed


def test_compare_by_time_and_by_peer() -> None:
    before = [timed(us=10.0), timed("peer:cublas", us=20.0)]
    (slower,) = compare(before, [timed(us=11.0)], threshold=0.05)
    assert (slower.slowdown, slower.regression) == (pytest.approx(1.1), True)
    (tolerated,) = compare(before, [timed(us=11.0)], threshold=0.2)
    assert not tolerated.regression
    slow_day = [timed(us=12.0), timed("peer:cublas", us=24.0)]
    (same,) = compare(before, slow_day, threshold=0.05)
    assert (same.slowdown, same.regression) == (pytest.approx(1.0), False)
    assert (same.before_of_peer, same.after_of_peer) == (2.0, 2.0)


def test_compare_calls_what_samples_cannot_tell_apart_noise() -> None:
    wide = [timed(us=10.0, samples_us=[8.0, 9.0, 10.0, 11.0, 12.0])]
    slower = timed(us=11.0, samples_us=[9.0, 10.0, 11.0, 12.0, 13.0])
    (noise,) = compare(wide, [slower], 0.05)
    assert (noise.slowdown, noise.noise, noise.regression) == (pytest.approx(1.1), True, False)
    (clear,) = compare(wide, [timed(us=14.0, samples_us=[13.0, 13.5, 14.0, 14.5, 15.0])], 0.05)
    assert (clear.noise, clear.regression) == (False, True)
    slow_day = [
        msgspec.structs.replace(slower, us=22.0, samples_us=[20.0, 21, 22, 23, 24]),
        timed("peer:cublas", us=40.0),
    ]
    (same,) = compare([*wide, timed("peer:cublas", us=20.0)], slow_day, 0.05)
    assert (same.slowdown, same.noise) == (pytest.approx(1.1), True)


def test_compare_takes_the_fastest_schedule_and_notices_a_lost_kernel() -> None:
    (found,) = compare([timed(us=10.0), timed(us=8.0, schedule={"rows": 2})], [timed(us=8.0)], 0.05)
    assert (found.before_us, found.regression) == (8.0, False)
    (lost,) = compare([timed()], [timed(us=None, check=Checked(False, 9.0))], 0.05)
    assert (lost.slowdown, lost.regression) == (None, True)


def test_compare_sets_nothing_against_another_machine_or_other_launches() -> None:
    before = [timed(us=10.0, overlapping=True), timed(us=20.0, overlapping=False)]
    quicker = timed(us=15.0, overlapping=False)
    (plain,) = compare(before, [quicker, timed(us=1.0, overlapping=True, machine="h200")], 0.05)
    assert (plain.before_us, plain.slowdown) == (20.0, pytest.approx(0.75))
    with pytest.raises(InputError, match="on different machines or with other launches"):
        compare(before[:1], [quicker], 0.05)


def test_compare_refuses_what_cannot_be_compared() -> None:
    with pytest.raises(InputError, match="no timed kernel"):
        compare([timed("peer:cublas")], [timed()], 0.05)
    with pytest.raises(InputError, match="in common"):
        compare([timed()], [timed("gemm_wgmma")], 0.05)


def test_compare_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, after = tmp_path / "before.jsonl", tmp_path / "after.jsonl"
    append(timed(us=10.0), before)
    append(timed(us=11.0), after)
    assert run_command(["compare", str(before), str(after)]) == 1
    assert "REGRESSION" in capsys.readouterr().out
    assert run_command(["compare", str(before), str(after), "--threshold", "0.2", "--json"]) == 0
    document = msgspec.json.decode(capsys.readouterr().out)
    assert document["rows"][0]["slowdown"] == pytest.approx(1.1)
    assert load(str(before)).records[0].us == 10.0


def test_a_record_that_is_cut_off_is_named_and_nothing_is_called_right(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, after = tmp_path / "before.jsonl", tmp_path / "after.jsonl"
    append(timed(us=10.0), before)
    whole = before.read_bytes()
    before.write_bytes(b"\n\n" + whole + b"\n" + whole[:-9])
    append(timed(us=10.0), after)
    assert run_command(["compare", str(before), str(after), "--json"]) == 1
    out, err = capsys.readouterr()
    complaint = "before.jsonl line 5 is not a whole record and was skipped"
    assert msgspec.json.decode(out)["complaints"] == [complaint]
    assert err == f"lab: {complaint}\n"
