"""Kernels, and running them on either chip."""

from typing import Any

from lab.explain import explain
from lab.verify import verify

__all__ = ["explain", "linear", "verify"]


def __getattr__(name: str) -> Any:
    """`lab.linear`, loaded on first use: listing and explaining need none of what it needs."""
    if name == "linear":
        from lab.ops import linear

        return linear
    raise AttributeError(f"module 'lab' has no attribute {name!r}")
