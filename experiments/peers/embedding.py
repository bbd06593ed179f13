"""What a user would call instead of the lab's kernel for rows of a table: PyTorch's index_select."""

import torch

from experiments.peers.arrays import as_torch, on_this_stream
from lab.gpu.bench import Arrays, Peer
from lab.gpu.timing import Call
from lab.problems.embedding import Embedding


def peers(problem: Embedding) -> dict[str, Peer]:  # noqa: ARG001 (all alike)
    """index_select into an array that is there."""
    return {"torch": index_select}


def index_select(problem: Embedding, arrays: Arrays) -> Call:
    """One kernel of PyTorch's."""
    table, y = (as_torch(arrays[name], problem.activations) for name in ("table", "y"))
    ids = torch.from_dlpack(arrays["ids"])
    return on_this_stream(lambda: torch.index_select(table, 0, ids, out=y))
