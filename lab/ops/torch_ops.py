"""`torch.ops.lab.linear`, `attention` and their kin: the front doors as PyTorch operators, kept whole by torch.compile.

Importing this module registers them; the front doors do so themselves where PyTorch is loaded.
"""

from collections.abc import Collection
from typing import Any

import torch

from lab.ops.arrays import INDEX, TORCH, format_of, pitch_of, require_dense
from lab.ops.attention import INDICES
from lab.ops.attention import attention as lab_attention
from lab.ops.attention_request import SCALES, AttentionRequest, may_lie_apart, posed, scale_of
from lab.ops.linear import LinearRequest, problem_of
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
    kinds: list[tuple[str, tuple[int, ...], str]] = [("x", one_row, _format(x, "x"))]
    kinds += [(n, tuple(map(int, tensor.shape)), _format(tensor, n, form)) for n, (tensor, form) in weights.items()]
    problem = problem_of(LinearRequest(tuple(kinds), "", False, "", *packing))
    return TORCH.empty(x, (*x.shape[:-1], problem.columns), problem.output)


def _format(tensor: torch.Tensor, name: str, packed: str = "") -> str:
    """The format of a dense tensor that a call would take; raises InputError for any other."""
    require_dense(tensor.is_contiguous(), name)
    return format_of(tensor, name, packed)


def _kind(
    tensor: torch.Tensor, name: str, given: Collection[str], latent: int
) -> tuple[str, tuple[int, ...], str, int]:
    """An operand of attention as AttentionRequest takes it, of one sequence of one token; InputError as of a call."""
    rows = may_lie_apart(name, "block_table" in given)
    pitch = 0 if tensor.is_contiguous() else pitch_of(tensor.shape, tensor.stride(), 1, name, rows)
    form = format_of(tensor, name, INDEX if name in INDICES else "")
    return name, _one(name, tensor.shape, given, latent), form, int(pitch)


# Tensors come first, in this order: PyTorch takes none by keyword alone.
_TENSORS = ("q", "k", "v", "q_starts", "kv_lens", "block_table", "k_scale", "v_scale", "q_scale")
_ATTENTION = (
    "(Tensor q, Tensor k, Tensor? v=None, Tensor? q_starts=None, Tensor? kv_lens=None, Tensor? block_table=None, "
    "Tensor? k_scale=None, Tensor? v_scale=None, Tensor? q_scale=None, *, bool causal=True, int window=0, "
    "float? scale=None, SymInt? max_q_len=None, SymInt? max_kv_len=None, int latent=0) -> "
)
_Pair = tuple[torch.Tensor, torch.Tensor]


@torch.library.custom_op("lab::attention", mutates_args=(), schema=_ATTENTION + "Tensor")
def attention(*tensors: torch.Tensor | None, **options: Any) -> torch.Tensor:
    """y, as `lab.attention`."""
    y: torch.Tensor = lab_attention(**_named(tensors), **options)
    return y


@torch.library.custom_op("lab::attention_lse", mutates_args=(), schema=_ATTENTION + "(Tensor, Tensor)")
def attention_lse(*tensors: torch.Tensor | None, **options: Any) -> _Pair:
    """(y, lse), as `lab.attention` with lse=True."""
    both: _Pair = lab_attention(**_named(tensors), lse=True, **options)
    return both


@attention.register_fake
def _(*tensors: torch.Tensor | None, **options: Any) -> torch.Tensor:
    y, _ = _attended(tensors, **options)
    return y


@attention_lse.register_fake
def _(*tensors: torch.Tensor | None, **options: Any) -> _Pair:
    return _attended(tensors, **options)


def _attended(
    tensors: tuple[torch.Tensor | None, ...],
    causal: bool = True,
    window: int = 0,
    scale: float | None = None,
    max_q_len: Any = None,
    max_kv_len: Any = None,
    latent: int = 0,
) -> _Pair:
    """What a call returns, without its values; raises InputError where it would.

    Any batch, lengths and pool are one trace: what else the shapes say is checked for one sequence of one token.
    """
    given = _named(tensors)
    kinds = [_kind(tensor, name, given.keys(), latent) for name, tensor in given.items()]
    request = AttentionRequest(tuple(kinds), causal, window, scale_of(scale), latent=latent)
    problem, _ = posed(request)
    q = given["q"]
    y = TORCH.empty(q, (*q.shape[:-1], problem.value_dim), problem.output)
    return y, TORCH.empty(q, tuple(q.shape[:-1]), "fp32")


def _named(tensors: tuple[torch.Tensor | None, ...]) -> dict[str, Any]:
    return {name: tensor for name, tensor in zip(_TENSORS, tensors, strict=False) if tensor is not None}


def _one(name: str, shape: Any, given: Collection[str], latent: int) -> tuple[int, ...]:
    """An array's shape where there is one sequence of one token."""
    if name == "q_starts":
        return (2,) * len(shape)
    if name in INDICES:
        return (1,) * len(shape)
    if name in SCALES:
        return tuple(map(int, shape))
    paged = name != "q" and "block_table" in given
    kept = len(shape) - 1 if paged else 1 if latent and name != "q" else 2  # axes from the last on
    return (1,) * (len(shape) - kept) + tuple(map(int, shape[len(shape) - kept :]))
