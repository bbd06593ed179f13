"""`torch.ops.lab.linear` and `linear_int4`: the front door as PyTorch operators, which torch.compile keeps whole.

Importing this module registers them; `lab.linear` does so itself where PyTorch is loaded.
"""

import torch

from lab.ops import linear as lab_linear
from lab.weights import Int4Weights


@torch.library.custom_op("lab::linear", mutates_args=())
def linear(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """y[..., n] = x[..., k] @ w[n, k].T, as `lab.linear`."""
    return lab_linear(x, w)


@linear.register_fake
def _(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return x.new_empty((*x.shape[:-1], w.shape[0]), dtype=_output(x))


@torch.library.custom_op("lab::linear_int4", mutates_args=())
def linear_int4(
    x: torch.Tensor, w: torch.Tensor, w_scale: torch.Tensor, n: int, group: int, zero_points: bool = False
) -> torch.Tensor:
    """y[..., n] = x[..., k] @ w.T for the two arrays of `lab.Int4Weights`."""
    return lab_linear(x, Int4Weights(w, w_scale, (n, x.shape[-1]), group, zero_points))


@linear_int4.register_fake
def _(
    x: torch.Tensor, w: torch.Tensor, w_scale: torch.Tensor, n: int, group: int, zero_points: bool = False
) -> torch.Tensor:
    return x.new_empty((*x.shape[:-1], n))


def _output(x: torch.Tensor) -> torch.dtype:
    return torch.bfloat16 if x.dtype == torch.float8_e4m3fn else x.dtype
