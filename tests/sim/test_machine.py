"""Machines hold together: GPCs are all of a chip's SMs, limits are what kernels rely on."""

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.errors import InputError
from sim.machine import H100, MACHINES, Machine, assumed_gpcs, machine


@pytest.mark.parametrize("known", MACHINES.values(), ids=lambda m: m.name)
def test_a_block_and_what_the_system_takes_for_it_fill_an_sm(known: Machine) -> None:
    assert known.shared_bytes_per_block + known.reserved_shared_bytes == known.shared_bytes_per_sm


@pytest.mark.parametrize(("cluster", "fit"), [(2, 66), (4, 31), (8, 15)])
def test_clusters_that_were_seen_to_fit_an_h100(cluster: int, fit: int) -> None:
    assert sum(sms // cluster for sms in H100.gpcs) == fit


@given(sms=st.integers(1, 400))
def test_assumed_gpcs_are_a_chip(sms: int) -> None:
    gpcs = assumed_gpcs(sms)
    assert sum(gpcs) == sms
    assert max(gpcs) <= 18
    assert max(gpcs) - min(gpcs) <= 3  # a TPC, or one and a half
    replace(H100, sms=sms, gpcs=gpcs)


@pytest.mark.parametrize("gpcs", [(66, 65), (14, 118), ()])
def test_gpcs_that_are_no_chip(gpcs: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"gpcs lists the SMs of each GPC, the largest first"):
        replace(H100, gpcs=gpcs)


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The user's folder."""
    monkeypatch.setenv("LAB_CONFIG_DIR", str(tmp_path))
    return tmp_path


def fields_of(machine: Machine, **changed: Any) -> dict[str, Any]:
    """What a file of the machine holds."""
    return {field.name: getattr(machine, field.name) for field in fields(machine)} | {
        "peaks": dict(machine.peaks),
        "name": "mine",
        **changed,
    }


def filed(path: Path, values: Any) -> str:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(values))
    return str(path)


@pytest.mark.parametrize("known", MACHINES.values(), ids=lambda m: m.name)
def test_a_file_gives_the_machine_that_it_describes(known: Machine, tmp_path: Path) -> None:
    found = machine(filed(tmp_path / "any.json", fields_of(known)))
    assert found == replace(known, name="mine")
    assert machine("mine") is found  # records and tables name it


def test_defaults_may_be_left_out(tmp_path: Path) -> None:
    values = {name: value for name, value in fields_of(H100).items() if name not in ("max_grid", "peer_bandwidth")}
    assert machine(filed(tmp_path / "any.json", values)).max_grid == H100.max_grid


def test_names_in_any_case_and_the_users_own(folder: Path) -> None:
    assert machine("H200") is MACHINES["h200"]
    filed(folder / "machines" / "their-card.json", fields_of(H100, name="their-card", title="Theirs"))
    assert machine("Their-Card").title == "Theirs"
    with pytest.raises(InputError, match="known machines: a100, h100, h200, b200, their-card"):
        machine("v100")


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"sms": 131}, "gpcs lists the SMs of each GPC"),
        ({"clock_hz": -1.0}, "clock_hz must be positive; it is -1.0"),
        ({"clock_hz": "fast"}, "clock_hz must be float; got 'fast'"),
        ({"hbm_bytes": 8e10}, "hbm_bytes must be int; got 80000000000.0"),
        ({"hbm_bytes": True}, "hbm_bytes must be int; got True"),
        ({"max_grid": [1, 2]}, r"max_grid must be tuple.*; got \[1, 2\]"),
        ({"peaks": {"bf16": 1.0}}, "peaks needs fp32"),
        ({"peaks": {"fp32": 0}}, "peaks must be positive; it is 0.0"),
        ({"arch": "hopper"}, 'arch is a compile target such as "sm_90a"'),
        ({"name": "../mine"}, "a machine's name is of small letters"),
        ({"name": "h100"}, "h100 is the H100 SXM 80 GB; choose a name of its own"),
        ({"sm": 1}, "a machine has no sm; it has name, title, arch, sms"),
    ],
    ids=lambda v: "-".join(v) if isinstance(v, dict) else "",
)
def test_files_of_no_machine(changed: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"any\.json: {says}"):
        machine(filed(tmp_path / "any.json", fields_of(H100, **changed)))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "is no JSON"),
        ("[]", "it is no JSON object"),
        ("[" * 10**4, "is no JSON"),
        ("\xff", "is no JSON"),
        ("{}", "name, title, arch, sms, gpcs.* must be given"),
        (" " * 2**16 + "{}", "more than 65,536 bytes"),
    ],
    ids=range(6),
)
def test_files_of_nothing(text: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "any.json"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(InputError, match=says):
        machine(str(path))
    with pytest.raises(InputError, match="cannot be read: No such file"):
        machine(str(tmp_path / "none.json"))
