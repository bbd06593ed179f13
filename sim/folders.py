"""Where the lab lies, where it keeps what it can make or fetch again, and what belongs to its user."""

import os
from pathlib import Path

from sim.errors import EnvironmentFailure

ROOT = Path(__file__).resolve().parent.parent  # holds sim, lab, ptx and experiments


def cache_path() -> Path:
    """$LAB_CACHE_DIR, else $XDG_CACHE_HOME/kernel-lab, else ~/.cache/kernel-lab; it may not exist yet."""
    chosen = os.environ.get("LAB_CACHE_DIR")
    return Path(chosen) if chosen else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kernel-lab"


def config_path() -> Path:
    """$LAB_CONFIG_DIR, else $XDG_CONFIG_HOME/kernel-lab, else ~/.config/kernel-lab; it may not exist yet."""
    chosen = os.environ.get("LAB_CONFIG_DIR")
    return Path(chosen) if chosen else Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "kernel-lab"


def cache_dir() -> Path:
    """The cache folder, made if need be; raises EnvironmentFailure where it cannot be written."""
    folder = cache_path()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        writable = os.access(folder, os.W_OK)
    except OSError:
        writable = False
    if not writable:
        raise EnvironmentFailure(f"the cache folder {folder} cannot be written; set LAB_CACHE_DIR to one that can")
    return folder
