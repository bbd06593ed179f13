"""Settings that every test shares."""

import signal

import pytest
from hypothesis import settings

settings.register_profile("lab", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("lab")


def pytest_configure() -> None:
    """Programs that tests start and interrupt must hear it, also where this run is in the background of a shell."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests that need a GPU run only when they are asked for by `-m gpu`."""
    if "gpu" in config.getoption("-m"):
        return
    skip = pytest.mark.skip(reason="needs a GPU: run pytest -m gpu on a machine with one")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(skip)
