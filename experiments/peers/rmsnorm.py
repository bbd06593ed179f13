"""What a user would call instead of the lab's kernel for RMSNorm: PyTorch's, compiled into one kernel."""

import torch

from experiments.peers.arrays import as_torch, on_this_stream
from lab.gpu.bench import Arrays, Loose, Peer
from lab.problems.rmsnorm import RMSNorm

ROUNDED = 2.0**-7  # it may round total once more, or not at all


def peers(problem: RMSNorm) -> dict[str, Peer]:
    """torch.compile of the residual add and the norm."""
    return {"torch_compiled": torch_compiled} if problem.residual else {}


@torch.compile(dynamic=False)
def _norm(x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float) -> tuple[torch.Tensor, ...]:
    total = x + residual
    wide = total.float()
    root = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return (wide * root * weight).to(x.dtype), total


def torch_compiled(problem: RMSNorm, arrays: Arrays) -> Loose:
    """Its results lie in arrays of its own, which PyTorch's allocator hands out again."""
    x, residual, weight = (as_torch(arrays[name], problem.activations) for name in ("x", "residual", "weight"))
    call = on_this_stream(lambda: _norm(x, residual, weight, problem.eps))
    return Loose(call, lambda: _norm(x, residual, weight, problem.eps)[0].float().cpu().numpy(), ROUNDED)
