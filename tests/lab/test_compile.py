"""The compile cache and the generated header."""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

import lab.compile as nvrtc
from lab import catalog
from lab.compile import compile_launch
from lab.kernel import generated_header
from lab.problems import Linear
from sim.errors import EnvironmentFailure, KernelError
from sim.launch import Launch
from sim.machine import H100

KERNEL = catalog.get("gemv_vectorized")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAB_CACHE_DIR", str(tmp_path / "cache"))


def a_launch(index: int = 0) -> Launch:
    problem = Linear(1, 64, 512)
    schedule = list(KERNEL.module.candidates(problem, H100))[index]
    return KERNEL.launches(problem, schedule, H100)[0]


def test_the_header_says_each_constant_once() -> None:
    launch = a_launch()
    header = generated_header(launch, KERNEL.solves.facts)
    assert f"constexpr int rows = {launch.schedule.rows};" in header
    assert f"constexpr int threads = {launch.schedule.threads};" in header
    assert "using weights = bf16;" in header
    assert header.count("constexpr int rows") == 1


def test_a_second_compile_takes_the_cached_cubin() -> None:
    first = compile_launch(a_launch(), H100)
    stamp = first.path.stat().st_mtime_ns
    second = compile_launch(a_launch(), H100)
    assert second == first
    assert second.path.stat().st_mtime_ns == stamp
    assert second.path.read_bytes().startswith(b"\x7fELF")
    assert second.resources["gemv_vectorized"].registers > 0


def test_another_schedule_is_another_module() -> None:
    assert compile_launch(a_launch(0), H100).path != compile_launch(a_launch(1), H100).path


def test_an_edited_header_is_another_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("ptx", "lab/kernels/common", "lab/kernels/gemv"):
        (tmp_path / folder).mkdir(parents=True)
        for file in (nvrtc.ROOT / folder).glob("*.cu*"):
            (tmp_path / folder / file.name).write_text(file.read_text())
    monkeypatch.setattr(nvrtc, "ROOT", tmp_path)
    moved = catalog.Kernel(KERNEL.name, KERNEL.family, tmp_path / "lab/kernels/gemv/gemv_vectorized.cu", KERNEL.module)
    monkeypatch.setattr(nvrtc.catalog, "get", lambda _: moved)
    before = compile_launch(a_launch(), H100).path
    header = tmp_path / "ptx/types.cuh"  # included by a header that the kernel includes
    header.write_text(header.read_text() + "\n// edited\n")
    assert compile_launch(a_launch(), H100).path != before


def test_a_digest_is_of_code_and_not_of_comments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvrtc, "ROOT", tmp_path)
    header, sources = tmp_path / "h.cuh", iter(range(9))
    texts = [
        '#include "h.cuh"\nint a = b; asm("// x");',
        '#include "h.cuh"\nint a = b;  /* why\n */ asm("// x"); // so',
    ]

    def digest(text: str, included: str = "int b;") -> str:
        header.write_text(included)
        source = tmp_path / f"{next(sources)}.cu"
        source.write_text(text)
        return nvrtc.code_digest(source)

    first, *others = [digest(text, included) for text in texts for included in ("int b;", "int b; // b\n")]
    assert {*others} == {first}
    changed = [digest(texts[0].replace("a = b", "a = 2 * b")), digest(texts[0].replace("// x", "// y"))]
    assert len({first, *changed, digest(texts[0], "long b;")}) == 4


@pytest.mark.parametrize("damage", [b"", b"garbage"])
def test_a_corrupt_entry_is_compiled_again(damage: bytes) -> None:
    compiled = compile_launch(a_launch(), H100)
    good = compiled.path.read_bytes()
    compiled.path.write_bytes(damage)
    assert compile_launch(a_launch(), H100).path.read_bytes() == good
    compiled.path.with_suffix(".cubin.json").write_bytes(damage)
    assert compile_launch(a_launch(), H100).resources == compiled.resources


def test_parallel_writers_leave_one_whole_entry() -> None:
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: compile_launch(a_launch(), H100), range(4)))
    assert len({c.path for c in found}) == 1
    stored = json.loads(found[0].path.with_suffix(".cubin.json").read_text())
    assert set(stored["resources"]) == {"gemv_vectorized"}
    assert len(list(found[0].path.parent.iterdir())) == 2, "no temporary file is left"


def test_a_cache_folder_that_cannot_be_made_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LAB_CACHE_DIR", str(tmp_path / "file" / "cache"))
    with pytest.raises(EnvironmentFailure, match=r"the cache folder .* cannot be written; set LAB_CACHE_DIR"):
        compile_launch(a_launch(), H100)


def test_code_that_does_not_compile_shows_the_compilers_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "gemv_vectorized.cu"
    source.write_text('#include "schedule.cuh"\nextern "C" __global__ void gemv_vectorized() { nonsense(); }\n')
    broken = catalog.Kernel(KERNEL.name, KERNEL.family, source, KERNEL.module)
    monkeypatch.setattr(nvrtc.catalog, "get", lambda _: broken)
    with pytest.raises(KernelError, match=r'does not compile:\n.*cu\(2\): error: identifier "nonsense" is undefined\n'):
        compile_launch(a_launch(), H100)


def test_an_architecture_that_nvrtc_does_not_know_is_not_the_kernels_fault() -> None:
    with pytest.raises(EnvironmentFailure, match=r"^NVRTC refuses lab/kernels/gemv/gemv_vectorized\.cu with .*sm_999"):
        compile_launch(a_launch(), replace(H100, arch="sm_999"))
