"""Rotary embedding of queries and keys, and the append of keys and values to the KV cache."""

from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from lab.problems.protocol import (
    EVERY_ROW,
    RSQRT_ROUNDINGS,
    UNIT,
    Arrays,
    Estimate,
    Operand,
    Problem,
    require_extents,
    sprinkle,
)
from lab.problems.rmsnorm import FLOPS as NORM_FLOPS
from sim.errors import InputError
from sim.formats import FORMATS, decode, encode

FLOPS = 3  # an element that is turned: two products and their sum
ROUNDINGS = 3  # of a turned element: two products and a sum
PAIRS = ("halves", "neighbours")
EPS = 1e-6


@dataclass(frozen=True)
class RopeAppend(Problem):
    """Rows of one QKV projection, [m, (q_heads + 2 kv_heads) head_dim], become queries and entries of the KV cache.

    Queries and keys are turned (Su et al., "RoFormer", arXiv 2104.09864) by cosine and sine of row `positions[m]` of
    `turns`, float32 [context, head_dim / 2, 2], which a model's scaling is part of. `pairs` says which elements turn
    together: i and i + head_dim / 2, or the neighbours 2i and 2i + 1. With `bias`, a vector of that name is first added
    to each row of qkv (Qwen2); with `norm`, each head of queries and keys is then divided by the root of its mean
    square plus `eps`, and multiplied by a row of `norms` [2, head_dim], queries by the first (Qwen3). Keys and values
    go to `slots[m]`: rows of k and v [pool, kv_heads, head_dim], or with `page` tokens a page to slot % page of page
    slot / page of the cache [pool, 2, kv_heads, page, head_dim]; a slot is given once. `kv` is the format of the cache,
    `activations` that of all else; an fp8 cache holds values divided by a float32 scale for each KV head and for each
    of k and v. `settled` promises that positions, slots and turns are written by no launch that may still run when this
    one starts, as in a step.
    A context or pool of 0 is as large as m tokens need. Raises InputError for extents outside 1 to 2^31 - 1, an odd
    head_dim, an eps outside 0 to 1, unknown words, and a pool without room for m tokens.
    """

    kind: ClassVar[str] = "rope_append"
    FORMAT: ClassVar[str] = "kv"
    EXTENTS: ClassVar[tuple[str, ...]] = ("m",)
    OPTIONS: ClassVar[tuple[str, ...]] = ("head_dim", "pairs", "page", "activations", "bias", "norm")

    m: int
    q_heads: int
    kv_heads: int
    head_dim: int = 128
    kv: str = "bf16"
    page: int = 0
    pairs: str = "halves"  # halves, neighbours
    activations: str = ""
    context: int = 0  # rows of `turns`; 0: m
    pool: int = 0  # rows of k and v, or pages of the cache; 0: as m tokens need
    bias: bool = False
    norm: bool = False
    eps: float = EPS  # of the norm
    settled: bool = False  # positions, slots and turns

    def __post_init__(self) -> None:
        require_extents(self, ("m", "q_heads", "kv_heads", "head_dim"))
        if not self.activations:
            object.__setattr__(self, "activations", self.kv if self.kv in ("fp32", "fp16") else "bf16")
        if self.activations not in ("fp32", "fp16", "bf16"):
            raise InputError(f"activations are in fp32, fp16 or bf16, not {self.activations}")
        if self.kv not in (self.activations, "fp8"):
            raise InputError(f"a cache of {self.activations} activations is in that format or fp8, not {self.kv}")
        if self.pairs not in PAIRS:
            raise InputError(f"pairs are {', '.join(PAIRS)}; got {self.pairs!r}")
        if self.head_dim % 2:
            raise InputError(f"head_dim is even: its elements turn in pairs; head_dim = {self.head_dim}")
        if not self.norm:
            object.__setattr__(self, "eps", EPS)  # nobody's
        if not 0 < self.eps < 1:
            raise InputError(f"eps must be between 0 and 1; eps = {self.eps}")
        if min(self.page, self.context, self.pool) < 0:
            raise InputError(f"page, context and pool are at least 0; got {self.page}, {self.context}, {self.pool}")
        least = -(-self.m // self.page) if self.page else self.m
        if 0 < self.pool < least:
            raise InputError(f"pool must be at least {least:,} for {self.m:,} tokens; pool = {self.pool:,}")

    @classmethod
    def tiny(cls, form: str, alike: bool = False) -> Self:  # noqa: ARG003 (activations follow from the cache)
        return cls(1, 5, 2, kv=form)

    def usual(self, alike: bool = False) -> "RopeAppend":  # noqa: ARG002
        return RopeAppend(self.m, self.q_heads, self.kv_heads, kv=self.kv)

    @property
    def unit(self) -> str:
        return "fp32"

    @property
    def neighbours(self) -> bool:
        return self.pairs == "neighbours"

    @property
    def heads(self) -> int:
        """Of a row of qkv."""
        return self.q_heads + 2 * self.kv_heads

    @property
    def turn_rows(self) -> int:
        return self.context or self.m

    @property
    def places(self) -> int:
        """Rows of k and v, or pages of the cache."""
        return self.pool or (-(-self.m // self.page) if self.page else self.m)

    @property
    def inputs(self) -> dict[str, Operand]:
        found = {
            "qkv": Operand((self.m, self.heads * self.head_dim), self.activations),
            "positions": Operand((self.m,), "int32", indexes=True),
            "slots": Operand((self.m,), "int32", indexes=True),
            "turns": Operand((self.turn_rows, self.head_dim // 2, 2), "fp32"),
        }
        if self.bias:
            found["bias"] = Operand((self.heads * self.head_dim,), self.activations)
        if self.norm:
            found["norms"] = Operand((2, self.head_dim), self.activations)
        scale = Operand((self.kv_heads,), "fp32")
        return found | ({"k_scale": scale, "v_scale": scale} if self.kv == "fp8" else {})

    @property
    def weight_names(self) -> tuple[str, ...]:
        return tuple(name for name in ("bias", "norms") if name in self.inputs)

    @property
    def outputs(self) -> dict[str, Operand]:
        """Of k, v and cache, only what `slots` name is written."""
        found = {"q": Operand((self.m, self.q_heads, self.head_dim), self.activations)}
        if self.page:
            return found | {"cache": Operand((self.places, 2, self.kv_heads, self.page, self.head_dim), self.kv)}
        rows = Operand((self.places, self.kv_heads, self.head_dim), self.kv)
        return found | {"k": rows, "v": rows}

    def written(self, output: str) -> int:
        return self.outputs[output].shape[0]

    @property
    def flops(self) -> int:
        turned = self.m * (self.q_heads + self.kv_heads) * self.head_dim
        return (FLOPS + self.norm * NORM_FLOPS) * turned + self.bias * self.m * self.heads * self.head_dim

    @cached_property
    def read_bytes(self) -> int:
        """Rows of qkv, one row of `turns` a token, weights, scales and indices."""
        rows = FORMATS[self.activations].nbytes(self.m * self.heads, self.head_dim)
        rows += sum(self.inputs[name].nbytes for name in self.weight_names)
        return rows + self.m * (4 * self.head_dim + 8) + (8 * self.kv_heads if self.kv == "fp8" else 0)

    @cached_property
    def write_bytes(self) -> int:
        q = FORMATS[self.activations].nbytes(self.m * self.q_heads, self.head_dim)
        return q + FORMATS[self.kv].nbytes(2 * self.m * self.kv_heads, self.head_dim)

    def tuned_class(self) -> dict[str, Any]:
        """m rounded up to a power of two, whatever the table and the pool hold."""
        apart = ("context", "pool", "eps", "settled")
        own = {name: value for name, value in self.as_dict().items() if name not in apart}
        return {**own, "m": 1 << (self.m - 1).bit_length()}

    def as_dict(self) -> dict[str, Any]:
        """Extents, and every other field that is not as usual."""
        usual = RopeAppend(self.m, self.q_heads, self.kv_heads, kv=self.kv)
        kept = ("m", "q_heads", "kv_heads", "head_dim", "kv")
        names = [f.name for f in fields(self) if f.name in kept or getattr(self, f.name) != getattr(usual, f.name)]
        return {"kind": self.kind, **{name: getattr(self, name) for name in names}}

    def indices(self) -> dict[str, NDArray[np.int32]]:
        """Consecutive positions, and slots all over the pool."""
        slots = np.random.default_rng(0).permutation(self.places * (self.page or 1))[: self.m]
        return {"positions": np.arange(self.m, dtype=np.int32) % self.turn_rows, "slots": slots.astype(np.int32)}

    def draw(self, rng: np.random.Generator, special: str = "") -> dict[str, NDArray]:
        """N(0, 1), turns by any angle, scales from 1/2 to 2; special values are among those of qkv."""
        qkv, turns = self.inputs["qkv"], self.inputs["turns"]
        angles = rng.uniform(0, 2 * np.pi, turns.shape[:2])
        found: dict[str, NDArray] = {
            "qkv": encode(sprinkle(rng.standard_normal(qkv.shape, np.float32), rng, special), qkv.format),
            "turns": np.stack([np.cos(angles), np.sin(angles)], axis=-1).astype(np.float32),
            **self.indices(),
        }
        for name in ("k_scale", "v_scale"):
            if name in self.inputs:
                found[name] = np.exp2(rng.uniform(-1, 1, self.kv_heads)).astype(np.float32)
        for name in self.weight_names:
            weights = self.inputs[name]
            found[name] = encode(rng.standard_normal(weights.shape, np.float32), weights.format)
        return found

    def turned(self, values: NDArray, turns: NDArray) -> tuple[NDArray, NDArray]:
        """(heads turned, the sum of the sizes of what was added) of [m, heads, head_dim] by turns [m, head_dim / 2, 2].

        Both in the type of `values`.
        """
        turns = turns.astype(values.dtype)
        cos, sin = turns[:, None, :, 0], turns[:, None, :, 1]
        half = self.head_dim // 2
        first, second = (
            (slice(0, None, 2), slice(1, None, 2)) if self.neighbours else (slice(0, half), slice(half, None))
        )
        x, y = values[..., first], values[..., second]
        out, sizes = np.empty_like(values), np.empty_like(values)
        with np.errstate(invalid="ignore", over="ignore"):
            out[..., first], out[..., second] = x * cos - y * sin, x * sin + y * cos
            sizes[..., first], sizes[..., second] = abs(x * cos) + abs(y * sin), abs(x * sin) + abs(y * cos)
        return out, sizes

    def biased(self, arrays: Arrays, of: type = np.float32) -> NDArray:
        """Heads of qkv, [m, heads, head_dim], with what is added to them, in the type `of`."""
        x: NDArray = decode(arrays["qkv"], self.activations).astype(of)
        if self.bias:
            with np.errstate(invalid="ignore", over="ignore"):
                x = x + decode(arrays["bias"], self.activations)
        return x.reshape(self.m, self.heads, self.head_dim)

    def normalised(self, values: NDArray, arrays: Arrays) -> NDArray:
        """Heads of queries and keys, [m, q_heads + kv_heads, head_dim], as they are turned; in the type of `values`."""
        if not self.norm:
            return values
        weights = decode(arrays["norms"], self.activations).astype(values.dtype)
        with np.errstate(invalid="ignore", over="ignore"):
            squares = (values * values).sum(axis=-1, keepdims=True)
            squares = np.where(squares > np.finfo(np.float32).max, np.inf, squares)
            root = 1 / np.sqrt(squares / self.head_dim + values.dtype.type(self.eps))
            scaled: NDArray = values * root * np.repeat(weights, (self.q_heads, self.kv_heads), axis=0)
        return scaled

    @property
    def _roundings(self) -> float:
        """Of a factor of a turned element: adding the bias; those of RMSNorm, which the bias moves once more."""
        of_norm = self.head_dim / 2 + 2 + RSQRT_ROUNDINGS + 2
        return self.bias + (self.norm and of_norm + self.bias)

    def reference(self, arrays: Arrays, rows: slice = EVERY_ROW) -> dict[str, Estimate]:
        """In float64; slots that no token has stay as they are, which is NaN.

        A turned element is a sum of two rounded products, |error| <= (3 + f) u (|x cos| + |y sin|), u = 2^-24, where x
        and y are off by f u of themselves; what an fp8 cache holds is rounded once more by the division. `rows` choose
        tokens, and places of the cache.
        """
        q_heads, kv_heads = self.q_heads, self.kv_heads
        x = self.biased(arrays, np.float64)
        heads = self.normalised(x[:, : q_heads + kv_heads], arrays)
        value, sizes = self.turned(heads, arrays["turns"][arrays["positions"]])
        turned = Estimate(value, (ROUNDINGS + self._roundings) * UNIT * sizes)
        q = Estimate(*(part[rows, :q_heads] for part in turned)).stored(self.activations)
        k, v = Estimate(*(part[:, q_heads:] for part in turned)), x[:, q_heads + kv_heads :]
        off = UNIT * np.abs(v) if self.bias else np.zeros_like(v)
        found = {}
        for name, estimate in (("k", k), ("v", Estimate(v, off))):
            if self.kv == "fp8":
                estimate = estimate.scaled(1 / arrays[f"{name}_scale"].astype(np.float64)[:, None]).rounded(1)
                estimate = Estimate(estimate.value.clip(-448, 448), estimate.error)
            exact = name == "v" and self.kv == self.activations and not self.bias
            found[name] = estimate if exact else estimate.stored(self.kv)
        return {"q": q, **self._placed(found, arrays["slots"], rows)}

    def _placed(self, found: dict[str, Estimate], slots: NDArray, rows: slice) -> dict[str, Estimate]:
        """Keys and values of tokens, [m, kv_heads, head_dim] each, where the cache holds them."""
        placed = {}
        if not self.page:
            for name, estimate in found.items():
                whole = [np.full(self.outputs[name].shape, fill) for fill in (np.nan, 0.0)]
                for into, part in zip(whole, estimate, strict=True):
                    into[slots] = part
                placed[name] = Estimate(*(into[rows] for into in whole))
            return placed
        whole = [np.full(self.outputs["cache"].shape, fill) for fill in (np.nan, 0.0)]
        for which, name in enumerate(("k", "v")):
            for into, part in zip(whole, found[name], strict=True):
                into[slots // self.page, which, :, slots % self.page] = part
        return {"cache": Estimate(*(into[rows] for into in whole))}
