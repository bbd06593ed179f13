"""Simulations take turns: each uses all cores, and Numba's workers serve one thread at a time."""

import os
from threading import RLock

one_thread = RLock()  # held while parallel code runs, and while the process forks: a child finds the workers at rest
os.register_at_fork(before=one_thread.acquire, after_in_parent=one_thread.release, after_in_child=one_thread.release)
