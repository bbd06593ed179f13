"""lab emulate: the document, the exit codes, one sentence for what is refused."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from experiments.cli import run_command

SAXPY = """
template <int B> __global__ void saxpy(const float* x, float* y, float a, int n) {
    int i = blockIdx.x * B + threadIdx.x;
    if (i < n) y[i] += a * x[i];
}
"""
DESCRIPTION = """
import numpy as np, lab
SOURCE, ENTRY = "saxpy.cu", "saxpy<256>"
def launch(rng):
    return lab.Launch(grid=4, block=256, shared=0, cluster=1, args=[lab.In("x", rng.random(1000, np.float32)),
                      lab.InOut("y", np.ones(1000, np.float32)), np.float32(2), np.int32(1000)])
def reference(arrays):
    return {"y": (2 * arrays["x"] + 1, 1e-6)}
"""


@pytest.fixture
def saxpy(tmp_path: Path) -> Path:
    (tmp_path / "saxpy.cu").write_text(SAXPY)
    (tmp_path / "saxpy.py").write_text(DESCRIPTION)
    return tmp_path / "saxpy.py"


def emulate(capsys: Any, *arguments: object) -> tuple[int, dict[str, Any]]:
    code = run_command(["emulate", *map(str, arguments), "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_a_right_kernel_passes(saxpy: Path, capsys: Any) -> None:
    code, document = emulate(capsys, saxpy)
    assert code == 0
    assert document["passed"]
    assert document["entry"] == "saxpy<256>"
    assert document["outputs"] == {"y": {"error": 0.0, "mismatches": 0}}
    assert document["hazards"] == []
    assert document["counts"]["global_store_sectors"] == 125
    assert document["seeds"] == 20


def test_a_hazard_is_told_with_its_place_and_its_count(saxpy: Path, capsys: Any) -> None:
    (saxpy.parent / "saxpy.cu").write_text(SAXPY.replace("if (i < n)", ""))
    code, document = emulate(capsys, saxpy, "--seeds", 2)
    assert code == 1
    assert not document["passed"]
    (found,) = document["hazards"]  # one of each kind and place
    assert found["kind"] == "out of bounds"
    assert "saxpy.cu:4" in found["first"]
    assert found["second"] is None
    assert found["count"] >= 2


def test_a_wrong_result_fails(saxpy: Path, capsys: Any) -> None:
    (saxpy.parent / "saxpy.cu").write_text(SAXPY.replace("a * x", "x"))
    code, document = emulate(capsys, saxpy, "--seeds", 1)
    assert code == 1
    assert document["outputs"]["y"]["mismatches"] == 1000


def test_a_trace_is_written(saxpy: Path, capsys: Any) -> None:
    emulate(capsys, saxpy, "--seeds", 1, "--trace", saxpy.parent / "trace.json")
    assert json.loads((saxpy.parent / "trace.json").read_text())["traceEvents"]


def test_headers_and_macros_come_from_where_the_command_says(saxpy: Path, capsys: Any) -> None:
    (saxpy.parent / "saxpy.cu").write_text('#include "limit.h"\n' + SAXPY.replace("i < n", "i < LIMIT + MORE"))
    (saxpy.parent / "far").mkdir()
    (saxpy.parent / "far" / "limit.h").write_text("#define LIMIT 500\n")
    code, _ = emulate(capsys, saxpy, "--include", saxpy.parent / "far", "--define", "MORE=500")
    assert code == 0


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (("SOURCE, ENTRY", "SOURCE, NAME"), "says no ENTRY"),
        (("saxpy.cu", "none.cu"), "cannot be read"),
        (("rng.random", "rng.randum"), "saxpy.py:5: AttributeError"),
        (("grid=4", "grid=0"), "grid is 0; it is one to three positive integers"),
        (("np.int32(1000)", "np.int64(1000)"), "argument 4 of .* has 8 B; its parameter has 4"),
        (('"y": (2', '"z": (2'), "the reference gives z; the outputs are y"),
        (("import numpy", "import numpi"), "ModuleNotFoundError"),
    ],
)
def test_what_is_wrong_with_a_description_is_one_sentence(
    saxpy: Path, capsys: Any, edit: tuple[str, str], said: str
) -> None:
    saxpy.write_text(DESCRIPTION.replace(*edit))
    code, document = emulate(capsys, saxpy)
    assert code == 2
    assert re.search(said, document["error"]["message"]), document


def test_a_source_is_no_description(saxpy: Path, capsys: Any) -> None:
    code, document = emulate(capsys, saxpy.with_suffix(".cu"))
    assert code == 2
    assert "is no description" in document["error"]["message"]
