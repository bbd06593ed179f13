"""Calibrations: what they say between their points, where they come from, which file goes first, what is refused."""

from math import log
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from lab.cards import CLOCKS, Calibration, Measured, Read, Run, calibration, committed_path, user_path, write
from lab.cards.files import settled
from lab.cards.from_records import from_records
from lab.record import COMMITTED, read
from sim.errors import EnvironmentFailure, InputError
from sim.machine import A100, H100, MACHINES, Machine

RUN = Run(time="2026-11-30T00:00:00+00:00", commit="c", dirty=False, command="lab calibrate", card="a card", driver="1")
COMMITTED_CARDS = [machine for machine in MACHINES.values() if committed_path(machine.name).exists()]


@st.composite
def calibrations(draw: st.DrawFn) -> Calibration:
    """Reads on one clock whose times grow with the size, and perhaps a launch."""
    sizes = draw(st.lists(st.integers(1, 2**34), min_size=1, max_size=8, unique=True).map(sorted))
    us = sorted(draw(st.lists(st.floats(0.1, 1e6), min_size=len(sizes), max_size=len(sizes))))
    reads = tuple(Read(n, t, f"read4 {n} x 256", "r") for n, t in zip(sizes, us, strict=True))
    launch = draw(st.none() | st.floats(0.1, 10.0).map(lambda value: Measured(value, "r")))
    return Calibration(
        machine="h100",
        card="a card",
        runs={"r": RUN},
        launch_us={"cold": None, "graph": launch, "chain": None},
        reads={"cold": None, "graph": reads, "chain": None},
    )


@given(calibrations(), st.integers(1, 2**36))
def test_a_rate_lies_between_those_of_its_neighbours(found: Calibration, nbytes: int) -> None:
    reads = found.reads["graph"]
    assert reads
    rate, us = found.read_rate(nbytes, "graph"), found.read_us(nbytes, "graph")
    assert rate is not None
    assert us is not None
    assert rate == pytest.approx(nbytes / us * 1e6)
    below = [r for r in reads if r.nbytes <= nbytes][-1:]
    above = [r for r in reads if r.nbytes >= nbytes][:1]
    around = [r.bytes_per_s for r in below + above]
    if below:
        assert min(around) * (1 - 1e-9) <= rate <= max(around) * (1 + 1e-9)
    else:  # no faster than an empty launch, no slower than the least that was measured
        launch = found.launch("graph") or 0.0
        assert min(launch, reads[0].us) * (1 - 1e-9) <= us <= reads[0].us
    nearest = min(reads, key=lambda r: abs(log(r.nbytes / nbytes)))
    assert found.launch_shape(nbytes, "graph") == nearest.launch_shape


@given(calibrations())
def test_measured_sizes_are_given_back_and_files_hold_all(found: Calibration) -> None:
    for read_ in found.reads["graph"] or ():
        assert found.read_us(read_.nbytes, "graph") == pytest.approx(read_.us)
    found.require_sound("it")
    assert msgspec.json.decode(msgspec.json.encode(found), type=Calibration) == found


def test_what_was_not_measured_is_none_and_named() -> None:
    nothing = calibration(A100)
    assert nothing == Calibration(machine="a100")
    for clock in CLOCKS:
        figures = nothing.launch(clock), nothing.read_rate(1e6, clock), nothing.read_us(1e6, clock)
        assert figures == (None, None, None)
        assert nothing.launch_shape(1e6, clock) is None
    assert nothing.l2_rate is None
    assert {"launch_us.cold", "reads.chain", "sm_clock_mhz.mma", "l2_bytes", "peer_bytes_per_s"} < {
        *nothing.not_measured
    }
    with pytest.raises(InputError, match="unknown clock 'hot'; clocks: cold, graph, chain"):
        nothing.launch("hot")


