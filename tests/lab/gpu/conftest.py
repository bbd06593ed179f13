"""A fake driver for tests that need no GPU."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lab.gpu import device, driver, launch
from sim.machine import H100
from tests.lab.gpu.fake_driver import FakeCupy, FakeLibrary


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The fake driver, on a machine whose GPU is an H100; compiling yields an empty cubin."""
    library = FakeLibrary()
    cubin = tmp_path / "kernel.cubin"
    cubin.write_bytes(b"cubin")
    monkeypatch.setattr(driver, "library", lambda: library)
    monkeypatch.setattr(device, "card", lambda: SimpleNamespace(arch=H100.arch, name="NVIDIA H100 80GB HBM3"))
    monkeypatch.setattr(launch, "cupy", FakeCupy)
    monkeypatch.setattr(launch, "compile_launch", lambda *_: SimpleNamespace(path=cubin))
    launch.load.cache_clear()
    launch._context.cache_clear()
    yield library
    launch.load.cache_clear()
    launch._context.cache_clear()
