"""The weights of a step on a chip: each matrix as its kernels read it, q, k and v one matrix, gate and up another."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lab.choice import is_solvable
from lab.inference.chip import Chip
from lab.inference.config import LlamaConfig
from lab.inference.gguf_file import GgufFile
from lab.inference.progress import Advance, silent
from lab.inference.reference import Weights
from lab.inference.rotary import RopeScaling
from lab.problems import Linear, Model
from sim import int4
from sim.errors import InputError
from sim.formats import FORMATS, decode, encode
from sim.machine import Machine

_PARTS = {
    "qkv": ("attn_q", "attn_k", "attn_v"),
    "output": ("attn_output",),
    "gate_up": ("ffn_gate", "ffn_up"),
    "down": ("ffn_down",),
}
_SPREAD = 0.02  # standard deviation of random weights, as models are initialised (GPT-2)


@dataclass(frozen=True, eq=False)
class StepWeights:
    """What each matrix asks of one token, and all arrays, by the names that `layers.Forward` gives them."""

    config: LlamaConfig
    matrices: dict[str, Linear]
    arrays: dict[str, Any]
    pairs: str

    @property
    def nbytes(self) -> int:
        return sum(int(array.nbytes) for array in self.arrays.values())


def of_file(config: LlamaConfig, file: GgufFile, chip: Chip, advance: Advance = silent) -> StepWeights:
    """A file's weights: int4 groups as they are, everything else in bf16; raises InputError for one beyond bf16."""
    matrices: dict[str, Linear] = {}
    arrays: dict[str, Any] = {}

    def take(name: str, *tensors: str) -> None:
        stacked = _stacked([file.matrix(f"{tensor}.weight") for tensor in tensors])
        matrices[name], operands = matrix_of(stacked, chip.machine)
        arrays.update({f"{name}.{operand}": chip.xp.asarray(bits) for operand, bits in operands.items()})

    def norm(name: str, tensor: str) -> None:
        arrays[name] = chip.encode_bf16(chip.xp.asarray(file.rows(f"{tensor}.weight")))

    for i in range(config.layers):
        advance(i * len(config.shapes) // config.layers)
        for name, tensors in _PARTS.items():
            take(f"layers.{i}.{name}", *(f"blk.{i}.{tensor}" for tensor in tensors))
        norm(f"layers.{i}.attention_norm", f"blk.{i}.attn_norm")
        norm(f"layers.{i}.ffn_norm", f"blk.{i}.ffn_norm")
    norm("norm", "output_norm")
    tied = "output.weight" not in file.tensors
    arrays["embedding"] = chip.encode_bf16(chip.xp.asarray(file.rows("token_embd.weight")))
    take("head", "token_embd" if tied else "output")
    if tied and matrices["head"].weights == "bf16":
        arrays["head.w"] = arrays["embedding"]
    frequencies = config.rope_scaling.frequencies(config.rope_theta, config.head_dim)
    if "rope_freqs.weight" in file.tensors:
        frequencies = frequencies / file.rows("rope_freqs.weight")
    arrays["turns"] = chip.xp.asarray(_turns(frequencies, config))
    return StepWeights(config, matrices, arrays, "neighbours")  # as GGUF keeps the rows of q and k


def random(model: Model, context: int, chip: Chip, seed: int = 0) -> StepWeights:
    """Weights of N(0, 0.02^2), those of int4 groups and fp8 near it, for a model's shapes; no file is needed."""
    config = config_of(model, context)
    rng = chip.xp.random.default_rng(seed)
    matrices, arrays = matrices_of(model), {}
    for name, problem in matrices.items():
        arrays.update({f"{name}.{operand}": bits for operand, bits in _random(problem, rng, chip)})
    tied = model.tied and model.weights == "bf16"
    arrays["embedding"] = arrays["head.w"] if tied else _normal((model.vocab, model.d), rng, chip)
    names = [f"layers.{i}.{name}_norm" for i in range(model.layers) for name in ("attention", "ffn")]
    for name in (*names, "norm"):
        arrays[name] = chip.encode_bf16(chip.xp.ones(model.d, np.float32))
    frequencies = config.rope_scaling.frequencies(config.rope_theta, config.head_dim)
    arrays["turns"] = chip.xp.asarray(_turns(frequencies, config))
    return StepWeights(config, matrices, arrays, "halves")


def config_of(model: Model, context: int) -> LlamaConfig:
    """A preset's dimensions with the usual base and epsilon."""
    sizes = (model.layers, model.d, model.ffn, model.q_heads, model.kv_heads, model.head_dim, model.vocab)
    return LlamaConfig(*sizes, context, rope_theta=5e5, eps=1e-5, rope_scaling=RopeScaling())


def matrices_of(model: Model) -> dict[str, Linear]:
    """What each matrix of a preset asks of one token, by its name in a step."""
    parts = model.layer_matrices
    scales = "row" if model.weights == "fp8" else "none"

    def linear(n: int, k: int) -> Linear:
        return Linear(1, n, k, model.weights, scales=scales)

    def stacked(*names: str) -> Linear:
        return linear(sum(parts[name][0] for name in names), parts[names[0]][1])

    layer = {
        "qkv": stacked("q", "k", "v"),
        "output": stacked("o"),
        "gate_up": stacked("gate", "up"),
        "down": stacked("down"),
    }
    found = {f"layers.{i}.{name}": problem for i in range(model.layers) for name, problem in layer.items()}
    return {**found, "head": linear(model.vocab, model.d)}


def matrix_of(weights: Weights, machine: Machine) -> tuple[Linear, dict[str, NDArray]]:
    """What a matrix asks of one token, and its operands on the host; raises InputError for one beyond bf16.

    Groups are packed, or dequantised where no kernel of the machine takes them; floats are rounded to bf16.
    """
    if isinstance(weights, int4.Groups):
        (n, k), form = weights.q.shape, f"int4_g{weights.group}"
        problem = Linear(1, n, k, form, offset="zero" if weights.zero_points else "min")
        if is_solvable(problem, machine):
            return problem, dict(zip(("w", "w_scale"), int4.pack(weights), strict=True))
        weights = weights.values
    bits = encode(weights, "bf16")
    if not np.isfinite(decode(bits, "bf16")).all():
        raise InputError("a weight is too large for bf16")
    n, k = weights.shape
    return Linear(1, n, k, "bf16"), {"w": bits}


def _stacked(parts: list[Weights]) -> Weights:
    """Matrices one below the other: int4 groups where all are alike, else floats."""
    if len(parts) == 1:
        return parts[0]
    groups = [part for part in parts if isinstance(part, int4.Groups)]
    if len(groups) == len(parts) and len({(one.group, one.zero_points) for one in groups}) == 1:
        q, scale, offset = (np.concatenate([getattr(g, name) for g in groups]) for name in ("q", "scale", "offset"))
        return int4.Groups(q, scale, offset, groups[0].group, groups[0].zero_points)
    floats: NDArray[np.float32] = np.concatenate([p.values if isinstance(p, int4.Groups) else p for p in parts])
    return floats


def _turns(frequencies: NDArray[np.float64], config: LlamaConfig) -> NDArray[np.float32]:
    """Cosine and sine of every position and pair, in float64 until they are stored: far positions are exact too."""
    angles = np.arange(config.context)[:, None] * frequencies
    both = np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    return (config.rope_scaling.magnitude * both).astype(np.float32)


def _random(problem: Linear, rng: Any, chip: Chip) -> Iterator[tuple[str, Any]]:
    """The operands of one random matrix."""
    n, k, form = problem.n, problem.k, problem.weights
    if form == "bf16":
        yield "w", _normal((n, k), rng, chip)
        return
    if form == "fp8":  # magnitudes up to 2, evenly over their bits; a sign
        sizes, signs = (rng.integers(0, most, (n, k), np.uint8) for most in (0x40, 2))
        yield "w", sizes | signs << 7
        yield "w_scale", chip.xp.full(n, _SPREAD, np.float32)
    elif problem.group:
        packed, pairs = int4.shapes(n, k, problem.group)
        yield "w", rng.integers(0, 256, packed, np.uint8)
        scale = _SPREAD / 4.6  # of integers from 0 to 15, whose standard deviation that is
        pair = np.array([scale, -7.5 * scale], np.float16).view(np.uint16)
        yield "w_scale", chip.xp.asarray(np.broadcast_to(pair, pairs).copy())
    else:
        raise InputError(f"random weights are in bf16, fp8 or int4 groups, not {form}; formats: {', '.join(FORMATS)}")


def _normal(shape: tuple[int, int], rng: Any, chip: Chip) -> Any:
    return chip.encode_bf16(rng.standard_normal(shape, np.float32) * np.float32(_SPREAD))
