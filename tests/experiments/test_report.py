"""The report: current, idempotent, made of records alone; and the comparison of two sets of records."""

import re
from pathlib import Path
from xml.etree import ElementTree

import msgspec
import pytest

from experiments import gemm_bars
from experiments import report as reports
from experiments._comparison import compare, load
from experiments._roofline_svg import Dot, roofline_svg
from experiments.cli import run_command
from lab import tuned
from lab.problems import Linear
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
    assert "| 10.02 | 10 | - | - | 12 | 1.25 | a \\| card, " in line


def linear(m: int, **fields: object) -> dict[str, object]:
    return {"kind": "linear", "m": m, "n": 4096, "k": 4096, "weights": "bf16", **fields}


def test_the_table_of_kernels_shows_the_last_few_shapes_by_both_clocks() -> None:
    past = [timed(problem=linear(m), us=float(m), run=str(m)) for m in (9, 8, 7, 6, 5, 4)]
    past += [
        timed(problem=linear(4), us=3.0, clock="cold", run="4"),
        timed(problem=linear(5), us=1.0, metrics={"stage": "search"}),
    ]
    text = reports.kernels(Archive(tuple(past)))
    lines = text.splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("| `gemv_vectorized`"))
    shown = [line.split(" | ")[2:8] for line in lines[at : at + reports.SHAPES]]
    assert [cells[0].split()[0] for cells in shown] == ["m=4", "m=5", "m=6", "m=7"]
    assert [cells[3] for cells in shown] == ["3", "-", "-", "-"]
    assert " | 5 | - | a" in lines[at + 1]


def test_the_table_of_kernels_leaves_out_problems_that_a_kernel_no_longer_takes() -> None:
    past = Archive((timed(problem=linear(1, weights="int4_g32")), timed(problem=linear(2))))
    text = reports.kernels(past)
    assert "| m=2 n=4096 k=4096 weights=bf16 |" in text
    assert "int4_g32" not in text


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
    naive, wgmma = (line for line in reports.ladder(past).splitlines() if line.startswith("| `"))
    assert naive.startswith("| `gemm_naive` |")
    assert naive.endswith("| 2 | 2 | - | - | 34.36 | 5.0% | 6.9% |")
    assert wgmma.endswith("| 2 | 2 | 2.5 | 4 | 549.8 | 80.0% | 111.1% |")
    assert "No records yet" in reports.ladder(Archive(()))


def barred(m: int, ours: float | None, peer: float, bar: str = "ragged") -> list[Record]:
    facts = {"part": "ragged", "bar": bar}
    shared = {"problem": linear(m), "experiment": "gemm_bars", "run": f"{bar} {m}", "metrics": facts}
    return [timed("gemm_wgmma", ours, **shared), timed("peer:cublas", peer, schedule=None, **shared)]


def test_the_bars_show_the_newest_measurement_of_each_case() -> None:
    past = Archive((*barred(8, 20.0, 10.0), *barred(16, 10.0, 9.9), *barred(8, 10.0, 10.0)))
    text = reports.bars(past)
    assert "- ragged: 0.995 of cuBLAS (geometric mean of 2, bar 0.95), least 0.990 at 16 x 4096 x 4096" in text
    assert len([line for line in text.splitlines() if line.startswith("| ragged |")]) == 2
    assert "No records yet" in reports.bars(Archive(()))


def test_decode_shows_each_layer_beside_the_read_and_the_best_peer() -> None:
    def layer(m: int, us: float, run: str) -> list[Record]:
        problem = Linear(m, 8192, 8192, "int4_g128").as_dict()
        shared = {"problem": problem, "experiment": "decode_bars", "run": run, "clock": "graph"}
        shared["metrics"] = {"bar": "int4_g128"}
        return [
            timed("gemv_int4", us, **shared),
            timed("peer:read", 12.4, schedule=None, **shared),
            timed("peer:humming", 18.2, schedule=None, **shared),
        ]

    past = Archive((*layer(1, 20.0, "old"), *layer(1, 14.0, "new"), *layer(16, 15.0, "other")))
    text = reports.decode(past)
    assert "| int4_g128 | 8,192 x 8,192 | 12.40 | 14.00 (18.2) | - | - | - | 15.00* (18.2) |" in text
    assert "- int4_g128: 1 of 2 layers stand within their limits" in text
    assert "No records yet" in reports.decode(Archive(()))


@pytest.mark.parametrize(
    ("cases", "passed", "says"),
    [
        ([(8, 10.0, 10.0), (16, 10.0, 9.4)], False, r"0.970 of cuBLAS .*least 0.940 at 16 x 4096 x 4096 \(bar 0.95\)"),
        ([(8, 10.0, 9.6), (16, 10.0, 9.5)], True, "0.955 of cuBLAS"),
        ([(8, 10.0, 10.0), (16, None, 9.0)], False, r"1 of 2 have no figure \(it spills\)"),
    ],
)
def test_a_bar_holds_by_its_mean_and_by_its_least(
    cases: list[tuple[int, float, float]], passed: bool, says: str
) -> None:
    records = [record for case in cases for record in barred(*case)]
    records = [
        r if r.us else msgspec.structs.replace(r, metrics={**r.metrics, "failure": "it spills"}, check=None)
        for r in records
    ]
    judged = gemm_bars.verdict(records, Archive(()))
    assert judged.passed is passed
    assert re.search(says, judged.sentence)


def test_a_pick_is_near_where_the_search_finds_little_better() -> None:
    def duel(m: int, picked: float, best: float) -> list[Record]:
        shared = {"problem": linear(m), "run": f"pick {m}"}
        facts = {"part": "pick", "bar": "pick"}
        mine = timed("gemm_wgmma", picked, metrics={**facts, "picked": True}, **shared)
        return [mine, timed("gemm_cluster", best, metrics={**facts, "picked": False}, **shared)]

    near = [record for m in range(1, 10) for record in duel(m, 1.02, 1.0)]
    far = duel(10, 1.10, 1.0)
    assert gemm_bars.verdict(near + duel(10, 1.0, 2.0), Archive(())).passed
    judged = gemm_bars.verdict(near + far, Archive(()))
    assert judged.passed
    assert "9 of 10 picked schedules lie within 3%" in judged.sentence
    assert "the farthest takes 1.100 times as long (10 x 4096 x 4096)" in judged.sentence
    assert not gemm_bars.verdict(near[:16] + far + duel(11, 1.2, 1.0), Archive(())).passed


def test_drawn_shapes_are_affordable_and_outside_the_table() -> None:
    drawn = gemm_bars.draw(20, 4, H100)
    assert drawn == gemm_bars.draw(20, 4, H100) != gemm_bars.draw(20, 5, H100)
    assert len(set(drawn)) == 20
    for problem in drawn:
        assert 64 <= problem.m <= 8192
        assert all(1024 <= extent <= 16384 and extent % 64 == 0 for extent in (problem.n, problem.k))
        assert problem.flops <= gemm_bars.PICK_FLOPS
        assert tuned.lookup(problem, H100) is None


def test_an_unknown_block_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("<!-- lab report: nonsense -->\n<!-- end of nonsense -->\n")
    monkeypatch.setattr(reports, "README", readme)
    with pytest.raises(
        InputError,
        match="README has a block 'nonsense'; blocks: kernels, gemm_ladder, gemm_bars, decode_bars, roofline",
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
