"""What a user would call instead of the lab's kernel for rotary embedding and append: PyTorch's, compiled."""

import torch
from torch import Tensor

from experiments.peers.arrays import as_torch, on_this_stream
from lab.gpu.bench import Arrays, Loose, Peer
from lab.problems.rope_append import RopeAppend

ROUNDED = 2.0**-7  # its bf16 rounding may differ from ours


def peers(problem: RopeAppend) -> dict[str, Peer]:
    """torch.compile of the turn and of the scatter to a paged cache in the activations' format."""
    plain = problem.page and problem.kv == problem.activations and not (problem.neighbours or problem.weight_names)
    return {"torch_compiled": torch_compiled} if plain else {}


@torch.compile(dynamic=False)
def _append(qkv: Tensor, positions: Tensor, slots: Tensor, turns: Tensor, cache: Tensor, heads: int) -> Tensor:
    kv_heads, page, dim = cache.shape[2:]
    x = qkv.view(qkv.shape[0], -1, dim)
    by = turns[positions.long()].unsqueeze(1)
    first, second = x[:, : heads + kv_heads].float().chunk(2, -1)
    cos, sin = by[..., 0], by[..., 1]
    turned = torch.cat([first * cos - second * sin, first * sin + second * cos], -1).to(qkv.dtype)
    where, at = slots.long() // page, slots.long() % page
    cache[where, 0, :, at] = turned[:, heads:]
    cache[where, 1, :, at] = x[:, heads + kv_heads :]
    return turned[:, :heads].contiguous()


def torch_compiled(problem: RopeAppend, arrays: Arrays) -> Loose:
    """Its kernels; queries are held, or all copies' would share lines of L2."""
    qkv, cache = (as_torch(arrays[name], problem.activations) for name in ("qkv", "cache"))
    turns = as_torch(arrays["turns"], "fp32")
    positions, slots = (torch.from_dlpack(arrays[name]) for name in ("positions", "slots"))
    held: list[Tensor] = []

    def work() -> None:
        held[:] = [_append(qkv, positions, slots, turns, cache, problem.q_heads)]

    return Loose(on_this_stream(work), lambda: held[0].float().cpu().numpy(), ROUNDED)
