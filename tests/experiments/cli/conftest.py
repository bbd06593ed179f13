"""A kernel whose author is at work on it."""

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import lab.kernels
from lab import catalog

FAMILY = "drafts"
DESCRIPTION = """\"\"\"Nothing new.\"\"\"
from dataclasses import replace
from lab.kernels.gemv import gemv_naive
from lab.kernels.gemv.gemv_naive import SOLVES, Schedule, candidates, simulate, theory
def launch(*question):
    return tuple(replace(one, kernel="draft", entry="draft") for one in gemv_naive.launch(*question))
"""
CODE = """#include "schedule.cuh"
extern "C" __global__ void draft(const bf16* x, const bf16* w, bf16* y, int m, int n, int k) {}
"""

Draft = Callable[..., Path]


@pytest.fixture
def draft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Draft]:
    """Writes the two files of a kernel, called draft unless told, which the catalog finds beside all others."""
    for family in filter(Path.is_dir, catalog._FOLDER.iterdir()):
        (tmp_path / family.name).symlink_to(family)
    folder = tmp_path / FAMILY
    folder.mkdir()
    others = catalog.names()
    monkeypatch.setattr(catalog, "_FOLDER", tmp_path)
    monkeypatch.setattr(lab.kernels, "__path__", [*lab.kernels.__path__, str(tmp_path)])
    known = (catalog._sources, catalog.get, catalog.broken)

    def forget() -> None:
        for one in known:
            one.cache_clear()
        for name in [name for name in sys.modules if name.startswith(f"lab.kernels.{FAMILY}")]:
            del sys.modules[name]
        importlib.invalidate_caches()

    def write(description: str = DESCRIPTION, code: str = CODE, stem: str = "draft") -> Path:
        (folder / f"{stem}.py").write_text(description)
        (folder / f"{stem}.cu").write_text(code)
        forget()
        assert sorted(catalog.names()) == sorted((stem, *others))
        return folder

    yield write
    forget()
