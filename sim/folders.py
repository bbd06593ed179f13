"""Where the lab lies, where it keeps what it can make or fetch again, and what belongs to its user."""

import os
import tempfile
from contextlib import suppress
from pathlib import Path

from sim.errors import EnvironmentFailure

ROOT = Path(__file__).resolve().parent.parent  # holds sim, lab, ptx and experiments


def cache_path() -> Path:
    """$LAB_CACHE_DIR, else $XDG_CACHE_HOME/kernel-lab, else ~/.cache/kernel-lab; it may not exist yet."""
    return _chosen("LAB_CACHE_DIR", "XDG_CACHE_HOME", ".cache")


def config_path() -> Path:
    """$LAB_CONFIG_DIR, else $XDG_CONFIG_HOME/kernel-lab, else ~/.config/kernel-lab; it may not exist yet."""
    return _chosen("LAB_CONFIG_DIR", "XDG_CONFIG_HOME", ".config")


def cache_dir() -> Path:
    """The cache folder, made if need be; raises EnvironmentFailure where it cannot be written."""
    folder = cache_path()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        writable = os.access(folder, os.W_OK | os.X_OK)
    except OSError:
        writable = False
    if not writable:
        raise EnvironmentFailure(f"the cache folder {folder} cannot be written; set LAB_CACHE_DIR to one that can")
    return folder


def write_whole(path: Path, data: bytes) -> None:
    """Put a file in place whole, and its folders, or leave nothing behind; raises OSError where that fails.

    A reader sees the old file or the new one: data goes to a temporary file beside it, which is renamed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with open(descriptor, "wb") as file:
            file.write(data)
        os.chmod(temporary, 0o644)  # mkstemp's own are for the writer alone
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise


def unicode(name: str | bytes) -> str:
    """A name as the system spells it, such as of a file, with what is not UTF-8 replaced: JSON has no place for it."""
    return os.fsencode(name).decode(errors="replace")


def _chosen(own: str, shared: str, below_home: str) -> Path:
    if chosen := os.environ.get(own):
        return Path(chosen)
    try:
        home = Path.home()
    except RuntimeError:  # a user whom the system does not know
        home = Path("/nonexistent")  # what Debian calls the home of one who has none
    return Path(os.environ.get(shared) or home / below_home) / "kernel-lab"
