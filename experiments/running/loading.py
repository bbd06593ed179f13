"""How a model's file comes to a chip: the time beside one copy of the mapped file, and the memory that it takes."""

import re
import tempfile
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from experiments.running.jobs import Work
from lab.problems import Model, model_named
from lab.record import Checked, Record
from sim.errors import InputError

CONTEXT = 4096
_MAGNITUDE = 0x3C00  # of bf16 weights: 2^-7 to 2^-5, its other bits and the sign random
_RANDOM = 0x80FF


class Loading(Work, frozen=True, kw_only=True):
    """A preset whose random bf16 weights are written to a folder and loaded so many times."""

    model: str
    times: int = 3


def loads(argument: Any) -> Iterator[Record]:
    """One record of a model on a chip, as plain data from a `Loading`."""
    from lab.gpu import device
    from lab.inference.chip import gpu, simulated
    from lab.inference.folder import Folder
    from lab.inference.folder_config import read_config
    from lab.inference.step_weights import StepWeights
    from lab.record import provenance
    from sim.machine import machine as machine_named

    asked = msgspec.convert(argument, Loading)
    machine = device.machine() if asked.on == "gpu" else machine_named(asked.machine)
    chip = gpu(machine) if asked.on == "gpu" else simulated(machine)
    with tempfile.TemporaryDirectory(prefix="lab-loading-") as name:
        path = Path(name)
        size = write(path, model_named(asked.model))
        copies, takes, held = [], [], 0
        for _ in range(asked.times):
            copies.append(_timed(lambda: _copied(path, chip), chip))
            before = _reset_peak()
            folder = Folder(path)
            config = read_config(folder)
            found: list[StepWeights] = []
            takes.append(_timed(lambda: found.append(StepWeights.load(config, folder, chip)), chip))  # noqa: B023
            held = max(held, _peak() - before)
            weights = found.pop().nbytes
        host = held - (weights if asked.on == "sim" else 0)  # there the chip's memory is the host's
    card = device.card() if asked.on == "gpu" else None
    yield Record(
        **provenance(),
        on="gpu" if card else "sim",
        machine=machine.name,
        card=card.name if card else None,
        driver=card.driver if card else None,
        experiment=asked.experiment,
        check=Checked(True, None),
        metrics={
            "model": asked.model,
            "file_bytes": size,
            "weights_bytes": weights,
            "copy_s": median(copies),
            "load_s": median(takes),
            "host_bytes": host,
        },
    )


def write(folder: Path, model: Model) -> int:
    """A model of random weights as a Hugging Face folder, a file a layer; returns the bytes of its weights' files."""
    try:
        import safetensors.numpy  # an extra: only folders need it
    except ImportError:
        raise InputError("a model folder needs the package safetensors: pip install 'kernel-lab[model]'") from None
    import ml_dtypes

    rng = np.random.default_rng(0)
    weight_map: dict[str, str] = {}

    @cache  # the layers are alike: what counts is how many bytes they are
    def drawn(shape: tuple[int, ...]) -> NDArray:
        return (rng.integers(0, 2**16, shape, np.uint16) & _RANDOM | _MAGNITUDE).view(ml_dtypes.bfloat16)

    def keep(file: str, shapes: dict[str, tuple[int, ...]]) -> int:
        made = {name: drawn(shape) for name, shape in shapes.items()}
        safetensors.numpy.save_file(made, folder / file)
        weight_map.update(dict.fromkeys(shapes, file))
        return (folder / file).stat().st_size

    total = 0
    names = {"q": "self_attn.q", "k": "self_attn.k", "v": "self_attn.v", "o": "self_attn.o"}
    for i in range(model.layers):
        at = f"model.layers.{i}"
        shapes: dict[str, tuple[int, ...]] = {
            f"{at}.{names.get(name, f'mlp.{name}')}_proj.weight": shape for name, shape in model.layer_matrices.items()
        }
        shapes |= {f"{at}.{name}_layernorm.weight": (model.d,) for name in ("input", "post_attention")}
        total += keep(f"layer-{i}.safetensors", shapes)
    ends: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (model.vocab, model.d), "model.norm.weight": (model.d,)
    }  # fmt: skip
    total += keep("ends.safetensors", ends if model.tied else {**ends, "lm_head.weight": (model.vocab, model.d)})
    config = {
        "model_type": "llama",
        "num_hidden_layers": model.layers,
        "hidden_size": model.d,
        "intermediate_size": model.ffn,
        "num_attention_heads": model.q_heads,
        "num_key_value_heads": model.kv_heads,
        "head_dim": model.head_dim,
        "vocab_size": model.vocab,
        "max_position_embeddings": CONTEXT,
        "tie_word_embeddings": model.tied,
    }
    (folder / "config.json").write_bytes(msgspec.json.encode(config))
    (folder / "model.safetensors.index.json").write_bytes(msgspec.json.encode({"weight_map": weight_map}))
    return total


def _copied(folder: Path, chip: Any) -> None:
    """Every file's memory to the chip, each in one copy, as fast as that goes from memory that is not pinned."""
    for file in sorted(folder.glob("*.safetensors")):
        mapped = np.asarray(np.memmap(file, np.uint8, "r"))
        chip.write(chip.xp.empty(mapped.shape, np.uint8), mapped)


def _timed(work: Any, chip: Any) -> float:
    """Seconds, to the end of what the chip does."""
    started = time.perf_counter()
    work()
    chip.read(chip.xp.zeros(1, np.uint8))
    return time.perf_counter() - started


def _reset_peak() -> int:
    """Bytes of memory in use, from which on the peak is taken (proc(5), clear_refs)."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _peak() -> int:
    return _status("VmHWM")


def _status(field: str) -> int:
    found = re.search(rf"^{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    return 1024 * int(found[1]) if found else 0
