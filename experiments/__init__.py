"""The article's questions, each answered by running kernels on either chip."""

from typing import Any

__all__ = ["run"]


def __getattr__(name: str) -> Any:
    """`experiments.run`, loaded on first use: `lab --help` must not wait for it."""
    if name == "run":
        from experiments.runner import run

        return run
    raise AttributeError(f"module 'experiments' has no attribute {name!r}")
