"""The weights of a step on a chip: each matrix as its kernels read it, q, k and v one matrix, gate and up another."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from math import prod
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from lab.choice import is_solvable
from lab.inference.checkpoint import TensorFile, floats
from lab.inference.chip import Chip
from lab.inference.config import LlamaConfig
from lab.inference.model import frequencies
from lab.inference.progress import Advance, silent
from lab.inference.rotary import RopeScaling
from lab.inference.staging import PART, Staging
from lab.problems import Linear, Model
from sim import int4
from sim.errors import InputError
from sim.formats import FORMATS, FP8_MAX, encode

ROUNDED = ("bf16", "fp8", *(name for name, form in FORMATS.items() if form.group))  # that matrices can be rounded to
_POSITIONS = 2**14  # whose angles are computed at once
_INFINITY, _BELOW = 0x7F80, 0xFF80  # bits of bf16 from which on, as signed and as unsigned, none is finite
_SPREAD = 0.02  # standard deviation of random weights, as models are initialised (GPT-2)


@dataclass(frozen=True, eq=False)
class StepWeights:
    """What each matrix asks of one token, and all arrays, by the names that `layers.Forward` gives them."""

    config: LlamaConfig
    matrices: dict[str, Linear]
    arrays: dict[str, Any]

    @classmethod
    def load(
        cls,
        config: LlamaConfig,
        file: TensorFile,
        chip: Chip,
        rank: int = 0,
        ranks: int = 1,
        weights: str = "",
        advance: Advance = silent,
    ) -> "StepWeights":
        """A model's weights, or of `ranks` that share its layers those of one.

        A rank has some of the heads and of the columns of the MLP: rows of qkv and gate_up, columns of output and down,
        whose results are then to be summed over the ranks (Shoeybi et al., "Megatron-LM", 2019); embedding, norms and
        head are whole. int4 groups stay as they are, all else becomes bf16; where `weights` names bf16, fp8 or int4
        groups, matrices are rounded to that, fp8 with a scale for each row. Raises InputError where a weight is not
        finite in its format, and where heads, columns or their groups cannot be divided so.
        """
        if not 0 <= rank < ranks:
            raise InputError(f"a rank is one of 0 to {ranks - 1}; got {rank}")
        if weights not in ("", *ROUNDED):
            raise InputError(f"weights are rounded to {', '.join(ROUNDED)}; got {weights!r}")
        config = config.shard(ranks)
        with Staging(chip) as staging:
            loading = _Loading(file, config, chip, rank, weights, staging)
            loading.model(advance)
        loading.arrays["turns"] = _turns(frequencies(config, file), config, chip)
        return cls(config, loading.matrices, loading.arrays)

    @property
    def nbytes(self) -> int:
        """Of all arrays, one that has two names once."""
        return sum({id(array): int(array.nbytes) for array in self.arrays.values()}.values())


class _Loading:
    """Tensors on their way to a chip: never more than a few megabytes of floats at once on the host."""

    def __init__(
        self, file: TensorFile, config: LlamaConfig, chip: Chip, rank: int, weights: str, staging: Staging
    ) -> None:
        self.file, self.config, self.chip, self.rank, self.weights = file, config, chip, rank, weights
        self.shapes = config.shapes | config.optional_shapes  # a rank's own
        self.matrices: dict[str, Linear] = {}
        self.arrays: dict[str, Any] = {}
        self._staging = staging

    def model(self, advance: Advance) -> None:
        """All of it."""
        config, arrays = self.config, self.arrays
        for i in range(config.layers):
            advance(i * len(config.shapes) // config.layers)
            layer, block = f"layers.{i}", f"blk.{i}"
            self.matrix(f"{layer}.qkv", *(f"{block}.attn_{name}.weight" for name in "qkv"))
            self.matrix(f"{layer}.output", f"{block}.attn_output.weight")
            self.matrix(f"{layer}.gate_up", *(f"{block}.ffn_{name}.weight" for name in ("gate", "up")))
            self.matrix(f"{layer}.down", f"{block}.ffn_down.weight")
            self.vectors(f"{layer}.attention_norm", f"{block}.attn_norm.weight")
            self.vectors(f"{layer}.ffn_norm", f"{block}.ffn_norm.weight")
            if config.bias:
                self.vectors(f"{layer}.bias", *(f"{block}.attn_{name}.bias" for name in "qkv"))
            if config.qk_norm:
                self.vectors(f"{layer}.norms", *(f"{block}.attn_{name}_norm.weight" for name in "qk"))
                arrays[f"{layer}.norms"] = arrays[f"{layer}.norms"].reshape(2, config.head_dim)
        self.vectors("norm", "output_norm.weight")
        arrays["embedding"] = self.bf16("token_embd.weight")
        head = "token_embd.weight" if config.tied else "output.weight"
        if config.tied and self.asked(head).weights == "bf16":
            self.matrices["head"] = Linear(1, config.vocab, config.d)
            arrays["head.w"] = arrays["embedding"]
        else:
            self.matrix("head", head)

    def matrix(self, name: str, *tensors: str) -> None:
        """One matrix of tensors one below the other."""
        problem = self.matrices[name] = self.asked(*tensors)
        if problem.weights == "bf16":
            self.arrays[f"{name}.w"] = self.bf16(*tensors)
            return
        xp, n, k = self.chip.xp, problem.n, problem.k
        if problem.group:
            shapes = int4.shapes(n, k, problem.group)
            parts, unit = [xp.empty(shapes[0], np.uint8), xp.empty(shapes[1], np.uint16)], int4.TILE_ROWS
        else:
            parts, unit = [xp.empty((n, k), np.uint8), xp.empty(n, np.float32)], 1
        step = -(-PART // (k * int4.PADDED_ROWS)) * int4.PADDED_ROWS  # rows
        for first in range(0, n, step):
            last = min(first + step, n)
            for part, bits in zip(parts, self._operands(problem, tensors, first, last), strict=True):
                part[first // unit : first // unit + len(bits)] = xp.asarray(bits)
        self.arrays |= {f"{name}.w": parts[0], f"{name}.w_scale": parts[1]}

    def asked(self, *tensors: str) -> Linear:
        """What tensors one below the other ask: as `weights` says, else their own int4 groups where all are alike."""
        problem = _one_token(sum(self.shapes[tensor][0] for tensor in tensors), self.shapes[tensors[0]][1])
        if self.weights:
            return replace(problem, weights=self.weights, scales="row" if self.weights == "fp8" else "none")
        groups = [self.file.groups(tensor, slice(0, 1)) for tensor in tensors]
        forms = {(one.group, one.zero_points) if one else None for one in groups}
        form = forms.pop()
        if forms or not form:
            return problem
        found = replace(problem, weights=f"int4_g{form[0]}", offset="zero" if form[1] else "min")
        return found if is_solvable(found, self.chip.machine) else problem

    def vectors(self, name: str, *tensors: str) -> None:
        self.arrays[name] = self.bf16(*tensors)

    def _operands(self, problem: Linear, tensors: tuple[str, ...], first: int, last: int) -> tuple[Any, Any]:
        """Rows of a matrix as its kernels read them, w and w_scale."""
        spans, at = [], 0
        for tensor in tensors:
            begin, end = max(first - at, 0), min(last - at, self.shapes[tensor][0])
            if begin < end:
                spans.append((tensor, begin, end))
            at += self.shapes[tensor][0]
        if not self.weights:
            groups = [self._groups(*span) for span in spans]
            q, scale, offset = (np.concatenate([getattr(g, of) for g in groups]) for of in ("q", "scale", "offset"))
            return int4.pack(int4.Groups(q, scale, offset, problem.group, problem.zero_points))
        values: NDArray[np.float32] = np.concatenate([self._floats(*span) for span in spans])
        return int4.pack(int4.quantise(values, problem.group)) if problem.group else _fp8(values)

    def _floats(self, tensor: str, begin: int, end: int) -> NDArray[np.float32]:
        """Rows of this rank's part of a matrix."""
        rows, columns = self._own(tensor)
        where = slice((rows.start or 0) + begin, (rows.start or 0) + end)
        values = floats(self.file, tensor, where)[:, columns]
        self.file.leave(tensor, where)
        return values

    def _groups(self, tensor: str, begin: int, end: int) -> int4.Groups:
        """Rows of this rank's part of a matrix, as groups on the chip."""
        rows, columns = self._own(tensor)
        where = slice((rows.start or 0) + begin, (rows.start or 0) + end)
        whole = self.file.groups(tensor, where, self.chip.xp.asarray)
        assert whole is not None
        self.file.leave(tensor, where)
        if not (np.isfinite(whole.scale).all() and np.isfinite(whole.offset).all()):
            self.file.refuse(f"the tensor {tensor!r} holds infinities or NaN")
        if (columns.start or 0) % whole.group or (columns.stop or 0) % whole.group:
            raise InputError(f"{self.shapes[tensor][1]:,} columns of {tensor} cut its groups of {whole.group}")
        shared = slice(*(at and at // whole.group for at in (columns.start, columns.stop)))
        return int4.Groups(
            whole.q[:, columns], whole.scale[:, shared], whole.offset[:, shared], whole.group, whole.zero_points
        )

    def bf16(self, *tensors: str) -> Any:
        """This rank's part of tensors one below the other, rounded to bf16 on the way to the chip."""
        shapes = [self.shapes[tensor] for tensor in tensors]
        there = self.chip.xp.empty((sum(shape[0] for shape in shapes), *shapes[0][1:]), np.uint16)
        at = 0
        for tensor, shape in zip(tensors, shapes, strict=True):
            part, at = there[at : at + shape[0]], at + shape[0]
            step = PART // prod(shape[1:])
            if not step:
                self.file.refuse(
                    f"the tensor {tensor!r} has rows of {prod(shape[1:]):,} elements; {PART:,} are the most"
                )
            for done in range(0, shape[0], step):
                last = min(done + step, shape[0])
                self._staging.send(part[done:last], partial(self._round, tensor, done, last))
        return there

    def _round(self, tensor: str, begin: int, end: int, to: NDArray[np.uint16]) -> None:
        """Round rows of this rank's part of a tensor to bf16; refuse the file where one is not finite in it."""
        rows, columns = self._own(tensor)
        where = slice((rows.start or 0) + begin, (rows.start or 0) + end)
        if columns != slice(None) or not self.file.read_bf16(tensor, where, to):
            values = self.file.rows(tensor, where)
            to[...] = _bf16(values[:, columns] if values.ndim == 2 else values)
            self.file.leave(tensor, where)
        if to.view(np.int16).max() >= _INFINITY or to.max() >= _BELOW:
            self.file.refuse(f"the tensor {tensor!r} holds infinities, NaN or what is too large for bf16")

    def _own(self, tensor: str) -> tuple[slice, slice]:
        """Which rows and columns of a tensor are this rank's."""
        mine, whole = self.shapes[tensor], self.file.tensors[tensor].shape
        own = [
            slice(self.rank * m, (self.rank + 1) * m) if m < n else slice(None)
            for m, n in zip(mine, whole, strict=True)
        ]
        return own[0], own[1] if len(own) > 1 else slice(None)


@lru_cache(maxsize=64)
def _one_token(n: int, k: int) -> Linear:
    """What layers ask again and again."""
    return Linear(1, n, k)


def _fp8(values: NDArray[np.float32]) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """The bits of a matrix whose rows are scaled to the whole range of fp8, and the scales."""
    largest = np.abs(values).max(axis=1)
    scale = np.where(largest > 0, largest / FP8_MAX, 1).astype(np.float32)
    return encode(values / scale[:, None], "fp8"), scale


def _bf16(values: NDArray[np.floating]) -> NDArray[np.uint16]:
    """The bits of floats rounded to bf16; those of bf16 as they are."""
    if values.dtype == ml_dtypes.bfloat16:
        return np.ascontiguousarray(values).view(np.uint16)
    return encode(values, "bf16")


def random(model: Model, context: int, chip: Chip, seed: int = 0) -> StepWeights:
    """Weights of N(0, 0.02^2), those of int4 groups and fp8 near it, for a model's shapes; no file is needed."""
    config = config_of(model, context)
    rng = chip.xp.random.default_rng(seed)
    matrices, arrays = matrices_of(model), {}
    for name, problem in matrices.items():
        arrays.update({f"{name}.{operand}": bits for operand, bits in _random(problem, rng, chip)})
    shared = model.tied and model.weights == "bf16"
    arrays["embedding"] = arrays["head.w"] if shared else _normal((model.vocab, model.d), rng, chip)
    names = [f"layers.{i}.{name}_norm" for i in range(model.layers) for name in ("attention", "ffn")]
    for name in (*names, "norm"):
        arrays[name] = chip.encode_bf16(chip.xp.ones(model.d, np.float32))
    plain = config.rope_scaling.frequencies(config.rope_theta, config.head_dim)
    arrays["turns"] = _turns(plain, config, chip)
    return StepWeights(config, matrices, arrays)


def config_of(model: Model, context: int) -> LlamaConfig:
    """A preset's dimensions with the usual base and epsilon."""
    sizes = (model.layers, model.d, model.ffn, model.q_heads, model.kv_heads, model.head_dim, model.vocab)
    return LlamaConfig(*sizes, context, rope_theta=5e5, eps=1e-5, rope_scaling=RopeScaling(), tied=model.tied)


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


def _turns(radians: NDArray[np.float64], config: LlamaConfig, chip: Chip) -> Any:
    """Cosine and sine of every position and pair, in float64 until they are stored: far positions are exact too."""
    xp, pairs = chip.xp, chip.xp.asarray(radians)
    turns = xp.empty((config.context, len(radians), 2), np.float32)
    for first in range(0, config.context, _POSITIONS):
        angles = xp.arange(first, min(first + _POSITIONS, config.context))[:, None] * pairs
        for i, function in enumerate((xp.cos, xp.sin)):
            turns[first : first + _POSITIONS, :, i] = config.rope_scaling.magnitude * function(angles)
    return turns


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
