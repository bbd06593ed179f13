"""The report: current, idempotent, made of records alone."""

import re
from pathlib import Path

import msgspec
import pytest

from experiments.cli import run_command
from experiments.tables import generate, kernels
from experiments.tables import report as reports
from lab.record import ROOT, Archive, archive
from sim.errors import InputError
from tests.experiments.examples import linear, timed


def page(folder: Path, monkeypatch: pytest.MonkeyPatch, *names: str) -> Path:
    """A README with a block of each name, in a checkout of its own."""
    blocks = (f"<!-- lab report: {name} -->\nof old\n<!-- end of {name} -->\n" for name in names)
    readme = folder / "README.md"
    readme.write_text(f"before\n{''.join(blocks)}after\n")
    monkeypatch.setattr(reports, "ROOT", folder)
    return readme


def test_pages_and_pictures_are_current() -> None:
    assert reports.report(archive()).outdated == [], "run `lab report` and commit what it writes"


def test_every_picture_is_shown_and_every_shown_one_is_there() -> None:
    shown = set()
    for page in reports.pages():
        for path in re.findall(r"!\[.*?\]\((.+?)\)", page.read_text()):
            shown.add((page.parent / path).resolve())
    assert shown == set((reports.ROOT / reports.FOLDER).resolve().iterdir())


def test_markers_are_whole() -> None:
    for page in reports.pages():
        starts = re.findall(r"^<!-- lab report: (.+) -->$", page.read_text(), re.MULTILINE)
        ends = re.findall(r"^<!-- end of (.+) -->$", page.read_text(), re.MULTILINE)
        assert starts == ends, page.name


def test_writing_twice_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    readme = page(tmp_path, monkeypatch, "kernels", "pictures roofline")
    past = Archive((timed(), timed("peer:cublas", us=15.0)))
    picture = tmp_path / "docs" / "pictures" / "roofline_h100_gemv.svg"
    assert reports.report(past).write() == [readme, picture]
    assert reports.report(past).write() == []
    text = readme.read_text()
    assert text.startswith("before\n<!--")
    assert text.endswith("(docs/pictures/roofline_h100_gemv.svg)\n<!-- end of pictures roofline -->\nafter\n")
    assert "of old" not in text
    (line,) = [line for line in text.splitlines() if line.startswith("| `gemv_vectorized`")]
    assert "| 10.02 | 10 | - | - | 12 | 1.25 | a \\| card, " in line


def test_a_source_is_quoted_from_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    readme = page(
        tmp_path, monkeypatch, "source gemm/gemm_naive.cu gemm_naive", "source attention/_softmax.cuh rescale"
    )
    reports.report(Archive(())).write()
    whole, member = (
        block.splitlines() for block in re.findall(r"^```cuda\n(.*?)^```$", readme.read_text(), re.M | re.S)
    )
    text = (ROOT / "lab/kernels/gemm/gemm_naive.cu").read_text()
    assert text.endswith("\n".join(whole) + "\n")
    assert whole[0].startswith('extern "C"')
    assert member[0].startswith("//")
    assert member[-1] == "}"


@pytest.mark.parametrize(
    "which", ["gemm/gemm_naive.cu row", "gemm/none.cu f", "../../ptx/load.cuh load", "gemm/gemm_naive.cu"]
)
def test_a_source_that_is_not_there_is_refused(which: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page(tmp_path, monkeypatch, f"source {which}")
    with pytest.raises(InputError, match=re.escape(which.split()[0])):
        reports.report(Archive(()))


def test_a_command_is_shown_with_what_it_prints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    readme = page(tmp_path, monkeypatch, "output explain linear m=1 n=256 k=512", "kernels")
    reports.report(Archive(())).write()
    assert "```sh\nlab explain linear m=1 n=256 k=512\n```\n\n```text\nlinear m=1 n=256 k=512" in readme.read_text()


def test_a_picture_of_other_figures_is_drawn_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page(tmp_path, monkeypatch, "pictures roofline")
    past = Archive((timed(us=12.0),))
    reports.report(past).write()
    assert reports.report(past).outdated == []
    (picture,) = reports.report(Archive((timed(us=13.0),))).outdated
    assert picture.name == "roofline_h100_gemv.svg"


def test_a_page_of_docs_links_its_picture_from_where_it_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page(tmp_path, monkeypatch, "kernels")
    (tmp_path / "docs").mkdir()
    below = tmp_path / "docs" / "a.md"
    below.write_text("<!-- lab report: pictures roofline -->\n<!-- end of pictures roofline -->\n")
    assert "](pictures/roofline_h100_gemv.svg)" in reports.report(Archive((timed(),))).pages[below]


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
    page(tmp_path, monkeypatch, "kernels")
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
    page(tmp_path, monkeypatch, "nonsense")
    with pytest.raises(InputError, match=r"README.md has a block .nonsense.; blocks: .*generate, .*attention_bars, .*"):
        reports.report(Archive(()))


def test_outside_a_checkout_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(reports, "ROOT", tmp_path)
    assert run_command(["report"]) == 2
    assert "works in a checkout" in capsys.readouterr().err
