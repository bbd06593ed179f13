"""What a user would call instead of the lab's kernels: cuBLAS through PyTorch, on the arrays of a bench."""

from collections.abc import Callable

import torch

from experiments.peers.arrays import FORMATS, as_torch, on_this_stream
from lab.gpu.bench import Arrays, Peer
from lab.gpu.chain import Chain
from lab.gpu.timing import Call
from lab.problems import Linear

torch.backends.cuda.matmul.allow_tf32 = False  # fp32 means fp32: TF32 keeps 10 bits of the operands


def cublas_peers(problem: Linear) -> dict[str, Peer]:
    """What PyTorch computes from the same arrays; where there are two, the better one counts."""
    p = problem
    if p.weights not in FORMATS or p.activations != p.weights or p.output == "fp8":
        return {}
    if p.weights == "fp8":
        return {"cublas": cublas_fp8} if p.output == "bf16" and p.epilogue == "none" else {}
    if p.output != p.weights:
        return {}
    if p.residual:
        return {"cublas": cublas_residual, "torch": torch_residual}
    if p.swiglu:
        return {"torch": torch_swiglu}
    return {"cublas": cublas} | ({"cublas_mv": cublas_mv} if p.m == 1 else {})


def chain_peers(problem: Linear) -> dict[str, Callable[[Chain], Call]]:
    """What PyTorch makes of a chain of layers without scales."""
    return {"cublas": cublas_chain} if problem.weights in ("bf16", "fp16") and problem.epilogue == "none" else {}


def cublas_chain(chain: Chain) -> Call:
    """`torch.mm` layer by layer."""
    form = chain.problem.weights
    matrices = [as_torch(weights["w"], form).t() for weights in chain.weights]
    hidden = [as_torch(array, form) for array in chain.activations]

    def work() -> None:
        for i, matrix in enumerate(matrices):
            torch.mm(hidden[i], matrix, out=hidden[i + 1])

    return on_this_stream(work)


def cublas(problem: Linear, arrays: Arrays) -> Call:
    """`torch.mm`, which `torch.nn.functional.linear` calls."""
    x, w, y = (as_torch(arrays[name], problem.weights) for name in ("x", "w", "y"))
    w_transposed = w.t()
    return on_this_stream(lambda: torch.mm(x, w_transposed, out=y))


def cublas_mv(problem: Linear, arrays: Arrays) -> Call:
    """`torch.mv`, for one row of x."""
    x, w, y = (as_torch(arrays[name], problem.weights) for name in ("x", "w", "y"))
    row, out = x[0], y[0]
    return on_this_stream(lambda: torch.mv(w, row, out=out))


def cublas_fp8(problem: Linear, arrays: Arrays) -> Call:
    """`torch._scaled_mm`, which serving engines call; its scales are ones where the problem has none."""
    x, w = (as_torch(arrays[name], "fp8") for name in ("x", "w"))
    y = as_torch(arrays["y"], problem.output)
    if problem.scaled:
        x_scale, w_scale = (as_torch(arrays[name], "fp32") for name in ("x_scale", "w_scale"))
    else:
        x_scale = w_scale = torch.ones(1, device=x.device)
        torch.cuda.current_stream().synchronize()  # they are made on PyTorch's stream and used on ours
    if problem.row_scales and not problem.x_row_scales:  # cuBLAS wants one for each row of both
        x_scale = x_scale.expand(problem.m).contiguous()
        torch.cuda.current_stream().synchronize()
    if problem.row_scales:
        x_scale, w_scale = x_scale.reshape(-1, 1), w_scale.reshape(1, -1)
    if problem.block_scales:  # cuBLAS wants x's by columns; they are turned once, outside of what is timed
        x_scale, w_scale = x_scale.t().contiguous().t(), w_scale.t()
        torch.cuda.current_stream().synchronize()
    w_transposed = w.t()

    options = {"out_dtype": y.dtype, "use_fast_accum": problem.fast, "out": y}
    return on_this_stream(lambda: torch._scaled_mm(x, w_transposed, x_scale, w_scale, **options))


def cublas_residual(problem: Linear, arrays: Arrays) -> Call:
    """`torch.addmm`: the residual is copied to y, where cuBLAS adds to it."""
    x, w, y, residual = (as_torch(arrays[name], problem.weights) for name in ("x", "w", "y", "residual"))
    w_transposed = w.t()
    return on_this_stream(lambda: torch.addmm(residual, x, w_transposed, out=y))


def torch_residual(problem: Linear, arrays: Arrays) -> Call:
    """`torch.mm`, then an addition."""
    x, w, y, residual = (as_torch(arrays[name], problem.weights) for name in ("x", "w", "y", "residual"))
    w_transposed = w.t()

    def work() -> None:
        torch.mm(x, w_transposed, out=y)
        y.add_(residual)

    return on_this_stream(work)


def torch_swiglu(problem: Linear, arrays: Arrays) -> Call:
    """`torch.mm`, then silu of one half of its columns, then the product with the other half."""
    x, w, y = (as_torch(arrays[name], problem.weights) for name in ("x", "w", "y"))
    w_transposed = w.t()
    both = torch.empty(problem.m, problem.n, device=x.device, dtype=x.dtype)
    gate, up = both[:, : problem.columns], both[:, problem.columns :]

    def work() -> None:
        torch.mm(x, w_transposed, out=both)
        torch.ops.aten.silu.out(gate, out=y)
        y.mul_(up)

    return on_this_stream(work)
