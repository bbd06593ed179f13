"""The fake driver, for launches on a GPU that is not there."""

from tests.lab.gpu.conftest import fake

__all__ = ["fake"]
