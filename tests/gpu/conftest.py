"""The GPU of a test, and the libraries whose arrays lie on it; without one the test is skipped."""

from pathlib import Path
from typing import Any

import pytest

from lab.gpu import device
from sim.errors import NoDeviceError
from sim.machine import Machine


@pytest.hookimpl(tryfirst=True)  # before tests are chosen by their marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.gpu)


@pytest.fixture(scope="session")
def chip() -> Machine:
    try:
        device.require_device()
    except NoDeviceError as reason:
        pytest.skip(str(reason))
    return device.machine()


@pytest.fixture
def cupy(chip: Machine) -> Any:
    assert chip.arch
    return pytest.importorskip("cupy")


@pytest.fixture
def torch(chip: Machine) -> Any:
    assert chip.arch
    found = pytest.importorskip("torch")
    if not found.cuda.is_available():
        pytest.skip("PyTorch sees no GPU")
    return found


@pytest.fixture
def second_gpu(cupy: Any) -> int:
    if cupy.cuda.runtime.getDeviceCount() < 2:
        pytest.skip("there is one GPU")
    return 1
