"""Attention by its definition, in float64: sequence by sequence, and in place of a chip on the operands of a launch."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lab.problems import Attention
from sim.counts import Counts
from sim.formats import decode, encode


def attend(
    q: NDArray, k: NDArray, v: NDArray, scale: float, causal: bool = True, window: int = 0
) -> tuple[NDArray, NDArray]:
    """(y, lse) of one sequence: q [tokens, heads, dim], k and v [keys, kv_heads, ...]."""
    tokens, heads, _ = q.shape
    keys, kv_heads, _ = k.shape
    last = np.arange(tokens)[:, None] + keys - tokens
    key = np.arange(keys)
    seen = (key <= last) & (key > last - window if window else True) if causal else np.ones((tokens, keys), np.bool_)
    y, lse = np.zeros((tokens, heads, v.shape[2])), np.full((tokens, heads), -np.inf)
    some = seen.any(axis=1)
    for head in range(heads):
        of = head // (heads // kv_heads)
        weights = np.exp(scale * (q[some, head] @ k[:, of].T)) * seen[some]
        total = weights.sum(axis=1)
        y[some, head] = weights @ v[:, of] / total[:, None]
        lse[some, head] = np.log(total)
    return y, lse


def compute(problem: Attention, arrays: Mapping[str, NDArray]) -> None:
    """What a kernel does: reads operands as index arrays say, writes y and, where asked for, lse."""
    p = problem
    bits = {name: arrays[name].view(o.storage).reshape(o.shape) for name, o in (p.inputs | p.outputs).items()}
    floats = {name: decode(bits[name], p.kv).astype(np.float64) for name in ("k", "v", "cache") if name in bits}
    q = decode(bits["q"][:, : p.q_heads], p.activations).astype(np.float64)
    for b in range(p.batch):
        rows = slice(bits["q_starts"][b], bits["q_starts"][b + 1])
        token = np.arange(bits["kv_lens"][b])
        if p.page:
            page, slot = bits["block_table"][b, token // p.page], token % p.page
            cache = floats["cache"]
            k, v = (cache[page, slot][:, None],) * 2 if p.latent else (cache[page, i, :, slot] for i in (0, 1))
        else:
            both = (floats[name][bits["kv_starts"][b] + token] for name in ("k", "k" if p.latent else "v"))
            k, v = (rows_of[:, : p.kv_heads] for rows_of in both)
        v = v[..., : p.value_dim]
        if p.kv == "fp8":
            k = k * bits["k_scale"][:, None]
            v = v * bits["k_scale" if p.latent else "v_scale"][:, None]
        scale = np.repeat(bits["q_scale"], p.group)[:, None] if "q_scale" in bits else 1
        y, lse = attend(q[rows] * scale, k, v, p.score_scale, p.causal, p.window)
        bits["y"][rows] = encode(y.astype(np.float32), p.output)
        if p.lse:
            bits["lse"][rows] = lse


class ByHand:
    """Stands for the plan of a problem on the simulated chip."""

    def __init__(self, problem: Attention) -> None:
        self.problem = problem

    def bind(self, arrays: Mapping[str, Any], device: int | None) -> "ByHand":
        assert device is None
        self.arrays = arrays
        return self

    def run(self) -> Counts:
        for name, operand in (self.problem.inputs | self.problem.outputs).items():
            assert self.arrays[name].nbytes == operand.nbytes, name
        compute(self.problem, self.arrays)
        return Counts()