@pytest.mark.parametrize("machine", COMMITTED_CARDS, ids=lambda m: m.name)
def test_a_committed_card_is_sound_and_possible(machine: Machine) -> None:
    found = calibration(machine)
    for clock in CLOCKS:
        for size in (2**21, 2**24, 2**31):
            rate = found.read_rate(size, clock)
            assert rate is None or rate < machine.hbm_bandwidth
    if found.l2_bytes:
        assert found.l2_bytes.value == machine.l2_bytes
    launch = found.launch("graph")
    assert launch is None or launch == pytest.approx(machine.launch_us, rel=0.1)


def test_the_h100s_file_is_what_its_records_say() -> None:
    past = read(sorted(COMMITTED.glob("*.jsonl")))
    found = from_records(H100, past)
    assert calibration(H100) == found
    assert found.runs.keys() <= {record.run for record in past.records}
    with pytest.raises(InputError, match="no record of the experiment ceilings was measured on an A100"):
        from_records(A100, past)


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("LAB_CONFIG_DIR", str(tmp_path))
    return tmp_path


def test_the_users_file_goes_before_the_committed_one(folder: Path) -> None:
    own = structs.replace(calibration(H100), card="my card")
    write(own, user_path("h100"))
    assert user_path("h100") == folder / "cards" / "h100.json"
    assert calibration(H100) == own
    write(structs.replace(own, card="my other card"), user_path("h100"))
    assert calibration(H100).card == "my other card"
    user_path("h100").unlink()
    write(structs.replace(own, machine="a100"), user_path("a100"))
    assert calibration(H100).card == "NVIDIA H100 80GB HBM3"
    assert [path.name for path in (folder / "cards").iterdir()] == ["a100.json"]


READ = Read(10, 1.0, "read4 1 x 1", "r")


def test_files_are_looked_up_once_while_a_choice_lasts(folder: Path) -> None:
    assert folder
    committed = calibration(H100)
    own = structs.replace(committed, card="my card")
    with settled():
        assert calibration(H100) == committed
        write(own, user_path("h100"))
        assert calibration(H100) == committed
    assert calibration(H100) == own


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"machine": "h200"}, "calibrates 'h200', not 'h100'"),
        ({"schema": 2}, "has schema 2; this version of the lab reads 1"),
        ({"copy_bytes_per_s": Measured(-1.0, "r")}, "copy_bytes_per_s must be positive; it is -1.0"),
        ({"copy_bytes_per_s": Measured(1.0, "q")}, "names run 'q', which is not among its runs"),
        ({"launch_us": {"cold": None}}, "launch_us must name cold, graph, chain"),
        ({"reads": {"cold": (READ, READ), "graph": None, "chain": None}}, "in ascending size, each size once"),
        ({"l2_reads": (Read(10, 0.0, "", "r"),)}, "l2 read of 10 B must be positive"),
        ({"clusters_at_once": {"2": Measured(0, "r")}}, "clusters_at_once.2 must be positive"),
    ],
    ids=lambda v: "-".join(v) if isinstance(v, dict) else "",
)
@pytest.mark.usefixtures("folder")
def test_unsound_files(changed: dict, says: str) -> None:
    sound = Calibration(machine="h100", card="a card", runs={"r": RUN})
    path = user_path("h100")
    path.parent.mkdir()
    path.write_bytes(msgspec.json.encode(structs.replace(sound, **changed)))
    with pytest.raises(InputError, match=says) as caught:
        calibration(H100)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("text", ["{", "[]", '{"machine": 1}', "\xff", '{"machine": "h100", "copy_bytes_per_s": 1}'])
@pytest.mark.usefixtures("folder")
def test_files_of_no_calibration(text: str) -> None:
    path = user_path("h100")
    path.parent.mkdir()
    path.write_text(text, encoding="latin-1")
    with pytest.raises(InputError, match=r"h100\.json is no calibration"):
        calibration(H100)
    path.write_text(" " * (2**20 + 1))
    with pytest.raises(InputError, match="has 1,048,577 bytes; a calibration has at most 1,048,576"):
        calibration(H100)


def test_a_folder_that_cannot_be_written(folder: Path) -> None:
    (folder / "cards").write_text("a file")
    with pytest.raises(EnvironmentFailure, match="the calibration cannot be written"):
        write(Calibration(machine="h100"), user_path("h100"))
