"""Kernels, and running them on either chip."""

import sys
from importlib import import_module
from typing import Any

from lab.explain import explain
from lab.problems import Attention, Linear, Model
from lab.verify import verify
from sim.errors import InputError, LabError
from sim.machine import machine

__all__ = [
    "Attention",
    "In",
    "InOut",
    "InputError",
    "Int4Weights",
    "LabError",
    "Launch",
    "Linear",
    "Model",
    "Out",
    "Struct",
    "TensorMap",
    "attention",
    "autotune",
    "emulate",
    "explain",
    "linear",
    "machine",
    "pack",
    "verify",
]

_LATE = {
    "attention": "lab.ops.attention",
    "autotune": "lab.ops.autotuning",
    "linear": "lab.ops.linear",
    "Int4Weights": "lab.weights",
    "pack": "lab.weights",
    **dict.fromkeys(("In", "InOut", "Launch", "Out", "Struct", "TensorMap", "emulate"), "lab.emulation"),
}


def __getattr__(name: str) -> Any:
    """The front doors and their weights, loaded on first use: listing and explaining need none of what they need.

    Where PyTorch is loaded, `torch.ops.lab.linear` and the other operators are then registered too.
    """
    if name not in _LATE:
        raise AttributeError(f"module 'lab' has no attribute {name!r}")
    found = getattr(import_module(_LATE[name]), name)
    if "torch" in sys.modules:
        import_module("lab.ops.torch_ops")
        globals()[name] = found  # the next time this is not asked
    return found
