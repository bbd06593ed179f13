"""Settings that every test shares."""

import gc
import importlib
import os
import signal
from collections.abc import Iterator

import pytest
from hypothesis import settings

settings.register_profile("lab", deadline=None, derandomize=True, print_blob=True)
settings.register_profile("deep", settings.get_profile("lab"), max_examples=2000)


@pytest.fixture(autouse=True, scope="session")
def no_config(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Machines and calibrations of the user who runs the tests are none of theirs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAB_CONFIG_DIR", str(tmp_path_factory.mktemp("config")))
        yield


def pytest_configure(config: pytest.Config) -> None:
    """Programs that tests start and interrupt must hear it, also where this run is in the background of a shell.

    Workers share the cores: OpenBLAS, not yet loaded, has one thread in each, for its threads wait for one another in
    loops that take up to thirty times what a product takes.
    """
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    settings.load_profile("deep" if "or deep" in config.getoption("-m") else "lab")
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish() -> None:
    """What is there by now stays: Python need not look through it for garbage again and again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The emulator looks at progress and at the clock after few instructions: a livelock is one in a moment."""
    monkeypatch.setattr(importlib.import_module("sim.emulator.run"), "_SLICE", 1 << 16)


@pytest.fixture(params=[pytest.param(False, id="some"), pytest.param(True, id="every", marks=pytest.mark.deep)])
def every(request: pytest.FixtureRequest) -> bool:
    """Whether a test takes every schedule, mutant or case of a kernel."""
    return bool(request.param)


@pytest.fixture(params=[3, pytest.param(50, marks=pytest.mark.deep)], ids=lambda seeds: f"{seeds} seeds")
def seeds(request: pytest.FixtureRequest) -> int:
    """How many interleavings of a kernel's warps a test tries in the emulator."""
    return int(request.param)
