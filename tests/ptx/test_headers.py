"""The PTX headers: each stands alone under NVRTC and keeps the form; the generated one is what the script writes."""

import re
from pathlib import Path

import pytest
from cuda.bindings import nvrtc

from ptx import generate_wgmma

ROOT = Path(__file__).resolve().parents[2]
HEADERS = sorted((ROOT / "ptx").glob("*.cuh"))
KERNELS = sorted(p for p in (ROOT / "lab" / "kernels").rglob("*.cu*") if "__pycache__" not in p.parts)
MOVES_OR_ORDERS = re.compile(
    r"\b(mbarrier\.|cp\.async|wgmma\.|fence\.|barrier|bar\.|setmaxnreg|ldmatrix|stmatrix|griddepcontrol|elect\.sync|prefetch)"
)


def compile_source(text: str) -> tuple[bool, str]:
    """Whether NVRTC takes it for sm_90a, and its log."""
    _, program = nvrtc.nvrtcCreateProgram(text.encode(), b"test.cu", 0, [], [])
    options = [b"--std=c++17", b"--gpu-architecture=sm_90a", f"--include-path={ROOT}".encode()]
    (status,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
    _, size = nvrtc.nvrtcGetProgramLogSize(program)
    log = b" " * (size + 1)  # never one byte: those objects are shared by all of Python, and this one is written to
    nvrtc.nvrtcGetProgramLog(program, log)
    return int(status) == 0, log.decode(errors="replace")


@pytest.mark.parametrize("header", HEADERS, ids=lambda p: p.stem)
def test_a_header_compiles_alone_and_twice(header: Path) -> None:
    include = f'#include "ptx/{header.name}"\n'
    passed, log = compile_source(include + include)
    assert passed, log
    assert "warning" not in log


@pytest.mark.parametrize("header", [h for h in HEADERS if h.stem != "types"], ids=lambda p: p.stem)
def test_a_header_keeps_the_form(header: Path) -> None:
    text = header.read_text()
    family = "wgmma" if header.stem == "wgmma_shapes" else header.stem
    assert f"namespace ptx::{family} {{" in text
    assert text.startswith("// ")
    assert "PTX ISA" in text
    for function in text.split("__device__")[1:]:
        assert len(re.findall(r"\basm\b", function)) <= 1
        if re.search(r"asm[^;]*\"" + MOVES_OR_ORDERS.pattern, function, re.S):
            assert "asm volatile" in function
            assert '"memory"' in function


def test_every_include_is_the_projects_own() -> None:
    for file in HEADERS + KERNELS:
        for name in re.findall(r"#\s*include\s*([<\"][^>\"]+)", file.read_text()):
            assert name[1:] == "schedule.cuh" or (ROOT / name[1:]).exists(), f"{file.name} includes {name[1:]}"


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda p: p.stem)
def test_no_kernel_holds_raw_assembly(kernel: Path) -> None:
    assert not re.search(r"\basm\b", kernel.read_text())


def test_the_wgmma_shapes_are_those_that_the_script_writes() -> None:
    assert generate_wgmma.TARGET.read_text() == generate_wgmma.generate()


@pytest.mark.parametrize(
    "call",
    [
        "setmaxnreg::inc<20>()",
        "setmaxnreg::dec<100>()",
        "wgmma::wait_group<8>()",
        "barrier::sync<100>(1)",
        "bulk::wait_group<-1>()",
        "cp_async::wait_group<-1>()",
    ],
)
def test_an_illegal_immediate_does_not_compile(call: str) -> None:
    header = call.split("::")[0]
    passed, log = compile_source(f'#include "ptx/{header}.cuh"\n__global__ void kernel() {{ ptx::{call}; }}\n')
    assert not passed
    assert "static assertion failed" in log
