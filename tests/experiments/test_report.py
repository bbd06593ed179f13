"""The report: current, idempotent, made of records alone; and the comparison of two sets of records."""

import re
from pathlib import Path
from xml.etree import ElementTree

import msgspec
import pytest

from experiments import report as reports
from experiments._comparison import compare, load
from experiments._roofline_svg import Dot, roofline_svg
from experiments.cli import run_command
from lab.record import Archive, Checked, Record, append, archive, provenance
from sim.errors import InputError
from sim.machine import H100, MACHINES


def timed(kernel: str = "gemv_vectorized", us: float = 12.0, **changes: object) -> Record:
    """A GPU's record of a kernel."""
    base = Record(
        **provenance(),
        on="gpu",
        machine="h100",
        card="a | card",
        kernel=kernel,
        problem={"kind": "linear", "m": 1, "n": 4096, "k": 4096, "weights": "bf16"},
        schedule={"rows": 1},
        clock="graph",
        us=us,
        predicted_us=10.0,
        check=Checked(True, 0.5),
    )
    return msgspec.structs.replace(base, **{"run": "one", **changes})


def test_readme_and_rooflines_are_current() -> None:
    assert reports.report(archive()).stale == [], "run `lab report` and commit what it writes"


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
    assert "| graph | 10.02 | 10 | 12 | 1.25 | a \\| card, " in line


def test_an_unknown_block_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("<!-- lab report: nonsense -->\n<!-- end of nonsense -->\n")
    monkeypatch.setattr(reports, "README", readme)
    with pytest.raises(
        InputError, match="README has a block 'nonsense'; blocks: kernels, roofline, generate, sanitizer, batching"
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


def test_compare_takes_the_fastest_schedule_and_notices_a_lost_kernel() -> None:
    (found,) = compare([timed(us=10.0), timed(us=8.0, schedule={"rows": 2})], [timed(us=8.0)], 0.05)
    assert (found.before_us, found.regression) == (8.0, False)
    (lost,) = compare([timed()], [timed(us=None, check=Checked(False, 9.0))], 0.05)
    assert (lost.slowdown, lost.regression) == (None, True)


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
    assert load(str(before))[0].us == 10.0
