"""PyTorch's operators: what tracing is told of a result is what a call returns, and what a call refuses is refused."""

import sys
from typing import Any

import pytest

import lab
from sim import int4
from sim.errors import InputError

torch = pytest.importorskip("torch")
import lab.ops.torch_ops  # noqa: E402 (where there is PyTorch)

BF16, FP8 = torch.bfloat16, torch.float8_e4m3fn


def meta(*shape: int, dtype: Any = BF16) -> Any:
    return torch.empty(shape, dtype=dtype, device="meta")


@pytest.mark.parametrize(
    ("given", "result"),
    [
        (BF16, BF16),
        (torch.float16, torch.float16),
        (torch.float32, torch.float32),
        (torch.uint16, torch.uint16),
        (FP8, BF16),
        (torch.uint8, BF16),
    ],
)
@pytest.mark.parametrize("lead", [(), (3,), (2, 3), (0,)])
def test_a_trace_is_told_the_shape_and_type_of_the_result(lead: tuple[int, ...], given: Any, result: Any) -> None:
    y = torch.ops.lab.linear(meta(*lead, 64, dtype=given), meta(24, 64, dtype=given))
    assert (tuple(y.shape), y.dtype) == ((*lead, 24), result)


@pytest.mark.parametrize(
    ("x", "w", "sentence"),
    [
        (meta(3, 64), meta(24, 32), "must share k"),
        (meta(3, 64), meta(24), r"x must be \[..., k\] and w \[n, k\]"),
        (meta(), meta(24, 64), r"x must be \[..., k\] and w \[n, k\]"),
        (meta(3, 64), meta(24, 64, dtype=torch.float32), "w in fp32 needs x in fp32; x is in bf16"),
        (meta(3, 64), meta(24, 64, dtype=torch.int32), "w must be in one of .*; it is in int32"),
        (meta(3, 64, dtype=torch.complex64), meta(24, 64), "x must be in one of .*; it is in complex64"),
    ],
)
def test_a_trace_refuses_what_a_call_refuses(x: Any, w: Any, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        torch.ops.lab.linear(x, w)


def test_packed_weights_are_traced_and_refused_alike() -> None:
    packed = lab.pack(torch.ones(24, 64), 64)
    w, w_scale = packed.w.to("meta"), packed.w_scale.to("meta")
    y = torch.ops.lab.linear_int4(meta(2, 3, 64), w, w_scale, 24, 64)
    assert (tuple(y.shape), y.dtype) == ((2, 3, 24), BF16)
    for x, rows, sentence in (
        (meta(3, 64, dtype=torch.float32), 24, "needs x in bf16; x is in fp32"),
        (meta(3, 128), 24, "packed weights .* are "),
        (meta(3, 64), 1000, "packed weights .* are "),
    ):
        with pytest.raises(InputError, match=sentence):
            torch.ops.lab.linear_int4(x, w, w_scale, rows, 64)


def test_one_trace_serves_any_number_of_rows() -> None:
    make_fx = pytest.importorskip("torch.fx.experimental.proxy_tensor").make_fx
    traced = make_fx(lambda x, w: torch.ops.lab.linear(x, w) * 2, tracing_mode="symbolic")(meta(3, 64), meta(24, 64))
    for m in (3, 5):
        assert tuple(traced(meta(m, 64), meta(24, 64)).shape) == (m, 24)


def test_tensors_without_data_are_refused_outside_a_trace() -> None:
    with torch._subclasses.fake_tensor.FakeTensorMode():
        fake = torch.empty(3, 64, dtype=BF16, device="cuda")
    for x in (meta(3, 64), fake):
        with pytest.raises(InputError, match=r"x is a tensor without data; .* call torch\.ops\.lab\.linear"):
            lab.linear(x, x)
    with pytest.raises(InputError, match="the matrix to pack is a tensor without data"):
        lab.pack(meta(16, 64), 64)
    with pytest.raises(InputError, match="x is on the CPU"):
        lab.linear(torch.zeros(3, 64), torch.zeros(8, 64))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.bool, torch.complex64, torch.float64, FP8])
def test_other_types_are_not_packed(dtype: Any) -> None:
    with pytest.raises(InputError, match="weights to pack are in float32, float16 or bfloat16"):
        lab.pack(torch.ones(16, 64).to(dtype), 64)


def test_bits_and_values_are_packed_alike() -> None:
    values = torch.randn(16, 64).to(BF16)
    expected = lab.pack(values, 64)
    for same in (values.view(torch.uint16), values.float(), values.clone().requires_grad_()):
        packed = lab.pack(same, 64)
        assert torch.equal(packed.w, expected.w)
        assert torch.equal(packed.w_scale, expected.w_scale)


def test_lab_linear_registers_the_operators_where_pytorch_is_loaded() -> None:
    assert "lab.ops.torch_ops" in sys.modules
    assert torch.ops.lab.linear_int4 is not None


INT = torch.int32
DENSE = {"q": meta(3, 5, 4, 64), "k": meta(3, 9, 2, 64), "v": meta(3, 9, 2, 64)}
PACKED = {"q": meta(7, 4, 64), "k": meta(7, 2, 64), "v": meta(7, 2, 64)}
PACKED |= {"q_starts": meta(4, dtype=INT), "kv_lens": meta(3, dtype=INT)}
PAGED = {"q": meta(3, 1, 4, 64), "k": meta(99, 2, 2, 16, 64), "kv_lens": meta(3, dtype=INT)}
PAGED |= {"block_table": meta(3, 8, dtype=INT)}
LATENT = {"q": meta(3, 1, 4, 64), "k": meta(3, 9, 64), "latent": 48}


