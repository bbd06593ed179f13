"""What a user would call instead of the lab's kernels for a linear layer."""

from experiments.peers.cublas import chain_peers, cublas_peers
from experiments.peers.quantised import quantised_peers
from lab.gpu.bench import Peer
from lab.problems import Linear

__all__ = ["chain_peers", "peers"]


def peers(problem: Linear) -> dict[str, Peer]:
    """By name; where several solve the problem, the best one counts."""
    return cublas_peers(problem) | quantised_peers(problem)
