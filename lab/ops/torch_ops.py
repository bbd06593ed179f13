"""`torch.ops.lab.linear` and `linear_int4`: the front door as PyTorch operators, which torch.compile keeps whole.

Importing this module registers them; `lab.linear` does so itself where PyTorch is loaded.
"""

from typing import Any

import torch

from lab.ops.arrays import TORCH, format_of
from lab.ops.linear import Request, problem_of
from lab.ops.linear import linear as lab_linear
from lab.weights import Int4Weights


@torch.library.custom_op("lab::linear", mutates_args=())
def linear(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """y[..., n] = x[..., k] @ w[n, k].T, as `lab.linear`."""
    return lab_linear(x, w)


@linear.register_fake
def _(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return _result(x, {"w": (w, "")})


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
    packed = Int4Weights(w, w_scale, (n, int(x.shape[-1])), group, zero_points)
    return _result(x, {"w": (w, packed.format), "w_scale": (w_scale, "fp16")}, packed.shape, packed.offset)


def _result(x: torch.Tensor, weights: dict[str, tuple[torch.Tensor, str]], *packing: Any) -> torch.Tensor:
    """What a call returns, without its values; raises InputError where it would. Any number of rows is one trace."""
    one_row = (1, int(x.shape[-1])) if x.dim() else ()
    kinds: list[tuple[str, tuple[int, ...], str]] = [("x", one_row, format_of(x, "x"))]
    kinds += [(n, tuple(map(int, tensor.shape)), format_of(tensor, n, form)) for n, (tensor, form) in weights.items()]
    problem = problem_of(Request(tuple(kinds), "", False, "", *packing))
    return TORCH.empty(x, (*x.shape[:-1], problem.columns), problem.output)
