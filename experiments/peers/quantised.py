"""What a user would call for narrow weights: cuBLAS and tinygemm through PyTorch, and humming where it is installed.

Each holds the same matrix in its own format, so a result is right where its relative error is what that format, or its
rounding of activations, accounts for.
"""

import json
import os
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cupy
import numpy as np
import torch
from numpy.typing import NDArray

from experiments.peers.arrays import as_torch, on_this_stream
from lab.gpu.bench import Arrays, Loose, Peer
from lab.problems import Linear
from sim import int4

ROUNDED = 2.0**-6  # weights rounded to bf16 once more, sums in bf16
REQUANTISED = 0.2  # int4 groups quantised again, symmetrically
FP8_ACTIVATIONS = 0.05  # x rounded to e4m3


def quantised_peers(problem: Linear) -> dict[str, Peer]:
    """The peers of a layer with fp8 or int4 weights and bf16 activations, bf16 out."""
    p = problem
    if p.activations != "bf16" or p.output != "bf16" or p.epilogue != "none" or p.ordered:
        return {}
    found: dict[str, Peer] = {}
    if p.weights == "fp8":
        found["cublas_fp8_activations"] = scaled_mm
    elif p.group:
        found["tinygemm"] = tinygemm
    if found and humming_is_here():
        found["humming"] = humming
    return found


def scaled_mm(problem: Linear, arrays: Arrays) -> Loose:
    """`torch._scaled_mm` on activations that were rounded to fp8 beforehand: it takes no others."""
    x = as_torch(arrays["x"], "bf16").to(torch.float8_e4m3fn)
    w = as_torch(arrays["w"], "fp8").t()
    y = as_torch(arrays["y"], "bf16")
    x_scale = torch.ones(problem.m if problem.row_scales else 1, device=x.device)
    w_scale = as_torch(arrays["w_scale"], "fp32") if problem.scaled else torch.ones(1, device=x.device)
    if problem.row_scales:
        x_scale, w_scale = x_scale.reshape(-1, 1), w_scale.reshape(1, -1)
    torch.cuda.current_stream().synchronize()  # made on PyTorch's stream and used on ours
    options = {"out_dtype": torch.bfloat16, "use_fast_accum": True, "out": y}
    call = on_this_stream(lambda: torch._scaled_mm(x, w, x_scale, w_scale, **options))
    return Loose(call, lambda: _on_host(y), FP8_ACTIVATIONS)


def tinygemm(problem: Linear, arrays: Arrays) -> Loose:
    """PyTorch's int4 kernel, `_weight_int4pack_mm`: (q - 8) * scale + zero, both in bf16."""
    packed, pairs = (part.clone() for part in _tinygemm_weights(_Weights(problem, arrays)))
    x = as_torch(arrays["x"], "bf16")
    results = [None]
    torch.cuda.current_stream().synchronize()

    def work() -> None:
        results[0] = torch.ops.aten._weight_int4pack_mm(x, packed, problem.group, pairs)

    return Loose(on_this_stream(work), lambda: _on_host(results[0]), ROUNDED)


def humming(problem: Linear, arrays: Arrays) -> Loose:
    """humming-kernels with the tile that its own heuristics choose; it quantises the dequantised matrix again."""
    from humming.forward import humming_forward
    from humming.tune import get_heuristics_config

    layer = _humming_layer(_Weights(problem, arrays))
    words = json.dumps(_plain(get_heuristics_config(layer.humming_config, shape_m=problem.m)))
    w, scale = layer.weight.data.clone(), layer.weight_scale.data.clone()
    x = as_torch(arrays["x"], "bf16")
    further = {name: getattr(layer, name, None) for name in ("zero_point", "weight_scale_2")}
    results = [None]
    torch.cuda.current_stream().synchronize()

    def work() -> None:
        results[0] = humming_forward(
            layer.humming_config, inputs=x, weight=w, weight_scale=scale, bias=None, locks=layer.locks,
            tuning_config=words, **further,
        )  # fmt: skip

    tolerance = REQUANTISED if problem.group else FP8_ACTIVATIONS
    return Loose(on_this_stream(work), lambda: _on_host(results[0]), tolerance)


def humming_is_here() -> bool:
    """Whether humming can run; it compiles with nvcc, which it finds by an environment variable."""
    if find_spec("humming") is None:
        return False
    root = Path(torch.__file__).parent.parent / "nvidia"
    os.environ.setdefault("CUDA_HOME", "/usr/local/cuda" if Path("/usr/local/cuda").exists() else str(root))
    return True


class _Weights:
    """The weights of a layer as a key of caches: by shape, format and their first bytes, which are random."""

    def __init__(self, problem: Linear, arrays: Arrays) -> None:
        self.problem, self.arrays = problem, arrays
        self._key = problem.n, problem.k, problem.weights, arrays["w"].reshape(-1)[:64].get().tobytes()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Weights) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)


@lru_cache(maxsize=1)
def _tinygemm_weights(weights: _Weights) -> tuple[torch.Tensor, torch.Tensor]:
    groups = _groups(weights)
    q = torch.from_numpy(groups.q).cuda()
    packed = torch.ops.aten._convert_weight_to_int4pack((q[:, ::2] << 4 | q[:, 1::2]).contiguous(), 8)
    scale = torch.from_numpy(groups.scale.astype(np.float32)).cuda()
    offset = torch.from_numpy(groups.offset.astype(np.float32)).cuda()
    zero = scale * (8 - offset) if groups.zero_points else offset + 8 * scale
    pairs = torch.stack([scale, zero], dim=-1).transpose(0, 1).contiguous().to(torch.bfloat16)
    return packed, pairs


@lru_cache(maxsize=1)
def _humming_layer(weights: _Weights) -> Any:
    from humming.layer import HummingLayer

    p = weights.problem
    kind = {"dtype": "int4", "group_size": p.group} if p.group else {"dtype": "float8e4m3"}
    layer = HummingLayer(shape_n=p.n, shape_k=p.k, weight_config=kind, torch_dtype=torch.bfloat16).cuda()
    layer.load_from_unquantized(_dequantised(weights))
    layer.transform()
    return layer


def _dequantised(weights: _Weights) -> torch.Tensor:
    """w [n, k] in bf16, on the device."""
    problem, arrays = weights.problem, weights.arrays
    if problem.group:
        return torch.from_numpy(_groups(weights).values).cuda().to(torch.bfloat16)
    w = as_torch(arrays["w"], "fp8").float()
    return (w * as_torch(arrays["w_scale"], "fp32").reshape(-1, 1) if problem.scaled else w).to(torch.bfloat16)


def _groups(weights: _Weights) -> int4.Groups:
    p, arrays = weights.problem, weights.arrays
    return int4.unpack(arrays["w"].get(), arrays["w_scale"].get(), p.n, p.k, p.group, p.zero_points)


def _on_host(y: Any) -> NDArray[np.float32]:
    cupy.cuda.get_current_stream().synchronize()
    found: NDArray[np.float32] = y.float().cpu().numpy()
    return found


def _plain(value: Any) -> Any:
    """A configuration of humming's as JSON takes it."""
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value.item() if hasattr(value, "item") else getattr(value, "value", value)
