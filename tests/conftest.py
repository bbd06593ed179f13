"""Settings that every test shares."""

import signal
from collections.abc import Iterator

import pytest
from hypothesis import settings

settings.register_profile("lab", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("lab")


@pytest.fixture(autouse=True, scope="session")
def no_config(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Machines and calibrations of the user who runs the tests are none of theirs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAB_CONFIG_DIR", str(tmp_path_factory.mktemp("config")))
        yield


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
