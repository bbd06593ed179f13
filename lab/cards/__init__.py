"""Cards: what was measured on a kind of GPU, one JSON file a machine; a user's own goes before the committed one."""

from lab.cards.figures import CLOCKS, LOADS, Calibration, Measured, Read, Run
from lab.cards.files import calibration, committed_path, user_path, write

__all__ = [
    "CLOCKS",
    "LOADS",
    "Calibration",
    "Measured",
    "Read",
    "Run",
    "calibration",
    "committed_path",
    "user_path",
    "write",
]
