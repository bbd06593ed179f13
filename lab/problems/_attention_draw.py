"""Random inputs of attention: NaN wherever no sequence has anything."""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lab.problems.protocol import Arrays, drawn
from sim.formats import encode

if TYPE_CHECKING:
    from lab.problems.attention import Attention


def draw(problem: "Attention", rng: np.random.Generator, special: str) -> dict[str, NDArray]:
    """See Attention.draw."""
    found: dict[str, NDArray] = {**problem.indices()}
    for name, operand in problem.inputs.items():
        if name.endswith("_scale"):
            found[name] = np.exp2(rng.uniform(-1, 1, operand.shape)).astype(np.float32)
        elif not operand.indexes:
            bits = drawn(rng, operand.shape, operand.format, special if name == "q" else "")
            bits[_unused(problem, name, found)] = encode(np.full(1, np.nan), operand.format)
            found[name] = bits
    return found


def _unused(problem: "Attention", name: str, indices: Arrays) -> Any:
    """An index of the elements of an operand that belong to no sequence."""
    p = problem
    if name != "cache":
        free = np.ones(p.inputs[name].shape[:2], np.bool_)
        if name == "q":
            free[: p.rows, : p.q_heads] = False
            return free
        for sequence in p.sequences:
            free[sequence.kv_start : sequence.kv_start + sequence.kv_len, : p.kv_heads] = False
        return free
    free = np.ones((p.pool_pages, p.page), np.bool_)
    for b, sequence in enumerate(p.sequences):
        token = np.arange(sequence.kv_len)
        free[indices["block_table"][b, token // p.page], token % p.page] = False
    page, slot = np.nonzero(free)
    return (page, slot) if p.latent else (page, slice(None), slice(None), slot)
