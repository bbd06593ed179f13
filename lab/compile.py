"""NVRTC: a launch's kernel to a cubin or to PTX, for an exact architecture, without a GPU; cached on disk.

The cache key covers everything the compiler sees: source, generated header, every header they include, options and the
NVRTC version.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from lab import catalog
from lab.errors import shown
from lab.kernel import generated_header
from sim.errors import EnvironmentFailure, KernelError
from sim.folders import ROOT, cache_dir, cache_path, write_whole
from sim.launch import Launch
from sim.machine import Machine

Target = Literal["cubin", "ptx"]

HEADER = "schedule.cuh"
# Without a cache of its own: what NVRTC takes from it comes without what ptxas says.
_OPTIONS = ("--std=c++17", "-lineinfo", "--ptxas-options=-v", "--no-cache")
_COMMENT = re.compile(rb'"(?:\\.|[^"\\\n])*"|//[^\n]*|/\*.*?\*/', re.DOTALL)  # or a string, which may look like one
_INCLUDE = re.compile(rb'^\s*#\s*include\s*[<"]([^>"\n]+)[>"]', re.MULTILINE)
_PTX_LINE = re.compile(r"ptx input, line (\d+)")
_FILE = re.compile(r'^\s*\.file\s+(\d+) "(.*?)"', re.MULTILINE)
_LOCATION = re.compile(r"^\s*\.loc\s+(\d+) (\d+)", re.MULTILINE)


@dataclass(frozen=True)
class Resources:
    """What ptxas says of one entry; bytes, per thread for spills and stack."""

    registers: int
    spill_bytes: int
    stack_bytes: int
    static_shared_bytes: int


@dataclass(frozen=True)
class Compiled:
    """One compiled module: `path` is the cubin or PTX file; `resources` is empty for PTX, which ptxas has not seen."""

    path: Path
    target: Target
    resources: dict[str, Resources]


def compile_launch(launch: Launch, machine: Machine, target: Target = "cubin") -> Compiled:
    """Compile the module of one launch for the machine's architecture, or take it from the cache.

    Raises KernelError where the code does not compile or lacks the launch's entry, and where ptxas spills registers,
    warns or ignores setmaxnreg; EnvironmentFailure where NVRTC cannot be had or refuses the request.
    """
    kernel = catalog.get(launch.kernel)
    header = generated_header(launch, kernel.solves.facts)
    compiled = compile_source(kernel.source, header, machine, target)
    if target == "cubin" and launch.entry not in compiled.resources:
        there = ", ".join(compiled.resources) or "none"
        raise KernelError(f'{shown(kernel.source)} has no extern "C" entry {launch.entry}; its entries: {there}')
    return compiled


def compile_source(source: Path, header: str, machine: Machine, target: Target = "cubin") -> Compiled:
    """Compile one .cu file of the checkout, with `header` as its "schedule.cuh"; raises as `compile_launch` does."""
    arch = machine.arch if target == "cubin" else machine.arch.replace("sm_", "compute_")  # PTX takes no run of ptxas
    options = (*_OPTIONS, f"--gpu-architecture={arch}")
    key = _key(source, header, (*options, target, str(_nvrtc_version())))
    folder = cache_path() / "modules"
    path = folder / f"{source.stem}.{key}.{target}"
    facts = path.with_suffix(f".{target}.json")
    with suppress(OSError, ValueError, KeyError, TypeError):  # without an entry, or with a corrupt one, compile
        stored = json.loads(facts.read_bytes())
        if stored["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest():
            return Compiled(path, target, {n: Resources(**r) for n, r in stored["resources"].items()})
    name = shown(source)
    image, log, _ = _nvrtc(name, source.read_bytes(), {HEADER: header}, (*options, f"--include-path={ROOT}"), target)
    resources = _resources(log) if target == "cubin" else {}
    if target == "cubin":
        _refuse_bad_code(source, log, resources)
    stored = {"sha256": hashlib.sha256(image).hexdigest(), "resources": {n: asdict(r) for n, r in resources.items()}}
    cache_dir()  # says so where there can be none
    try:
        write_whole(path, image)
        write_whole(facts, json.dumps(stored).encode())
    except OSError as error:
        raise EnvironmentFailure(
            f"compiled code cannot be kept in {folder}: {error.strerror}; set LAB_CACHE_DIR to a folder with room"
        ) from error
    return Compiled(path, target, resources)


def _key(source: Path, header: str, options: tuple[str, ...]) -> str:
    digest, text = hashlib.sha256("\0".join((header, *options)).encode()), source.read_bytes()
    digest.update(text)
    for name, included in _included(text + b"\n" + header.encode()):
        digest.update(b"\0".join((b"", os.fsencode(name), included)))
    return digest.hexdigest()[:24]


@cache
def code_digest(source: Path) -> str:
    """A digest of a .cu file and of all that it includes, comments and blank space aside: of the device code."""
    digest, text = hashlib.sha256(), source.read_bytes()
    for part in (text, *(included for _, included in _included(text))):
        digest.update(_code(part) + b"\0")
    return digest.hexdigest()[:16]


@cache  # most kernels include the same files
def _code(text: bytes) -> bytes:
    code = _COMMENT.sub(lambda found: found[0] if found[0].startswith(b'"') else b" ", text)
    return b" ".join(code.split())


def _included(text: bytes) -> Iterator[tuple[str, bytes]]:
    """Names and texts of the files of the checkout that a text includes, and those include, each once."""
    left, seen = [text], {HEADER}
    while left:
        for name in map(os.fsdecode, _INCLUDE.findall(left.pop())):
            if name not in seen and (ROOT / name).is_file():
                seen.add(name)
                left.append((ROOT / name).read_bytes())
                yield name, left[-1]


@cache
def _nvrtc_version() -> tuple[int, int]:
    nvrtc = _load_nvrtc()
    _, major, minor = nvrtc.nvrtcVersion()
    return major, minor


@cache
def _load_nvrtc() -> Any:
    try:
        from cuda.bindings import nvrtc  # loaded on first use: listing kernels must not load a compiler

        nvrtc.nvrtcVersion()
    except Exception as error:
        raise EnvironmentFailure(f"NVRTC cannot be loaded (pip install nvidia-cuda-nvrtc): {error}") from error
    return nvrtc


def compile_text(
    name: str, text: bytes, machine: Machine, options: Sequence[str], expressions: Sequence[str]
) -> tuple[str, dict[str, str]]:
    """(PTX, the PTX names of the expressions) of CUDA C++ that lies anywhere; `name` is what its lines are called.

    Expressions name kernels, template arguments included, and with "&" before them variables. Raises KernelError with
    the compiler's lines where it does not compile or an expression names nothing, and EnvironmentFailure as
    `compile_launch` does.
    """
    options = (*_OPTIONS, f"--gpu-architecture={machine.arch}", *options)
    ptx, _, names = _nvrtc(name, text, {}, options, "ptx", expressions)
    return ptx.decode(), names


def _nvrtc(
    name: str,
    text: bytes,
    headers: Mapping[str, str],
    options: Sequence[str],
    target: Target,
    expressions: Sequence[str] = (),
) -> tuple[bytes, str, dict[str, str]]:
    nvrtc = _load_nvrtc()
    contents, names = [h.encode() for h in headers.values()], [n.encode() for n in headers]
    _, program = nvrtc.nvrtcCreateProgram(text, os.fsencode(name), len(headers), contents, names)
    try:
        for expression in expressions:
            nvrtc.nvrtcAddNameExpression(program, expression.encode())
        (status,) = nvrtc.nvrtcCompileProgram(program, len(options), [os.fsencode(o) for o in options])
        log = _fetch(nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog, program).decode(errors="replace")
        log = log.strip("\0").strip()
        if status in (
            nvrtc.nvrtcResult.NVRTC_ERROR_COMPILATION,
            nvrtc.nvrtcResult.NVRTC_ERROR_NAME_EXPRESSION_NOT_VALID,
        ):
            ptx = _fetch(nvrtc.nvrtcGetPTXSize, nvrtc.nvrtcGetPTX, program).decode(errors="replace")
            raise KernelError("\n".join([f"{name} does not compile:", log, *_sources_of(log, ptx, name)]))
        if int(status):  # the request is refused, not the code
            raise EnvironmentFailure(f"NVRTC refuses {name} with {' '.join(options)}: {log or status.name}")
        lowered = {e: nvrtc.nvrtcGetLoweredName(program, e.encode())[1].decode() for e in expressions}
        if target == "ptx":
            return _fetch(nvrtc.nvrtcGetPTXSize, nvrtc.nvrtcGetPTX, program).rstrip(b"\0"), log, lowered
        return _fetch(nvrtc.nvrtcGetCUBINSize, nvrtc.nvrtcGetCUBIN, program), log, lowered
    finally:
        nvrtc.nvrtcDestroyProgram(program)


def _sources_of(log: str, ptx: str, name: str) -> Iterator[str]:
    """The source lines of what ptxas complains of by its line in the PTX: what inline PTX did wrong, it alone finds."""
    files = dict(_FILE.findall(ptx))
    text = ptx.splitlines()
    found: dict[tuple[str, str], list[str]] = {}  # PTX lines by file and line
    for line in dict.fromkeys(_PTX_LINE.findall(log)):
        above = _LOCATION.findall("\n".join(text[: int(line)]))
        if above:
            found.setdefault(above[-1], []).append(line)
    for (file, number), lines in found.items():
        path = files.get(file, "")
        more = f" and {len(lines) - 1} more" if len(lines) > 1 else ""
        yield f"ptx input, line {lines[0]}{more}: {name if path.endswith(f'/{name}') else shown(path)}({number})"


def _fetch(size_of: Callable[..., Any], get: Callable[..., Any], program: Any) -> bytes:
    _, size = size_of(program)
    buffer = bytes(size + 1)  # never one byte: those objects are shared by all of Python, and this one is written to
    get(program, buffer)
    return buffer[:size]


def _resources(log: str) -> dict[str, Resources]:
    found = {}
    for part in log.split("Compiling entry function '")[1:]:
        entry = part.split("'", 1)[0]

        def number(pattern: str, part: str = part) -> int:
            match = re.search(pattern, part)
            return int(match.group(1)) if match else 0

        found[entry] = Resources(
            registers=number(r"Used (\d+) registers"),
            spill_bytes=number(r"(\d+) bytes spill stores") + number(r"(\d+) bytes spill loads"),
            stack_bytes=number(r"(\d+) bytes stack frame"),
            static_shared_bytes=number(r"(\d+) bytes smem"),
        )
    return found


def _refuse_bad_code(source: Path, log: str, resources: dict[str, Resources]) -> None:
    for entry, used in resources.items():
        if used.spill_bytes:
            raise KernelError(
                f"{shown(source)}: {entry} spills {used.spill_bytes} B a thread; the schedule needs fewer registers"
            )
    bad = ("warning", "potential performance loss")  # the second is said of wgmma that is serialised
    warnings = [line for line in log.splitlines() if any(words in line.lower() for words in bad)]
    if warnings:
        raise KernelError("\n".join([f"{shown(source)} compiles with warnings:", *warnings]))
