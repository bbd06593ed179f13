"""A fake driver for tests that need no GPU."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from lab.gpu import device, driver, launch
from sim.machine import H100
from tests.lab.gpu.fake_driver import FakeCupy, FakeDriver


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeDriver]:
    """The fake driver, on a machine whose GPUs are H100s; compiling yields an empty cubin."""
    found = FakeDriver()
    cubin = tmp_path / "kernel.cubin"
    cubin.write_bytes(b"cubin")
    monkeypatch.setattr(driver, "api", lambda: found)
    monkeypatch.setattr(device, "card", lambda _=0: SimpleNamespace(arch=H100.arch, name="NVIDIA H100 80GB HBM3"))
    monkeypatch.setattr(launch, "cupy", FakeCupy)
    monkeypatch.setattr(launch, "_compiled", lambda *_: cubin)
    forget()
    yield found
    forget()


def forget() -> None:
    """Handles of one driver mean nothing to another."""
    launch.load.cache_clear()
    driver._primary_context.cache_clear()
