"""What a user would call instead of the lab's kernel for sampling: PyTorch's argmax, softmax and draws, compiled."""

import torch
from torch import Tensor

from experiments.peers.arrays import as_torch, on_this_stream
from lab.gpu.bench import Arrays, Loose, Peer
from lab.problems.sampling import Sampling

TOP_K, TOP_P = 50, 0.9
ANY = 1e9  # a draw has no right value to be compared with


def peers(problem: Sampling) -> dict[str, Peer]:
    """The same work by `settings`: the likeliest token, a draw from all, or one after top-k and top-p."""
    return {} if problem.settings == "mixed" else {"torch_compiled": torch_compiled}


@torch.compile(dynamic=False)
def _greedy(logits: Tensor) -> tuple[Tensor, Tensor]:
    wide = logits.float()
    token = wide.argmax(-1)
    return token, wide.log_softmax(-1).gather(-1, token[:, None])


@torch.compile(dynamic=False)
def _plain(logits: Tensor) -> tuple[Tensor, Tensor]:
    scores = logits.float().log_softmax(-1)
    token = (scores.exp() / torch.empty_like(scores).exponential_()).argmax(-1)
    return token, scores.gather(-1, token[:, None])


@torch.compile(dynamic=False)
def _filtered(logits: Tensor) -> tuple[Tensor, Tensor]:
    scores = logits.float().log_softmax(-1)
    best, index = scores.exp().topk(TOP_K, -1)
    best = torch.where(best.cumsum(-1) - best < TOP_P, best, 0.0)
    token = index.gather(-1, (best / torch.empty_like(best).exponential_()).argmax(-1, keepdim=True))[:, 0]
    return token, scores.gather(-1, token[:, None])


def torch_compiled(problem: Sampling, arrays: Arrays) -> Loose:
    """Its kernels; only greedy tokens are compared."""
    logits = as_torch(arrays["logits"], problem.activations)
    work_of = {"greedy": _greedy, "plain": _plain, "filtered": _filtered}[problem.settings]
    held: list[tuple[Tensor, Tensor]] = []

    def work() -> None:
        held[:] = [work_of(logits)]

    tolerance = 1e-6 if problem.settings == "greedy" else ANY
    return Loose(on_this_stream(work), lambda: held[0][0].cpu().numpy(), tolerance)
