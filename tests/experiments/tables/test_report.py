"""The report: current, idempotent, made of records alone."""

import re
from pathlib import Path
from xml.etree import ElementTree

import msgspec
import pytest

from experiments.cli import run_command
from experiments.tables import generate, kernels
from experiments.tables import report as reports
from experiments.tables.roofline_svg import Dot, roofline_svg
from lab.record import Archive, archive
from sim.errors import InputError
from sim.machine import H100, MACHINES
from tests.experiments.examples import linear, timed


def test_readme_and_rooflines_are_current() -> None:
    assert reports.report(archive()).outdated == [], "run `lab report` and commit what it writes"


def test_every_block_of_readme_is_filled() -> None:
    names = re.findall(r"<!-- lab report: (\w+) -->", reports.README.read_text())
    assert {"two_machines", "kernels", "roofline"} <= set(names)
    assert len(names) == len(set(names))


def test_writing_twice_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- lab report: kernels -->\nstale\n<!-- end of kernels -->\nafter\n")
    monkeypatch.setattr(reports, "README", readme)
    monkeypatch.setattr(reports, "COMMITTED", tmp_path)
    past = Archive((timed(), timed("peer:cublas", us=15.0)))
    assert set(reports.report(past).write()) == {readme, tmp_path / "roofline-h100.svg"}
    assert reports.report(past).write() == []
    text = readme.read_text()
    assert text.startswith("before\n<!--")
    assert text.endswith("<!-- end of kernels -->\nafter\n")
    assert "stale" not in text
    (line,) = [line for line in text.splitlines() if line.startswith("| `gemv_vectorized`")]
    assert "| 10.02 | 10 | - | - | 12 | 1.25 | a \\| card, " in line


def test_the_table_of_kernels_shows_the_last_few_shapes_by_both_clocks() -> None:
    past = [timed(problem=linear(m), us=float(m), run=str(m)) for m in (9, 8, 7, 6, 5, 4)]
    past += [
        timed(problem=linear(4), us=3.0, clock="cold", run="4"),
        timed(problem=linear(5), us=1.0, metrics={"stage": "search"}),
    ]
    text = kernels.table(Archive(tuple(past)))
    lines = text.splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("| `gemv_vectorized`"))
    shown = [line.split(" | ")[2:9] for line in lines[at : at + kernels.SHAPES]]
    assert [cells[0].split()[0] for cells in shown] == ["m=4", "m=5", "m=6", "m=7"]
    assert [cells[4] for cells in shown] == ["3", "-", "-", "-"]
    assert " | 5 | - | a" in lines[at + 1]


def test_the_table_of_kernels_leaves_out_problems_that_a_kernel_no_longer_takes() -> None:
    past = Archive((timed(problem=linear(1, weights="int4_g32"), schedule={}), timed(problem=linear(2))))
    text = kernels.table(past)
    assert "| m=2 n=4096 k=4096 weights=bf16 |" in text
    assert "int4_g32" not in text


def test_check_names_what_is_not_current_and_what_is_in_doubt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("<!-- lab report: kernels -->\n<!-- end of kernels -->\n")
    monkeypatch.setattr(reports, "README", readme)
    monkeypatch.setattr(reports, "COMMITTED", tmp_path)
    past = Archive((timed(schedule={"rows": 1}), timed("gemm_wgmma", problem=linear(64))))
    monkeypatch.setattr("lab.record.archive", lambda: past)
    assert run_command(["report", "--check"]) == 1
    out = capsys.readouterr().out.replace("\n", " ")
    assert "README.md is not what the records make of it; lab report writes it" in out
    assert "kernels: 1 row marked stale: the kernel's schedule or theory is another today" in out
    assert run_command(["report"]) == 0
    assert run_command(["report", "--check"]) == 0  # the row says that it is stale
    assert "everything is current" in capsys.readouterr().out


def test_a_generation_is_set_against_the_same_phase_on_the_same_machine() -> None:
    facts = {"model": "small", "phase": "decode", "tokens": 3, "regime": "memory", "floor_us": 1.0, "intensity": 2.0}
    facts |= {"prompt": "a", "text": "b"}
    ran = timed("", 5.0, experiment="generate", schedule={}, metrics=facts)
    simulated = msgspec.structs.replace(ran, on="sim", us=None, predicted_us=4.0)
    (line,) = [line for line in generate.table(Archive((simulated, ran))).splitlines() if "time, us" in line]
    assert line.endswith("| time, us | 1 | 4 | 5 |")
    for other in ({"machine": "h200"}, {"metrics": {**facts, "tokens": 4}}, {"metrics": {**facts, "model": "large"}}):
        text = generate.table(Archive((msgspec.structs.replace(simulated, **other), ran)))
        assert sum("time, us" in line for line in text.splitlines()) == 2


def test_an_unknown_block_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("<!-- lab report: nonsense -->\n<!-- end of nonsense -->\n")
    monkeypatch.setattr(reports, "README", readme)
    with pytest.raises(
        InputError,
        match="README has a block 'nonsense'; blocks: generate, kernels, roofline, sanitizer, attention_bars, batching",
    ):
        reports.report(Archive(()))


def test_outside_a_checkout_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(reports, "README", tmp_path / "README.md")
    assert run_command(["report"]) == 2
    assert "works in a checkout" in capsys.readouterr().err


@pytest.mark.parametrize("machine", MACHINES.values(), ids=lambda m: m.name)
def test_a_roofline_is_well_formed_and_escapes_text(machine: object) -> None:
    hostile = '<script>alert("&")</script>'
    dots = [Dot(hostile, hostile, 1.0, 2e12, True), Dot("b", "m=1", 3e5, 9e14, False)]
    root = ElementTree.fromstring(roofline_svg(machine, dots, 3e12))  # type: ignore[arg-type]
    ns = "{http://www.w3.org/2000/svg}"
    assert root.findall(f".//{ns}script") == []
    assert any(hostile in (text.text or "") for text in root.iter(f"{ns}text"))
    for circle in root.iter(f"{ns}circle"):
        assert 0 < float(circle.get("cx", "0")) < 860
        assert 0 < float(circle.get("cy", "0")) < 520


def test_a_dot_lies_where_its_numbers_say() -> None:
    ridge = H100.ridge("bf16")
    svg = roofline_svg(H100, [Dot("k", "at the ridge", ridge, H100.peak("bf16"), True)], None)
    circle = next(ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}circle"))
    lines = ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}line")
    corners = [(line.get("x1"), line.get("y1")) for line in lines if "style" in line.attrib]  # where a roof begins
    assert (circle.get("cx"), circle.get("cy")) in corners
