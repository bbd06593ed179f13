"""lab.linear on PyTorch's tensors: taken without a copy, on its streams, in its graphs, as its operators."""

from typing import Any

import numpy as np
import pytest

import lab
from lab.problems import Linear
from sim import int4
from tests.strategies import compare_y


def bits(torch: Any, tensor: Any) -> Any:
    return tensor.view(torch.int16).cpu().numpy().view(np.uint16)


def test_pytorch_tensors_on_another_gpu(second_gpu: int, torch: Any) -> None:
    place = f"cuda:{second_gpu}"
    x, w = (torch.randn(rows, 768, device=place, dtype=torch.bfloat16) for rows in (2, 512))
    out = torch.zeros(2, 512, device=place, dtype=torch.bfloat16)
    for _ in range(2):
        lab.linear(x, w, out=out)
        torch.cuda.synchronize(place)
        assert torch.cuda.current_device() == 0
        assert compare_y(Linear(2, 512, 768), {"x": bits(torch, x), "w": bits(torch, w)}, bits(torch, out)).passed
        out.zero_()


def test_no_rows_of_x_make_no_rows_of_y(cupy: Any, torch: Any) -> None:
    assert lab.linear(cupy.zeros((0, 128), cupy.uint16), cupy.zeros((64, 128), cupy.uint16)).shape == (0, 64)
    x, w = (torch.zeros(rows, 128, device="cuda", dtype=torch.bfloat16) for rows in (0, 64))
    assert lab.linear(x, w).shape == torch.nn.functional.linear(x, w).shape


@pytest.mark.parametrize("m", [1, 5, 200])
def test_pytorch_tensors_are_taken_without_a_copy(m: int, torch: Any) -> None:
    problem = Linear(m, 512, 768)
    x = torch.randn(m, 768, device="cuda", dtype=torch.bfloat16)
    w = torch.randn(512, 768, device="cuda", dtype=torch.bfloat16)
    inputs = {"x": bits(torch, x), "w": bits(torch, w)}
    out = torch.empty(m, 512, device="cuda", dtype=torch.bfloat16)
    assert lab.linear(x, w, out=out) is out
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        fresh = lab.linear(x, w)
    side.synchronize()
    torch.cuda.synchronize()
    for y in (out, fresh):
        assert compare_y(problem, inputs, bits(torch, y)).passed


def test_a_pytorch_graph_captures_a_call(torch: Any) -> None:
    problem = Linear(2, 520, 792)
    x = torch.randn(2, 792, device="cuda", dtype=torch.bfloat16)
    w = torch.randn(520, 792, device="cuda", dtype=torch.bfloat16)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = lab.linear(x, w)
    x.copy_(torch.randn_like(x))
    graph.replay()
    torch.cuda.synchronize()
    assert compare_y(problem, {"x": bits(torch, x), "w": bits(torch, w)}, bits(torch, y)).passed


@pytest.mark.parametrize("form", ["residual", "swiglu", "row scales", "fp8 output"])
def test_pytorch_tensors_with_what_follows_a_layer(form: str, torch: Any) -> None:
    m, n, k = 70, 512, 768
    fp8 = form in ("row scales", "fp8 output")
    dtype = torch.float8_e4m3fn if fp8 else torch.bfloat16
    x, w = (torch.randn(rows, k, device="cuda").to(dtype) for rows in (m, n))
    products = x.float() @ w.float().t()
    if form == "residual":
        residual = torch.randn(m, n, device="cuda", dtype=dtype)
        y, expected = lab.linear(x, w, residual=residual), products + residual.float()
    elif form == "swiglu":
        gate, up = products.chunk(2, dim=1)
        y, expected = lab.linear(x, w, swiglu=True), torch.nn.functional.silu(gate) * up
    elif form == "row scales":
        x_scale, w_scale = (torch.rand(rows, device="cuda") + 0.5 for rows in (m, n))
        y, expected = lab.linear(x, w, x_scale=x_scale, w_scale=w_scale), products * x_scale[:, None] * w_scale
    else:
        one, small = torch.ones(1, device="cuda"), torch.full((1,), 0.25, device="cuda")
        y = lab.linear(x, w, x_scale=one, w_scale=small, y_scale=one, output="fp8")
        expected = products * 0.25
    assert y.dtype == (torch.float8_e4m3fn if form == "fp8 output" else torch.bfloat16)
    relative = 2.0**-3 if form == "fp8 output" else 2.0**-6
    assert torch.allclose(y.float(), expected, rtol=relative, atol=0.3)


@pytest.mark.parametrize("m", [1, 5, 40, 300])
def test_one_packed_copy_of_int4_serves_every_batch(m: int, torch: Any) -> None:
    weights = torch.randn(320, 512, device="cuda") / 16
    w, x = lab.pack(weights, 64), torch.randn(m, 512, device="cuda", dtype=torch.bfloat16)
    groups = int4.unpack(w.w.cpu().numpy(), w.w_scale.cpu().numpy(), 320, 512, 64)
    expected = x.double() @ torch.from_numpy(groups.values).cuda().double().T
    y = torch.empty(m, 320, device="cuda", dtype=torch.bfloat16)
    for _ in range(2):  # the second call repeats the first
        y.fill_(float("nan"))
        assert lab.linear(x, w, out=y) is y
        assert (y.double() - expected).norm() <= 2.0**-8 * expected.norm()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        lab.linear(x, w, out=y)
    y.fill_(float("nan"))
    graph.replay()
    assert (y.double() - expected).norm() <= 2.0**-8 * expected.norm()


def test_pytorch_has_the_operators(torch: Any) -> None:
    x, w = (torch.randn(rows, 512, device="cuda", dtype=torch.bfloat16) for rows in (3, 320))
    packed = lab.pack(w, 32)
    torch.testing.assert_close(torch.ops.lab.linear(x, w), lab.linear(x, w))
    y = torch.ops.lab.linear_int4(x, packed.w, packed.w_scale, 320, 32)
    torch.testing.assert_close(y, lab.linear(x, packed))
    assert torch.compile(lambda x: torch.ops.lab.linear(x, w))(x).shape == (3, 320)
