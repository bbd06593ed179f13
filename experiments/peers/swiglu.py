"""What a user would call instead of the lab's kernel for SwiGLU: PyTorch's, compiled into one kernel."""

import torch
from torch import Tensor

from experiments.peers.arrays import as_torch, on_this_stream
from lab.gpu.bench import Arrays, Loose, Peer
from lab.problems.swiglu import SwiGLU

ROUNDED = 2.0**-7  # it may round silu before the product


def peers(problem: SwiGLU) -> dict[str, Peer]:  # noqa: ARG001 (all alike)
    """torch.compile of silu and the product."""
    return {"torch_compiled": torch_compiled}


@torch.compile(dynamic=False)
def _gated(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, -1)
    return torch.nn.functional.silu(gate) * up


def torch_compiled(problem: SwiGLU, arrays: Arrays) -> Loose:
    """One kernel, which writes where its allocator says: results are held, or all copies' would share lines of L2."""
    gate_up = as_torch(arrays["gate_up"], problem.activations)
    held: list[Tensor] = []

    def work() -> None:
        held[:] = [_gated(gate_up)]

    return Loose(on_this_stream(work), lambda: held[0].float().cpu().numpy(), ROUNDED)
