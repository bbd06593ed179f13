"""From a source of anyone's to PTX: CUDA C++ with its includes and definitions, or PTX as it is."""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from lab.compile import compile_text
from sim.errors import InputError
from sim.machine import Machine

# Folders of CUDA's headers within the packages nvidia-cuda-runtime, -crt and -cccl, and within a toolkit; one of each.
_HEADERS = {"include": "cuda_fp16.h", "include/cccl": "cuda/atomic"}


@dataclass(frozen=True)
class Source:
    """What is to be compiled: CUDA C++ or PTX, and what its lines are called. `lines` is where it can be read."""

    name: str
    text: bytes

    @property
    def is_ptx(self) -> bool:
        return self.name.endswith(".ptx") or re.search(rb"^\s*\.version\s+\d", self.text, re.MULTILINE) is not None


@dataclass(frozen=True)
class Module:
    """PTX, and the PTX names of the entries and symbols asked for."""

    ptx: str
    names: dict[str, str]


def source_of(source: str | Path, folder: Path) -> Source:
    """A source that is CUDA or PTX text itself, or a file beside `folder`; raises InputError where there is none."""
    text = str(source)
    if "\n" in text or "{" in text:
        return Source("source.cu", text.encode())
    path = folder / text
    try:
        return Source(str(path), path.read_bytes())
    except OSError as error:
        raise InputError(f"the source {path} cannot be read: {error.strerror}") from error


def module_of(
    source: Source,
    entries: Iterable[str],
    symbols: Iterable[str],
    includes: Sequence[str | Path],
    defines: Mapping[str, object],
    machine: Machine,
) -> Module:
    """Compile a source, or take PTX as it is; raises KernelError where it does not compile."""
    if source.is_ptx:
        ptx = source.text.decode(errors="replace")
        names = {entry: _in_ptx(entry, re.findall(r"\.entry\s+([\w$]+)", ptx), source.name) for entry in entries}
        variables = re.findall(r"^\s*(?:\.\w+\s+)*\.(?:global|const)\s[^;=]*?([\w$]+)\s*(?:\[|=|;)", ptx, re.MULTILINE)
        return Module(ptx, names | {symbol: _in_ptx(symbol, variables, source.name) for symbol in symbols})
    folders = [Path(source.name).resolve().parent, *map(Path, includes), *cuda_headers()]
    options = ["--device-int128", *(f"--include-path={folder}" for folder in folders)]
    options += [f"--define-macro={n}" if v is None else f"--define-macro={n}={v}" for n, v in defines.items()]
    asked = {entry: entry for entry in entries} | {symbol: f"&{symbol}" for symbol in symbols}
    ptx, lowered = compile_text(source.name, source.text, machine, options, list(asked.values()))
    return Module(ptx, {name: lowered[expression] for name, expression in asked.items()})


def cuda_headers() -> list[Path]:
    """The folders of CUDA's headers: those of the extra `cuda-headers`, else those of a toolkit."""
    spec = find_spec("nvidia")
    roots = [Path(p) / "cu13" for p in (spec.submodule_search_locations or [])] if spec else []
    roots += [Path(os.environ[name]) for name in ("CUDA_HOME", "CUDA_PATH") if name in os.environ]
    roots.append(Path("/usr/local/cuda"))
    found = (next((r / f for r in roots if (r / f / header).exists()), None) for f, header in _HEADERS.items())
    return [folder for folder in found if folder]


def _in_ptx(name: str, known: Sequence[str], source: str) -> str:
    """A PTX name: the very one, or the only one that spells `name` in its mangled form."""
    words = re.findall(r"\w+", name.split("<")[0])
    mangled = [k for k in known if k.startswith("_Z") and all(f"{len(w)}{w}" in k for w in words)]
    if name in known:
        return name
    if len(mangled) == 1:
        return mangled[0]
    raise InputError(f"{source} has no {name}; it has {', '.join(dict.fromkeys(known)) or 'none'}")