@pytest.mark.parametrize(
    ("call", "shape"),
    [
        (DENSE, (3, 5, 4, 64)),
        (PACKED, (7, 4, 64)),
        ({**PACKED, "k": meta(3, 9, 2, 64), "v": meta(3, 9, 2, 64)}, (7, 4, 64)),
        (PAGED, (3, 1, 4, 64)),
        ({**PAGED, "q": meta(7, 4, 64), "q_starts": meta(4, dtype=INT), "max_q_len": 4}, (7, 4, 64)),
        ({**PAGED, "k": meta(99, 2, 2, 16, 64, dtype=FP8), "k_scale": meta(2, dtype=torch.float32)}, (3, 1, 4, 64)),
        (
            {
                **{name: meta(3, 9, heads, 64, dtype=FP8) for name, heads in (("q", 4), ("k", 2), ("v", 2))},
                "q_scale": meta(2, dtype=torch.float32),
            },
            (3, 9, 4, 64),
        ),
        (LATENT, (3, 1, 4, 48)),
        (
            {**LATENT, "k": meta(99, 16, 64), "kv_lens": PAGED["kv_lens"], "block_table": PAGED["block_table"]},
            (3, 1, 4, 48),
        ),
    ],
)
def test_a_trace_is_told_what_attention_returns(call: dict[str, Any], shape: tuple[int, ...]) -> None:
    y, lse = torch.ops.lab.attention_lse(**call)
    for alone in (y, torch.ops.lab.attention(**call)):
        assert (tuple(alone.shape), alone.dtype) == (shape, BF16)
    assert (tuple(lse.shape), lse.dtype) == (shape[:-1], torch.float32)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        ({**DENSE, "v": None}, "v must be given"),
        ({**DENSE, "k": meta(3, 9, 2, 32)}, r"k must be .* 64\] in bf16; it is .* 32\]"),
        ({**DENSE, "q": meta(3, 5, 3, 64)}, "q_heads must be a multiple of kv_heads"),
        ({**DENSE, "kv_lens": meta(3, dtype=torch.int64)}, "kv_lens must be in int32; it is in int64"),
        ({**DENSE, "scale": -1.0}, "scale must be"),
        ({**PACKED, "kv_lens": None}, "kv_lens must be given"),
        ({**PAGED, "v": DENSE["v"]}, "v has no place here"),
        ({**LATENT, "latent": 65}, "latent must be from 0 to head_dim = 64"),
    ],
)
def test_a_trace_refuses_attention_that_makes_no_sense(call: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        torch.ops.lab.attention(**call)


def test_one_trace_serves_any_batch_of_any_lengths() -> None:
    make_fx = pytest.importorskip("torch.fx.experimental.proxy_tensor").make_fx

    def step(q: Any, cache: Any, kv_lens: Any, table: Any) -> Any:
        return torch.ops.lab.attention(q, cache, None, None, kv_lens, table) * 2

    def operands(batch: int, pages: int, columns: int) -> tuple[Any, ...]:
        indices = meta(batch, dtype=INT), meta(batch, columns, dtype=INT)
        return meta(batch, 1, 4, 64), meta(pages, 2, 2, 16, 64), *indices

    traced = make_fx(step, tracing_mode="symbolic")(*operands(3, 99, 8))
    for other in (operands(3, 99, 8), operands(5, 30, 4)):
        assert tuple(traced(*other).shape) == tuple(other[0].shape)


def test_a_trace_takes_parts_of_a_projection_as_a_call_does() -> None:
    """For any batch and length; parts of different rows are refused."""
    make_fx = pytest.importorskip("torch.fx.experimental.proxy_tensor").make_fx

    def attend(qkv: Any) -> Any:
        return torch.ops.lab.attention(*qkv.split([4, 2, 2], dim=2))

    traced = make_fx(attend, tracing_mode="symbolic")(meta(2, 5, 8, 64))
    for batch, length in ((2, 5), (3, 7)):
        y = traced(meta(batch, length, 8, 64))
        assert (tuple(y.shape), y.is_contiguous()) == ((batch, length, 4, 64), True)
    q, k, _ = meta(2, 5, 8, 64).split([4, 2, 2], dim=2)
    with pytest.raises(InputError, match="q, k and v must be dense, or parts of rows of 512 elements"):
        torch.ops.lab.attention(q, k, meta(2, 5, 2, 64))
    with pytest.raises(InputError, match="k must be dense and row-major; it is strided"):
        torch.ops.lab.attention(q, k.transpose(1, 2), k)


def test_compiling_keeps_attention_whole() -> None:
    def layer(q: Any, k: Any, v: Any) -> Any:
        return torch.ops.lab.attention(q * 2, k, v, causal=False) + 1

    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    assert tuple(compiled(*DENSE.values()).shape) == (3, 5, 4, 64)


def test_a_trace_refuses_strided_tensors_as_a_call_does() -> None:
    x, w = (torch.empty(rows, 64, dtype=torch.bfloat16, device="meta") for rows in (3, 32))
    for name, given in (("x", (x[:, ::2], w[:, :32].contiguous())), ("w", (x[:, :32].contiguous(), w[:, ::2]))):
        with pytest.raises(InputError, match=f"{name} must be dense and row-major"):
            torch.ops.lab.linear(*given)


def test_a_negated_view_is_packed_by_its_values() -> None:
    values = torch.complex(torch.zeros(16, 64), torch.ones(16, 64)).conj().imag  # a view with its sign to be turned
    packed = lab.pack(values, 64)
    arrays = packed.w.numpy(), packed.w_scale.numpy().view("uint16")
    assert (int4.unpack(*arrays, 16, 64, 64).values == -1).all()
